import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from seen import one_line
from typer.testing import CliRunner

import brittle
from brittle.auditing import audit
from brittle.auditing.best_found import BestFound
from brittle.cli import audit as inspecting
from brittle.cli.audit import Question
from brittle.cli.main import app
from brittle.cli.options import number
from brittle.cli.run import Request
from brittle.models.networks import build
from brittle.study import schema
from brittle.study.expand import expand
from brittle.study.run import scheduler
from brittle.study.run.worker import Worker
from brittle.study.store.store import Store

MODULE = """
import torch
from torch import nn
from torch.nn import functional as F

def net(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, classes))

class Does(nn.Module):
    def __init__(self, what, classes=10):
        super().__init__()
        self.what, self.net = what, net(classes)
    def forward(self, images):
        return self.what(self.net(images))

def is_dict(): return Does(lambda z: {"scores": z, "features": z})
def is_nan(): return Does(lambda z: z * float("nan"))
def one_class(): return Does(lambda z: z, 1)
def five_classes(): return Does(lambda z: z, 5)
def thousand(): return Does(lambda z: z, 1000)
def flat(): return Does(lambda z: z.flatten())

class Squeezes(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()
    def forward(self, images):
        return F.batch_norm(self.net(images), None, None, training=True)

def no_batch_of_one(): return Squeezes()
"""
QUICK = ["--data", "digits", "--budget", "quick", "--rows", "30"]
PLAIN = ["--weights", "plain.safetensors", *QUICK]


