"""What is printed runs: the commands and code of the README and the docs, and the commands that commands print."""

import json
import re
import shlex
import sys
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

from brittle.cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULE = """
from torch import nn

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))

resnet = build = net
"""

# What makes a command small, by how it begins; of an option that is given twice, the last counts.
SMALLER = {
    "demo": "--help",  # three minutes of training; quickstart is run in test_cli.py
    "study run": "--dry-run --data-root data",
    "study status": "--data-root data",
    "train": "--data digits --network mlp --epochs 1",
    "attack": "--data digits --rows 4",
    "audit": "--data digits --mean 0 --std 1 --budget quick --rows 4",
    "certify": "--data digits --rows 2 --evaluations 5",
    "explain": "--data digits --images 30 --random 0 --points 2 --knockout 3",
    "data fetch": "--help",  # downloads
}
# What stands for files and cells that only the reader has.
MINE = [
    (r"\b3f\w{2,}\b", "{key}"),
    (r"\S+\.(safetensors|pt|pth) --network \S+", "mine.safetensors --network mylab.models:net"),
    (r"\b\S+\.(safetensors|pt|pth)\b(?! --network)", "mine.safetensors"),
    (r"report (?!-)\S+", "report first"),
    (r"--engine ray( --address \S+)?( --device cuda)?( --gpus-per-cell \S+)?", ""),  # needs Ray, and a cluster
    (r"\bmy[\w-]*\.toml\b", "mine.toml"),
]


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language; of shell also the indented commands."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return found + re.findall(r"^    (brittle .*\n)", text, re.MULTILINE) * (language == "sh")


def commands() -> list[str]:
    """Every line of the pages that begins with `brittle`, without its comment."""
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    mine = [shlex.split(line, comments=True) for line in lines if line.startswith("brittle ")]
    return list(dict.fromkeys(shlex.join(words[1:]) for words in mine))


def small(command: str, key: str) -> list[str]:
    """The command on little data, for a moment."""
    for pattern, place in MINE:
        command = re.sub(pattern, place.format(key=key), command)
    more = next((more for begin, more in SMALLER.items() if command.startswith(begin)), "")
    return [*shlex.split(command), *shlex.split(more)]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a user's module, weights, data and study, in which a network has been trained: its key."""
    from safetensors.torch import save_file
    from torch import nn

    folder = tmp_path_factory.mktemp("user")
    (folder / "mylab").mkdir()
    for name in ("mylab/models.py", "models.py"):
        (folder / name).write_text(MODULE)
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    save_file(net.state_dict(), folder / "mine.safetensors")
    (folder / "mine.toml").write_text('name = "mine"\ntitle = "Mine"\ndata = "digits"\n[models.model]\n')
    for name in ("mnist", "cifar10"):
        (folder / "data").mkdir(exist_ok=True)
        shape = (60, 1, 28, 28) if name == "mnist" else (60, 3, 32, 32)
        np.savez(folder / "data" / f"{name}.npz", images=np.zeros(shape, np.float32), labels=np.arange(60) % 10)
    for name in ("cats", "dogs"):
        (folder / "photos" / name).mkdir(parents=True)
        for size in (230, 300):
            Image.new("RGB", (size, size + 7)).save(folder / "photos" / name / f"{size}.jpg")
    (folder / "imagenet_classes.txt").write_text("birds\ncats\ndogs\n")
    return folder


@pytest.fixture
def run(here, monkeypatch):
    """Runs a command line in that folder as its user would."""
    monkeypatch.chdir(here)
    monkeypatch.setenv("BRITTLE_HOME", str(here / "home"))
    monkeypatch.setenv("BRITTLE_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.path", [*sys.path])

    def invoke(words):
        done = CliRunner().invoke(app, words)
        assert done.exit_code in ((0, 1, 3) if words[0] == "audit" else (0,)), f"{shlex.join(words)}\n{done.output}"
        return done

    return invoke


