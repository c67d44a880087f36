"""Finished cells on disk: one folder each, named by its key, whole or not there at all.

    root/
      cells/<key>/            cell.json and *.safetensors of a finished cell
      work/<key>/             scratch of an unfinished cell
      locks/<key>.lock        held by the process that computes the cell
      studies/<name>.json     which cells a study is made of

A cell is written under a temporary name, synced and renamed, so a killed process leaves no half of one. `cell.json`
holds the sha256 of every file and a seal over itself, as a study has one, so what the disk damaged later is found when
it is read. There is no index and no pickle, and no path is written down: a copied folder is a store.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs
from filelock import FileLock, Timeout

from brittle.errors import InputError, StoreError, unknown
from brittle.study.store import files as disk

if TYPE_CHECKING:
    from torch import Tensor  # importing torch takes a second, and much that reads a store needs no tensor

_KEY = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")  # no leading dot: those are the store's own, and '..' is no file
# Control characters but tab and newline, and marks that turn the direction of text (Unicode's UAX 9).
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_TEMPORARY, _TRASH = ".tmp-", ".trash-"
_COMMAND, _CLEANING = ".command-", ".cleaning"  # locks: of each command that runs, and of who removes everything
_PARTS = ("cells", "work", "locks", "studies")
_POLL = 0.05  # seconds between looks at a lock that another process holds; a cell takes seconds to hours
_GATE_POLL = 0.002  # the gate is held for well under a millisecond

# What a rename says when something stands at its target; Windows says EACCES, which elsewhere means what it says.
_TAKEN = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR} | ({errno.EACCES} if os.name == "nt" else set())


def printable(text: object) -> str:
    """A name as it may be shown anywhere: what steers a terminal or turns text round is written as its code."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


@dataclass(frozen=True)
class Stored:
    """A finished cell as it lies in the store.

    Attributes:
        key: 32 hexadecimal characters.
        folder: where its files are.
        record: what was put in, as JSON gives it back (tuples are lists), and "files": the bytes and sha256 of each.
    """

    key: str
    folder: Path
    record: dict[str, Any]

    @property
    def scalars(self) -> dict[str, Any]:
        """The record's "scalars"; empty when it has none."""
        return self.record.get("scalars", {})

    @property
    def title(self) -> str:
        """The record's "title", which may be shown anywhere; a sentence in its place when it has none."""
        told = self.record.get("title")
        return printable(told) if isinstance(told, str) else "a cell without a title"

    @property
    def seconds(self) -> float | None:
        """How long the cell took to compute; None when its record does not say."""
        made = self.record.get("provenance")
        told = made.get("seconds") if isinstance(made, dict) else None
        return float(told) if isinstance(told, int | float) else None

    def tensors(self, name: str = "tensors") -> dict[str, Tensor]:
        """Reads the tensors that were put under `name`, on the CPU; each call reads the file again.

        Raises:
            InputError: if the cell has no tensors of that name.
        """
        if f"{name}.safetensors" not in self.record["files"]:
            raise unknown("tensors", name, [Path(file).stem for file in self.record["files"]])
        from safetensors.torch import load

        return load((self.folder / f"{name}.safetensors").read_bytes())  # of small files thrice as fast as `load_file`


@dataclass(frozen=True)
class Cleaned:
    """How many things of each kind `Store.clean` removed, and how many bytes they held together.

    Attributes:
        cells: damaged ones; all of them, with `everything`.
        leftovers: half-written or half-deleted folders and files of processes that were killed.
        work: scratch folders that nobody uses: of finished cells; of unfinished ones too, with `unfinished` or
            `everything`.
        locks: lock files that nobody holds.
        studies: none, unless with `everything`.
        bytes: freed by all of these.
    """

    cells: int = 0
    leftovers: int = 0
    work: int = 0
    locks: int = 0
    studies: int = 0
    bytes: int = 0


