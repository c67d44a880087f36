import math
import pickle
import re
import time
from dataclasses import replace

import pytest
from problems import TABLES, blobs

from brittle.errors import InputError
from brittle.study import expand as plan_module
from brittle.study import schema
from brittle.study.expand import expand
from brittle.study.kinds.attack import cell as attack_cell


def expanded(**tables):
    return expand(schema.check(TABLES | tables, "tiny", trust=True), blobs(), device="cpu", dtype="float32")


def titles(plan, function):
    return [cell.title for cell in plan.cells if cell.function == function]


EARLIER = {  # of the train cells, in float32 on the CPU, as 0.1.0 had them before `decay_on`
    "song-2017": [
        "5a08d8f3dbe1cf1669e363bfc365abe7",
        "b1b84add14a6b331b32da2786a094aac",
        "01ee2e50dc0db1a81ea0db86d35d4ab0",
    ],
}


THEN = {  # how the demo trained then
    "quickstart": [
        "training.epochs=30",
        "training.batch_size=16",
        "training.learning_rate=0.1",
        "training.schedule=constant",
        "training.warmup=0.0",
        "training.momentum=0.5",
        "training.nesterov=false",
        "training.clip_norm=inf",
    ]
}


@pytest.mark.parametrize("name", EARLIER)
def test_cells_that_earlier_versions_computed_are_found_again(name):
    plan = expand(schema.read(name, THEN.get(name, [])), blobs(), device="cpu", dtype="float32")
    assert [cell.key for cell in plan.cells if cell.function == "train"] == EARLIER[name]


def test_an_attack_of_a_version_of_its_own_leaves_the_others_cells_as_they_are(monkeypatch):
    tables = schema.read("quickstart")

    def keys() -> dict[str, str]:
        plan = expand(tables, blobs(), device="cpu", dtype="float32")
        return {cell.title: cell.key for cell in plan.cells}

    before = keys()
    function = attack_cell.FUNCTIONS["attack"]
    versions = {**function.versions, "brittle.attacks.song_2": 99}
    monkeypatch.setitem(attack_cell.FUNCTIONS, "attack", replace(function, versions=versions))
    changed = {title for title, key in keys().items() if key != before[title]}
    assert changed == {title for title in before if title.startswith("song_2")} != set()


def test_the_settings_of_songs_code_reach_the_cells():
    plan = expand(schema.read("song-2017-code"), blobs(), device="cpu", dtype="float32")
    trained = [cell.params for cell in plan.cells if cell.function == "train"]
    assert [(params["temperature"], params["learning_rate"]) for params in trained] == [(1, 0.1), (20, 0.1), (20, 0.05)]
    for params in trained:
        assert (params["nesterov"], params["weight_decay"], params["decay_on"]) == (True, 0.02, "output")
        assert params["network_options"] == {"dropout": 0.5, "pixel_scale": 255 / 256}
    options = {cell.params["function"][-6:]: cell.params["options"] for cell in plan.cells if cell.function == "attack"}
    for attack in ("song_2", "song_4"):
        assert (options[attack]["signed"], options[attack]["darken"]) == (True, False)


def test_the_sweep_has_fourteen_models_a_seed_and_each_student_the_teacher_of_its_own_temperature():
    plan = expand(schema.read("song-2017-sweep"), blobs(), device="cpu", dtype="float32")
    temperatures = [1, 2, 5, 10, 20, 40, 100]
    for seed in (0, 1, 2):
        entries = [entry for entry in plan.record["models"] if entry["seed"] == seed]
        for taught in (False, True):
            assert [entry["temperature"] for entry in entries if bool(entry["teacher"]) == taught] == temperatures
        assert len(entries) == 14
    cells = {cell.key: cell for cell in plan.cells}
    rates = {40.0: 0.2, 100.0: 0.5}
    for entry in plan.record["models"]:
        cell = cells[entry["train"]]
        assert (cell.params["temperature"], cell.params["epochs"]) == (entry["temperature"], 3)
        assert cell.params["learning_rate"] == rates.get(entry["temperature"], 0.1)
        if entry["teacher"] is None:
            assert (cell.params["seed"], cell.parents) == (entry["seed"], {})
            continue
        labels = cell.parents["labels"]
        teacher = labels.parents["teacher"]
        assert labels.params["temperature"] == teacher.params["temperature"] == entry["temperature"]
        assert teacher.params["seed"] == entry["seed"]
        assert not teacher.parents
    assert sum(cell.function == "train" for cell in plan.cells) == 42