@pytest.fixture
def key(run):
    """Of a network that was trained here."""
    said = run(["train", "--network", "mlp", "--epochs", "1", "--name", "first"]).stderr
    return said.rpartition("brittle attack ")[2].split()[0]


def test_there_is_something_to_run():
    assert len(commands()) > 10


@pytest.mark.slow
@pytest.mark.parametrize("command", commands())
def test_commands_of_the_docs_run(run, key, command, request):
    if re.search(r"mnist|cifar10|song|mandal|lo-ding|units-of", command) and command.startswith("study"):
        run([*small(command, key), "--data-root", str(request.getfixturevalue("data_root"))])
    elif command.endswith(".pt2") or ".pt2 " in command:
        pytest.skip("archives are tested where they are opened")
    elif re.search(r"timm:|vit-folder|\.onnx", command):
        pytest.skip("networks of other packages are tested in test_packages.py")
    else:
        run(small(command, key))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_code_of_the_docs_runs(here, monkeypatch, page):
    monkeypatch.chdir(here)
    names = {}  # a block may use what those above it on the page made
    for code in blocks(page, "python"):
        for much, little in ((r"epochs=\d+", "epochs=1"), (r"rows=\d+", "rows=10"), (r"\[:\d+\]", "[:10]")):
            code = re.sub(much, little, code)
        exec(textwrap.dedent(code), names)


@pytest.mark.slow
@pytest.mark.parametrize("text", [pytest.param(t, id=page.name) for page in PAGES for t in blocks(page, "toml")])
def test_study_files_of_the_docs_are_run_as_they_are_written(run, here, text):
    (here / "docs.toml").write_text(text)
    assert " to do" in run(["study", "run", "docs.toml", "--dry-run", "--set", "data=digits"]).stdout
    written = tomllib.loads(text)
    sizes = {name: written | over | {"name": f"{written['name']}-{name}"} for name, over in written["sizes"].items()}
    for size, expected in ((None, written), *sizes.items()):
        shown = json.loads(run(["study", "show", "docs.toml", *(["--size", size] if size else [])]).stdout)
        assert {key: shown[key] for key in ("name", "rows", "seeds")} == {
            key: expected[key] for key in ("name", "rows", "seeds")
        }
        epochs = expected["training"]["epochs"]
        assert all(model["epochs"] == epochs for model in shown["models"].values())


@pytest.mark.slow
def test_what_train_prints_runs_and_so_does_what_made_each_result(run, here):
    said = run(["train", "--network", "mlp", "--epochs", "1", "--store", "an other"]).stderr
    printed = [shlex.split(line)[1:] for line in re.findall(r"^  (brittle .*)$", said, re.MULTILINE)]
    assert [words[0] for words in printed] == ["attack", "audit", "explain"]
    for words in printed:
        run(small(shlex.join(words), ""))
    from brittle.study.store.store import Store

    store = Store(here / "an other")
    kinds = {name.partition("-")[0] for name in store.studies()}
    assert kinds == {"train", "attack", "explain"}
    for name in store.studies():
        again = shlex.split(store.read_study(name)["again"])
        assert again[0] == "brittle"
        assert "0 cells computed" in run(again[1:]).stderr
    assert len(list((here / "an other" / "reports").iterdir())) == 4  # an audit's page is no study's


def test_every_default_is_in_the_help():
    def visit(command, words):
        for name, inner in getattr(command, "commands", {}).items():
            yield from visit(inner, [*words, name])
        yield command, words

    seen = 0
    for command, words in visit(get_command(app), []):
        said = " ".join(CliRunner().invoke(app, [*words, "--help"]).stdout.split())
        for option in command.params:
            if option.opts[0].startswith("--") and (option.default or option.default == 0) and not option.is_flag:
                assert f"[default: {option.default}" in said, (words, option.name)
                seen += 1
            for written in re.findall(r"\[default: .*?\]", getattr(option, "help", None) or ""):
                assert written in said, (words, option.name)
                seen += 1
    assert seen > 60
