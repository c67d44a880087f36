"""Downloads from a server on this machine: whole files, or an error that says what each mirror did."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from brittle import data
from brittle.data import builtin, download
from brittle.data.download import Published, Remote
from brittle.errors import InputError

CONTENT = bytes(range(256)) * 4000  # larger than what is read at once


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Mirrors:
    """A server whose folders hold what `files` says; `cut` lists the paths that break off halfway."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: set[str] = set()
        self.asked: list[str] = []
        mirrors = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirrors.asked.append(self.path)
                content = mirrors.files.get(self.path)
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if self.path in mirrors.cut else content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch, empty_roots: Path) -> Iterator[Mirrors]:
    monkeypatch.setenv("no_proxy", "*")
    served = Mirrors()
    thread = threading.Thread(target=served.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield served
    served.server.shutdown()
    served.server.server_close()
    thread.join()


def published(mirrors: Mirrors, *content: bytes) -> Published:
    """A data set of one file a, or more, that folders /one/ and /two/ should hold."""
    folders = (f"{mirrors.address}/one/", f"{mirrors.address}/two/")
    names = "abc"[: len(content)]
    remotes = [
        Remote(name, len(whole), md5(whole), folders, gives=(name,)) for name, whole in zip(names, content, strict=True)
    ]
    return Published("letters", "in", tuple(names), tuple(remotes))


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {".download.lock"}


def test_a_good_download(mirrors: Mirrors, tmp_path: Path):
    mirrors.files = {"/one/a": CONTENT, "/one/b": b"short"}
    steps: list[tuple[int, int, str]] = []
    folder = download.fetch(
        published(mirrors, CONTENT, b"short"), tmp_path, lambda done, total, note="": steps.append((done, total, note))
    )
    assert folder == tmp_path / "in"
    assert left_in(folder) == {"a", "b"}
    assert (folder / "a").read_bytes() == CONTENT
    assert steps[-1] == (len(CONTENT) + 5, len(CONTENT) + 5, "b")
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert {note for _, _, note in steps} == {"a", "b"}


def test_what_is_there_is_not_downloaded_again(mirrors: Mirrors, tmp_path: Path):
    mirrors.files = {"/one/a": CONTENT, "/one/b": b"short"}
    both = published(mirrors, CONTENT, b"short")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.gz").write_bytes(b"the user's own")
    download.fetch(both, tmp_path)
    assert mirrors.asked == ["/one/a"]
    assert left_in(tmp_path / "in") == {"a", "b.gz"}
    download.fetch(both, tmp_path)
    assert mirrors.asked == ["/one/a"]


def test_files_in_the_root_itself_are_found(mirrors: Mirrors, tmp_path: Path):
    (tmp_path / "a").write_bytes(b"the user's own")
    assert download.fetch(published(mirrors, CONTENT), tmp_path) == tmp_path
    assert mirrors.asked == []


@pytest.mark.parametrize("fault", ["lacking", "cut", "other"])
def test_the_second_mirror_helps(mirrors: Mirrors, tmp_path: Path, fault: str):
    mirrors.files = {"/one/a": CONTENT if fault == "cut" else b"other", "/two/a": CONTENT}
    mirrors.cut = {"/one/a"} if fault == "cut" else set()
    if fault == "lacking":
        del mirrors.files["/one/a"]
    folder = download.fetch(published(mirrors, CONTENT), tmp_path)
    assert mirrors.asked == ["/one/a", "/two/a"]
    assert (folder / "a").read_bytes() == CONTENT
    assert left_in(folder) == {"a"}


def test_every_mirrors_fault_is_told_and_nothing_is_left(mirrors: Mirrors, tmp_path: Path):
    mirrors.files = {"/one/a": CONTENT, "/two/a": b"other"}
    mirrors.cut = {"/one/a"}
    with pytest.raises(InputError) as caught:
        download.fetch(published(mirrors, CONTENT), tmp_path)
    assert str(caught.value) == (
        f"could not download a: {mirrors.address}/one/a: ended after 512,000 of 1,024,000 bytes; "
        f"{mirrors.address}/two/a: md5 is {md5(b'other')[:12]} (5 bytes), expected {md5(CONTENT)[:12]}"
    )
    assert left_in(tmp_path / "in") == set()


def test_absent_files_and_absent_servers(mirrors: Mirrors, tmp_path: Path):
    lost = published(mirrors, CONTENT)
    nobody = replace(lost.remotes[0], mirrors=(f"{mirrors.address}/one/", "http://127.0.0.1:9/"))  # 9: discard
    with pytest.raises(InputError) as caught:
        download.fetch(replace(lost, remotes=(nobody,)), tmp_path)
    assert f"{mirrors.address}/one/a: HTTP Error 404: Not Found; http://127.0.0.1:9/a: " in str(caught.value)
    assert "Connection refused" in str(caught.value)


def test_a_keystroke_leaves_nothing(mirrors: Mirrors, tmp_path: Path):
    mirrors.files = {"/one/a": CONTENT}

    def interrupt(done: int, total: int, note: str = "") -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download.fetch(published(mirrors, CONTENT), tmp_path, interrupt)
    assert left_in(tmp_path / "in") == set()


def test_workers_that_start_together_download_once(mirrors: Mirrors, tmp_path: Path):
    mirrors.files = {"/one/a": CONTENT}
    wanted = published(mirrors, CONTENT)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: download.fetch(wanted, tmp_path), range(4)))
    assert set(folders) == {tmp_path / "in"}
    assert mirrors.asked == ["/one/a"]


