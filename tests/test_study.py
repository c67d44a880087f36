from datetime import date

import pytest
from problems import TABLES

from brittle import attacks
from brittle.errors import InputError
from brittle.study import schema
from brittle.study.kinds.attack.plan import axes_of
from brittle.study.kinds.network.plan import chosen


def deep(times):
    """An empty list in so many others."""
    value = []
    for _ in range(times):
        value = [value]
    return value


def changed(**tables):
    return schema.check(TABLES | tables, "tiny")


@pytest.mark.parametrize("name", ["quickstart", "song-2017", "song-2017-code", "song-2017-sweep"])
def test_the_studies_that_come_with_brittle_are_studies(name):
    assert schema.read(name).name == name


def test_lo_and_dings_networks_train_as_published():
    faces, cifar = (schema.read("lo-ding", size=size) for size in ("faces", "cifar10"))
    own = faces.training
    assert (own.network, own.epochs, own.learning_rate) == ("brittle.networks.lo_ding_faces", 250, 0.1)
    assert (own.momentum, own.batch_size, len(faces.seeds)) == (0.0, 16, 5)
    maps = faces.units["maps"]  # type: ignore[attr-defined]
    assert maps.model_dump()["classes"] == [f"subject{identity:02d}" for identity in (7, 10, 12, 14, 15)]
    alexnet, mlp = (chosen(cifar, cifar.models[name]) for name in ("pseudo_alexnet", "mlp"))
    assert (alexnet["learning_rate"], alexnet["momentum"], mlp["learning_rate"]) == (0.01, 0.9, 0.1)
    assert alexnet["epochs"] == mlp["epochs"] == round(10_000 * 128 / 45_000)


def test_units_and_masks_are_of_models_that_are_there():
    with pytest.raises(InputError, match="model of units maps, 'plane': did you mean 'plain'"):
        changed(units={"maps": {"layers": ["x"], "models": ["plane"]}})
    with pytest.raises(InputError, match="model of masks linear, 'plane': did you mean 'plain'"):
        changed(masks={"linear": {"models": ["plain"], "other": "plane"}})
    with pytest.raises(InputError, match=r"units.maps.layers: list should have at least 1 item"):
        changed(units={"maps": {"layers": []}})


def test_audits_are_of_models_that_are_there_at_a_budget_that_is_known():
    with pytest.raises(InputError, match="model of audits quick, 'plane': did you mean 'plain'"):
        changed(audits={"quick": {"reference": "plane"}})
    with pytest.raises(InputError, match=r"audits.quick.budget: unknown budget 'quik': did you mean 'quick'"):
        changed(audits={"quick": {"budget": "quik"}})
    with pytest.raises(InputError, match=r"audits.quick.eps: input should be greater than 0"):
        changed(audits={"quick": {"eps": 0.0}})


GROWING = """
name = "growing"
title = "In two sizes"
data = "blobs"
[training]
epochs = 2
temperature = [1.0, 20.0]
[models.teacher]
[sizes.small]
rows = 5
[sizes.small.training]
temperature = [1.0]
[sizes.large.models.student]
teacher = "teacher"
"""


def test_a_study_in_sizes_is_its_file_with_one_of_them_put_over_it(tmp_path):
    path = tmp_path / "growing.toml"
    path.write_text(GROWING)
    plain, small, large = (schema.read(str(path), size=size) for size in (None, "small", "large"))
    assert (plain.name, plain.rows, plain.training.temperature) == ("growing", 100, [1.0, 20.0])
    assert (small.name, small.rows, small.training.temperature, list(small.models)) == (
        "growing-small",
        5,
        [1.0],
        ["teacher"],
    )
    assert (large.name, large.rows, large.training.temperature) == ("growing-large", 100, [1.0, 20.0])
    assert list(large.models) == ["teacher", "student"]
    assert small.training.epochs == large.training.epochs == 2
    assert schema.read(str(path), ["training.epochs=7"], "large").training.epochs == 7
    with pytest.raises(InputError, match="'smal': did you mean 'small'"):
        schema.read(str(path), size="smal")
    with pytest.raises(InputError, match="study quickstart has no sizes, got 'small'"):
        schema.read("quickstart", size="small")


