"""Files that try to run code: nothing of them runs without trust, and the refusal is one line that names --trust."""

import json
import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import brittle
from brittle.cli.main import app
from brittle.errors import InputError
from brittle.models.networks import build, mlp
from brittle.study import lookup, schema
from brittle.study.kinds import new_cell
from brittle.study.kinds.network import cell as network
from brittle.study.load_model import load_model
from brittle.study.run import scheduler
from brittle.study.run.worker import request_record
from brittle.study.store.cell import Cell
from brittle.study.store.store import Store

CPU = torch.device("cpu")
DIGITS = brittle.data.load("digits")


class Touches:
    """A pickle that makes a folder when it is loaded without care."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def ran(tmp_path, monkeypatch) -> Path:
    """A folder that hostile files make where they run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "ran"


def opened(text: object, **options) -> nn.Module:
    return load_model(str(text), data=DIGITS, device=CPU, **options)


def refused(call, *arguments, **options) -> str:
    """The one line with which something is refused."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Archives and pickles -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> dict[str, bytes]:
    """What is in the archive of a network that takes any number of images."""
    path = tmp_path_factory.mktemp("archive") / "net.pt2"
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},)), path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def graph_of(records: dict[str, bytes]) -> tuple[str, bytes]:
    return next((name, content) for name, content in records.items() if name.endswith("models/model.json"))


def evaluated_size(records: dict[str, bytes], ran: Path) -> dict[str, bytes]:
    """A tensor that is named like a key for people has a size that torch evaluates as Python."""
    name, content = graph_of(records)
    tensors = json.loads(content)["graph_module"]["graph"]["tensor_values"]
    resized = next(key for key, value in tensors.items() if "as_expr" in json.dumps(value))
    changed = json.loads(content.replace(f'"{resized}"'.encode(), b'"metadata"'))
    sizes = changed["graph_module"]["graph"]["tensor_values"]["metadata"]["sizes"]
    next(size for size in sizes if "as_expr" in size)["as_expr"]["expr_str"] = f"__import__('os').mkdir({str(ran)!r})"
    return records | {name: json.dumps(changed).encode()}


def older_layout(records: dict[str, bytes], ran: Path) -> dict[str, bytes]:
    """An archive in torch 2.7's layout, to which `torch.export.load` falls back, and of which it unpickles parts."""
    torch.save({"weight": Touches(ran)}, "state.pt")
    state = Path("state.pt").read_bytes()
    parts = ("state_dict", "constants", "example_inputs")
    graph = {"version": b"8.0", "serialized_exported_program.json": graph_of(records)[1]}
    return graph | {f"serialized_{part}.pt": state for part in parts}


def writing_operator(records: dict[str, bytes], ran: Path) -> dict[str, bytes]:
    """One of ATen's operators opens a file to write to."""
    name, content = graph_of(records)
    changed = json.loads(content)
    changed["graph_module"]["graph"]["nodes"][-1] |= {
        "target": "torch.ops.aten.from_file.default",
        "inputs": [{"name": "filename", "arg": {"as_string": str(ran)}, "kind": 1}],
    }
    return records | {name: json.dumps(changed).encode()}


@pytest.mark.parametrize("make", [evaluated_size, older_layout, writing_operator])
def test_an_archive_is_refused_before_it_is_read(records, ran, make):
    with zipfile.ZipFile("evil.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, content in make(records, ran).items():
            archive.writestr(name, content)
    assert "--trust" in refused(opened, "evil.pt2")
    assert not ran.exists()
    if make is not writing_operator:  # the files are hostile: with trust they run
        refused(opened, "evil.pt2", trust=True)
        assert ran.exists()


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "pkl"])
def test_a_pickle_with_code_is_refused(ran, suffix):
    torch.save({"weight": Touches(ran)}, f"evil.{suffix}")
    for options in ({}, {"network": "mlp"}):
        assert "--trust" in refused(opened, f"evil.{suffix}", **options)
    assert "--trust" in refused(opened, "brittle.networks:mlp", weights=Path(f"evil.{suffix}"))
    assert not ran.exists()


def test_a_whole_model_is_code_and_opens_with_trust(ran):
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()
    torch.save(network, "whole.pt")
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 1, 28, 28)), "script.pt")
    for name, said in (("whole.pt", "a pickled torch.nn.modules.container.Sequential"), ("script.pt", "TorchScript")):
        assert f"{name} holds {said}, which can run code" in refused(opened, name)
        images = DIGITS.test.images[:3]
        torch.testing.assert_close(opened(name, trust=True)(images), network(images))


# Studies --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["show"], ["status"], ["run", "--dry-run"], ["run"]])
@pytest.mark.parametrize("kind", ["network", "attack"])
def test_a_study_does_not_run_what_it_names(ran, command, kind):
    options = f'network = "os.mkdir"\nnetwork_options = {{path = "{ran}"}}\n' if kind == "network" else ""
    attack = '[attacks.evil]\nfunction = "hostile.attack"\n' if kind == "attack" else ""
    Path("hostile.py").write_text(f"import os\nos.mkdir({str(ran)!r})\ndef attack(model, images, labels): ...\n")
    Path("evil.toml").write_text(f'name = "e"\ntitle = "e"\ndata = "digits"\n[models.one]\n{options}{attack}')
    done = CliRunner().invoke(app, ["study", *command, "evil.toml"], env={"BRITTLE_HOME": str(ran.parent / "home")})
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert "--trust" in done.stderr
    assert not ran.exists()


