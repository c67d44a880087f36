"""Bad requests: studies, options, names, models to audit, records of a store, and arguments of functions."""

# ruff: noqa: PERF401  (a loop in a loop is read more easily than a comprehension in another)

from __future__ import annotations

import copy
import functools
import inspect
import json
import math
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from attacks import test_contract as contract
from attacks.test_contract import CASES, FUNCTIONS, WRONG, keeps_the_contract, request, snapshot
from problems import blobs
from stress.judged import ODD, Case, command, flipped, mutated

import brittle
from brittle.data import as_split
from brittle.models.distill import distill, soft_labels
from brittle.models.fit import fit
from brittle.models.networks import build, mlp
from brittle.study import lookup
from brittle.study.schema import built_in
from brittle.study.store import files as disk

TYPED = ("abc", "-5", "2.5", "nan", "inf", "-inf", "1e400", "", "[]", "{a = 1}", "1979-05-27", "[[1]]", "no", "10" * 40)
NEVER = ("nan", "inf", "-inf", "{a = 1}", "1979-05-27")  # of what can be typed, no option is this
ON = ("--data", "digits", "-q")


# Studies ------------------------------------------------------------------------------------------------------------

STUDY: dict[str, Any] = {
    "name": "s",
    "title": "s",
    "data": "digits",
    "rows": 10,
    "seeds": [0, 1],
    "training": {"network": "mlp", "epochs": 1, "temperature": [1.0, 20.0]},
    "models": {"plain": {}, "student": {"teacher": "plain", "temperature": 20.0}},
    "attacks": {"pgd": {"function": "pgd", "eps": [0.1, 0.3]}, "song_1": {"function": "song_1", "max_pixels": 5}},
    "units": {"u": {"images": 10, "random": 1}},
    "masks": {"m": {"models": ["plain"], "images": 10}},
    "audits": {"a": {"rows": 20, "budget": "quick"}},
}
VALUES = [*(one for one in ODD if one is not None), math.nan, math.inf, "plain", 2, [1, 1], 10**6]


def toml(tables: Mapping[str, Any]) -> str:
    """Tables as TOML, each value on a line."""
    return "".join(f"{json.dumps(key)} = {_inline(value)}\n" for key, value in tables.items())


def _inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return json.dumps(value)


def _study(text: str | bytes, *more: object) -> None:
    """Shows a study of this text, and says what of it is in the store, which plans it."""
    Path("s.toml").write_bytes(text.encode() if isinstance(text, str) else text)
    command("study", "show", "s.toml", *more)
    command("study", "status", "s.toml", *more)


def studies(draw: random.Random) -> list[Case]:
    """Study files, and settings of a study."""
    cases = [Case("whole", functools.partial(_study, toml(STUDY)), "taken")]
    for number in range(170):
        changed = mutated(STUDY, draw, VALUES)
        text = toml(changed) if isinstance(changed, dict) else f"x = {_inline(changed)}"
        cases.append(Case(f"changed {number}", functools.partial(_study, text)))
    for number in range(40):
        text = flipped(built_in()["quickstart"].encode(), draw)
        cases.append(Case(f"flipped {number}", functools.partial(_study, text)))
    for name in (
        "os.system",
        "builtins.print",
        "..x",
        "subprocess.check_output",
        "x:y",
        "",
        ":",
        "brittle.cli.main.main",
    ):
        for tables in ({"models": {"a": {"network": name}}}, {"attacks": {"a": {"function": name}}}):
            cases.append(Case(f"names {name}", functools.partial(_study, toml({**STUDY, **tables})), "refused"))
    deep = "[" * 2000 + "]" * 2000
    for said in ("x", "=", "=3", "a..b=3", "rows=", "rows=[", f"rows={deep}", "a.b.c=1", "rows.x=1", "seeds=[0, 0]"):
        cases.append(Case(f"--set {said[:20]}", functools.partial(_study, toml(STUDY), "--set", said), "refused"))
    for size in ("small", "", "x"):
        cases.append(Case(f"--size {size}", functools.partial(_study, toml(STUDY), "--size", size), "refused"))
    return cases


