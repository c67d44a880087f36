import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from problems import blobs

from brittle import cells, engine, study
from brittle.attacks import carlini_l2
from brittle.errors import InputError
from brittle.plan import expand
from brittle.report import gather
from brittle.store import Store, Stored

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
    return expand(study.check(TABLES, "tiny"), blobs(), device="cpu", dtype="float32")


class Heard(engine.Quiet):
    """Remembers what it was told; stops the run at the cell whose title begins with `stop`."""

    def __init__(self, stop: str = "nothing"):
        self.computed: list[str] = []
        self.said: list[str] = []
        self.stop = stop

    def begin(self, cell, number, total):
        if cell.title.startswith(self.stop):
            raise KeyboardInterrupt

    def end(self, cell, cached):
        if not cached:
            self.computed.append(cell.title)

    def say(self, sentence):
        self.said.append(sentence)


def run(plan, store, **options):
    return engine.run(plan.cells, store, load=lambda _: blobs(), device=CPU, **options)


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
    engine.forget(plan.cells, store)
    assert run(plan, store).done == len(plan.cells)
    assert hashes(Store(tmp_path / "store")) == before


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
    assert "is damaged (weights.safetensors: sha256 differs); doing it again" in heard.said[0]


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
    plan = expand(study.check(TABLES | {"seeds": [0, 1]}, "tiny"), blobs(), device="cpu", dtype="float32")
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
    assert heard.said == ["train teacher, seed 0: waiting for another process that is doing it"]


def test_a_parent_that_goes_meanwhile_is_said(plan, tmp_path):
    store = Store(tmp_path / "store")

    class Removes(Heard):
        def end(self, cell, cached):
            if cell.title == "train student, seed 0":
                store.discard(cell.key)

    with pytest.raises(InputError, match="has gone or been damaged meanwhile; run again"):
        run(plan, store, watch=Removes())


def test_attacks_in_shards_find_what_they_find_in_one(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    whole = expand(study.check(TABLES | {"shard_rows": 100}, "tiny"), blobs(), device="cpu", dtype="float32")
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
    model = cells.load_model(kept(store, plan.record["models"][0]["train"]), CPU)
    test = blobs().test
    found = song_3(model, test.images, test.labels, max_pixels=20)
    again = cells.unpack(cells.pack(found), found.images, found.labels)
    assert torch.equal(again.adversarial, found.adversarial)
    assert torch.equal(again.flips, found.flips)
    assert torch.equal(again.prediction, model(found.adversarial).argmax(1))


def test_a_recalled_cell_has_its_own_key(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    for cell in plan.cells:
        assert engine.recall(store, cell.key).key == cell.key
    with pytest.raises(InputError, match="is not in the store"):
        engine.recall(store, "0" * 32)


def test_data_that_changed_since_the_plan_is_refused(plan, tmp_path):
    with pytest.raises(InputError, match="has changed since the study was planned"):
        engine.run(plan.cells, Store(tmp_path), load=lambda _: replace(blobs(), digest="1" * 64), device=CPU)


def test_a_record_says_what_it_was_made_with(plan, tmp_path):
    store = Store(tmp_path / "store")
    run(plan, store)
    made = kept(store, plan.record["models"][0]["train"]).record["provenance"]
    assert made["torch"] == str(torch.__version__)
    assert made["threads"] == torch.get_num_threads()
    assert {"brittle", "python", "platform", "processor", "device", "started", "seconds"} <= set(made)
    assert str(Path.home()) not in str(made)


def test_a_measurement_killed_half_way_goes_on_where_it_was_and_ends_the_same(plan, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "MEASURED", 5)  # 12 rows: three blocks of each of three kinds
    run(plan, Store(tmp_path / "whole"))
    store, computed = Store(tmp_path / "store"), []
    compute = cells.measures.gradient_amplitudes

    def counted(*arguments, **options):
        if len(computed) == 4:
            raise KeyboardInterrupt
        computed.append(options["temperature"])
        return compute(*arguments, **options)

    monkeypatch.setattr(cells.measures, "gradient_amplitudes", counted)
    with pytest.raises(KeyboardInterrupt):
        run(plan, store)
    monkeypatch.setattr(
        cells.measures, "gradient_amplitudes", lambda *a, **o: (computed.append(0), compute(*a, **o))[1]
    )
    run(plan, store)
    assert len(computed) == 2 * 9  # of two models, each block once
    assert hashes(store) == hashes(Store(tmp_path / "whole"))


def test_an_attack_on_fewer_rows_has_fewer_shards_of_its_own_size(tmp_path):
    attack = TABLES["attacks"]["song_1"] | {"rows": 7, "shard_rows": 3}
    plan = expand(
        study.check(TABLES | {"attacks": {"few": attack, "all": TABLES["attacks"]["song_1"]}}, "tiny"),
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
        model = cells.load_model(kept(store, cell.parents["model"].key), CPU)
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
    plan = expand(study.check(TABLES | {"attacks": attacks}, "tiny"), blobs(), device="cpu", dtype="float32")
    store = Store(tmp_path / "store")
    run(plan, store)
    rows = next(kept(store, cell.key) for cell in plan.cells if cell.function == "select").tensors("rows")
    first = [rows["labels"].tolist().index(label) for label in (0, 1, 2)]
    images, labels = rows["images"][first], rows["labels"][first]
    for cell in plan.cells:
        if cell.function != "attack":
            continue
        model, packed = cells.load_model(kept(store, cell.parents["model"].key), CPU), kept(store, cell.key)
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