def test_a_trusted_study_runs_what_it_names(ran):
    Path("trusted_networks.py").write_text(
        f"import os\nos.mkdir({str(ran)!r})\nfrom brittle import networks\nmade = networks.mlp\n"
    )
    Path("mine.toml").write_text(
        'name = "e"\ntitle = "e"\ndata = "digits"\n[models.one]\nnetwork = "trusted_networks.made"\n'
    )
    assert schema.read("mine.toml", trust=True).models["one"].network == "trusted_networks.made"
    assert ran.exists()


# Stores ---------------------------------------------------------------------------------------------------------------


def kept(store: Store, cell: Cell, **changes) -> Cell:
    """The cell in the store as a network that was trained, its record sealed as the store seals it."""
    weights = build(mlp, seed=0, channels=1, classes=10, size=28).state_dict()
    sizes = {"channels": 1, "classes": 10, "size": 28}
    record = {**request_record(cell), "scalars": {"network_options": sizes}, "provenance": {"seconds": 1.0}, **changes}
    store.put(cell.key, record, {"weights": weights})
    return cell


def train(network: str, **options: object) -> Cell:
    return new_cell("train x", "train", {"network": network, "network_options": options, "temperature": 1.0, "seed": 0})


def test_a_cell_that_names_foreign_code_is_refused(ran):
    store = Store("store")
    cell = kept(store, train("os.mkdir", path=str(ran)))
    assert all(damage is None for _, damage in store.verify())
    assert "--trust" in refused(opened, cell.key, store=store)
    assert "--trust" in refused(scheduler.recall, store, cell.key)
    for command in (
        ["audit", cell.key, "--data", "digits"],
        ["attack", cell.key, "--data", "digits", "--attack", "song_1"],
    ):
        done = CliRunner().invoke(app, [*command, "--store", "store"])
        assert done.exit_code == 2
        assert "--trust" in done.stderr
    assert not ran.exists()


@pytest.mark.parametrize("text", ["os.mkdir", "hostile.py:net", "net.pt2", "whole.pt"])
def test_a_cell_that_says_how_its_model_is_opened_is_refused_where_that_is_code(ran, text):
    Path("hostile.py").write_text(f"import os\nos.mkdir({str(ran)!r})\ndef net(): ...\n")
    store = Store("store")
    told = {"text": text, "weights": None, "network": None, "mean": None, "std": None, "one_output": None}
    how = {**told, "trust": not text.startswith(("os.", "hostile")), "shape": [1, 28, 28]}
    params = {"network": "net", "network_options": {}, "sha256": "0" * 64, "opened": how}
    cell = kept(store, new_cell("adopt net", "adopt", params))
    for call in (scheduler.recall, scheduler.recall_network):
        assert "is code from outside brittle, and was not run: --trust allows it" in refused(call, store, cell.key)
    assert "--trust" in refused(opened, cell.key, store=store)
    assert not ran.exists()


def test_a_record_that_does_not_belong_to_its_key_is_refused(ran):
    store = Store("store")
    forged = {"network": "os.mkdir", "network_options": {"path": str(ran)}, "temperature": 1.0, "seed": 0}
    cell = kept(store, train("brittle.networks.mlp"), params=forged)
    for trust in (False, True):
        assert "was made by another version" in refused(opened, cell.key, store=store, trust=trust)
    stored = store.get(cell.key)
    assert stored is not None
    assert network.load_network(cell, stored, CPU)(DIGITS.test.images[:2]).shape == (2, 10)  # as a run does
    assert not ran.exists()


def test_a_record_without_its_parts_is_refused(ran):
    store = Store("store")
    cell = train("brittle.networks.mlp")
    store.put(cell.key, {"function": "train"}, {})
    assert "does not say what it was made from" in refused(scheduler.recall, store, cell.key)


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "brittle.networks.os",
        "brittle.networks.torch",
        "brittle.networks.build",
        "brittle.attacks.pixels",
        "torch",
        "build",
        "pixels",
        "brittle.networks.torch.os.system",
        "brittle.networks:torch.os.system",
        "brittle.networks.mlp.__globals__",
        "brittle.cli.main.main",
        "os.system",
        "builtins.print",
        "subprocess:check_output",
        "..x",
        ".",
        ":",
        "",
        "nosuch.py:x",
        "mlp:forward",
    ],
)
def test_a_name_does_not_lead_out_of_brittle(name):
    for find in (lookup.network, lookup.attack):
        refused(find, name)


def test_brittle_s_own_names_need_no_trust():
    for name in lookup.network_names():
        assert (
            lookup.network(name)
            is lookup.network(f"brittle.networks.{name}")
            is lookup.network(f"brittle.networks:{name}")
        )
    for name in lookup.attack_names():
        assert lookup.attack(name) is lookup.attack(f"brittle.attacks.{name}")
