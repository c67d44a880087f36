import errno
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import pytest
import torch
from problems import blobs

import brittle
from brittle import measures
from brittle.attacks import carlini_l2, packing
from brittle.errors import InputError, StoreError
from brittle.measures import Share
from brittle.report import gather
from brittle.study import kinds, schema
from brittle.study.expand import expand
from brittle.study.kinds import new_cell
from brittle.study.kinds.measure import cell as measure
from brittle.study.kinds.network import cell as network
from brittle.study.run import local_pool, scheduler
from brittle.study.run.local_pool import LocalPool
from brittle.study.run.worker import Finished, Worker, WorkerConfig
from brittle.study.store.cell import Cell
from brittle.study.store.store import Store, Stored

CPU = torch.device("cpu")
NETWORKS = """
from torch import nn

def tiny(*, channels, classes, size):
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1), nn.Linear(4 * (size - 2) ** 2, classes)
    )
"""
TABLES = {
    "name": "tiny",
    "title": "A tiny study",
    "data": "blobs",
    "rows": 12,
    "shard_rows": 5,
    "training": {"network": "engine_test_networks.tiny", "epochs": 3, "batch_size": 16, "learning_rate": 0.5},
    "models": {"teacher": {"temperature": 5.0}, "student": {"teacher": "teacher", "temperature": 5.0}},
    "attacks": {
        "song_1": {"function": "brittle.attacks.song_1", "arithmetic": ["float32", "exact"], "max_pixels": 9},
        "song_2": {"function": "brittle.attacks.song_2", "arithmetic": ["float32", "exact"], "max_pixels": 9},
    },
}


