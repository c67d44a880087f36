import argparse
import copy
import importlib
import logging
import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import brittle
from brittle.errors import InputError
from brittle.models import checkpoints, users_code
from brittle.models.networks import build, frozen, logits_of, mlp
from brittle.models.prepared import Normalised, normalised
from brittle.progress import silent
from brittle.study import lookup
from brittle.study.kinds import new_cell
from brittle.study.load_model import digest, load_model
from brittle.study.run.worker import Worker, WorkerConfig
from brittle.study.store.store import Store

CPU = torch.device("cpu")
SHAPE = (1, 28, 28)
MODULE = """
from torch import nn
import torch

def small(classes=10):
    return nn.Sequential(nn.Flatten(), nn.Linear(784, classes))

ready = small()
number = 3
def listed(): return [1, 2]
def listing(): return listed()
def needs(width): return small()
def breaks(): raise RuntimeError("no weights today")
"""


@pytest.fixture(scope="module")
def digits():
    return brittle.data.load("digits")


@pytest.fixture
def opened(digits, tmp_path, monkeypatch):
    """Opens a model with `mine.py` on the path and a store of its own."""
    (tmp_path / "opening_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "opening_mine", raising=False)

    def open_it(text, **options):
        return load_model(str(text), data=digits, device=CPU, store=Store(tmp_path / "store"), **options)

    return open_it


def refused(call, *arguments, **options) -> str:
    """The one line with which something is refused."""
    with pytest.raises(InputError) as caught:
        call(*arguments, **options)
    said = str(caught.value)
    assert "\n" not in said
    return said


# Import paths -------------------------------------------------------------------------------------------------------


def test_a_function_is_called_and_an_instance_is_taken(opened):
    assert isinstance(opened("opening_mine:small"), nn.Sequential)
    assert not opened("opening_mine:ready").training


def test_brittle_s_own_networks_are_built_for_the_data(opened, digits):
    assert opened("brittle.networks:mlp")(digits.test.images[:2]).shape == (2, 10)


def test_weights_are_loaded_from_safetensors_and_from_a_state_dict(opened, tmp_path):
    wanted = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    state = wanted.state_dict()
    save_file(state, tmp_path / "w.safetensors")
    torch.save(state, tmp_path / "w.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "w.pth"
    )
    for name in ("w.safetensors", "w.pt", "w.pth"):
        found = opened("opening_mine:small", weights=tmp_path / name)
        assert torch.equal(found.state_dict()["1.weight"], state["1.weight"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no_such_package.models:net", "cannot be imported: ModuleNotFoundError: No module named 'no_such_package'"),
        ("opening_mine:smal", "unknown model in opening_mine 'smal': did you mean 'small'?"),
        ("opening_mine:number", "must be an nn.Module or a function that builds one, got a int"),
        ("opening_mine:listed", "must build an nn.Module, got a list"),
        ("opening_mine:listing", "must build an nn.Module, got a list"),
        ("opening_mine:breaks", "cannot be built without arguments: RuntimeError: no weights today"),
        ("what is this", "is not known: expected package.module:callable"),
        ("abc", "no cell starts with 'abc'"),
        ("none.pt2", "model none.pt2 cannot be read: there is no such file"),
        ("none.safetensors", "model none.safetensors cannot be read: there is no such file"),
    ],
)
def test_what_cannot_be_opened_is_said(opened, text, said):
    assert said in refused(opened, text)


def test_weights_that_do_not_fit_name_the_keys(opened, tmp_path):
    save_file({"1.weight": torch.zeros(10, 784), "2.bias": torch.zeros(10)}, tmp_path / "w.safetensors")
    said = refused(opened, "opening_mine:small", weights=tmp_path / "w.safetensors")
    assert "do not fit the model; missing: 1.bias; unexpected: 2.bias" in said
    save_file({"1.weight": torch.zeros(7, 784), "1.bias": torch.zeros(7)}, tmp_path / "w.safetensors")
    said = refused(opened, "opening_mine:small", weights=tmp_path / "w.safetensors")
    assert "of another shape: 1.weight is (7, 784), expected (10, 784), 1.bias is (7,), expected (10,)" in said


def test_weights_that_are_no_state_dict_are_said(opened, tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "torn.pt").write_bytes((tmp_path / "list.pt").read_bytes()[:100])
    (tmp_path / "torn.safetensors").write_bytes(b"no")
    for name, said in (
        ("list.pt", "must hold a state dict, tensors by name, got a list"),
        ("torn.pt", "cannot be read"),
        ("torn.safetensors", "cannot be read"),
        ("none.pt", "there is no such file"),
        ("list.txt", "must be a .safetensors file or a state dict"),
    ):
        assert said in refused(opened, "opening_mine:small", weights=tmp_path / name)


def test_options_that_do_not_go_together_are_said(opened, tmp_path):
    assert "--weights does not go with the key of a cell" in refused(opened, "abc", weights=tmp_path / "w.pt")
    assert "--network goes with a file of weights" in refused(opened, "opening_mine:small", network="mlp")


@pytest.mark.parametrize("begin", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net.encoder."])
def test_what_wrappers_put_before_names_is_dropped_and_said(opened, tmp_path, begin):
    state = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).state_dict()
    state = {f"{begin}{name}": value for name, value in state.items()}
    other = {} if set(begin.split(".")) <= {"", "module", "_orig_mod"} else {"loss.weight": torch.ones(3)}
    torch.save({"net": {**state, **other}, "opt": {"state": {}}, "epoch": 3}, tmp_path / "w.pth.tar")
    said = []
    found = opened("opening_mine:small", weights=tmp_path / "w.pth.tar", say=said.append)
    assert torch.equal(found.state_dict()["1.weight"], state[f"{begin}1.weight"])
    assert said[0].startswith("dropped from the names of the weights: '")
    assert [one.rpartition(": ")[2] for one in said[1:]] == list(other)


def test_wrappers_inside_a_network_are_dropped_and_its_own_names_stay(opened, tmp_path):
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

        def forward(self, images):
            return self.model(images)

    inner, said = Inner(), []
    state = inner.state_dict()
    torch.save({name.replace("1.", "1.module."): value for name, value in state.items()}, tmp_path / "parts.pt")
    torch.save(state, tmp_path / "own.pt")
    for name, told in (("parts.pt", ["dropped from the names of the weights: 'module.'"]), ("own.pt", [])):
        said.clear()
        model = Inner()
        checkpoints.fill(
            model, checkpoints.state_of(tmp_path / name, torch.load(tmp_path / name), said.append), "x", said.append
        )
        assert torch.equal(model.state_dict()["model.1.weight"], state["model.1.weight"])
        assert said == told


def test_a_dict_without_weights_is_said_by_its_keys(opened, tmp_path):
    torch.save({"epoch": 3, "best": 0.9, "options": argparse.Namespace(lr=0.1)}, tmp_path / "w.pt")
    said = refused(opened, "opening_mine:small", weights=tmp_path / "w.pt")
    assert "must hold a state dict, tensors by name, got a dict with 'epoch', 'best', 'options'" in said


def test_weights_beside_the_options_of_their_training_are_loaded(opened, tmp_path):
    state = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).state_dict()
    torch.save({"args": argparse.Namespace(lr=0.1), "model": state}, tmp_path / "w.pt")
    assert torch.equal(opened("opening_mine:small", weights=tmp_path / "w.pt").state_dict()["1.bias"], state["1.bias"])