def test_a_chain_has_its_own_seed_and_its_teachers_labels_in_every_generation():
    plan = expand(schema.read("mandal-guo", size="full"), blobs(), device="cpu", dtype="float32")
    cells = {cell.key: cell for cell in plan.cells}
    wanted = ("generation_7", 1, 30)
    (entry,) = [e for e in plan.record["models"] if (e["name"], e["seed"], e["temperature"]) == wanted]
    cell = cells[entry["train"]]
    for generation in range(6, 0, -1):
        assert (cell.params["seed"], cell.params["temperature"]) == (1 + 1000 * generation, 30)
        assert cell.parents["labels"].params == {"temperature": 30}
        cell = cell.parents["labels"].parents["teacher"]
    assert cell.params["seed"] == 1
    assert not cell.parents


def test_an_attack_can_be_for_some_models_and_seeds_only():
    attack = TABLES["attacks"]["song_1"] | {"models": ["plain", "student"], "seeds": [1]}
    plan = expanded(attacks={"song_1": attack}, seeds=[0, 1])
    attacked = [(e["name"], e["seed"]) for e in plan.record["models"] if e["attacks"]]
    assert attacked == [("plain", 1), ("student", 1)]


def test_logits_over_the_temperature_are_attacked_where_there_is_one():
    plan = expanded(attacks={"over": {"function": "brittle.attacks.carlini_l2", "over_temperature": True}})
    cells = [cell for cell in plan.cells if cell.function == "attack"]
    assert [(c.title.split(",")[0], c.params["temperature"]) for c in cells] == [
        ("over on tempered", 20),
        ("over on student", 20),
    ]
    assert [a["over_temperature"] for e in plan.record["models"] for a in e["attacks"]] == [True, True]


def test_a_row_of_each_class_can_be_turned_into_every_other():
    attack = {"function": "brittle.attacks.carlini_l2", "rows": "one_a_class", "targets": "every"}
    plan = expanded(attacks={"every": attack}, rows="all")
    labels = blobs().test.labels
    for cell in plan.cells:
        if cell.function == "attack":
            first = [labels.tolist().index(label) for label in (0, 1, 2)]
            assert cell.params["targets"] == "every"
            assert cell.params["indices"] == first


def test_units_and_masks_are_looked_at_for_every_seed_of_their_models():
    units = {"maps": {"layers": ["hidden"], "classes": ["square at 2", "square at 0"], "models": ["plain"]}}
    masks = {"linear": {"models": ["plain"], "other": "student"}}
    plan = expanded(units=units, masks=masks, seeds=[0, 1])
    assert titles(plan, "units") == [f"units maps of plain, seed {seed}" for seed in (0, 1)]
    assert titles(plan, "masks") == [f"masks linear of plain, seed {seed}" for seed in (0, 1)]
    cells = {cell.key: cell for cell in plan.cells}
    for entry in plan.record["models"]:
        assert [one["name"] for one in entry["units"]] == ["maps"] * (entry["name"] == "plain")
        for one in entry["units"]:
            cell = cells[one["cell"]]
            assert cell.params["classes"] == [2, 0]
            assert cell.parents["model"].key == entry["train"]
        for one in entry["masks"]:
            others = [e["train"] for e in plan.record["models"] if (e["name"], e["seed"]) == ("student", entry["seed"])]
            assert [cells[one["cell"]].parents["other"].key] == others


def test_units_of_a_class_that_is_not_there_are_refused():
    with pytest.raises(InputError, match=r"class of blobs.*'square at 3'"):
        expanded(units={"maps": {"layers": ["hidden"], "classes": ["square at 3"]}})


def test_models_are_audited_for_every_seed_beside_the_reference_of_the_same_seed():
    audits = {"quick": {"budget": "quick", "reference": "plain"}, "l2": {"norm": "l2", "models": ["student"]}}
    plan = expanded(audits=audits, seeds=[0, 1])
    made = {cell.title: cell for cell in plan.cells if cell.function == "audit"}
    assert len(made) == 2 * (len(TABLES["models"]) + 1)
    after = {cell.title: plan.cells[place + 1].title for place, cell in enumerate(plan.cells[:-1])}
    assert after["train plain, seed 0"] == "audit quick of plain, seed 0"  # the verdict is the first that is known
    for seed in (0, 1):
        beside = made[f"audit quick of student, seed {seed}"]
        assert beside.parents["reference"].title == f"train plain, seed {seed}"
        assert beside.params == {"norm": "linf", "eps": None, "rows": 1000, "budget": "quick", "seed": seed}
        assert set(made[f"audit quick of plain, seed {seed}"].parents) == {"model"}  # it is its own
        assert set(made[f"audit l2 of student, seed {seed}"].parents) == {"model"}
    known = {cell.key: cell.title for cell in plan.cells}
    for entry in plan.record["models"]:
        titles = [f"audit {one['name']} of {entry['label']}, seed {entry['seed']}" for one in entry["audits"]]
        assert [known[one["cell"]] for one in entry["audits"]] == titles