# Options ------------------------------------------------------------------------------------------------------------


def options(draw: random.Random) -> list[Case]:
    """Options of every attack that can be named on the command line, and of training."""
    cases = []
    for name in lookup.attack_names():
        for option, parameter in inspect.signature(lookup.attack(name)).parameters.items():
            if parameter.kind is not parameter.KEYWORD_ONLY:
                continue
            for value in TYPED:
                asked = ("attack", "abc", *ON, "--attack", name, "--option", f"{option}={value}")
                said = option if value in NEVER else ""  # the rest may be right: then there is no cell abc
                cases.append(Case(f"{name} {option}={value}", functools.partial(command, *asked), "refused", said))
    numbers = ("temperature", "epochs", "batch-size", "learning-rate", "learning-rate-decay", "warmup", "momentum")
    for option in (*numbers, "clip-norm", "weight-decay", "seed"):
        for value in ("abc", "-5", "nan", "inf", "", "[1]", "1;2"):
            asked = ("train", "--network", "mlp", f"--{option}", value, "-q")
            cases.append(Case(f"train {option}={value}", functools.partial(command, *asked), "refused"))
    for option in ("schedule", "decay-on", "network", "data", "device", "dtype", "teacher"):
        for value in ("", "nothing", "../x", "os.system", "x" * 600):
            asked = ("train", "--network", "mlp", f"--{option}", value, "--epochs", "0", "-q")
            cases.append(Case(f"train {option}={value[:20]}", functools.partial(command, *asked), "refused"))
    return cases


def names(draw: random.Random) -> list[Case]:
    """Names of results, folders, and options that all commands share."""
    cases = []
    for name in ("", ".", "..", "../x", "a/b", "-x", ".hidden", "a b", "a\0b", "ä", "x" * 300, "a\nb", "CON:", "~"):
        asked = ("train", "--network", "mlp", "--epochs", "0", "--name", name, "-q")
        ends = "taken" if name == "" else "refused"  # an empty name is no name: one is made
        cases.append(Case(f"--name {name[:9]!r}", functools.partial(command, *asked), ends))
    for option in ("--output", "--store", "--data-root"):
        for folder in ("", " ", "/proc/no", "/dev/null", "/dev/null/x", "a\0b", "x" * 600):
            asked = ("train", "--network", "mlp", "--epochs", "0", option, folder, "-q")
            ends = "either" if option == "--data-root" else "refused"  # digits need none
            cases.append(Case(f"{option} {folder[:9]!r}", functools.partial(command, *asked), ends))
    for option in ("--threads", "--workers", "--gpus-per-cell"):
        for value in ("0", "-1", "x", "100000000", "nan", "1.5"):
            asked = ("study", "run", "quickstart", option, value)
            cases.append(Case(f"{option} {value}", functools.partial(command, *asked), "refused"))
    odd: list[Sequence[str]] = [
        ("nothing",),
        ("train", "--nothing"),
        ("attack",),
        ("audit",),
        ("explain",),
        ("report",),
        ("report", "../../etc/passwd"),
        ("report", ""),
        ("study", "run"),
        ("study", "run", "nothing"),
        ("study", "run", "nothing.toml"),
        ("study", "run", "."),
        ("study", "show", "/dev/null.toml"),
        ("study", "status", "x" * 600 + ".toml"),
        ("data", "check", "x"),
        ("data", "fetch", "mnist"),
        ("data", "fetch", "digits"),
        ("store", "nothing"),
        ("study", "run", "quickstart", "--engine", "x"),
        ("study", "run", "quickstart", "--address", "x"),
    ]
    cases += [Case(" ".join(one)[:40], functools.partial(command, *one), "refused") for one in odd]
    return cases


# Audits -------------------------------------------------------------------------------------------------------------

