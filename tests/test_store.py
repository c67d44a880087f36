import contextlib
import errno
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from brittle.errors import InputError
from brittle.study.store import files
from brittle.study.store import store as store_module
from brittle.study.store.store import Cleaned, Store

KEY = "0123456789abcdef" * 2
OTHER = "f" * 32
RECORD = {"function": "train", "parameters": {"seed": 3, "rate": 1e-5, "name": "größe"}, "scalars": {"accuracy": 0.875}}
TENSORS = {"tensors": {"w": torch.arange(12.0).reshape(3, 4), "labels": torch.tensor([0, 5, -1])}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "home")


@pytest.fixture
def child(store):
    """Starts Python on a piece of code that knows `store`; whatever still runs at the end is killed."""
    with contextlib.ExitStack() as stack:

        def start(code: str, *arguments: str) -> subprocess.Popen:
            head = "import os, sys, time\nfrom brittle.study.store.store import Store\nstore = Store(sys.argv[1])\n"
            command = [sys.executable, "-c", head + textwrap.dedent(code), str(store.root), *arguments]
            process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            stack.callback(process.kill)
            return process

        yield start


def said(process: subprocess.Popen) -> str:
    """The next line of a child, which thereby has got that far."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def flip_bit(path: Path, seed: int) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(seed).randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def hidden(store: Store) -> list[str]:
    """What the store writes for itself only: temporary names and trash."""
    return [path.name for path in store.root.rglob(".*") if path.name != ".gate"]


def held_locks(store: Store) -> list[str]:
    return [path.name for path in (store.root / "locks").glob("*.lock")]


# Round trip ---------------------------------------------------------------------------------------------------------


def test_gives_back_every_dtype_bit_for_bit(store):
    wide = torch.randn(4, 6)
    put = {
        "tensors": {
            "float32": torch.tensor([0.1, -0.0, torch.inf]),
            "int64": torch.tensor([2**62 + 1, -1]),
            "bool": torch.tensor([[True], [False]]),
            "bfloat16": torch.tensor([1 / 3, 3e38]).bfloat16(),
            "scalar": torch.tensor(7, dtype=torch.uint8),
            "empty": torch.zeros(0, 3),
        },
        "views": {"all": wide, "same": wide, "rows": wide[1:3], "across": wide.T},  # one storage, not contiguous
        "none": {},
    }
    store.put(KEY, RECORD, put)
    cell = Store(store.root).get(KEY)
    assert cell is not None
    for name, tensors in put.items():
        got = cell.tensors(name)
        assert got.keys() == tensors.keys()
        for one in tensors:
            assert got[one].dtype == tensors[one].dtype
            assert got[one].device.type == "cpu"
            assert torch.equal(got[one], tensors[one])


def test_gives_back_the_record_and_what_the_files_are(store):
    put = store.put(KEY, RECORD | {"shape": (1, 28)}, TENSORS)
    got = Store(store.root).get(KEY)
    assert put == got
    assert got is not None
    content = (store.root / "cells" / KEY / "tensors.safetensors").read_bytes()
    known = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert got.record == RECORD | {"shape": [1, 28], "files": {"tensors.safetensors": known}}
    assert (got.key, got.folder) == (KEY, store.root / "cells" / KEY)
    assert got.scalars == {"accuracy": 0.875}
    assert sorted(path.name for path in got.folder.iterdir()) == ["cell.json", "tensors.safetensors"]
    assert store.size() == sum(path.stat().st_size for path in got.folder.iterdir())


def test_the_seal_is_the_hash_of_the_canonical_rest(store):
    record = json.loads((store.put(KEY, RECORD, TENSORS).folder / "cell.json").read_text())
    seal = record.pop("seal")
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    assert seal == hashlib.sha256(canonical.encode()).hexdigest()


def test_a_cell_may_have_no_tensors_and_no_scalars(store):
    cell = store.put(KEY, {}, {})
    assert cell.record == {"files": {}}
    assert cell.scalars == {}
    assert store.get(KEY) == cell
    with pytest.raises(InputError, match="unknown tensors 'tensors'"):
        cell.tensors()


def test_names_the_tensors_there_are(store):
    with pytest.raises(InputError, match="unknown tensors 'tensor': did you mean 'tensors'"):
        store.put(KEY, RECORD, TENSORS).tensors("tensor")


def test_a_whole_cell_stays_a_damaged_one_is_replaced(store):
    store.put(KEY, {"turn": 1}, TENSORS)
    assert store.put(KEY, {"turn": 2}, TENSORS).record["turn"] == 1
    cut(store.root / "cells" / KEY / "tensors.safetensors")
    assert store.put(KEY, {"turn": 3}, TENSORS).record["turn"] == 3
    assert Store(store.root).damage(KEY) is None
    assert hidden(store) == []


def test_keeps_the_cell_of_a_process_that_was_first(store, monkeypatch):
    """The other one renames its folder after we looked for a cell and before we rename ours."""
    rename = os.replace

    def late(source, target):
        monkeypatch.setattr(os, "replace", rename)
        Store(store.root).put(KEY, {"whose": "theirs"}, TENSORS)
        rename(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert store.put(KEY, {"whose": "ours"}, TENSORS).record["whose"] == "theirs"
    assert Store(store.root).damage(KEY) is None
    assert hidden(store) == held_locks(store) == []


@pytest.mark.parametrize("standing", ["file", "folder"])
def test_replaces_what_is_no_cell_at_all(store, standing):
    place = store.root / "cells" / KEY
    place.parent.mkdir(parents=True)
    place.write_text("?") if standing == "file" else place.mkdir()
    assert store.get(KEY) is None
    assert store.damage(KEY) is not None
    assert store.put(KEY, RECORD, TENSORS) == Store(store.root).get(KEY)


def test_a_copied_store_is_a_store(store, tmp_path):
    store.put(KEY, RECORD, TENSORS)
    shutil.copytree(store.root, tmp_path / "elsewhere")
    shutil.rmtree(store.root)
    cell = Store(tmp_path / "elsewhere").get(KEY)
    assert cell is not None
    assert torch.equal(cell.tensors()["w"], TENSORS["tensors"]["w"])
    assert str(tmp_path).encode() not in (cell.folder / "cell.json").read_bytes()


def test_root_comes_from_the_argument_the_environment_or_the_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("BRITTLE_HOME", str(tmp_path / "variable"))
    assert Store().root == tmp_path / "variable"
    assert Store(tmp_path / "given").root == tmp_path / "given"
    monkeypatch.setenv("BRITTLE_HOME", "")
    monkeypatch.setattr(store_module.platformdirs, "user_data_dir", lambda name: str(tmp_path / "data" / name))
    assert Store().root == tmp_path / "data" / "brittle"
    monkeypatch.chdir(tmp_path)
    relative = Store("here")
    monkeypatch.chdir("/")
    assert relative.root == tmp_path / "here"


def test_reading_makes_nothing(store):
    assert store.get(KEY) is None
    assert store.damage(KEY) is None
    assert store.keys() == store.studies() == list(store.verify()) == []
    assert store.clean() == Cleaned()
    assert store.size() == 0
    store.discard(KEY)
    store.remove_scratch(KEY)
    assert not store.root.exists()


@pytest.mark.parametrize("key", ["", "abc", KEY.upper(), KEY + "0", f"../{KEY[3:]}", KEY + "\n"])
def test_refuses_what_is_no_key(store, key):
    for ask in (store.get, store.damage, store.discard, store.scratch, store.remove_scratch):
        with pytest.raises(InputError, match="32 hexadecimal"):
            ask(key)
    with pytest.raises(InputError, match="32 hexadecimal"):
        store.put(key, {}, {})
    with pytest.raises(InputError, match="32 hexadecimal"), store.lock(key):
        pass
    assert not store.root.exists()


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({"scalars": {"mean": float("nan")}}, r"record\.scalars\.mean is nan"),
        ({"rows": [1.0, (2, -float("inf"))]}, r"record\.rows\[1\]\[1\] is -inf"),
        ({"w": torch.zeros(1)}, r"record\.w must be JSON .*got Tensor"),
        ({"by": {1: "one"}}, r"record\.by: keys must be strings, got 1"),
        ({"files": {}}, "must not hold 'files'"),
        ({"seal": ""}, "must not hold 'seal'"),
    ],
)
def test_refuses_a_record_that_json_cannot_hold(store, record, words):
    with pytest.raises(ValueError, match=words):
        store.put(KEY, record, {})
    assert not store.root.exists()


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "..", "-x", "a b"])
def test_refuses_names_that_are_no_file_names(store, name):
    with pytest.raises(InputError, match="name of a tensors"):
        store.put(KEY, {}, {name: {}})
    with pytest.raises(InputError, match="name of a study"):
        store.write_study(name, {})
    with pytest.raises(InputError, match="name of a study"):
        store.read_study(name)


# Damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "spoil", "sentence"),
    [
        *[("tensors.safetensors", lambda path, s=s: flip_bit(path, s), "sha256 differs") for s in range(5)],
        ("tensors.safetensors", cut, r"\d+ bytes, not \d+"),
        ("tensors.safetensors", lambda path: path.write_bytes(b""), r"0 bytes, not \d+"),
        ("tensors.safetensors", Path.unlink, "missing"),
        ("cell.json", cut, "not readable as a record"),
        ("cell.json", lambda path: path.write_bytes(b""), "not readable as a record"),
        ("cell.json", lambda path: path.write_text("[1]"), "not readable as a record"),
        ("cell.json", lambda path: path.write_text("{}"), "not readable as a record"),
        ("cell.json", Path.unlink, "missing"),
    ],
)
def test_finds_damage_and_says_where(store, file, spoil, sentence):
    cell = store.put(KEY, RECORD, TENSORS)
    store.put(OTHER, RECORD, TENSORS)
    spoil(cell.folder / file)
    for reader in (store, Store(store.root)):  # one that has read the cell before, one that has not
        assert reader.get(KEY) is None
        found = dict(reader.verify())
        assert found.keys() == {KEY, OTHER}
        assert found[OTHER] is None
        assert re.fullmatch(f"{file}: {sentence}", found[KEY] or "whole")
    held = sum(path.stat().st_size for path in cell.folder.iterdir())
    assert store.clean() == Cleaned(cells=1, bytes=held)
    assert store.keys() == [OTHER]


def test_a_sealed_record_that_lacks_what_a_cell_has_is_said_in_words(store):
    cell = store.put(KEY, {"title": 3, "provenance": []}, {})
    assert (cell.title, cell.seconds) == ("a cell without a title", None)
    cell = store.put(OTHER, {"title": "train", "provenance": {"seconds": 1.5}}, {})
    assert (cell.title, cell.seconds) == ("train", 1.5)
    assert replace(cell, record={"title": "train \x1b[31m\u202e"}).title == "train \\x1b[31m\\u202e"
    (cell.folder / "cell.json").write_bytes(files.sealed({"files": {"a.safetensors": 3}}))
    assert store.damage(OTHER) == "cell.json: does not name its files"
    assert store.get(OTHER) is None


def test_finds_every_single_flipped_bit_of_cell_json_that_changes_what_it_says(store):
    """One that leaves the meaning as it is, such as 1e-05 to 1E-05 or a blank to a tab, harms nobody."""
    put = store.put(KEY, {"scalars": {"rate": 1e-05}, "name": "ö"}, {})
    path = put.folder / "cell.json"
    whole = path.read_bytes()
    assert b"1e-05" in whole
    unharmed = 0
    for place in range(8 * len(whole)):
        content = bytearray(whole)
        content[place // 8] ^= 1 << place % 8
        path.write_bytes(content)
        if found := store.get(KEY):
            assert found.record == put.record, place
            assert store.damage(KEY) is None, place
            unharmed += 1
        else:
            assert str(store.damage(KEY)).startswith("cell.json: "), place
    assert 0 < unharmed < len(whole)  # of eight times as many
    path.write_bytes(whole)
    assert store.get(KEY) is not None


def test_hashes_once_in_get_and_always_in_damage(store, monkeypatch):
    path = store.put(KEY, RECORD, TENSORS).folder / "tensors.safetensors"
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *a: hashed.append(1) or digest(*a))
    assert store.get(KEY) is not None
    assert len(hashed) == 0  # hashed as it was written
    fresh = Store(store.root)
    assert fresh.get(KEY) == fresh.get(KEY) is not None
    assert len(hashed) == 1
    time = path.stat().st_mtime_ns
    flip_bit(path, seed=1)
    os.utime(path, ns=(time, time))  # as a failing disk does it
    assert fresh.damage(KEY) == "tensors.safetensors: sha256 differs"
    assert fresh.get(KEY) is None  # and what damage() found is not forgotten
    assert Store(store.root).get(KEY) is None


def test_discard_removes_a_cell(store):
    store.put(KEY, RECORD, TENSORS)
    store.put(OTHER, RECORD, TENSORS)
    store.discard(KEY)
    store.discard(KEY)
    assert store.keys() == [OTHER]
    assert store.get(KEY) is None
    assert hidden(store) == []


# Keys and studies ---------------------------------------------------------------------------------------------------


def test_find_takes_a_prefix_that_fits_one_key(store):
    keys = ["a" * 32, "ab" * 16, "b" * 32]
    for key in reversed(keys):
        store.put(key, {}, {})
    (store.root / "cells" / "notes").mkdir()
    assert store.keys() == keys
    assert store.find("aba") == keys[1]
    assert store.find("B") == keys[2]
    assert store.find(keys[0]) == keys[0]
    with pytest.raises(InputError, match=f"^2 cells start with 'a': {keys[0]}, {keys[1]}$"):
        store.find("a")
    with pytest.raises(InputError, match=r"^no cell starts with 'c' among the 3 in "):
        store.find("c")
    for i in range(12):
        store.put(f"d{i:031x}", {}, {})
    with pytest.raises(InputError, match=f"d{9:031x} and 2 more$"):
        store.find("d")


def test_study_records(store):
    assert store.studies() == []
    store.write_study("song-2017", {"cells": [KEY]})
    store.write_study("lo.ding_2", {"cells": []})
    store.write_study("song-2017", {"cells": [KEY, OTHER]})
    assert store.studies() == ["lo.ding_2", "song-2017"]
    assert Store(store.root).read_study("song-2017") == {"cells": [KEY, OTHER]}
    with pytest.raises(InputError, match="unknown study 'song-2071': did you mean 'song-2017'"):
        store.read_study("song-2071")
    with pytest.raises(ValueError, match=r"study x\.mean is nan"):
        store.write_study("x", {"mean": float("nan")})
    assert hidden(store) == held_locks(store) == []
    whole = (store.root / "studies" / "song-2017.json").read_text()
    for text in (
        '{"cells": [',
        "[]",
        "{}",
        "null",
        "1e999",
        whole.replace(OTHER, "0" * 32),
        whole.replace("[", "7, ["),
    ):
        (store.root / "studies" / "song-2017.json").write_text(text)
        with pytest.raises(InputError, match=r"study 'song-2017' cannot be read: .*song-2017\.json"):
            store.read_study("song-2017")


def test_a_study_that_cannot_be_written_leaves_the_old_one(store, monkeypatch):
    store.write_study("mine", {"cells": [KEY]})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"cannot write to .*studies: No space left on device"):
        store.write_study("mine", {"cells": [OTHER]})
    assert store.read_study("mine") == {"cells": [KEY]}
    assert hidden(store) == []


# Stores that cannot be written --------------------------------------------------------------------------------------


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_only(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def writers(store: Store):
    """Everything that writes, each asked to."""
    return {
        "cells": lambda: store.put(OTHER, RECORD, TENSORS),
        "locks": lambda: store.lock(OTHER).__enter__(),
        "work": lambda: store.scratch(OTHER),
        "studies": lambda: store.write_study("x", {}),
    }


@pytest.mark.parametrize("part", ["cells", "locks", "work", "studies"])
def test_a_file_in_place_of_the_root_is_named(tmp_path, part):
    (tmp_path / "home").write_text("")
    store = Store(tmp_path / "home")
    with pytest.raises(InputError) as caught:
        writers(store)[part]()
    assert str(caught.value).startswith(f"cannot write to {store.root / part}")
    assert str(caught.value).endswith(": Not a directory: a file stands where a folder should be")
    assert "\n" not in str(caught.value)
    assert store.get(KEY) is None
    assert store.keys() == store.studies() == []
    assert store.clean() == Cleaned()


@pytest.mark.parametrize("part", ["cells", "locks", "work", "studies"])
def test_a_file_in_place_of_a_part_is_named(store, part):
    store.root.mkdir()
    (store.root / part).write_text("")
    with pytest.raises(
        InputError, match=f"^cannot write to {store.root / part}.*: (File exists|Not a directory): a file"
    ):
        writers(store)[part]()


def test_a_full_disk_is_named_and_leaves_nothing(store, monkeypatch):
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(InputError, match=f"^cannot write to {store.root / 'cells'}: No space left on device$"):
                store.put(KEY, RECORD, TENSORS)
        assert store.keys() == hidden(store) == held_locks(store) == []
    assert store.put(KEY, RECORD, TENSORS) == store.get(KEY)


def test_a_disk_that_fills_under_safetensors_is_named(store, monkeypatch):
    import safetensors.torch

    def fill(tensors, path):
        Path(path).write_bytes(b"half")
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(safetensors.torch, "save_file", fill)
    with pytest.raises(
        InputError, match=f"^cannot write to {store.root / 'cells'}: tensors.safetensors: .*No space left"
    ):
        store.put(KEY, RECORD, TENSORS)
    assert store.keys() == hidden(store) == []


def test_a_read_only_store_can_be_read(store, monkeypatch):
    store.put(KEY, RECORD, TENSORS)
    store.write_study("mine", {"cells": [KEY]})
    for name in ("mkdir", "replace", "fsync", "unlink", "rmdir", "rename"):
        monkeypatch.setattr(os, name, read_only)
    monkeypatch.setattr(store_module.FileLock, "acquire", read_only)
    reader = Store(store.root)
    cell = reader.get(KEY)
    assert cell is not None
    assert cell.tensors().keys() == TENSORS["tensors"].keys()
    assert reader.put(KEY, RECORD, TENSORS) == cell  # nothing to write: it is there
    assert dict(reader.verify()) == {KEY: None}
    assert reader.read_study("mine") == {"cells": [KEY]}
    assert reader.find("0") == KEY
    for write in writers(reader).values():
        with pytest.raises(InputError, match=f"^cannot write to {store.root}.*: Read-only file system$"):
            write()
    with pytest.raises(InputError, match=f"^cannot write to {store.root / 'cells'}: Read-only file system$"):
        reader.discard(KEY)


def test_an_error_inside_a_lock_stays_what_it_is(store):
    with pytest.raises(FileNotFoundError, match="mine"), store.lock(KEY):
        raise FileNotFoundError("mine")
    assert held_locks(store) == []


# Several processes --------------------------------------------------------------------------------------------------


def test_lock_keeps_another_thread_out_which_waits_or_does_not(store):
    order, begun = [], threading.Event()

    def second():
        other = Store(store.root)
        with other.lock(KEY, wait=False) as held:
            order.append(held)
        begun.set()
        with other.lock(KEY) as held:
            order.append("second" if held else "never")

    with store.lock(KEY) as held:
        assert held
        thread = threading.Thread(target=second)
        thread.start()
        assert begun.wait(10)
        thread.join(0.2)  # several looks at the lock
        order.append("first")
        assert held_locks(store) == [f"{KEY}.lock"]
    thread.join(10)
    assert order == [False, "first", "second"]
    assert held_locks(store) == []


def test_a_thread_does_not_wait_for_itself(store):
    with store.lock(KEY), store.lock(OTHER):
        with pytest.raises(RuntimeError, match="already holds"), store.lock(KEY):
            pass
        assert store.put(KEY, RECORD, {}) == store.get(KEY)  # put needs no lock of its own on the key
    with store.lock(KEY):
        pass


def test_work_lasts_until_the_cell_is_finished(store):
    folder = store.scratch(KEY)
    assert folder == store.root / "work" / KEY == store.scratch(KEY)
    (folder / "checkpoint").write_text("half way")
    store.scratch(OTHER)
    store.put(KEY, RECORD, {})
    assert not folder.exists()
    assert store.scratch(OTHER).exists()
    (store.scratch(KEY) / "checkpoint").touch()
    store.put(KEY, RECORD, {})  # also when somebody else had finished it
    assert not folder.exists()
    store.remove_scratch(OTHER)
    assert list((store.root / "work").iterdir()) == []


def test_the_lock_and_scratch_of_a_killed_process_are_free(store, child):
    process = child(
        """
        with store.lock(sys.argv[2]):
            (store.scratch(sys.argv[2]) / "checkpoint").write_text("12345")
            print("inside", flush=True)
            time.sleep(600)
        """,
        KEY,
    )
    assert said(process) == "inside"
    (store.scratch(OTHER) / "left").write_text("123")
    assert store.clean() == Cleaned()  # work that was interrupted can resume
    assert store.clean(unfinished=True) == Cleaned(work=1, bytes=3)  # the dead one's; the running process keeps its own
    assert (store.scratch(KEY) / "checkpoint").read_text() == "12345"
    killer = threading.Timer(0.3, kill, [process])
    killer.start()
    with store.lock(KEY, wait=False) as held:
        assert not held  # it lives
    with store.lock(KEY) as held:
        assert held
        assert (store.scratch(KEY) / "checkpoint").read_text() == "12345"  # to go on from
        assert store.clean() == Cleaned()
    killer.join()


def test_clean_removes_the_lock_and_scratch_of_a_killed_process(store, child):
    process = child("with store.lock(sys.argv[2]): store.scratch(sys.argv[2]); print(flush=True); time.sleep(600)", KEY)
    said(process)
    kill(process)
    assert held_locks(store) == [f"{KEY}.lock"]
    assert store.clean() == Cleaned(locks=1)
    assert store.scratch(KEY).exists()
    assert store.clean(unfinished=True) == Cleaned(work=1)
    assert held_locks(store) == list((store.root / "work").iterdir()) == []


def test_scratch_of_a_finished_cell_is_cleaned(store):
    store.put(KEY, RECORD, {})
    (store.scratch(KEY) / "left").write_text("123")
    assert store.clean() == Cleaned(work=1, bytes=3)


def test_clean_everything_is_refused_while_a_command_runs(store, child):
    store.put(KEY, RECORD, {})
    store.write_study("mine", {"cells": [KEY]})
    process = child("with store.in_use(): print('inside', flush=True); time.sleep(600)")
    assert said(process) == "inside"
    with pytest.raises(InputError, match="a command is running on the store"):
        store.clean(everything=True)
    assert store.clean() == Cleaned()
    assert (store.keys(), store.studies()) == ([KEY], ["mine"])
    kill(process)
    cleaned = store.clean(everything=True)
    assert (cleaned.cells, cleaned.studies) == (1, 1)
    with store.in_use():
        pass
    assert held_locks(store) == []


PUT_AND_STOP = """
import torch
real, calls = os.fsync, []
def stop(handle):
    real(handle)
    calls.append(handle)
    if len(calls) == int(sys.argv[3]):
        print("stopped", flush=True)
        time.sleep(600)
