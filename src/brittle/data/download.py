"""Data sets that others publish: where they are looked for, and where they are downloaded from."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import platformdirs
from filelock import FileLock

from brittle.errors import InputError
from brittle.progress import Progress, silent

TIMEOUT = 30.0  # seconds without a byte before a mirror is given up
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Remote:
    """A file on public mirrors.

    Attributes:
        name: its name, on the mirrors and here.
        size: bytes, to say how far a download is.
        md5: what its owners, or those who mirror it, publish.
        mirrors: addresses of folders that hold it, tried in turn.
        gives: the files of the data set that it holds: itself, or what is unpacked from it.
    """

    name: str
    size: int
    md5: str
    mirrors: tuple[str, ...]
    gives: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """A data set as it lies on disk, and where it comes from.

    Attributes:
        name: what users call it.
        folder: its folder under a data root.
        files: every file that it needs; each may also be there with .gz after its name.
        remotes: where to download it; empty when it must be placed by hand.
        by_hand: why it must be.
    """

    name: str
    folder: str
    files: tuple[str, ...]
    remotes: tuple[Remote, ...] = ()
    by_hand: str = ""


def roots(root: Path | None = None) -> list[Path]:
    """The folders that may hold data sets, in the order of search; the first is where downloads go."""
    named = [Path(os.path.expanduser(where)) for where in (root, os.environ.get("BRITTLE_DATA")) if where]
    return [*named, Path(platformdirs.user_cache_dir("brittle")) / "data"]


def offline() -> bool:
    """Whether BRITTLE_OFFLINE forbids the network."""
    return os.environ.get("BRITTLE_OFFLINE", "") not in ("", "0")


def locate(folder: Path, file: str) -> Path | None:
    """Where `file` lies in `folder`, as it is or compressed; None when it does not."""
    return next((path for path in (folder / file, folder / f"{file}.gz") if os.path.isfile(path)), None)


def find(published: Published, places: list[Path]) -> Path | None:
    """The first folder that holds the whole data set: each place's own folder for it, or the place itself."""
    folders = [folder for place in places for folder in (place / published.folder, place)]
    return next((folder for folder in folders if not _missing(published, folder)), None)


def find_or_fetch(published: Published, root: Path | None, progress: Progress = silent) -> Path:
    """The folder that holds the data set, downloaded if no data root has it.

    Raises:
        InputError: if it is nowhere and may not be, or could not be, downloaded.
    """
    return find(published, roots(root)) or fetch(published, root, progress)


def fetch(published: Published, root: Path | None = None, progress: Progress = silent) -> Path:
    """Downloads what the first data root lacks of the data set; files that are there already are left alone.

    Args:
        published: the data set.
        root: where to, before BRITTLE_DATA and the user's cache.
        progress: told the bytes done and their total.

    Returns:
        The folder that holds it.

    Raises:
        InputError: if it must be placed by hand, the network is forbidden, the folder cannot be written, or no mirror
            gives the right files.
    """
    target = roots(root)[0]
    if found := find(published, [target]):
        return found
    if not published.remotes or offline():
        raise not_here(published, root)
    folder = target / published.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".download.lock"):  # several workers may start at once on an empty folder
            _fetch_into(folder, published, progress)
    except OSError as error:
        raise InputError(f"cannot write {published.name} into {folder}: {error.strerror or error}") from error
    return folder


def not_here(published: Published, root: Path | None) -> InputError:
    """An error that says where the data set was looked for and how its files should lie."""
    looked = roots(root)
    first, *others = published.files
    layout = f"{published.folder}/{first}" + (f" and {len(others)} more files" if others else "")
    partly = ""
    for folder in (place / published.folder for place in looked):
        lacking = _missing(published, folder)
        if not lacking:
            partly = f"; {folder} has all of it: copy it from there"
        elif len(lacking) < len(published.files):
            partly = f"; {folder} lacks {', '.join(lacking[:3])}{', ...' if len(lacking) > 3 else ''}"
    why = published.by_hand if not published.remotes else "BRITTLE_OFFLINE forbids downloading it"
    places = ", ".join(map(str, looked))
    return InputError(f"{published.name} is not here: looked in {places} for {layout}{partly}; {why}")


def _missing(published: Published, folder: Path) -> list[str]:
    return [file for file in published.files if locate(folder, file) is None]


def _fetch_into(folder: Path, published: Published, progress: Progress) -> None:
    lacking = set(_missing(published, folder))  # looked up again: another process may have been first
    wanted = [remote for remote in published.remotes if lacking.intersection(remote.gives)]
    total, before = sum(remote.size for remote in wanted), 0
    for remote in wanted:

        def so_far(done: int, before: int = before, name: str = remote.name) -> None:
            progress(min(before + done, total), total, name)

        path = _download(remote, folder, so_far)
        if remote.name.endswith(".tar.gz"):
            _unpack(path, [file for file in remote.gives if file in lacking])
            path.unlink()
        before += remote.size


def _download(remote: Remote, folder: Path, so_far: Callable[[int], None]) -> Path:
    failures = []
    for mirror in remote.mirrors:
        try:
            return _transfer(mirror + remote.name, remote.md5, folder / remote.name, so_far)
        except (OSError, http.client.HTTPException) as error:
            failures.append(f"{mirror + remote.name}: {error or type(error).__name__}")
    raise InputError(f"could not download {remote.name}: {'; '.join(failures)}")


def _transfer(url: str, md5: str, target: Path, so_far: Callable[[int], None]) -> Path:
    """Writes to a temporary name beside `target`, renamed once the checksum is right: no half file under its name."""
    partial = target.with_name(f".{target.name}.part")
    digest, done = hashlib.md5(usedforsecurity=False), 0
    request = urllib.request.Request(url, headers={"User-Agent": "brittle"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response, partial.open("wb") as file:
            announced: int | None = response.length
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                so_far(done)
        if announced is not None and done != announced:
            raise OSError(f"ended after {done:,} of {announced:,} bytes")
        if digest.hexdigest() != md5:
            raise OSError(f"md5 is {digest.hexdigest()[:12]} ({done:,} bytes), expected {md5[:12]}")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target


def _unpack(archive: Path, files: list[str]) -> None:
    """Takes `files` out of a checked archive, by their last names: nothing else of it is written."""
    with tarfile.open(archive) as tar:
        members = {member.name.rpartition("/")[2]: member for member in tar if member.isfile()}
        for file in files:
            partial = archive.with_name(f".{file}.part")
            content = tar.extractfile(members[file])
            assert content is not None, "only regular files were listed"
            try:
                with content, partial.open("wb") as out:
                    while chunk := content.read(_CHUNK):
                        out.write(chunk)
                partial.replace(archive.with_name(file))
            finally:
                partial.unlink(missing_ok=True)
