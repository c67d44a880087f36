import pytest
from problems import blobs

from brittle import study
from brittle.errors import InputError

TABLES = {
    "name": "tiny",
    "title": "A tiny study",
    "data": "blobs",
    "rows": 5,
    "training": {"epochs": 2},
    "models": {"plain": {}, "tempered": {"temperature": 20.0}, "student": {"teacher": "tempered", "temperature": 20.0}},
    "attacks": {"song_1": {"function": "brittle.attacks.song_1", "arithmetic": ["float32", "exact"]}},
}


def changed(**tables):
    return study.check(TABLES | tables, "tiny")


def expanded(**tables):
    return study.expand(changed(**tables), blobs(), device="cpu", dtype="float32")


def titles(plan, function):
    return [cell.title for cell in plan.cells if cell.function == function]


@pytest.mark.parametrize("name", ["quickstart", "song-2017", "song-2017-code", "song-2017-sweep"])
def test_the_studies_that_come_with_brittle_are_studies(name):
    assert study.read(name).name == name


def test_the_published_settings_of_song_are_its_defaults():
    song = study.read("song-2017")
    assert (song.data, song.rows, song.training.epochs, song.training.batch_size) == ("mnist", "all", 50, 128)
    assert (song.training.learning_rate, song.training.momentum) == (0.1, 0.5)
    assert song.models["distilled"].learning_rate == 0.05
    assert [song.models[m].temperature for m in ("standard", "tempered", "distilled")] == [1, 20, 20]


EARLIER = {  # of the train cells, in float32 on the CPU, as 0.1.0 had them before `decay_on`
    "song-2017": [
        "5a08d8f3dbe1cf1669e363bfc365abe7",
        "b1b84add14a6b331b32da2786a094aac",
        "01ee2e50dc0db1a81ea0db86d35d4ab0",
    ],
    "quickstart": [
        "161475c0a32628c66024c4828410d3f1",
        "a3fadcc0c522bd899499032b8a942d40",
        "b2bc8dd40d7dde838a619f2d5dacf788",
    ],
}


@pytest.mark.parametrize("name", EARLIER)
def test_cells_that_earlier_versions_computed_are_found_again(name):
    plan = study.expand(study.read(name), blobs(), device="cpu", dtype="float32")
    assert [cell.key for cell in plan.cells if cell.function == "train"] == EARLIER[name]


def test_the_settings_of_songs_code_reach_the_cells():
    plan = study.expand(study.read("song-2017-code"), blobs(), device="cpu", dtype="float32")
    trained = [cell.params for cell in plan.cells if cell.function == "train"]
    assert [(params["temperature"], params["learning_rate"]) for params in trained] == [(1, 0.1), (20, 0.1), (20, 0.05)]
    for params in trained:
        assert (params["nesterov"], params["weight_decay"], params["decay_on"]) == (True, 0.02, "output")
        assert params["network_options"] == {"dropout": 0.5, "pixel_scale": 255 / 256}
    options = {cell.params["function"][-6:]: cell.params["options"] for cell in plan.cells if cell.function == "attack"}
    for attack in ("song_2", "song_4"):
        assert (options[attack]["signed"], options[attack]["darken"]) == (True, False)


def test_songs_code_differs_from_his_text_in_nothing_else():
    same = {"data", "layout", "rows", "shard_rows", "seeds", "training", "models", "attacks"}
    text, code = (study.read(name).model_dump(include=same) for name in ("song-2017", "song-2017-code"))
    del text["attacks"]["song_4_by_index"]  # costly, and shown once
    for recipe in (text, code):
        for key in ("nesterov", "weight_decay", "decay_on", "network_options"):
            for table in (recipe["training"], *recipe["models"].values()):
                del table[key]
        for attack in ("song_2", "song_4"):
            for key in ("signed", "darken"):
                recipe["attacks"][attack].pop(key, None)
    assert code == text


def test_the_sweep_has_fourteen_models_a_seed_and_each_student_the_teacher_of_its_own_temperature():
    plan = study.expand(study.read("song-2017-sweep"), blobs(), device="cpu", dtype="float32")
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