os.fsync = stop
store.put(sys.argv[2], {"a": 1}, {"tensors": {"w": torch.ones(1000)}})
"""


# What put has synced by then: the tensors, cell.json, its temporary folder, and, renamed, the folder of all cells.
@pytest.mark.parametrize(("syncs", "there"), [(1, False), (2, False), (3, False), (4, True)])
def test_a_process_killed_while_it_puts_leaves_a_whole_cell_or_none(store, child, syncs, there):
    process = child(PUT_AND_STOP, KEY, str(syncs))
    assert said(process) == "stopped"
    before = len(hidden(store))
    assert before == (1 if there else 2)  # the lock, and the folder unless renamed
    assert store.clean() == Cleaned()  # it still runs
    assert len(hidden(store)) == before
    kill(process)
    assert store.keys() == ([KEY] if there else [])
    assert dict(store.verify()) == ({KEY: None} if there else {})
    cleaned = store.clean()
    assert (cleaned.leftovers, cleaned.locks, cleaned.cells) == (0 if there else 1, 1, 0)
    assert (cleaned.bytes > 4000) is not there
    assert hidden(store) == held_locks(store) == []
    assert store.put(KEY, {"a": 1}, {}).record["a"] == 1


def test_no_kill_at_any_moment_leaves_half_a_cell(store, child):
    chance = random.Random(0)
    for turn in range(8):
        process = child(
            """
            print(flush=True)
            for i in range(10000):
                key = f"{int(sys.argv[2]):08x}{i:024x}"
                with store.lock(key):
                    store.put(key, {"i": i, "text": "x" * 5000}, {})
                if i % 3 == 0: store.discard(key)
                store.write_study("all", {"cells": [key] * 100})
            """,
            str(turn),
        )
        said(process)
        threading.Event().wait(chance.uniform(0.01, 0.15))
        kill(process)
        assert [sentence for _, sentence in store.verify() if sentence] == []
        assert all(len(store.read_study(name)["cells"]) == 100 for name in store.studies())
    assert store.keys() != []
    whole = store.keys()
    assert store.clean().cells == 0
    assert store.keys() == whole
    assert hidden(store) == held_locks(store) == []


COMPUTE_ALL = """
import random
print(flush=True)
while not os.path.exists(sys.argv[2]): time.sleep(0.001)
keys = [f"{i:032x}" for i in range(10)]
random.Random(int(sys.argv[3])).shuffle(keys)
for key in keys:
    if store.get(key) is not None: continue
    with store.lock(key):
        inside = os.open(f"{sys.argv[2]}.{key}", os.O_CREAT | os.O_EXCL)  # fails if two are inside
        if store.get(key) is None:
            with open(sys.argv[2], "a") as log: log.write(key + "\\n")
            (store.scratch(key) / "checkpoint").write_text(str(os.getpid()))
            time.sleep(0.01)
            assert (store.scratch(key) / "checkpoint").read_text() == str(os.getpid())
            store.put(key, {"by": os.getpid()}, {})
        os.close(inside); os.unlink(f"{sys.argv[2]}.{key}")