def test_a_function_of_images_is_a_model(opened, tmp_path, digits):
    (tmp_path / "answers.py").write_text(
        "import numpy as np\n"
        "def predict(images): return np.stack([np.asarray(images).mean((1, 2, 3)), np.ones(len(images))], 1)\n"
        "def build(): return predict\n"
        "def one(images): return images.mean((1, 2, 3))\n"
    )
    images = digits.test.images[:4]
    for name in ("predict", "build"):
        found = logits_of(opened(f"{tmp_path}/answers.py:{name}"), images)
        assert torch.allclose(found[:, 0].float(), images.mean((1, 2, 3)))
    assert logits_of(opened(f"{tmp_path}/answers.py:one"), images).shape == (4, 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mean_and_std_go_with_weights_of_any_precision(digits, dtype):
    network = build(mlp, seed=0, channels=1, size=28, hidden=8).eval()
    images = digits.test.images[:8]
    found = logits_of(normalised(copy.deepcopy(network).to(dtype), (0.5,), (0.25,), 1).eval(), images)
    expected = network((images - 0.5) / 0.25)
    torch.testing.assert_close(found.float(), expected, atol=0.1 if dtype == torch.bfloat16 else 0.02, rtol=0)


def test_a_layer_in_int8_is_loaded_and_has_a_digest(opened, tmp_path, digits):
    (tmp_path / "int8.py").write_text(
        "import torch, warnings\nfrom torch import nn\ndef net():\n"
        " warnings.simplefilter('ignore')\n"
        " made = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).eval()\n"
        " return torch.ao.quantization.quantize_dynamic(made, {nn.Linear}, dtype=torch.qint8)\n"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = opened(f"{tmp_path}/int8.py:net")
        torch.save(network.state_dict(), tmp_path / "int8.pt")
        again = opened(f"{tmp_path}/int8.py:net", weights=tmp_path / "int8.pt", trust=True)
    assert torch.equal(again(digits.test.images[:3]), network(digits.test.images[:3]))
    assert digest(again, "x:y", SHAPE) == digest(network, "x:y", SHAPE)


# Pickles ------------------------------------------------------------------------------------------------------------


class Touches:
    """A pickle that makes a file when it is loaded without care."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("name", ["evil.pt", "evil.pth", "evil.bin"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_not_run(opened, tmp_path, name):
    torch.save({"weight": Touches(tmp_path / "ran")}, tmp_path / name)
    for options in ({"weights": tmp_path / name}, {}):
        text = "opening_mine:small" if options else tmp_path / name
        said = refused(opened, text, **options, **({} if options else {"network": "mlp"}))
        assert "holds a pickled io.open, which can run code: refused, and nothing was run" in said
        assert "give --trust, or save its state dict alone, as docs/audit.md shows" in said
    assert not (tmp_path / "ran").exists()


def test_the_pickle_would_have_run(tmp_path):
    torch.save({"weight": Touches(tmp_path / "ran")}, tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)["weight"].close()
    assert (tmp_path / "ran").exists()


def test_a_whole_model_in_a_pickle_is_refused_with_the_way_to_convert_it(opened, tmp_path):
    torch.save(nn.Linear(784, 10), tmp_path / "whole.pt")
    assert "save its state dict alone" in refused(opened, tmp_path / "whole.pt", network="mlp")


# Archives -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """An exported network that takes any number of images."""
    path = tmp_path_factory.mktemp("archive") / "net.pt2"
    network = build(mlp, seed=3, channels=1, size=28, hidden=4).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(network, (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: batch},))
    torch.export.save(program, path)
    return path, network


def test_an_archive_answers_as_its_network(opened, archive, digits):
    path, network = archive
    found = opened(path, trust=True)
    with frozen(found), torch.no_grad():
        for count in (1, 5):
            torch.testing.assert_close(found(digits.test.images[:count]), network(digits.test.images[:count]))


def test_an_archive_is_code(opened, archive):
    path, _ = archive
    assert "is a torch.export archive, which can run code: refused; --trust allows it" in refused(opened, path)


def test_what_is_no_archive_is_said(opened, tmp_path):
    (tmp_path / "no.pt2").write_bytes(b"no")
    assert "cannot be loaded" in refused(opened, tmp_path / "no.pt2", trust=True)


# Normalising --------------------------------------------------------------------------------------------------------


def test_mean_and_std_are_taken_ahead_of_the_model(opened, digits):
    plain = opened("opening_mine:ready")
    scaled = opened("opening_mine:ready", mean=(0.5,), std=(0.25,))
    images = digits.test.images[:3]
    assert isinstance(scaled, Normalised)
    assert not scaled.training
    torch.testing.assert_close(scaled(images), plain((images - 0.5) / 0.25))
    channels = Normalised(nn.Identity(), (0.0, 0.5), (1.0, 0.5))
    assert channels(torch.full((1, 2, 1, 1), 0.75)).flatten().tolist() == [0.75, 0.5]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, "--mean needs one number or one for each of 1 channels, got 3"),
        ({"std": (0.5, 0.5)}, "--std needs one number or one for each of 1 channels, got 2"),
        ({"std": (0.0,)}, "--std must be positive, got 0"),
        ({"mean": (float("nan"),)}, "--mean must be finite, got nan"),
        ({"mean": (125.3,)}, "--mean is of images in [0, 1], so at most 1, got 125.3: divided by 255 they are 0.4914"),
        ({"std": 63}, "--std is of images in [0, 1], so at most 1, got 63: divided by 255 they are 0.2471"),
        ({"mean": (-0.5,)}, "--mean is of images in [0, 1], so at least 0, got -0.5"),
    ],
)
def test_mean_and_std_that_do_not_fit_are_said(opened, options, said):
    assert said in refused(opened, "opening_mine:ready", **options)


# Digests ------------------------------------------------------------------------------------------------------------


def test_a_digest_tells_models_apart(opened, tmp_path):
    first = opened("opening_mine:ready")
    assert digest(first, "opening_mine:ready", SHAPE) == digest(first, "opening_mine:ready", SHAPE)
    seen = {
        digest(first, "opening_mine:ready", SHAPE),
        digest(Normalised(first, (0.5,), (1.0,)), "opening_mine:ready", SHAPE),
    }
    with torch.no_grad():
        first[1].bias[0] += 1
    seen.add(digest(first, "opening_mine:ready", SHAPE))
    (tmp_path / "opening_mine.py").write_text(MODULE + "\n# changed\n")
    seen.add(digest(first, "opening_mine:ready", SHAPE))
    assert len(seen) == 4


ROLLED = """
import math
import torch
from torch import nn
from digest_helper import GAIN

class Net(nn.Module):
    def __init__(self, shift=0, kept=None, lost=None, held=None, called=None):
        super().__init__()
        self.flatten, self.dense = nn.Flatten(), nn.Linear(784, 10)
        self.shift, self.held, self.called = shift, held, called
        self.register_buffer("lost", torch.tensor(lost or 1.0), persistent=False)

    def forward(self, x):
        return GAIN * self.dense(self.flatten(x)).roll(self.shift, 1)

def closing(number):
    class Closed(Net):
        def forward(self, x):
            return super().forward(x) if x.mean() < 2 else number * x
    return Closed()

def good(): return Net(0)
def bad(): return Net(1)
def lost(): return Net(lost=2.0)
def held(): return Net(held=torch.tensor(1.0))
def held_else(): return Net(held=torch.tensor(2.0))
def named(): return Net(held=("a", 1))
def called(): return Net(called=lambda x: x + 1)
def called_else(): return Net(called=lambda x: x + 2)
def first(): return closing(1)
def second(): return closing(2)
"""
MADE = ("good", "bad", "lost", "held", "held_else", "named", "called", "called_else", "first", "second")


@pytest.fixture
def digested(digits, tmp_path, monkeypatch):
    """The digests of all networks of `roll.py`, in a process of their own, with another hash seed and thread count."""
    (tmp_path / "roll.py").write_text(ROLLED)
    monkeypatch.chdir(tmp_path)

    def digest_all(gain=1, threads=1):
        (tmp_path / "digest_helper.py").write_text(f"GAIN = {gain}\n")
        code = f"""
import torch, brittle
from brittle.models.fingerprint import digest
from brittle.study.load_model import load_model
torch.set_num_threads({threads})
data = brittle.data.load("digits")
for name in {MADE}:
    one, again = (load_model(f"roll:{{name}}", data=data, device=torch.device("cpu")) for _ in range(2))
    assert digest(one, f"roll:{{name}}", (1, 28, 28)) == digest(again, f"roll:{{name}}", (1, 28, 28))
    print(digest(one, f"roll:{{name}}", (1, 28, 28)))
"""
        environment = {**os.environ, "PYTHONHASHSEED": str(threads), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()

    return digest_all


def test_a_digest_tells_what_is_no_weight(digested):
    first = digested()
    assert len({*first}) == len(MADE)
    assert digested(threads=2) == first
    assert not {*digested(gain=2)} & {*first}


# Import paths and the user's code -------------------------------------------------------------------------------------


def test_all_ways_to_name_code_give_the_same(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    for text in ("opening_mine:small", "opening_mine.small", "opening_mine.py:small", "./opening_mine.py:small"):
        assert isinstance(opened(text), nn.Sequential)
        assert isinstance(lookup.network(text, trust=True)(), nn.Sequential)
    assert isinstance(opened("mlp"), nn.Module)
    assert f"(looked in {tmp_path} and in the installed packages)" in refused(opened, "opening_none:small")
    assert "say what in it builds the network, opening_mine.py:NAME" in refused(opened, "opening_mine.py")
    assert "must be a function or a class" in refused(lookup.network, "opening_mine:ready", trust=True)


def test_the_current_folder_is_searched_for_import_paths_only(opened, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder != str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    save_file(build(mlp, seed=0, channels=1, classes=10, size=28).state_dict(), tmp_path / "w.safetensors")
    opened("w.safetensors", network="mlp")
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import sys\nsys.exit(0)\ndef net(): ...", "cannot be imported: its code called sys.exit(0)"),
        ("import sys\ndef net(): sys.exit('done')", "cannot be built without arguments: its code called sys.exit('d"),
        ("class Odd(BaseException): ...\ndef net(): raise Odd('x')", "cannot be built without arguments: Odd: x"),
        ("def net(: ...", "cannot be imported: SyntaxError: "),
        (
            "from torch import nn\nclass net(nn.Flatten):\n def eval(self): raise ValueError('never')",
            "cannot be put into evaluation mode, moved to cpu and copied: ValueError: never",
        ),
        (
            "from torch import nn\nclass net(nn.Flatten):\n def __deepcopy__(self, memo): raise ValueError('one only')",
            "cannot be put into evaluation mode, moved to cpu and copied: ValueError: one only",
        ),
        (
            "import torch\ndef net():\n with torch.device('meta'): return torch.nn.Linear(2, 2)",
            "cannot be put into evaluation mode, moved to cpu and copied: NotImplementedError: ",
        ),
    ],
)
def test_what_the_user_s_code_raises_is_one_line(opened, tmp_path, code, said):
    (tmp_path / "raises.py").write_text(code + "\n")
    assert said in refused(opened, f"{tmp_path}/raises.py:net")


def test_weights_of_another_kind_are_said(opened, tmp_path):
    weight, bias = torch.zeros(10, 784), torch.zeros(10)
    cases = (
        ({1: weight}, "must hold tensors by name, got the name 1, a int"),
        ({"1.weight": weight.long(), "1.bias": bias}, "1.weight is int64, expected floating-point"),
        ({"1.weight": weight.bool(), "1.bias": bias}, "1.weight is bool, expected floating-point"),
        ({"1.weight": weight.to(torch.complex64), "1.bias": bias}, "1.weight is complex64, expected floating-point"),
        ({"1.weight": weight.to_sparse(), "1.bias": bias}, "1.weight is sparse, expected floating-point"),
        ({"1.weight": weight.to("meta"), "1.bias": bias}, "1.weight is without values, expected floating-point"),
    )
    for state, said in cases:
        torch.save(state, tmp_path / "w.pt")
        assert said in refused(opened, "opening_mine:small", weights=tmp_path / "w.pt")
    torch.save({"1.weight": weight.double(), "1.bias": bias.half()}, tmp_path / "w.pt")
    assert opened("opening_mine:small", weights=tmp_path / "w.pt")


def test_a_plain_number_is_no_code(opened, tmp_path):
    torch.save(3, tmp_path / "w.pt")
    assert "must hold a state dict, tensors by name, got a int" in refused(opened, tmp_path / "w.pt", network="mlp")


def test_a_network_from_outside_that_has_left_the_store_cannot_be_made_again(digits, tmp_path):
    cell = new_cell("adopt w.safetensors", "adopt", {"network": "brittle.networks.mlp", "network_options": {}})
    end = Worker(Store(tmp_path / "store"), lambda _: digits, CPU).compute(cell, silent)
    assert end.status == "failed"
    assert "adopt w.safetensors: the network is not in the store any more: run the command" in end.why


def test_a_damaged_archive_is_refused_in_one_line_without_torch_s_own_traceback(opened, tmp_path):
    class Kept(logging.Handler):
        def emit(self, record):
            said.append(record)

    said, kept, torch_s = [], Kept(), logging.getLogger("torch.export")
    torch_s.addHandler(kept)
    try:
        (tmp_path / "damaged.pt2").write_bytes(b"no archive")
        assert "damaged.pt2 cannot be loaded: " in refused(opened, tmp_path / "damaged.pt2", trust=True)
        assert said == []
        torch_s.error("as before")
        assert len(said) == 1
    finally:
        torch_s.removeHandler(kept)


def test_the_modules_of_a_key_travel_to_a_machine_that_lacks_them(tmp_path, monkeypatch):
    here = tmp_path / "here"
    (here / "travels_lab").mkdir(parents=True)
    files = {
        "travels_lab/__init__.py": "",
        "travels_lab/nets.py": "from travels_lab.parts import width\nimport travels_help\ndef net(): return width\n",
        "travels_lab/parts.py": "width = 7\n",
        "travels_lab/unused.py": "",
        "travels_help.py": "",
    }
    for name, content in files.items():
        (here / name).write_text(content)
    monkeypatch.setattr(sys, "path", [*sys.path, str(here)])
    make = users_code.imported("network", "travels_lab.nets:net")
    code = users_code.shipped([make.__module__, "torch.nn"])
    assert dict(code) == {name: content.encode() for name, content in files.items() if "unused" not in name}
    shutil.rmtree(here)
    sys.path.remove(str(here))
    for name in [name for name in sys.modules if name.startswith("travels_")]:
        monkeypatch.delitem(sys.modules, name)
    importlib.invalidate_caches()
    WorkerConfig(tmp_path / "store", device="cpu", code=code).open()
    assert users_code.imported("network", "travels_lab.nets:net")() == 7