def net() -> torch.nn.Module:
    """As `net` in the module."""
    layers = torch.nn
    return layers.Sequential(layers.Flatten(), layers.Linear(784, 32), layers.ReLU(), layers.Linear(32, 10))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A module of networks, the weights of a plain one and of one trained at T = 20, and a store."""
    where = tmp_path_factory.mktemp("mine")
    (where / "audit_mine.py").write_text(MODULE)
    data = brittle.data.load("digits")
    for name, options in {"plain": {}, "hot": {"temperature": 20, "learning_rate": 1.0}}.items():
        made = brittle.fit(build(net, seed=0), data, epochs=20, batch_size=32, device="cpu", dtype="float32", **options)
        save_file(
            {key: value.contiguous() for key, value in made.model.state_dict().items()}, where / f"{name}.safetensors"
        )
    return where


@pytest.fixture(scope="module")
def found():
    """What an audit of a network without training finds."""
    return audit(build(net, seed=0), brittle.data.load("digits").test, rows=12, budget="quick")


@pytest.fixture
def run(monkeypatch, folder):
    """Runs `brittle audit` in that folder, as its user would: the current folder is not on the path."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BRITTLE_HOME", str(folder / "home"))
    monkeypatch.setenv("BRITTLE_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(sys, "path", [*sys.path])

    def audit(*arguments, code=0):
        done = CliRunner().invoke(app, ["audit", *(str(a) for a in arguments)])
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        return done

    return audit


# Verdicts -----------------------------------------------------------------------------------------------------------


def test_an_undefended_network_is_broken_and_has_a_page(run, folder):
    done = run("audit_mine:net", *PLAIN, code=1)
    assert done.stdout.startswith("Broken, not robust: ")
    assert "Accuracy under the baseline attack" in done.stdout
    page = Path(done.stdout.rpartition("The whole page: ")[2].strip())
    assert page.parent.name.startswith("audit-audit_mine.net-plain-digits-linf-0.3-")
    text = page.read_text(encoding="utf-8")
    assert "<h1>Broken, not robust" in text
    assert "brittle audit audit_mine:net --weights plain.safetensors --data digits --budget quick --rows 30" in text


def test_a_network_trained_hot_is_masked_by_scale(run, folder):
    done = run("audit_mine:net", "--weights", "hot.safetensors", *QUICK, "--json", "-o", folder / "hot", code=1)
    found = json.loads(done.stdout)
    assert found["verdict"] == "masked"
    assert found["audits"][0]["verdict"]["causes"][0] == "scale"
    assert found["audits"][0]["common"]["value"] > found["audits"][0]["left"]["value"] + 0.1
    assert json.loads((folder / "hot" / "audit.json").read_text(encoding="utf-8")) == found
    assert done.stderr == ""


def test_the_same_command_answers_from_the_store(run, folder):
    arguments = ["audit_mine:net", *PLAIN, "--eps", "0.2"]
    first, again = run(*arguments, code=1), run(*arguments, code=1)
    assert "L-infinity: audited in" in first.stderr
    assert "audited in" not in again.stderr
    assert first.stdout == again.stdout
    assert "L-infinity: audited in" in run(*arguments, "--fresh", code=1).stderr
    for file in (folder / "home" / "cells").glob("*/cell.json"):  # a damaged record is not believed
        file.write_bytes(file.read_bytes().replace(b'"quick"', b'"quack"'))
    assert "L-infinity: audited in" in run(*arguments, code=1).stderr


def test_anything_that_decides_is_in_the_key(run, folder):
    def kept():
        return set(Store(folder / "home").keys())

    arguments = ["audit_mine:net", *PLAIN, "-q"]
    run(*arguments, code=1)
    seen = kept()
    for more in (
        ["--seed", 1],
        ["--rows", 20],
        ["--norm", "l2"],
        ["--mean", "0.01"],
        ["--reference", "audit_mine:net"],
    ):
        run(*arguments, *more, code=1)
        assert len(kept() - seen) == 1, more
        seen = kept()


@pytest.mark.slow
def test_the_worst_of_all_norms_decides(run, folder):
    small = ["--weights", "plain.safetensors", "--data", "digits", "--budget", "quick", "--rows", 8]
    done = run("audit_mine:net", *small, "--norm", "all", "--json", code=1)
    assert [one["norm"] for one in json.loads(done.stdout)["audits"]] == ["linf", "l2", "l0"]


@pytest.mark.parametrize(
    ("kinds", "code"),
    [
        (["robust"], 0),
        (["broken"], 1),
        (["masked"], 1),
        (["inconclusive"], 3),
        (["robust", "inconclusive"], 3),
        (["inconclusive", "broken"], 1),
        (["robust", "robust"], 0),
    ],
)
def test_exit_codes(run, found, monkeypatch, kinds, code):
    left = iter(kinds)

    def decided(model, split, *, norm, **options):
        return replace(found, norm=norm, verdict=replace(found.verdict, kind=next(left)))

    monkeypatch.setattr("brittle.study.kinds.audit.cell.audit", decided)
    monkeypatch.setattr("brittle.cli.audit.NORMS", ("linf", "l2")[: len(kinds)])
    run("audit_mine:net", *PLAIN, "--norm", "all", "--fresh", "--seed", 79, code=code)  # a key of its own


def trained(*more):
    """The key of a small network that `brittle train` made."""
    arguments = ["train", "--network", "brittle.networks.mlp", "--epochs", "2", "--batch-size", "32", *more]
    said = CliRunner().invoke(app, arguments).stderr
    return said.rpartition("brittle attack ")[2].split()[0]


def test_a_trained_cell_is_audited_by_its_key(run):
    assert "Broken, not robust" in run(trained(), *QUICK, code=1).stdout


def test_a_cell_trained_hot_is_set_beside_its_plain_twin(run, folder):
    hot = trained("--seed", "5", "--temperature", "5")
    asked = [hot, *QUICK, "--json", "-o", folder / "twin"]

    def reference(*more):
        return json.loads(run(*asked, *more, code=1).stdout)["audits"][0]["reference"]

    assert reference() is None  # there is no twin yet, and none is trained unasked
    made = reference("--reference", "train")
    twin = trained("--seed", "5")  # the same in all but the temperature: no work is left
    assert made == reference("--reference", twin)
    assert made == reference()  # it is in the store now


@pytest.mark.parametrize("model", ["plain", "module"])
def test_only_a_defended_cell_has_a_twin_to_train(run, model):
    named = trained() if model == "plain" else "audit_mine:net"
    said = one_line(run(named, *QUICK, "--reference", "train", code=2))
    assert "--reference train goes with a cell that was trained at another temperature or from soft labels" in said


def test_a_killed_audit_goes_on_inside_a_norm(run, monkeypatch):
    once, seen, stop = BestFound.cached_step, [], ["squares"]

    def noted(self, name, work):
        if name in stop:
            raise KeyboardInterrupt
        seen.append((name, name in self.done))
        return once(self, name, work)

    monkeypatch.setattr(BestFound, "cached_step", noted)
    arguments = ["audit_mine:net", *PLAIN, "--seed", 78]
    run(*arguments, code=130)
    first = [name for name, _ in seen]
    assert first[0] == "PGD on cross entropy in float32"
    seen.clear()
    stop.clear()
    resumed = run(*arguments, code=1).stdout
    assert [name for name, done in seen if done] == first
    assert ("squares", False) in seen
    assert resumed == run(*arguments, "--fresh", code=1).stdout


def test_progress_says_what_is_tried_and_how_much_is_left(run):
    said = run("audit_mine:net", *PLAIN, "--verbose", "--fresh", code=1).stderr
    assert "PGD on cross entropy in float32, " in said
    assert "% left" in said


# Bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no_such:net"], "model 'no_such:net' cannot be imported: ModuleNotFoundError"),
        (["audit_mine:nett"], "did you mean 'net'?"),
        (["audit_mine:no_batch_of_one"], "the model fails on images (1, 1, 28, 28)"),
        (["audit_mine:is_nan"], "the model must return finite logits"),
        (
            ["audit_mine:is_dict"],
            "the model must return one tensor of logits, or a dict or an object with 'logits', got",
        ),
        (["audit_mine:flat"], "with K >= 2, got shape (10,)"),
        (["audit_mine:one_class"], "labels must lie in 0..1, as the model has 2 outputs"),
        (["audit_mine:five_classes"], "as the model has 5 outputs"),
        (["audit_mine:net", "--eps", "0"], "eps must be positive and finite, got 0"),
        (["audit_mine:net", "--eps", "1.5"], "eps must be at most 1 in L-infinity"),
        (["audit_mine:net", "--eps", "nan"], "eps must be positive and finite, got nan"),
        (["audit_mine:net", "--eps", "0.1", "--norm", "all"], "--eps goes with one norm"),
        (["audit_mine:net", "--norm", "l3"], "unknown norm 'l3'"),
        (["audit_mine:net", "--budget", "endless"], "unknown budget 'endless'"),
        (["audit_mine:net", "--rows", "0"], "rows must be at least 1, got 0"),
        (["audit_mine:net", "--mean", "a,b"], "Invalid value for '--mean': numbers with commas between"),
        (["audit_mine:net", "--std", "1,1,1"], "--std needs one number or one for each of 1 channels, got 3"),
        (["audit_mine:net", "--data", "minst"], "did you mean 'mnist'"),
        (["audit_mine:net", "--data", "unlabelled.npz"], "lacks labels"),
        (["audit_mine:net", "--data", "wrong.npz"], "the model fails on images (1, 3, 8, 8)"),
        (["audit_mine:net", "--reference", "no_such:net"], "model 'no_such:net' cannot be imported"),
        (["plain.safetensors"], "holds weights only: say with --network"),
        (["abcdef"], "no cell starts with 'abcdef'"),
    ],
)
def test_bad_input_gets_one_line_and_exit_code_2(run, folder, arguments, said):
    images = np.random.default_rng(0).random((40, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "unlabelled.npz", images=images)
    np.savez(folder / "wrong.npz", images=images, labels=np.arange(40) % 2)
    assert said in one_line(run(*arguments[:1], *QUICK, "-q", *arguments[1:], code=2))


def test_weights_that_do_not_fit_name_their_keys(run, folder):
    save_file({"1.weight": torch.zeros(32, 784), "1.bias": torch.zeros(32)}, folder / "half.safetensors")
    said = one_line(run("audit_mine:net", "--weights", "half.safetensors", *QUICK, code=2))
    assert "half.safetensors do not fit the model; missing: 3.weight, 3.bias" in said


def test_a_thousand_classes_for_ten_are_told_of(run):
    done = run("audit_mine:thousand", *QUICK, code=3)
    assert "The model has 1000 outputs, but the labels use 10 classes" in done.stdout.replace("\n", " ")


def test_a_pickle_is_refused_and_not_run(run, folder):
    class Touches:
        def __reduce__(self):
            return open, (str(folder / "ran"), "w")

    torch.save({"1.weight": Touches()}, folder / "evil.pt")
    said = one_line(run("audit_mine:net", "--weights", "evil.pt", *QUICK, code=2))
    assert "can run code: refused, and nothing was run; where you trust it, give --trust" in said
    assert not (folder / "ran").exists()


EXITS = """
import sys
from torch import nn

class Ends(nn.Module):
    def __init__(self, after, how):
        super().__init__()
        self.seen, self.after, self.how, self.layer = 0, after, how, nn.Linear(784, 10)
    def forward(self, images):
        self.seen += 1
        if self.seen > self.after:
            self.how()
        return self.layer(images.flatten(1))

def breaks(): raise RuntimeError("no such layer")
def built(): sys.exit(0)
def at_first(): return Ends(0, sys.exit)
def in_the_middle(): return Ends(40, sys.exit)
def fails(): return Ends(40, breaks)
"""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("audit_script:net", "cannot be imported: its code called sys.exit(0)"),
        ("audit_exits:built", "cannot be built without arguments: its code called sys.exit(0)"),
        ("audit_exits:at_first", "the model's code ended the program with exit code"),
        ("audit_exits:in_the_middle", "the model's code ended the program with exit code"),
    ],
)
def test_code_that_exits_is_no_robust_model(run, folder, model, said):
    (folder / "audit_script.py").write_text("import sys\nsys.exit(0)\n")
    (folder / "audit_exits.py").write_text(EXITS)
    assert said in one_line(run(model, *QUICK, "-q", code=2))