def test_mandal_and_guo_train_and_attack_as_published_in_full():
    full = schema.read("mandal-guo", size="full")
    own = full.training
    assert (own.epochs, own.batch_size, own.learning_rate, own.learning_rate_decay) == (50, 128, 0.01, 1e-6)
    assert (own.momentum, own.temperature, full.rows) == (0.9, [1, 2, 5, 10, 20, 30, 40], "all")
    chain = ["teacher", "assistant", "student", *(f"generation_{g}" for g in range(4, 8))]
    assert [full.models[name].teacher for name in chain] == [None, *chain[:-1]]
    assert full.models["control"].epochs == 50 * len(chain)
    for size, generations in (("small", 3), ("medium", 5)):
        control, epochs = (schema.read("mandal-guo", size=size).models["control"].epochs for _ in range(2))
        assert control == epochs == schema.read("mandal-guo", size=size).training.epochs * generations


def test_the_published_settings_of_song_are_its_defaults():
    song = schema.read("song-2017")
    assert (song.data, song.rows, song.training.epochs, song.training.batch_size) == ("mnist", "all", 50, 128)
    assert (song.training.learning_rate, song.training.momentum) == (0.1, 0.5)
    assert song.models["distilled"].learning_rate == 0.05
    assert [song.models[m].temperature for m in ("standard", "tempered", "distilled")] == [1, 20, 20]


def test_songs_code_differs_from_his_text_in_nothing_else():
    same = {"data", "layout", "rows", "shard_rows", "seeds", "training", "models", "attacks"}
    text, code = (schema.read(name).model_dump(include=same) for name in ("song-2017", "song-2017-code"))
    del text["attacks"]["song_4_by_index"]  # costly, and shown once
    for recipe in (text, code):
        for key in ("nesterov", "weight_decay", "decay_on", "network_options"):
            for table in (recipe["training"], *recipe["models"].values()):
                del table[key]
        for attack in ("song_2", "song_4"):
            for key in ("signed", "darken"):
                recipe["attacks"][attack].pop(key, None)
    assert code == text


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
    schema.put(tables, setting)
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
        ({"models": {"a": {"teacher": "c"}}}, "unknown teacher of model a, 'c'"),
        ({"models": {"a": {"network": "papernot_mnits"}}}, "unknown network 'papernot_mnits': did you mean"),
        ({"models": {"a": {"network": "no.such.module"}}}, "network 'no.such.module' is code from outside brittle"),
        ({"models": {"a": {"network_options": {"drop": 1}}}}, "unknown option of network"),
        ({"attacks": {"a": {"function": "song_1", "models": ["plian"]}}}, "model of attack a, 'plian': did you mean"),
        ({"attacks": {"a": {"function": "song_1", "targets": "all"}}}, "attacks.a.targets: input should be 'every'"),
        (
            {"attacks": {"a": {"function": "song_1", "rows": 0}}},
            "attacks.a.rows: input should be greater than or equal to 1, got 0 or",
        ),
        ({"attacks": {"a": {"function": "song_9"}}}, "unknown attack 'song_9': did you mean"),
        ({"attacks": {"a": {"function": "song_1", "max_pixles": 3}}}, "did you mean 'max_pixels'?"),
        ({"attacks": {"a": {"function": "song_1", "arithmetic": "float16"}}}, "unknown arithmetic 'float16'"),
        ({"training": {"epoch": 1}}, "training.epoch: unknown key, did you mean epochs?"),
        ({"training": {"epochs": True}}, "training.epochs: input should be a valid integer"),
        ({"training": {"temperature": True}}, "training.temperature: input should be a valid number"),
        ({"training": {"temperature": []}}, "training.temperature: the list is empty: give at least one value"),
        ({"training": {"temperature": [1, 2.0, 1.0]}}, "training.temperature: 1.0 comes twice in [1.0, 2.0, 1.0]"),
        ({"training": {"clip_norm": [0.5, float("inf")]}}, "models.plain.clip_norm must be finite, got inf"),
        ({"training": {"nesterov": True, "momentum": [0.0, 0.9]}}, "models.plain: nesterov needs a momentum above 0"),
        (
            {"models": {"a": {"network_options": {"dropout": date(2020, 1, 2)}}}},
            "dropout must be a number, a text, true",
        ),
        ({"models": {"a": {"network_options": {"dropout": float("nan")}}}}, "network_options.dropout must be finite"),
        ({"models": {"a": {"network": "papernot_mnist", "network_options": {"dropout": "x"}}}}, "got 'x'"),
        ({"seeds": [0, 0]}, "seeds: 0 comes twice in [0, 0]"),
        ({"seeds": [10**22]}, "seeds.0: input should be less than"),
        ({"seeds": [-1]}, "seeds.0: input should be greater than or equal to 0, got -1"),
        (
            {"seeds": [date(2020, 1, 2)]},
            "seeds must be a number, a text, true, false, a list or a table, got 2020-01-02",
        ),
        ({"attacks": {"a": {"function": "song_1", "models": []}}}, "attacks.a.models: the list is empty"),
        ({"audits": {"a": {"models": []}}}, "audits.a.models: the list is empty"),
        ({"audits": {"a": {"eps": float("inf")}}}, "audits.a.eps: input should be a finite number, got inf"),
        ({"attacks": {"a": {"function": "song_1", "max_pixels": []}}}, "attacks.a.max_pixels: the list is empty"),
        ({"attacks": {"a": {"function": "song_1", "max_pixels": [1, 1]}}}, "attacks.a.max_pixels: 1 comes twice"),
        ({"attacks": {"a": {"function": "song_1", "max_pixels": "abc"}}}, "attacks.a.max_pixels: max_pixels must be"),
        (
            {"attacks": {"a": {"function": "song_1", "max_pixels": [3, 2.5]}}},
            "attacks.a.max_pixels: max_pixels must be",
        ),
        ({"attacks": {"a": {"function": "pgd", "random_start": "no"}}}, "must be true or false, got 'no'"),
        ({"attacks": {"a": {"function": "pgd", "eps": float("nan")}}}, "attacks.a.eps: eps must be finite, got nan"),
        ({"attacks": {"a": {"function": "pgd", "eps": date(2020, 1, 2)}}}, "attacks.a.eps must be a number, a text"),
        ({"attacks": {"a": {"function": "class_mask"}}}, "unknown attack 'class_mask': did you mean 'linear_mask'"),
        ({"attacks": {"a": {"function": "pgd", "eps": deep(30)}}}, "is nested more than 20 deep"),
    ],
)
def test_what_is_wrong_with_a_study_is_said(tables, said):
    with pytest.raises(InputError) as raised:
        changed(**tables)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_list_is_a_value_where_the_option_is_a_list_and_a_grid_elsewhere():
    def axes(**options):
        return axes_of(attacks.linear_mask, options)

    assert axes(etas=[750]) == {}
    assert axes(etas=[[0, 750], [750]]) == {"etas": [[0, 750], [750]]}
    assert axes_of(attacks.song_1, {"max_pixels": [1, 2], "arithmetic": "exact"}) == {"max_pixels": [1, 2]}
    for etas in ([750], [[0, 750], [750]]):
        read = changed(attacks={"a": {"function": "linear_mask", "etas": etas, "targets": "every"}})
        assert read.attacks["a"].model_extra == {"etas": etas}