"""


def test_contending_processes_compute_each_cell_once(store, child, tmp_path):
    """Four that compute, while this one cleans all the time: it must take nothing that they hold."""
    log = tmp_path / "log"
    processes = [child(COMPUTE_ALL, str(log), str(seed)) for seed in range(4)]
    for process in processes:
        said(process)
    log.touch()  # all of them are ready: off they go together
    while any(process.poll() is None for process in processes):
        cleaned = store.clean()
        assert (cleaned.cells, cleaned.leftovers) == (0, 0)
    assert [process.returncode for process in processes] == [0] * 4
    assert Counter(log.read_text().split()) == {f"{i:032x}": 1 for i in range(10)}
    assert dict(store.verify()) == {f"{i:032x}": None for i in range(10)}
    store.clean()
    assert held_locks(store) == hidden(store) == []


# Cleaning -----------------------------------------------------------------------------------------------------------


def test_clean_counts_what_it_removes_and_leaves_the_rest(store):
    store.put(KEY, RECORD, TENSORS)
    store.write_study("mine", {"cells": [KEY]})
    foreign = store.root / "cells" / "README"
    foreign.write_text("mine")
    for name in (".tmp-x-1", ".trash-x-2"):
        (store.root / "cells" / name).mkdir()
        (store.root / "cells" / name / "f").write_bytes(b"1234567")
    (store.root / "studies" / ".tmp-y-3").write_bytes(b"12")
    with store.lock(OTHER):
        store.scratch(OTHER)
        assert store.clean() == Cleaned(leftovers=3, bytes=16)
        assert store.scratch(OTHER).exists()
    assert store.keys() == [KEY]
    assert store.studies() == ["mine"]
    assert foreign.exists()


def test_clean_everything_spares_only_what_is_held(store):
    for key in (KEY, OTHER):
        store.put(key, RECORD, TENSORS)
    store.write_study("mine", {"cells": [KEY]})
    size = store.size()
    with store.lock(OTHER):
        first = store.clean(everything=True)
        assert store.keys() == [OTHER]
    second = store.clean(everything=True)
    assert (first.cells, first.studies, second.cells) == (1, 1, 1)
    assert first.bytes + second.bytes == size
    assert store.keys() == store.studies() == []
    assert store.size() == 0