@pytest.fixture
def plan(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "engine_test_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path / "code")
    return expand(schema.check(TABLES, "tiny", trust=True), blobs(), device="cpu", dtype="float32")


class Heard(scheduler.Quiet):
    """Remembers what it was told; stops the run at the cell whose title begins with `stop`."""

    def __init__(self, stop: str = "nothing"):
        self.computed: list[str] = []
        self.said: list[str] = []
        self.stop = stop

    def begin(self, cell):
        if cell.title.startswith(self.stop):
            raise KeyboardInterrupt

    def end(self, cell, cached, seconds=0.0):
        if not cached:
            self.computed.append(cell.title)

    def say(self, sentence):
        self.said.append(sentence)


def here(store, load=lambda _: blobs()):
    return scheduler.InProcess(Worker(store, load, CPU))


def run(plan, store, watch=None):
    return scheduler.run(plan.cells, store, here(store), watch)


def kept(store: Store, key: str) -> Stored:
    """A cell that must be there."""
    stored = store.get(key)
    assert stored is not None
    return stored


def hashes(store: Store) -> dict[str, dict]:
    """What every cell's files hold."""
    return {key: stored.record["files"] for key in store.keys() if (stored := store.get(key))}  # noqa: SIM118


def test_a_second_run_computes_nothing(plan, tmp_path):
    store = Store(tmp_path / "store")
    assert run(plan, store).done == len(plan.cells)
    again = run(plan, Store(tmp_path / "store"))
    assert (again.done, again.cached) == (0, len(plan.cells))


def test_fresh_computes_all_and_gives_the_same_bits(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    before = hashes(store)
    scheduler.forget(plan.cells, store)
    assert run(plan, store).done == len(plan.cells)
    assert hashes(Store(tmp_path / "store")) == before


def test_fresh_leaves_what_another_process_has_in_work(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    held = plan.cells[1]
    with store.lock(held.key):
        (store.scratch(held.key) / "checkpoint").touch()
        thread = threading.Thread(target=scheduler.forget, args=(plan.cells, Store(store.root)))
        thread.start()
        thread.join(60)
        assert store.keys() == [held.key]
        assert (store.scratch(held.key) / "checkpoint").exists()


FRESH = """
import sys, torch
sys.path[:0] = sys.argv[2:]
from problems import blobs
from test_engine import TABLES, here, run
from brittle.study import schema
from brittle.study.expand import expand
from brittle.study.run import scheduler
from brittle.study.store.store import Store
torch.set_num_threads(1)
plan = expand(schema.check(TABLES, "tiny", trust=True), blobs(), device="cpu", dtype="float32")
store = Store(sys.argv[1])
for _ in range(3):
    scheduler.forget(plan.cells, store)
    ran = run(plan, store)
    assert not ran.failed and not ran.left, ran.failed
"""


@pytest.mark.slow
def test_two_processes_that_compute_all_anew_at_once_both_end_well(plan, tmp_path):
    folders = [str(tmp_path / "code"), str(Path(__file__).parent)]
    command = [sys.executable, "-c", FRESH, str(tmp_path / "store"), *folders]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [(process.communicate(timeout=200)[1], process.returncode) for process in running]
    assert [code for _, code in ended] == [0, 0], ended[0][0] + ended[1][0]
    run(plan, Store(tmp_path / "store"))
    run(plan, Store(tmp_path / "alone"))
    assert hashes(Store(tmp_path / "store")) == hashes(Store(tmp_path / "alone"))


def accuracy(store, plan, model):
    told = kept(store, plan.record["models"][model]["measure"]).scalars["accuracy"]
    return Share(told["count"], told["total"]).interval


def test_another_number_of_threads_has_the_same_keys_and_results_that_agree(plan, tmp_path):
    """`plan` for its network."""
    models = {"plain": {}, "warm": {"temperature": 2.0}}
    tables = TABLES | {"training": TABLES["training"] | {"epochs": 6}, "models": models}
    tables = schema.check(tables | {"attacks": {}}, "tiny", trust=True)
    before = torch.get_num_threads()
    stores = {}
    try:
        for name, threads in (("one", 1), ("two", 2), ("two again", 2)):
            torch.set_num_threads(threads)
            plan = expand(tables, blobs(), device="cpu", dtype="float32")
            stores[name] = Store(tmp_path / name)
            assert run(plan, stores[name]).failed == ()
    finally:
        torch.set_num_threads(before)
    assert stores["one"].keys() == stores["two"].keys()
    assert hashes(stores["two"]) == hashes(stores["two again"])
    for model in (0, 1):
        (low, high), (low_too, high_too) = (accuracy(stores[name], plan, model) for name in ("one", "two"))
        assert max(low, low_too) <= min(high, high_too)
        assert min(low, low_too) > 1 / 3  # both learn
        told = [kept(stores[name], plan.record["models"][model]["train"]) for name in ("one", "two")]
        assert [cell.record["provenance"]["threads"] for cell in told] == [1, 2]


@pytest.mark.parametrize("stop", ["train student", "measure teacher", "song_2 on student, seed 0, rows 5"])
def test_a_stopped_run_goes_on_and_ends_the_same(plan, tmp_path, stop):
    run(plan, Store(tmp_path / "whole"))
    stopped = Heard(stop)
    with pytest.raises(KeyboardInterrupt):
        run(plan, Store(tmp_path / "store"), watch=stopped)
    rest = Heard()
    run(plan, Store(tmp_path / "store"), watch=rest)
    assert len(stopped.computed) + len(rest.computed) == len(plan.cells)
    assert hashes(Store(tmp_path / "store")) == hashes(Store(tmp_path / "whole"))


def test_a_damaged_cell_is_done_again_and_said_so(plan, tmp_path):
    run(plan, Store(tmp_path / "store"))
    trained = next(cell for cell in plan.cells if cell.title.startswith("train teacher"))
    file = tmp_path / "store" / "cells" / trained.key / "weights.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    heard = Heard()
    assert run(plan, Store(tmp_path / "store"), watch=heard).done == 1
    assert heard.computed == [trained.title]
    assert "is damaged (weights.safetensors: sha256 differs); computing it again" in heard.said[0]


def test_two_at_once_do_each_cell_once(plan, tmp_path):
    heard = [Heard(), Heard()]
    threads = [
        threading.Thread(target=run, args=(plan, Store(tmp_path / "store")), kwargs={"watch": watch}) for watch in heard
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(heard[0].computed + heard[1].computed) == sorted(cell.title for cell in plan.cells)


def test_a_cell_that_another_process_has_in_work_is_passed_over(tmp_path, plan):
    """`plan` for its network."""
    plan = expand(schema.check(TABLES | {"seeds": [0, 1]}, "tiny", trust=True), blobs(), device="cpu", dtype="float32")
    store, heard = Store(tmp_path / "store"), Heard()
    teacher = next(cell for cell in plan.cells if cell.title == "train teacher, seed 0")
    others = sum("seed 1" in cell.title for cell in plan.cells)
    thread = threading.Thread(target=run, args=(plan, Store(tmp_path / "store")), kwargs={"watch": heard})
    with store.lock(teacher.key):
        thread.start()
        deadline = time.monotonic() + 60
        while len(heard.computed) < others + 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert sorted({title.partition("seed ")[2][:1] for title in heard.computed}) == ["", "1"]  # and the rows
        while not heard.said and time.monotonic() < deadline:
            time.sleep(0.05)
    thread.join(60)
    assert len(heard.computed) == len(plan.cells)
    assert heard.said == ["waiting: another process is computing the remaining cells"]


def test_a_parent_that_goes_meanwhile_is_done_again(plan, tmp_path):
    store = Store(tmp_path / "store")

    class Removes(Heard):
        def end(self, cell, cached, seconds=0.0):
            if cell.title == "train student, seed 0" and cell.title not in self.computed:
                store.discard(cell.key)
            super().end(cell, cached, seconds)

    heard = Removes()
    run(plan, store, watch=heard)
    assert sorted(heard.computed) == sorted([*(cell.title for cell in plan.cells), "train student, seed 0"])
    assert all(store.get(cell.key) for cell in plan.cells)


def test_a_parent_that_goes_while_its_child_reads_it_is_made_again(plan, tmp_path, monkeypatch):
    store, gone = Store(tmp_path / "store"), []

    def loses(cell, parents, context):
        if cell.title == "measure teacher, seed 0" and not gone:
            gone.append(parents["model"].key)
            store.discard(parents["model"].key)
        return does(cell, parents, context)

    does = kinds.run
    monkeypatch.setattr(kinds, "run", loses)
    heard = Heard()
    ran = run(plan, store, watch=heard)
    assert (ran.failed, ran.left) == ((), ())
    assert sorted(heard.computed) == sorted([*(cell.title for cell in plan.cells), "train teacher, seed 0"])
    assert all(store.get(cell.key) for cell in plan.cells)


def test_a_failed_cell_fails_its_children_only(plan, tmp_path, monkeypatch):
    def fails(cell, parents, context):
        if cell.title == "train student, seed 0":
            raise ZeroDivisionError("of one's own")
        if cell.title.startswith("song_1 on teacher"):
            raise InputError("not so")
        return does(cell, parents, context)

    does = kinds.run
    monkeypatch.setattr(kinds, "run", fails)
    store, heard = Store(tmp_path / "store"), Heard()
    ran = run(plan, store, watch=heard)
    why = {failure.cell.title: failure.why for failure in ran.failed}
    shards = [cell.title for cell in plan.cells if cell.title.startswith("song_1 on teacher")]
    assert why == {"train student, seed 0": "ZeroDivisionError: of one's own"} | dict.fromkeys(shards, "not so")
    assert [bool(failure.trace) for failure in ran.failed] == [f.cell.title not in shards for f in ran.failed]
    left = {cell.title for cell in ran.left}
    assert left == {
        cell.title for cell in plan.cells if " student" in cell.title and not cell.title.startswith(("train", "label"))
    }
    assert ran.done == len(plan.cells) - len(why) - len(left) == len(heard.computed)
    monkeypatch.setattr(kinds, "run", does)
    again = run(plan, store)
    assert (again.done, again.cached) == (len(why) + len(left), ran.done)


def test_a_model_that_ends_the_program_fails_its_cell_and_no_process(plan, tmp_path, monkeypatch):
    def ends(cell, parents, context):
        if cell.title == "train student, seed 0":
            raise SystemExit("not licensed here")
        return does(cell, parents, context)

    does = kinds.run
    monkeypatch.setattr(kinds, "run", ends)
    ran = run(plan, Store(tmp_path / "store"))
    (failure,) = ran.failed
    assert failure.cell.title == "train student, seed 0"
    assert failure.why == "the model's code ended the program: its code called sys.exit('not licensed here')"
    assert failure.trace == ""
    assert ran.done == len(plan.cells) - 1 - len(ran.left)


@pytest.mark.slow
def test_a_model_that_ends_the_program_in_a_worker_is_tried_once(tmp_path, monkeypatch):
    (tmp_path / "exits_at_once.py").write_text(
        "import sys\nfrom torch import nn\nclass Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.layer = nn.Linear(1, 1)\n"
        "    def forward(self, images):\n        sys.exit(3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    tables = {"name": "e", "title": "e", "data": "digits", "models": {"m": {"network": "exits_at_once.Net"}}}
    plan = expand(schema.check(tables, "e", trust=True), brittle.data.load("digits"), device="cpu", dtype="float32")
    store, heard = Store(tmp_path / "store"), Heard()
    executor = LocalPool(WorkerConfig(store.root, device="cpu", threads=1, path=(str(tmp_path),)), 2)
    (failure,) = scheduler.run(plan.cells, store, executor, heard).failed
    assert failure.why == "the model's code ended the program: its code called sys.exit(3)"
    assert heard.said == []  # and not 'its process ended; computing it again'


def test_a_store_that_cannot_be_written_stops_the_run_at_once(plan, tmp_path, monkeypatch):
    def full(*_):
        tried.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    tried = []
    monkeypatch.setattr(kinds, "run", full)
    with pytest.raises(StoreError, match=r"cannot write to .*No space left on device"):
        run(plan, Store(tmp_path / "store"))
    assert len(tried) == 1


@pytest.mark.slow
def test_processes_find_what_one_finds_and_a_killed_one_is_replaced(tmp_path):
    tables = TABLES | {"data": "digits", "training": {"network": "mlp", "epochs": 3}, "seeds": [0, 1]}
    data = brittle.data.load("digits")
    plan = expand(schema.check(tables, "tiny", trust=True), data, device="cpu", dtype="float32")
    alone, shared = Store(tmp_path / "alone"), Store(tmp_path / "shared")
    scheduler.run(plan.cells, alone, here(alone, lambda _: data))
    executor = LocalPool(WorkerConfig(shared.root, device="cpu", threads=torch.get_num_threads()), 2)

    class Kills(Heard):
        begun = 0

        def begin(self, cell):
            self.begun += 1
            if self.begun in (2, 5):
                os.kill(next(hand for hand in executor._workers if hand.cell == cell).process.pid or 0, signal.SIGKILL)

    heard = Kills()
    ran = scheduler.run(plan.cells, shared, executor, heard)
    assert (ran.done, ran.failed) == (len(plan.cells), ())
    assert len(heard.said) == 2
    assert "its process was killed by signal 9; computing it again" in heard.said[0]
    assert hashes(shared) == hashes(alone)
    assert not any(one.process.is_alive() for one in executor._workers)


@pytest.mark.parametrize(
    ("cores", "memory", "data", "most"),
    [(4, 1e12, 0, 4), (64, 2e9, 0, 3), (64, 2e9, 400_000_000, 2), (64, 1e6, 0, 1), (1, 1e12, 0, 1)],
)
def test_so_many_workers_as_there_are_cores_and_memory_for(monkeypatch, cores, memory, data, most):
    monkeypatch.setattr(local_pool, "available_cores", lambda: cores)
    monkeypatch.setattr(local_pool, "_memory", lambda: memory)
    assert local_pool.most_workers(data) == most


def test_the_memory_is_what_is_free_and_what_the_control_group_allows(monkeypatch, tmp_path):
    assert 1e8 < local_pool._memory() < 1e14
    (tmp_path / "limit").write_text("123456\n")
    (tmp_path / "none").write_text("max\n")
    monkeypatch.setattr(local_pool, "_LIMITS", [str(tmp_path / name) for name in ("none", "limit", "absent")])
    assert local_pool._memory() == 123456


def test_more_workers_than_the_machine_has_places_for_are_not_started(monkeypatch, tmp_path):
    monkeypatch.setattr(local_pool, "available_cores", lambda: 2)
    with pytest.warns(UserWarning, match="2 workers instead of 1000: this machine has 2 cores"):
        executor = LocalPool(WorkerConfig(tmp_path), 1000)
    assert executor.capacity == 2
    assert executor._workers == []  # each is started when there is a cell for it
    executor.shutdown()


class Scripted:
    """An executor of which each cell's ends are known beforehand; those not named are done."""

    def __init__(self, **ends: list[Finished]):
        self.ends, self.taken, self.work = {32 * title: told for title, told in ends.items()}, [], []

    @property
    def capacity(self):
        return 2 - len(self.work)

    def submit(self, cell):
        self.taken.append(cell.title)
        self.work.append(cell.key)

    def poll(self, tell, timeout):
        key = self.work.pop(0)
        told = self.ends.get(key)
        return [told.pop(0) if told else Finished(key, "done")]

    def shutdown(self):
        pass


class Named(Cell):
    """A cell whose key is its title, a letter from a to f, so many times."""

    @cached_property
    def key(self):
        return 32 * self.title


def named(title, *parents):
    return Named(title, "select", 1, {}, {parent.title: parent for parent in parents})


def test_cells_begin_in_the_order_of_the_plan_as_soon_as_their_parents_are_done(tmp_path):
    a, b = named("a"), named("b")
    c = named("c", a)
    d, e = named("d", b, c), named("e")
    executor = Scripted()
    assert scheduler.run([a, b, c, d, e], Store(tmp_path), executor).done == 5
    assert executor.taken == ["a", "b", "c", "e", "d"]  # d waits for c, which e does not


def test_a_cell_whose_process_dies_is_tried_three_times(tmp_path):
    a = named("a")
    b = named("b", a)
    gone = Finished(32 * "a", "lost", "its process was killed by signal 9")
    once = Scripted(a=[gone, gone])
    assert scheduler.run([a, b], Store(tmp_path), once).done == 2
    assert once.taken == ["a", "a", "a", "b"]
    ran = scheduler.run([a, b], Store(tmp_path), Scripted(a=[gone, gone, gone]))
    assert [failure.why for failure in ran.failed] == ["its process was killed by signal 9, 3 times"]
    assert ran.left == (b,)


def test_a_parent_that_is_no_cell_of_the_plan_and_not_there_fails_its_child(tmp_path):
    b = named("b", named("a"))
    ran = scheduler.run([b], Store(tmp_path), Scripted(b=[Finished(32 * "b", "missing_parent", 32 * "a")]))
    assert ran.failed[0].why == "cell aaaaaaaa, which it needs, is not in the store or damaged; run again"


def test_attacks_in_shards_find_what_they_find_in_one(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    whole = expand(
        schema.check(TABLES | {"shard_rows": 100}, "tiny", trust=True), blobs(), device="cpu", dtype="float32"
    )
    run(whole, store)

    def joined(of):
        keys = of.record["models"][1]["attacks"][1]["cells"]
        packed = [kept(store, key).tensors("exact") for key in keys]
        flips = [(shard["pixels"] >= 0).sum(1) for shard in packed]
        return torch.cat([shard["success"] for shard in packed]), torch.cat(flips)

    for one, other in zip(joined(plan), joined(whole), strict=True):
        assert torch.equal(one, other)


def test_a_result_is_unpacked_as_it_was_packed(plan, tmp_path):
    from brittle.attacks import song_3

    store = Store(tmp_path / "store")
    run(plan, store)
    cell = next(cell for cell in plan.cells if cell.key == plan.record["models"][0]["train"])
    model = network.load_network(cell, kept(store, cell.key), CPU)
    test = blobs().test
    found = song_3(model, test.images, test.labels, max_pixels=20)
    again = packing.unpack(packing.pack(found), found.images, found.labels)
    assert torch.equal(again.adversarial, found.adversarial)
    assert torch.equal(again.flips, found.flips)
    assert torch.equal(again.prediction, model(found.adversarial).argmax(1))


def test_a_recalled_cell_that_is_no_study_s_is_refused_in_words(tmp_path):
    store = Store(tmp_path)
    store.put("1" * 32, {"title": "foreign"}, {})
    told = {"title": "x", "function": "no such", "params": {}, "parents": {}, "data": "", "environment": {}}
    store.put("2" * 32, told, {})
    with pytest.raises(InputError, match="cell 11111111 does not say what it was made from"):
        scheduler.recall(store, "1" * 32)
    with pytest.raises(InputError, match="was made by another version of brittle"):
        scheduler.recall(store, "2" * 32)


def test_a_row_of_teachers_in_a_store_is_recalled_up_to_its_limit(tmp_path):
    store = Store(tmp_path)
    told = {"function": "select", "params": {}, "data": "", "environment": {}}
    last = new_cell("0", "select", {})
    for number in range(300):
        parents = {role: parent.key for role, parent in last.parents.items()}
        store.put(last.key, told | {"title": last.title, "parents": parents}, {})
        if number == 100:
            assert scheduler.recall(store, last.key).key == last.key
        last = new_cell(str(number), "select", {}, {"of": last})
    with pytest.raises(InputError, match="is made from more than 50 networks in a row"):
        scheduler.recall(store, last.parents["of"].key)


def test_a_recalled_cell_has_its_own_key(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    for cell in plan.cells:
        assert scheduler.recall(store, cell.key, trust=True).key == cell.key
    with pytest.raises(InputError, match="is not in the store"):
        scheduler.recall(store, "0" * 32)


def test_data_that_changed_since_the_plan_is_refused(plan, tmp_path):
    store = Store(tmp_path)
    ran = scheduler.run(plan.cells, store, here(store, lambda _: replace(blobs(), digest="1" * 64)))
    assert {failure.why for failure in ran.failed} == {
        "data set blobs has changed since the study was planned; run it again"
    }
    assert ran.done == 0


def test_a_record_says_what_it_was_made_with(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    made = kept(store, plan.record["models"][0]["train"]).record["provenance"]
    assert made["torch"] == str(torch.__version__)
    assert made["threads"] == torch.get_num_threads()
    assert {"brittle", "python", "platform", "processor", "device", "started", "seconds"} <= set(made)
    assert str(Path.home()) not in str(made)


def test_a_measurement_killed_half_way_goes_on_where_it_was_and_ends_the_same(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "MEASURED", 5)  # 12 rows: three blocks of each of three kinds
    run(plan, Store(tmp_path / "whole"))
    store, computed = Store(tmp_path / "store"), []
    compute = measures.gradient_amplitudes

    def counted(*arguments, **options):
        if len(computed) == 4:
            raise KeyboardInterrupt
        computed.append(options["temperature"])
        return compute(*arguments, **options)

    monkeypatch.setattr(measures, "gradient_amplitudes", counted)
    with pytest.raises(KeyboardInterrupt):
        run(plan, store)
    monkeypatch.setattr(measures, "gradient_amplitudes", lambda *a, **o: (computed.append(0), compute(*a, **o))[1])
    run(plan, store)
    assert len(computed) == 2 * 9  # of two models, each block once
    assert hashes(store) == hashes(Store(tmp_path / "whole"))


def test_an_attack_on_fewer_rows_has_fewer_shards_of_its_own_size(tmp_path):
    attack = TABLES["attacks"]["song_1"] | {"rows": 7, "shard_rows": 3}
    plan = expand(
        schema.check(TABLES | {"attacks": {"few": attack, "all": TABLES["attacks"]["song_1"]}}, "tiny", trust=True),
        blobs(),
        device="cpu",
        dtype="float32",
    )
    spans = [(c.params["start"], c.params["stop"]) for c in plan.cells if c.title.startswith("few on teacher")]
    assert spans == [(0, 3), (3, 6), (6, 7)]
    spans = [(c.params["start"], c.params["stop"]) for c in plan.cells if c.title.startswith("all on teacher")]
    assert spans == [(0, 5), (5, 10), (10, 12)]


def test_the_first_shard_of_a_pixel_attack_keeps_the_logits_after_each_pixel(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    attacks = [cell for cell in plan.cells if cell.function == "attack"]
    rows = next(kept(store, cell.key) for cell in plan.cells if cell.function == "select").tensors("rows")
    for cell in attacks:
        stored = kept(store, cell.key)
        if cell.params["start"]:
            assert "exact.steps.safetensors" not in stored.record["files"]
            continue
        model = network.load_network(cell.parents["model"], kept(store, cell.parents["model"].key), CPU)
        steps, packed = stored.tensors("exact.steps"), stored.tensors("exact")
        assert rows["labels"][steps["rows"]].tolist() == rows["labels"][:5].unique().tolist()
        for row, logits in zip(steps["rows"].tolist(), steps["logits"], strict=True):
            count = int((packed["pixels"][row] >= 0).sum())
            image = rows["images"][row].clone()
            for step in range(count + 1):
                if step:
                    image.view(-1)[packed["pixels"][row, step - 1]] = packed["levels"][row, step - 1].float()
                with torch.no_grad():
                    assert torch.allclose(model(image[None])[0], logits[step], atol=1e-5)
            assert logits[count + 1 :].isnan().all()


class OverT(torch.nn.Module):
    def __init__(self, model, temperature):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, images):
        return self.model(images) / self.temperature


def test_attacks_over_the_temperature_and_at_every_target_are_what_the_functions_give(tmp_path, plan):
    """`plan` for its network."""
    one = {"function": "brittle.attacks.carlini_l2", "max_iterations": 5, "rows": "one_a_class"}
    attacks = {"over": {**one, "over_temperature": True}, "every": {**one, "targets": "every"}}
    plan = expand(
        schema.check(TABLES | {"attacks": attacks}, "tiny", trust=True), blobs(), device="cpu", dtype="float32"
    )
    store = Store(tmp_path / "store")
    run(plan, store)
    rows = next(kept(store, cell.key) for cell in plan.cells if cell.function == "select").tensors("rows")
    first = [rows["labels"].tolist().index(label) for label in (0, 1, 2)]
    images, labels = rows["images"][first], rows["labels"][first]
    for cell in plan.cells:
        if cell.function != "attack":
            continue
        model, packed = (
            network.load_network(cell.parents["model"], kept(store, cell.parents["model"].key), CPU),
            kept(store, cell.key),
        )
        if cell.title.startswith("over"):
            expected = carlini_l2(OverT(model, 5.0), images, labels, max_iterations=5)
        else:
            others = torch.tensor([[1, 2], [0, 2], [0, 1]])
            twice = images.repeat_interleave(2, 0), labels.repeat_interleave(2)
            expected = carlini_l2(model, *twice, targets=others[labels].flatten(), max_iterations=5)
        assert torch.allclose(packed.tensors("result")["adversarial"], expected.adversarial, atol=1e-5)
        assert packed.scalars["rows"] == 3
    store.write_study("tiny", plan.record)
    report = gather(store, "tiny")
    over, every = report.models[1].attacks
    assert (over.over_temperature, every.over_temperature) == (True, False)
    assert over.rows.tolist() == first
    assert every.rows.tolist() == [row for row in first for _ in range(2)]
    assert over.complete
    assert every.complete
    assert every.found["result"].success.total == 6 - int(every.found["result"].trivial.sum())
    assert [model.generation for model in report.models] == [0, 1]