def test_parents_come_before_their_children():
    seen = set()
    for cell in expanded(seeds=[0, 1]).cells:
        assert {parent.key for parent in cell.parents.values()} <= seen
        seen.add(cell.key)


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
    other = study.expand(changed(), blobs(), device="cpu", dtype="bfloat16")
    assert key(other) != base


def test_what_is_penalised_is_part_of_the_key_unless_it_is_what_always_was():
    def key(model, **training):
        return expanded(training={"weight_decay": 0.1, **training}, models={"plain": model}, attacks={}).cells[1].key

    base = key({})
    assert key({}, decay_on="weights") == base
    assert key({"decay_on": "weights"}, decay_on="output") == base
    assert key({}, decay_on="output") == key({"decay_on": "output"}) != base


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


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("training.epochs=3", ("training", "epochs"), 3),
        ("rows=all", ("rows",), "all"),
        ('rows="all"', ("rows",), "all"),
        ("models.tempered.temperature=[1.0, 2.0]", ("models", "tempered", "temperature"), [1.0, 2.0]),
        ("data=my folder/x.npz", ("data",), "my folder/x.npz"),
    ],
)
def test_a_setting_is_read_as_toml_or_as_a_string(setting, path, value):
    tables = {}
    study.put(tables, setting)
    for step in path:
        tables = tables[step]
    assert tables == value


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"rows": 0}, "rows: rows must be at least 1 or 'all', got 0"),
        ({"training": {"epochs": -1}}, "training.epochs: epochs must be at least 0, got -1"),
        ({"training": {"epochs": "x"}}, "training.epochs: input should be a valid integer, got 'x'"),
        ({"training": {"temperature": 0.0}}, "temperature must be a positive finite number, got 0.0"),
        ({"training": {"temperature": float("nan")}}, "temperature must be a positive finite number, got nan"),
        ({"training": {"temperature": [1.0, float("inf")]}}, "must be a positive finite number, got inf"),
        ({"training": {"decay_on": "ouput"}}, "training.decay_on: unknown decay_on 'ouput': did you mean 'output'"),
        ({"models": {"a": {"decay_on": ["output", "all"]}}}, "models.a.decay_on: unknown decay_on 'all'"),
        ({"modles": {}}, "modles: unknown key"),
        ({"models": {"a": {"teacher": "b"}, "b": {"teacher": "a"}}}, "in a circle: a -> b -> a"),
        ({"models": {"a": {"teacher": "c"}}}, "unknown teacher of model a, 'c'"),
        ({"models": {"a": {"network": "papernot_mnits"}}}, "unknown network 'papernot_mnits': did you mean"),
        ({"models": {"a": {"network": "no.such.module"}}}, "network 'no.such.module' cannot be imported"),
        ({"models": {"a": {"network_options": {"drop": 1}}}}, "unknown option of network"),
        ({"attacks": {"a": {"function": "song_9"}}}, "unknown attack 'song_9': did you mean"),
        ({"attacks": {"a": {"function": "song_1", "max_pixles": 3}}}, "did you mean 'max_pixels'?"),
        ({"attacks": {"a": {"function": "song_1", "arithmetic": "float16"}}}, "unknown arithmetic 'float16'"),
    ],
)
def test_what_is_wrong_with_a_study_is_said(tables, said):
    with pytest.raises(InputError) as raised:
        expanded(**tables)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_every_wrong_key_is_said_at_once():
    with pytest.raises(InputError) as raised:
        changed(rows=0, foo=1, training={"epochs": "x", "bar": 2})
    for path in ("rows", "foo", "training.epochs", "training.bar"):
        assert f"{path}: " in str(raised.value)


def test_files_that_are_no_studies_are_said_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.toml cannot be read"):
        study.read(str(tmp_path / "nothing.toml"))
    (tmp_path / "bad.toml").write_text("name = [")
    with pytest.raises(InputError, match=r"bad\.toml is not TOML"):
        study.read(str(tmp_path / "bad.toml"))
    with pytest.raises(InputError, match="did you mean 'song-2017'"):
        study.read("song2017")