def test_offline_asks_nobody(mirrors: Mirrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_roots: Path):
    mirrors.files = {"/one/a": CONTENT}
    wanted = published(mirrors, CONTENT, b"", b"")
    monkeypatch.setenv("BRITTLE_OFFLINE", "1")
    with pytest.raises(InputError) as caught:
        download.find_or_fetch(wanted, tmp_path)
    assert str(caught.value) == (
        f"letters is not here: looked in {tmp_path}, {empty_roots} for in/a and 2 more files; "
        f"BRITTLE_OFFLINE forbids downloading it"
    )
    assert mirrors.asked == []
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("BRITTLE_OFFLINE", "0")
    assert not download.offline()


def test_a_whole_copy_elsewhere_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_roots: Path):
    (empty_roots / "in").mkdir(parents=True)
    (empty_roots / "in" / "a").write_bytes(b"A")
    with pytest.raises(InputError) as caught:
        download.fetch(Published("letters", "in", ("a",), by_hand="ask for it"), tmp_path)
    assert str(caught.value) == (
        f"letters is not here: looked in {tmp_path}, {empty_roots} for in/a; {empty_roots / 'in'} has all of it: "
        f"copy it from there; ask for it"
    )


def test_where_downloads_go(mirrors: Mirrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_roots: Path):
    mirrors.files = {"/one/a": CONTENT}
    wanted = published(mirrors, CONTENT)
    assert download.fetch(wanted) == empty_roots / "in"
    monkeypatch.setenv("BRITTLE_DATA", str(tmp_path / "named"))
    assert download.fetch(wanted) == tmp_path / "named" / "in"
    assert download.fetch(wanted, tmp_path / "given") == tmp_path / "given" / "in"
    assert download.find_or_fetch(wanted, tmp_path / "elsewhere") == tmp_path / "named" / "in"


def test_a_folder_that_cannot_be_written(mirrors: Mirrors, tmp_path: Path):
    (tmp_path / "in").write_text("a file where the folder should be")
    with pytest.raises(InputError, match=rf"^cannot write letters into {tmp_path / 'in'}: File exists"):
        download.fetch(published(mirrors, CONTENT), tmp_path)


def test_an_archive_is_unpacked_to_the_wanted_files(mirrors: Mirrors, tmp_path: Path):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in (("in/a", b"A"), ("in/b", CONTENT), ("in/readme", b"no"), ("../escaped", b"no")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    archive = packed.getvalue()
    mirrors.files = {"/two/all.tar.gz": archive}
    folders = (f"{mirrors.address}/one/", f"{mirrors.address}/two/")
    remote = Remote("all.tar.gz", len(archive), md5(archive), folders, gives=("a", "b"))
    folder = download.fetch(Published("letters", "in", ("a", "b"), (remote,)), tmp_path)
    assert left_in(folder) == {"a", "b"}
    assert (folder / "b").read_bytes() == CONTENT
    assert left_in(tmp_path) == {"in"}


def test_mnist_is_downloaded_and_read(
    mirrors: Mirrors, tmp_path: Path, data_root: Path, monkeypatch: pytest.MonkeyPatch
):
    """The real files; only the .gz checksums are those of this copy, which may have been compressed again."""
    known = builtin._KNOWN["mnist"]
    files = {remote.name: (data_root / "mnist" / remote.name).read_bytes() for remote in known.published.remotes}
    mirrors.files = {f"/one/{name}": content for name, content in files.items()}
    here = tuple(
        replace(remote, md5=md5(files[remote.name]), mirrors=(f"{mirrors.address}/one/",))
        for remote in known.published.remotes
    )
    monkeypatch.setitem(builtin._KNOWN, "mnist", replace(known, published=replace(known.published, remotes=here)))
    assert len(data.load("mnist", tmp_path).test) == 10_000
    assert data.fetch("mnist", tmp_path) == tmp_path / "mnist"
    assert len(mirrors.asked) == 4


def test_the_published_label_files_have_the_published_md5(data_root: Path):
    """Those of this copy are as LeCun compressed them, so they hold the checksums that downloads are held to."""
    for remote in builtin._KNOWN["mnist"].published.remotes:
        if "labels" in remote.name:
            content = (data_root / "mnist" / remote.name).read_bytes()
            assert (md5(content), len(content)) == (remote.md5, remote.size)
            assert gzip.decompress(content)


def test_mirrors_are_addresses_of_folders():
    for known in builtin._KNOWN.values():
        for remote in known.published.remotes:
            assert len(remote.mirrors) >= 2
            assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in remote.mirrors)
            assert set(remote.gives) <= set(known.published.files)