class Store:
    """A folder of finished cells that several processes may read and write at once.

    Makes nothing on disk before the first write. Everything that writes (`put`, `discard`, `lock`, `scratch`,
    `remove_scratch`, `clean`, `write_study`) raises StoreError, one line with the folder and the system's reason, where
    it cannot; everything else works on a store that is read-only or not there. A key that is not 32 hexadecimal
    characters is an InputError everywhere.
    """

    def __init__(self, root: Path | str | None = None) -> None:
        """`root`: the store's folder; $BRITTLE_HOME when not given, and the user's data folder without that."""
        root = root or os.environ.get("BRITTLE_HOME") or platformdirs.user_data_dir("brittle")
        self.root = Path(root).expanduser().absolute()
        self._whole: dict[str, dict[str, tuple]] = {}  # per key: files hashed by this process, and their signatures
        self._holders: dict[str, tuple[int, int]] = {}  # per key locked here: the process and thread that hold it

    # Cells

    def get(self, key: str) -> Stored | None:
        """The cell, or None if it is absent or damaged. Writes nothing.

        Files are hashed the first time only; after that their size and time of change must be as they were.
        """
        cell, _ = self._read(key, known=self._whole.get(key, {}))
        return cell

    def damage(self, key: str) -> str | None:
        """What is wrong with a stored cell ("tensors.safetensors: sha256 differs"); None when it is whole or absent.

        Hashes every file again, so it also finds what changed under an old time of change.
        """
        _, sentence = self._read(key, known={})
        return sentence

    def put(self, key: str, record: Mapping[str, Any], tensors: Mapping[str, Mapping[str, Tensor]]) -> Stored:
        """Stores a finished cell and removes its scratch. A whole cell of the same key that is there already stays.

        Args:
            key: 32 hexadecimal characters.
            record: strict JSON: string keys, no NaN or infinity, and neither "files" nor "seal", which are added.
            tensors: file names without ending -> tensor names -> tensors of any device, shape and memory layout.

        Raises:
            ValueError: if the record or a name is not as above; says where.
            StoreError: if the store cannot be written; nothing of the cell is left then.
        """
        disk.check_record(record)
        for name in tensors:
            _check_name("tensors", name)
        cell = self.get(key)
        if cell is None:
            with self._temporary("cells", key) as folder, disk.writing(self.root / "cells"):
                folder.mkdir()
                files = {f"{name}.safetensors": disk.write_tensors(folder, name, tensors[name]) for name in tensors}
                disk.write(folder / disk.RECORD, disk.sealed({**record, "files": files}))
                disk.sync_folder(folder)
                cell = self._place(folder, key)
        self.remove_scratch(key)
        return cell

    def discard(self, key: str) -> None:
        """Removes a cell, whole or damaged; an absent one is no error. Renamed first, so nobody sees half of it."""
        self._discard(key)

    def keys(self) -> list[str]:
        """The keys of all cells, damaged ones too, sorted."""
        return [name for name in disk.names(self.root / "cells") if _KEY.fullmatch(name)]

    def find(self, prefix: str) -> str:
        """The one key that starts with `prefix`, in either case.

        Raises:
            InputError: if none does, or several; these are listed.
        """
        keys = self.keys()
        found = [key for key in keys if key.startswith(prefix.lower())]
        if len(found) == 1:
            return found[0]
        if not found:
            raise InputError(f"no cell starts with {prefix!r} among the {len(keys)} in {self.root}")
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise InputError(f"{len(found)} cells start with {prefix!r}: {', '.join(found[:10])}{more}")

    def verify(self) -> Iterator[tuple[str, str | None]]:
        """Every key with what is wrong with its cell, None when nothing is. Hashes every file."""
        for key in self.keys():
            yield key, self.damage(key)

    def size(self) -> int:
        """Bytes of everything in the store."""
        return sum(disk.bytes_of(self.root / part) for part in _PARTS)

    # Locks and scratch

    @contextmanager
    def lock(self, key: str, *, wait: bool = True) -> Iterator[bool]:
        """Holds a cell for this thread alone, across processes; look with `get` again once inside.

        The system frees the lock of a process that dies, however it dies.

        Args:
            key: 32 hexadecimal characters.
            wait: while somebody else holds the lock, without a limit; else it is given up at once.

        Yields:
            Whether the lock is held.

        Raises:
            RuntimeError: if this thread holds the key already: it would wait for itself.
        """
        _check_key(key)
        me = os.getpid(), threading.get_ident()
        if self._holders.get(key) == me:
            raise RuntimeError(f"this thread already holds the lock of cell {key}")
        lock = self._acquire(key) if not wait else self._waited(key)
        if lock is None:
            yield False
            return
        self._holders[key] = me
        try:
            yield True
        finally:
            del self._holders[key]
            self._release(key, lock)

    def scratch(self, key: str) -> Path:
        """The scratch folder of an unfinished cell, made if need be. Hold the cell's lock, or `clean` may take it."""
        _check_key(key)
        folder = self.root / "work" / key
        with disk.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def remove_scratch(self, key: str) -> None:
        """Removes the scratch folder of a cell; an absent one is no error."""
        _check_key(key)
        with disk.writing(self.root / "work"):
            disk.erase(self.root / "work" / key)

    def is_locked(self, key: str) -> bool:
        """Whether a process holds a cell, that is, computes it. Writes nothing where nobody ever did."""
        _check_key(key)
        if not self._lock_file(key).exists():
            return False
        with self._free(key) as free:
            return not free

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps `clean` from removing everything while a command runs; waits for one that is at it."""
        name = f"{_COMMAND}{secrets.token_hex(4)}"
        with ExitStack() as command:
            with self._held(_CLEANING):
                command.enter_context(self._held(name))
            yield

    def clean(self, *, unfinished: bool = False, everything: bool = False) -> Cleaned:
        """Removes what killed processes left and what is damaged, and nothing that a running process holds.

        Args:
            unfinished: remove the checkpoints of interrupted work too, from which the same command would resume.
            everything: remove all cells, studies and checkpoints too.

        Raises:
            InputError: if everything is to be removed while a command runs on this store.
        """
        if not everything:
            return self._cleaned(unfinished=unfinished, everything=False)
        with self._held(_CLEANING):
            for name in self._commands():
                with self._free(name) as free:
                    if not free:
                        raise InputError(
                            f"a command is running on the store {self.root}: stop it or wait for its end, and remove "
                            "everything then"
                        )
            return self._cleaned(unfinished=True, everything=True)

    def _commands(self) -> list[str]:
        locks = disk.names(self.root / "locks")
        return [name.removesuffix(".lock") for name in locks if name.startswith(_COMMAND) and name.endswith(".lock")]

    def _cleaned(self, *, unfinished: bool, everything: bool) -> Cleaned:
        count: Counter[str] = Counter()
        for name in self._owned():
            locks = int(os.path.lexists(self._lock_file(name)))  # asked first: looking whether it is held makes it
            with self._free(name) as free:
                if free:
                    count["locks"] += locks
                    self._remove("leftovers", self.root / "cells" / name, count, only=_TEMPORARY)
                    self._remove("leftovers", self.root / "studies" / name, count, only=_TEMPORARY)
                    if unfinished or os.path.lexists(self.root / "cells" / name):
                        self._remove("work", self.root / "work" / name, count)
        for key in self.keys():
            if everything or self.damage(key):
                with self._free(key) as free:
                    # Looked at again: whoever held the lock until now may have put a whole cell in its place.
                    if free and (everything or self.damage(key)):
                        count["bytes"] += self._discard(key)
                        count["cells"] += 1
        for path in (self.root / "cells").glob(f"{_TRASH}*"):
            self._remove("leftovers", path, count)
        for name in self.studies() if everything else ():
            self._remove("studies", self._study(name), count)
        return Cleaned(**count)

    # Studies

    def write_study(self, name: str, record: Mapping[str, Any]) -> None:
        """Writes which cells a study is made of, in place of what was written before.

        Raises:
            InputError: if the name is not a plain file name (letters, digits, '.', '_', '-').
            ValueError: if the record is not strict JSON; says where.
        """
        _check_name("study", name)
        disk.check_json(dict(record), f"study {name}")
        with self._temporary("studies", name) as path, disk.writing(self.root / "studies"):
            disk.write(path, disk.sealed(dict(record)))
            os.replace(path, self._study(name))
            disk.sync_folder(self.root / "studies")

    def read_study(self, name: str) -> dict[str, Any]:
        """What was written under this name.

        Raises:
            InputError: if there is no such study, with the nearest names, or if its file is damaged.
        """
        _check_name("study", name)
        try:
            return disk.unsealed(self._study(name).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise unknown("study", name, self.studies()) from None
        except OSError as error:
            raise InputError(f"study {name!r} cannot be read: {self._study(name)}: {error}") from error
        except disk.DamagedError as error:
            raise InputError(
                f"study {name!r} cannot be read: {self._study(name)} is damaged, or of another version of brittle "
                f"({error}): run the study again"
            ) from error

    def studies(self) -> list[str]:
        """The names of all studies, sorted."""
        files = [name for name in disk.names(self.root / "studies") if name.endswith(".json") and _NAME.fullmatch(name)]
        return sorted(name.removesuffix(".json") for name in files)

    # Reading and placing a cell

    def _read(self, key: str, known: dict[str, tuple]) -> tuple[Stored | None, str | None]:
        """The cell and None, None and what is wrong with it, or None twice if it is absent.

        Files whose signature is in `known` are not hashed again.
        """
        folder = self._cell(key)
        if not os.path.lexists(folder):
            return None, None
        record, sentence = disk.read_record(folder)
        if record is None:
            return None, sentence
        signatures = {}
        for name, expected in record["files"].items():
            try:
                signatures[name] = disk.signature(folder / name, expected)
                if known.get(name) != signatures[name]:
                    disk.check_file(folder / name, expected)
            except (OSError, disk.DamagedError) as error:
                self._whole.pop(key, None)
                return None, f"{name}: {disk.reason(error)}"
        self._whole[key] = signatures
        return Stored(key, folder, record), None

    def _place(self, folder: Path, key: str) -> Stored:
        """Renames a whole folder to its cell; if another process finished the same cell meanwhile, theirs stays."""
        record, sentence = disk.read_record(folder)
        if record is None:
            raise StoreError(f"cannot read back what was written to {folder.parent}: {sentence}")
        signatures = {name: disk.signature(folder / name, told) for name, told in record["files"].items()}
        for _ in range(20):  # a second turn only where a damaged cell is in the way, a third only by others' doing
            try:
                os.replace(folder, self._cell(key))
            except OSError as error:
                if error.errno not in _TAKEN:
                    raise
                if theirs := self.get(key):
                    return theirs
                self._discard(key)
            else:
                disk.sync_folder(folder.parent)
                self._whole[key] = signatures  # a rename changes neither size nor time: no need to hash again
                return Stored(key, self._cell(key), record)
        raise StoreError(f"cannot write to {folder.parent}: others keep putting damaged cells in the place of {key}")

    def _discard(self, key: str) -> int:
        """Renames a cell away and deletes it: the bytes it held."""
        trash = self.root / "cells" / f"{_TRASH}{key}-{secrets.token_hex(4)}"
        with disk.writing(self.root / "cells"):
            try:
                os.replace(self._cell(key), trash)
            except (FileNotFoundError, NotADirectoryError):
                return 0
            return disk.erase(trash)

    def _cell(self, key: str) -> Path:
        _check_key(key)
        return self.root / "cells" / key

    def _study(self, name: str) -> Path:
        return self.root / "studies" / f"{name}.json"

    # Who holds what. A lock file is opened, locked and removed behind one gate only: else a process could get the lock
    # of a file that was just removed, while a second one makes the file anew and locks that.

    @contextmanager
    def _gate(self) -> Iterator[None]:
        folder = self.root / "locks"
        with disk.writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            gate = FileLock(folder / ".gate", thread_local=False)
            gate.acquire(poll_interval=_GATE_POLL)
        try:
            yield
        finally:
            gate.release()

    def _acquire(self, name: str) -> FileLock | None:
        """The lock of this name, held, or None if somebody else holds it; does not wait."""
        with self._gate(), disk.writing(self.root / "locks"):
            lock = FileLock(self._lock_file(name), thread_local=False)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return None
            return lock

    def _waited(self, name: str) -> FileLock:
        """The lock of this name, held, however long somebody else holds it."""
        while (lock := self._acquire(name)) is None:
            time.sleep(_POLL)
        return lock

    @contextmanager
    def _held(self, name: str) -> Iterator[None]:
        """Holds the lock of this name inside, and waits for it."""
        lock = self._waited(name)
        try:
            yield
        finally:
            self._release(name, lock)

    def _release(self, name: str, lock: FileLock) -> None:
        try:
            with self._gate():
                lock.release()  # before the file goes: Windows removes no open file
                with suppress(OSError):  # the file alone locks nobody out
                    self._lock_file(name).unlink(missing_ok=True)
        finally:
            lock.release()  # also when the gate could not be passed; a second time does nothing

    @contextmanager
    def _free(self, name: str) -> Iterator[bool]:
        """Whether nobody held the lock of this name; if so, it is held inside."""
        lock = self._acquire(name)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                self._release(name, lock)

    def _lock_file(self, name: str) -> Path:
        return self.root / "locks" / f"{name}.lock"

    @contextmanager
    def _temporary(self, part: str, name: str) -> Iterator[Path]:
        """A path to write under, in a folder of the store; gone at the end unless renamed.

        Its own lock is held meanwhile, by which `clean` knows that its writer lives.
        """
        path = self.root / part / f"{_TEMPORARY}{name}-{secrets.token_hex(4)}"
        with disk.writing(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._free(path.name):
            try:
                yield path
            finally:
                with suppress(OSError):  # the error that led here says more
                    disk.erase(path)

    def _owned(self) -> list[str]:
        """The name of each lock under which something lies that is of use only while the lock is held."""
        locks = {name.removesuffix(".lock") for name in disk.names(self.root / "locks")}
        work = {name for name in locks.union(disk.names(self.root / "work")) if _KEY.fullmatch(name)}
        parts = locks.union(disk.names(self.root / "cells"), disk.names(self.root / "studies"))
        return sorted(work | {name for name in parts if name.startswith((_TEMPORARY, _COMMAND))})

    def _remove(self, kind: str, path: Path, count: Counter[str], only: str = "") -> None:
        """Removes what is at `path`, if its name starts with `only`, and counts it."""
        if path.name.startswith(only) and os.path.lexists(path):
            with disk.writing(path.parent):
                count["bytes"] += disk.erase(path)
            count[kind] += 1


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise InputError(f"the key of a cell must be 32 hexadecimal characters in lower case, got {key!r}")


def _check_name(kind: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the name of a {kind} must be made of letters, digits, '.', '_' and '-', and not start with '.' or '-', "
            f"got {name!r}"
        )