MODULE = """
import sys
import torch
from torch import nn

class Does(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.what, self.net = what, nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    def forward(self, images):
        return self.what(self.net(images))

class Uncopied(Does):
    def __deepcopy__(self, memo):
        raise ValueError("not to be copied")

class NoEval(Does):
    def train(self, mode=True):
        raise KeyError("eval")

def is_tuple(): return Does(lambda z: (z, z))
def is_dict(): return Does(lambda z: {"logits": z})
def is_none(): return Does(lambda z: None)
def is_list(): return Does(lambda z: z.tolist())
def is_nan(): return Does(lambda z: z * float("nan"))
def is_inf(): return Does(lambda z: z + float("inf"))
def flat(): return Does(lambda z: z.flatten())
def scalar(): return Does(lambda z: z.sum())
def one_class(): return Does(lambda z: z[:, :1])
def five(): return Does(lambda z: z[:, :5])
def no_class(): return Does(lambda z: z[:, :0])
def fewer_rows(): return Does(lambda z: z[:1])
def more_rows(): return Does(lambda z: z.repeat(2, 1))
def texts(): return Does(lambda z: "logits")
def raises(): return Does(lambda z: {}["a"])
def exits(): return Does(lambda z: sys.exit(0))
def exits_said(): return Does(lambda z: sys.exit("no licence"))
def uncopied(): return Uncopied(lambda z: z)
def no_eval(): return NoEval(lambda z: z)
def another_size(): return nn.Sequential(nn.Flatten(), nn.Linear(7, 10))
def needs(width): return is_tuple()
def breaks(): raise RuntimeError("no weights today")
def leaves(): sys.exit(0)
def listed(): return [1]
def nothing(): return None
number, text, cls = 3, "x", Does
"""
BAD_MODULES = {
    "leaves": "import sys\nsys.exit(0)\n",
    "breaks": "1 / 0\n",
    "no_python": "def (:\n",
    "lacks": "import nothing_of_this_name\n",
    "empty": "",
    "stops": "raise BaseException('x')\n",
}


def _audit(*arguments: object) -> None:
    """`brittle audit` beside files of bad models; their modules are read anew."""
    Path("bad_models.py").write_text(MODULE)
    for name, text in BAD_MODULES.items():
        Path(f"bad_{name}.py").write_text(text)
    command("audit", "--data", "digits", "--budget", "quick", "--rows", "5", "-q", *arguments, codes=(0, 1, 3))


def audits(draw: random.Random) -> list[Case]:
    """Models to audit, and the options of an audit."""
    built = [line.split()[1].partition("(")[0] for line in MODULE.splitlines() if line.startswith("def ")]
    models = [f"bad_models.py:{name}" for name in (*built, "number", "text", "cls", "nn", "torch", "absent", "Does.x")]
    models += [f"bad_{name}.py:net" for name in BAD_MODULES]
    models += [
        "",
        " ",
        ".",
        "..",
        ":",
        "::",
        "a:",
        ":a",
        "a:b:c",
        "a.b",
        "a..b",
        "-",
        "bad_models.py",
        "bad_models.py:",
    ]
    models += [
        "x.pt2",
        "x.pt",
        "x.safetensors",
        "abc",
        "0" * 32,
        "0" * 33,
        "mlpp",
        "brittle.networks:mlpp",
        "brittle:fit",
    ]
    models += ["os:getcwd", "sys:exit", "builtins:print", "torch.nn:Linear", "torch:zeros", "a\0b:c", "x" * 600, "ä:ö"]
    cases = [Case(f"model {name[:30]!r}", functools.partial(_audit, "--", name), "refused") for name in models]
    bad: dict[str, Sequence[str]] = {
        "--eps": ("0", "-1", "nan", "inf", "2", "8", "8/0", "x", "", "1/2/3"),
        "--norm": ("l3", "", "L0", "0"),
        "--budget": ("x", "", "QUICK"),
        "--rows": ("0", "-1", "x", "1.5", "nan"),
        "--seed": ("-1", "x", "10" * 12),
        "--mean": ("a,b", "nan", "inf", "1,1", ",", ""),
        "--std": ("0", "-1", "nan", "1,1", "x", ""),
        "--weights": ("x.pt", "bad_models.py", "", "/dev/zero", "."),
        "--network": ("mlp", "x"),
        "--reference": ("x:y", "", "abc", "bad_models.py:is_tuple", "train"),
        "--data": ("x", "", "/dev/null", ".", "mnist"),
        "--device": ("tpu", "", "cuda:99", "cpu:x", "meta"),
    }
    for option, values in bad.items():
        for value in values:
            run = functools.partial(_audit, "mlp", option, value)
            cases.append(Case(f"{option} {value}", run, "refused"))
    return cases