def test_an_audit_s_reference_is_one_model_and_not_a_grid():
    models = {"plain": {}, "grid": {"temperature": [1.0, 2.0]}}
    with pytest.raises(InputError, match="audits quick are beside one model, grid is a grid of several"):
        expanded(models=models, attacks={}, audits={"quick": {"reference": "grid", "models": ["plain"]}})


def test_masks_are_tried_on_one_model_and_not_on_a_grid():
    models = {"plain": {}, "grid": {"epochs": [1, 2]}}
    with pytest.raises(InputError, match="masks linear are tried on one model, grid is a grid of several"):
        expanded(models=models, attacks={}, masks={"linear": {"models": ["plain"], "other": "grid"}})


def test_parents_come_before_their_children():
    seen = set()
    for cell in expanded(seeds=[0, 1]).cells:
        assert {parent.key for parent in cell.parents.values()} <= seen
        seen.add(cell.key)


def test_models_that_teach_each_other_in_a_circle_are_refused():
    with pytest.raises(InputError, match="in a circle: a -> b -> a"):
        expanded(models={"a": {"teacher": "b"}, "b": {"teacher": "a"}})


def test_a_list_makes_a_grid():
    plan = expanded(training={"epochs": [1, 2], "learning_rate": [0.1, 0.2]}, models={"plain": {}}, attacks={})
    assert titles(plan, "train") == [
        f"train plain epochs={epochs} learning_rate={rate}, seed 0" for epochs in (1, 2) for rate in (0.1, 0.2)
    ]


def test_a_student_joins_its_teachers_grid_where_they_share_an_axis():
    models = {"teacher": {"temperature": [5.0, 10.0]}, "student": {"temperature": [5.0, 10.0], "teacher": "teacher"}}
    plan = expanded(models=models, attacks={})
    students = [cell for cell in plan.cells if cell.title.startswith("train student")]
    assert [cell.params["temperature"] for cell in students] == [5, 10]
    for cell in students:
        assert cell.parents["labels"].parents["teacher"].params["temperature"] == cell.params["temperature"]


def test_a_student_at_one_temperature_has_each_point_of_its_teachers_grid_for_a_teacher():
    models = {"teacher": {"temperature": [5.0, 10.0]}, "student": {"temperature": 1.0, "teacher": "teacher"}}
    assert titles(expanded(models=models, attacks={}), "train")[-2:] == [
        "train student T=5, seed 0",
        "train student T=10, seed 0",
    ]


def test_rows_are_attacked_in_shards():
    plan = expanded(models={"plain": {}}, rows=5, shard_rows=2)
    shards = [(cell.params["start"], cell.params["stop"]) for cell in plan.cells if cell.function == "attack"]
    assert shards == [(0, 2), (2, 4), (4, 5)]


def test_no_more_rows_are_attacked_than_there_are():
    plan = expanded(models={"plain": {}}, rows=10**6, shard_rows=10**6)
    assert [cell.params["stop"] for cell in plan.cells if cell.function == "attack"] == [len(blobs().test)]


def test_a_key_changes_with_what_is_computed_and_with_nothing_else():
    def key(plan):
        return next(cell.key for cell in plan.cells if cell.title.startswith("train tempered"))

    base = key(expanded())
    assert key(expanded(title="Another", rows=3, name="other")) == base
    models = TABLES["models"]
    assert key(expanded(models=models | {"tempered": {"temperature": 21.0}})) != base
    assert key(expanded(training={"epochs": 3})) != base
    assert key(expanded(seeds=[1])) != base
    other = expand(schema.check(TABLES, "tiny"), blobs(), device="cpu", dtype="bfloat16")
    assert key(other) != base


def test_what_is_penalised_is_part_of_the_key_unless_it_is_what_always_was():
    def key(model, **training):
        return expanded(training={"weight_decay": 0.1, **training}, models={"plain": model}, attacks={}).cells[1].key

    base = key({})
    assert key({}, decay_on="weights") == base
    assert key({"decay_on": "weights"}, decay_on="output") == base
    assert key({}, decay_on="output") == key({"decay_on": "output"}) != base