def test_a_model_that_fails_in_the_middle_is_no_broken_one(run, folder):
    (folder / "audit_exits.py").write_text(EXITS)
    said = one_line(run("audit_exits:fails", *QUICK, "-q", code=2))
    assert re.fullmatch(r"error: the model fails on images \(\d+, 1, 28, 28\): RuntimeError: no such layer", said)


def test_a_defect_of_brittle_has_a_code_of_its_own_and_leaves_a_traceback(run, monkeypatch):
    def decide(*_arguments, **_options):
        raise KeyError("a defect")

    monkeypatch.setattr("brittle.auditing.decide", decide)
    said = run("audit_mine:net", *PLAIN, "--fresh", "-q", code=70).stderr.splitlines()
    assert len(said) == 1
    assert said[0].startswith("failed: KeyError: 'a defect'; the traceback is in ")
    trace = Path(said[0].rpartition(" is in ")[2]).read_text()
    assert trace.startswith("brittle audit audit_mine:net --weights plain.safetensors --data digits")
    assert 'raise KeyError("a defect")' in trace


@pytest.mark.parametrize(
    ("eps", "said"),
    [
        ("8", "eps must be at most 1 in L-infinity, as images are in [0, 1], got 8; did you mean 8/255?"),
        ("8/0", "a number such as 0.03 or 8/255 was expected, got '8/0'"),
        ("much", "a number such as 0.03 or 8/255 was expected, got 'much'"),
    ],
)
def test_an_eps_that_is_none_is_refused_with_a_hint(run, eps, said):
    assert said in one_line(run("audit_mine:net", *QUICK, "--eps", eps, code=2))