# Stores -------------------------------------------------------------------------------------------------------------


@functools.cache
def finished() -> tuple[Path, str, dict[str, bytes]]:
    """A small store, the key of its network, and the content of all its files."""
    with tempfile.TemporaryDirectory() as folder:
        on = ("--store", folder, "-q")
        command("train", "--network", "mlp", "--epochs", "0", "--name", "mine", *on)
        record = json.loads(Path(folder, "studies", "mine.json").read_text())
        key = record["models"][0]["train"]
        command("attack", key, "--attack", "fgsm", "--attack", "song_1", "--rows", "4", "--name", "hit", *on)
        asked = ("--images", "6", "--random", "1", "--points", "3", "--knockout", "3")
        command("explain", key, *asked, "--layers", "tanh", "--name", "seen", *on)
        command("audit", key, "--budget", "quick", "--rows", "4", *on, codes=(0, 1, 3))
        files = {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return Path("store"), key, {name: one for name, one in files.items() if name.startswith(("cells", "studies"))}


def _on_store(changes: Mapping[str, bytes | None], *arguments: object) -> None:
    """A command on the small store after a change of its files: None removes one."""
    store, _, files = finished()
    for name, content in {**files, **changes}.items():
        if content is not None:
            (store / name).parent.mkdir(parents=True, exist_ok=True)
            (store / name).write_bytes(content)
    command(*arguments, "--store", store, codes=(0, 1))
    shutil.rmtree(store)


def stores(draw: random.Random) -> list[Case]:
    """Records and files of a store: damaged, or changed and sealed again as one who forges them would."""
    _, key, files = finished()
    asks: list[tuple[str, ...]] = [
        ("store", "list"),
        ("store", "verify"),
        ("store", "clean"),
        ("study", "list"),
        ("report", "mine"),
        ("report", "hit"),
        ("report", "seen"),
        ("attack", key, "--attack", "fgsm", "--rows", "4", "-q"),
        ("attack", key, *ON, "--attack", "fgsm", "--rows", "4"),
    ]
    cases = [Case(" ".join(asked)[:30], functools.partial(_on_store, {}, *asked), "taken") for asked in asks]
    records = [name for name in files if name.endswith(".json")]
    for number in range(150):
        name, asked = draw.choice(records), asks[number % len(asks)]
        changed = mutated(json.loads(files[name]), draw)
        if isinstance(changed, dict):
            changed.pop("seal", None)
            content = disk.sealed(changed)
        else:
            content = json.dumps(changed).encode()
        run = functools.partial(_on_store, {name: content}, *asked)
        cases.append(Case(f"forged {number}: {asked[0]} {asked[1][:9]}", run))
    for number in range(60):
        name, asked = draw.choice([*files]), asks[number % len(asks)]
        content = None if draw.random() < 0.2 else flipped(files[name], draw)
        cases.append(Case(f"damaged {number}", functools.partial(_on_store, {name: content}, *asked)))
    return cases


# Functions ----------------------------------------------------------------------------------------------------------


# What attacks warn of: a user is to know it, and the result is right all the same.
SAID = (
    "the model's outputs look like probabilities",
    "the model's logits have no gradient",
    ".* answers of the model were NaN or infinity",
)


def _attacked(name: str, case: contract.Case) -> None:
    """An attack on an input of a kind; a result must keep the contract of attacks, and leave all as it was."""
    attack, given = request(name, case)
    before = snapshot(case)
    with warnings.catch_warnings(), case.context():
        warnings.simplefilter("error")
        for said in SAID:
            warnings.filterwarnings("ignore", said)
        try:
            keeps_the_contract(name, case, attack(**given), given)
        finally:
            assert snapshot(case) == before, "the attack changed what it was given"


def attacks(draw: random.Random) -> list[Case]:
    """Every attack on models, images, labels, targets and options drawn from the kinds of the table test."""
    kinds, cases = [*CASES.values()], []
    for number in range(1700):
        name = draw.choice([*FUNCTIONS])
        model, images, labels, options = (draw.choice(kinds) for _ in range(4))
        if draw.random() < 0.7:  # else nearly all are refused
            images, labels = draw.choice([(images, images), (CASES["ordinary"],) * 2])
        made = contract.Case(
            model=model.model,
            images=images.images,
            labels=labels.labels,
            options=_few(name, options, draw),
            by_batch=model.by_batch,
            context=draw.choice(kinds).context,
        )
        cases.append(Case(f"{name} {number}", functools.partial(_attacked, name, made)))
    return cases


def _few(name: str, case: contract.Case, draw: random.Random) -> dict[str, Any]:
    """Options of an attack: those of a kind of input, now and then with a wrong one."""
    wrong = [one for _, one in contract.wrong_options() if one in inspect.signature(FUNCTIONS[name]).parameters]
    if draw.random() < 0.2:
        option = draw.choice(wrong)
        return {**case.options, option: draw.choice(WRONG.get(option, [2.5, -1]))}
    return dict(case.options)


PYTHON: list[Any] = [None, "x", "", -1, 0, 2.5, math.nan, math.inf, True, 10**30, [], {}, object(), torch.zeros(3)]


def _called(function: Callable[..., object], name: str, value: object, good: Mapping[str, Any]) -> None:
    function(**{**copy.deepcopy(dict(good)), name: value})


def functions(draw: random.Random) -> list[Case]:
    """Functions of the library with one argument that is odd: a result, or one line."""
    data, network = blobs(), build(mlp, seed=0, channels=1, classes=3, size=6)
    images, labels = data.test.images[:8], data.test.labels[:8]
    trained = {"network": network, "data": data, "epochs": 0, "device": "cpu"}
    audited = {"model": network, "split": (images, labels), "rows": 4, "budget": "quick", "eps": 0.1}
    make = functools.partial(mlp, channels=1, classes=3, size=6)
    distilled = {"make": make, "data": data, "epochs": 0, "temperature": 2.0, "device": "cpu"}
    asked: list[tuple[Callable[..., object], dict[str, Any], Sequence[str]]] = [
        (fit, trained, _keywords(fit)),
        (brittle.audit, audited, ("split", "norm", "eps", "rows", "budget", "reference", "seed")),
        (distill, distilled, ("temperature", "generations", "seed", "device", "epochs")),
        (soft_labels, {"model": network, "images": images, "temperature": 2.0}, ("images", "temperature")),
        (as_split, {"value": (images, labels), "count": 3}, ("value", "count")),
        (brittle.data.load, {"name_or_path": "digits"}, _keywords(brittle.data.load)),
    ]
    cases = []
    for function, good, names in asked:
        for name in names:
            endless = name in ("epochs", "generations")  # a number that is asked for and large is no mistake
            for number, value in enumerate(PYTHON if not endless else PYTHON[:9] + PYTHON[10:]):
                run = functools.partial(_called, function, name, value, good)
                cases.append(Case(f"{function.__name__} {name} {number}", run))
    return cases


def _keywords(function: Callable[..., object]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [one.name for one in parameters if one.name not in ("network", "data", "progress", "checkpoint")]