@pytest.mark.parametrize("setting", ["training.epochs=" + "[" * 2000 + "]" * 2000, ".".join(["a"] * 2000) + "=1"])
def test_a_setting_that_is_nested_too_deeply_is_refused(setting):
    with pytest.raises(InputError, match=r"(nested|key) more than 20 deep") as raised:
        schema.put({}, setting)
    assert len(str(raised.value)) < 200


def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path):
    (tmp_path / "deep.toml").write_text("a = " + "[" * 3000 + "]" * 3000)
    with pytest.raises(InputError, match=r"deep\.toml is nested more than 20 deep"):
        schema.read(str(tmp_path / "deep.toml"))


@pytest.mark.parametrize("name", ["lo-ding", "mandal-guo", "units-of-distillation"])
def test_a_built_in_study_that_needs_a_size_names_them(name):
    with pytest.raises(InputError, match=r"missing.*; its sizes, for --size, are (cifar10|digits), (faces|full|mnist)"):
        schema.read(name)


def test_a_study_as_it_is_run_has_each_model_s_own_settings():
    told = schema.as_run(changed(training={"epochs": 7}, models={"plain": {}, "other": {"epochs": 3}}, attacks={}))
    assert [told["models"][name]["epochs"] for name in ("plain", "other")] == [7, 3]
    assert told["models"]["plain"]["teacher"] is None


def test_every_wrong_key_is_said_at_once():
    with pytest.raises(InputError) as raised:
        changed(rows=0, foo=1, training={"epochs": "x", "bar": 2})
    for path in ("rows", "foo", "training.epochs", "training.bar"):
        assert f"{path}: " in str(raised.value)


def test_files_that_are_no_studies_are_said_by_name(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.toml cannot be read"):
        schema.read(str(tmp_path / "nothing.toml"))
    (tmp_path / "bad.toml").write_text("name = [")
    with pytest.raises(InputError, match=r"bad\.toml is not TOML"):
        schema.read(str(tmp_path / "bad.toml"))
    with pytest.raises(InputError, match="did you mean 'song-2017'"):
        schema.read("song2017")