def test_warm_up_and_clipping_are_part_of_the_key_where_they_are_used():
    def key(**training):
        return expanded(training=training, models={"plain": {}}, attacks={}).cells[1].key

    assert key() == key(warmup=0.0, clip_norm=math.inf)
    assert len({key(), key(warmup=1.0), key(clip_norm=0.5), key(warmup=1.0, clip_norm=0.5)}) == 4


def test_what_is_penalised_may_be_a_list():
    plan = expanded(training={"decay_on": ["weights", "output"]}, models={"plain": {}}, attacks={})
    assert titles(plan, "train") == ["train plain decay_on=weights, seed 0", "train plain decay_on=output, seed 0"]


def test_a_foreign_network_is_part_of_the_key(tmp_path, monkeypatch):
    def key():
        return expanded(models={"plain": {"network": "mynets_for_key.make"}}, attacks={}).cells[1].key

    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "mynets_for_key.py"
    file.write_text("from torch import nn\ndef make(): return nn.Sequential(nn.Flatten(), nn.Linear(36, 3))\n")
    before = key()
    file.write_text(file.read_text() + "# edited\n")
    assert key() != before


def chain(count):
    return {"m0": {}} | {f"m{i}": {"teacher": f"m{i - 1}"} for i in range(1, count)}


def test_long_chains_of_teachers_are_refused_in_one_line():
    with pytest.raises(InputError, match="model m50 is the last of 51 that learn from each other: at most 50"):
        expanded(models=chain(2000), attacks={})


def test_the_longest_chain_of_teachers_travels_to_another_process():
    last = [cell for cell in expanded(models=chain(50), attacks={}).cells if cell.function == "train"][-1]
    assert pickle.loads(pickle.dumps(last)).key == last.key


def test_a_teacher_that_exists_already_counts_with_those_that_taught_it():
    taught = [cell for cell in expanded(models=chain(50), attacks={}).cells if cell.function == "train"][-1]
    models = {"teacher": {}, "student": {"teacher": "teacher"}}
    tables = schema.check(TABLES | {"models": models, "attacks": {}}, "tiny")
    with pytest.raises(InputError, match="model student is the last of 51"):
        expand(tables, blobs(), device="cpu", dtype="float32", given={"teacher": taught})


def test_a_grid_too_large_to_plan_is_refused_at_once():
    training = {"temperature": [float(i) for i in range(1, 1001)], "learning_rate": [i / 1000 for i in range(1, 1001)]}
    began = time.monotonic()
    with pytest.raises(InputError, match=r"about [34],000,001 cells, and at most 100,000 are planned"):
        expanded(training=training, models={"plain": {}}, attacks={})
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "tables",
    [
        {},
        {"seeds": [0, 1, 2]},
        {"training": {"temperature": [1.0, 2.0, 3.0]}, "models": {"a": {}, "b": {"teacher": "a", "epochs": [1, 2]}}},
        {
            "models": {"a": {"temperature": [1.0, 2.0]}, "b": {"teacher": "a", "temperature": [2.0, 3.0]}},
            "units": {"u": {"layers": ["x"]}},
        },
        {"attacks": {"a": {"function": "song_1", "max_pixels": [1, 2, 3]}}, "shard_rows": 7},
    ],
)
def test_cells_are_counted_before_they_are_made(tables, monkeypatch):
    """The count is of the cells to be, but for labels that nobody learns from, and never below it."""
    cells = len(expanded(**tables).cells)
    monkeypatch.setattr(plan_module, "MOST", cells - 1)
    with pytest.raises(InputError, match="cells, and at most") as raised:
        expanded(**tables)
    counted = int(re.findall(r"about ([\d,]+) cells", str(raised.value))[0].replace(",", ""))
    assert cells <= counted <= 1.5 * cells


def test_a_student_without_a_point_in_common_with_its_teacher_is_refused():
    models = {"teacher": {"temperature": [5.0]}, "student": {"temperature": [10.0], "teacher": "teacher"}}
    with pytest.raises(InputError, match="model student has no temperature in common with its teacher teacher"):
        expanded(models=models, attacks={})


def test_strengths_that_are_one_value_make_one_cell():
    attack = {"function": "brittle.attacks.linear_mask", "targets": "every", "rows": 3}
    plan = expanded(models={"plain": {}}, attacks={"a": attack | {"etas": [750]}})
    assert [c.params["options"] for c in plan.cells if c.function == "attack"] == [{"etas": [750]}]
    plan = expanded(models={"plain": {}}, attacks={"a": attack | {"etas": [[0, 750], [750]]}})
    assert [c.params["options"]["etas"] for c in plan.cells if c.function == "attack"] == [[0, 750], [750]]