def test_an_eps_may_be_a_fraction(run):
    assert number("8/255") == 8 / 255
    found = json.loads(run("audit_mine:net", *PLAIN, "--eps", "51/255", "--json", code=1).stdout)
    assert found["audits"][0]["eps"] == 0.2


# Interrupted --------------------------------------------------------------------------------------------------------


def test_ctrl_c_keeps_the_norms_that_are_finished(run, folder, monkeypatch):
    def stopped(model, split, **options):
        if options["norm"] == "l2":
            raise KeyboardInterrupt
        return audit(model, split, **options)

    monkeypatch.setattr("brittle.study.kinds.audit.cell.audit", stopped)
    arguments = ["audit_mine:net", *PLAIN, "--norm", "all", "--seed", 77]
    before = len(Store(folder / "home").keys())
    done = run(*arguments, code=130)
    assert "the same command goes on from there" in done.stderr
    assert len(Store(folder / "home").keys()) == before + 1
    assert "audited in" not in run(*arguments, code=130).stderr


@pytest.mark.slow
def test_a_real_ctrl_c_ends_with_130_and_no_traceback(folder, tmp_path):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from brittle.cli.main import main; main()"
    line = [sys.executable, "-c", code, "audit", "audit_mine:net", "--data", "digits", "--budget", "thorough", "-v"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "BRITTLE_HOME": str(tmp_path)}
    running = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=folder
    )
    assert running.stderr is not None
    assert "left" in running.stderr.readline()
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "Traceback" not in said
    shutil.rmtree(tmp_path)


def test_an_audit_of_cells_has_the_key_that_a_study_gives_it(tmp_path):
    data, store, cpu = brittle.data.load("digits"), Store(tmp_path), torch.device("cpu")
    tables = {
        "name": "audits",
        "title": "Audits",
        "data": "digits",
        "training": {"network": "brittle.networks.mlp", "epochs": 0},
        "models": {"plain": {}, "tempered": {"temperature": 20.0}},
        "audits": {
            "alone": {"rows": 30, "budget": "quick"},
            "beside": {"norm": "l2", "eps": 1.0, "reference": "plain"},
        },
    }
    plan = expand(schema.check(tables, "audits"), data, device="cpu", dtype="float32")
    trained = [cell for cell in plan.cells if cell.function in ("train", "select")]
    scheduler.run(trained, store, scheduler.InProcess(Worker(store, lambda _: data, cpu)))
    plain, tempered = plan.record["models"]
    alone, beside = (audit["cell"] for audit in tempered["audits"])

    def key(norm, **more):
        asked = Question(model=tempered["train"][:12], data="digits", **more)
        return inspecting._cell(asked, Request(), norm, torch.nn.Linear(1, 1), None, data, cpu, store).key

    assert key("linf", rows=30, budget="quick") == alone
    assert key("l2", eps=1.0, reference=plain["train"]) == beside
    assert key("l2", eps=1.0) != beside
    assert key("linf", rows=30, budget="quick", mean=(0.5,), std=(0.5,)) != alone  # another network
