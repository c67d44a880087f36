"""Any classifier that a text names, as a module from images in [0, 1] to logits.

An import path is the user's own code, and runs. A file of weights, a folder of Hugging Face's and an ONNX file never
run code: safetensors and ONNX have none, and a pickle is read with `weights_only=True`. Archives of torch.export,
TorchScript and other pickles are code, and need `trust`.
"""

from __future__ import annotations

import copy
import functools
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from brittle.data import Data
from brittle.errors import InputError
from brittle.models import checkpoints, networks, packages, users_code
from brittle.models.checkpoints import WEIGHTS, Say
from brittle.models.classifier import Function, TwoClasses, as_classifier
from brittle.models.networks import build, evaluated
from brittle.models.packages import TIMM
from brittle.models.prepared import Expected, normalised

KINDS = (
    "package.module:callable, file.py:callable, timm:NAME, a Hugging Face folder, an .onnx file, one of brittle's "
    "networks, a .pt2 archive, the key of a trained cell, or a file of weights with --network"
)
_OWN = "brittle.networks"


@dataclass(frozen=True)
class Named:
    """A model by the texts that name it; see `study.load_model.load_model`."""

    text: str
    weights: str | None = None
    network: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    one_output: Literal["logit", "probability"] | None = None  # what its only output is; seen on images when not given

    @property
    def path(self) -> Path:
        """`text` as a path."""
        return Path(self.text)

    @property
    def builder(self) -> str:
        """What names the network's code or configuration."""
        return self.network or self.text

    @property
    def label(self) -> str:
        """A short name for tables: the callable's, or the file's or folder's, without points."""
        last = Path(self.builder).name
        return re.split("[.:]", last)[-1] if self.is_import else last.replace(".", "-")

    @property
    def is_import(self) -> bool:
        """Whether an import path names the network, whose code runs."""
        elsewhere = packages.is_folder(self.text) or Path(self.builder).suffix in (".pt2", ".onnx", *WEIGHTS)
        return not (elsewhere or is_own(self.builder) or self.builder.startswith(TIMM))

    def expected(self) -> Expected:
        """What the model's own configuration says of its images; nothing where it has none."""
        if self.builder.startswith(TIMM):
            return packages.timm_expected(self.builder.removeprefix(TIMM))
        return packages.folder_expected(self.path) if packages.is_folder(self.text) else Expected()


# brittle's own networks -----------------------------------------------------------------------------------------------


@functools.cache
def network_names() -> list[str]:
    """brittle's own networks: the public functions of `brittle.networks` that take a number of classes."""
    return [
        name
        for name, value in vars(networks).items()
        if inspect.isfunction(value) and not name.startswith("_") and "classes" in inspect.signature(value).parameters
    ]


def is_own(text: str) -> bool:
    """Whether a text names one of brittle's own networks."""
    return text.replace(":", ".").removeprefix(f"{_OWN}.") in network_names()


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a parameter of that name."""
    return name in inspect.signature(function).parameters


FITTED = ("channels", "classes", "size")  # options of a network that the data decides


def fitted_options(make: Callable[..., nn.Module], options: Mapping[str, Any], data: Data) -> dict[str, Any]:
    """The network's options, with channels, classes and size as the data has them unless they are given."""
    channels, height, width = data.image_shape
    known = dict(zip(FITTED, (channels, len(data.classes), height), strict=True))
    if takes(make, "size") and height != width:
        raise InputError(f"this network takes square images, those of {data.name} are {height} x {width}")
    return {name: value for name, value in known.items() if takes(make, name)} | dict(options)


# Opening --------------------------------------------------------------------------------------------------------------


def opened(
    named: Named,
    *,
    options: Mapping[str, Any],
    images: Tensor | None,
    device: torch.device,
    trust: bool,
    say: Say,
) -> nn.Module:
    """The model, in evaluation mode: images in [0, 1] to logits, or one output as two classes.

    Args:
        named: what it is.
        options: of what builds the network, see `options_for`.
        images: (N, C, H, W), some of those that the model is for, which are put through it.
        device: where the model goes.
        trust: whether the code in an archive, a pickle or a folder may run.
        say: told what was done that the user should know.

    Raises:
        InputError: if the model cannot be imported, built or copied, is no module and no function of images, its
            weights do not fit, it needs `trust`, or `mean` and `std` are not as `normalised` has them.
    """
    model, expected = _network(named, options, trust, say), named.expected()
    mean, std = named.mean or expected.mean, named.std or expected.std
    taken = {"mean": expected.mean if named.mean is None else None, "std": expected.std if named.std is None else None}
    if any(taken.values()):
        told = [f"{name} {', '.join(f'{one:.4g}' for one in used)}" for name, used in taken.items() if used]
        say(f"{', '.join(told)}: from {expected.source}")
    with users_code.users_code(
        f"model {named.text!r} cannot be put into evaluation mode, moved to {device} and copied"
    ):
        _without_modes(model)
        model = normalised(evaluated(model), mean, std, None if images is None else images.shape[1]).to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of exported graphs
            copy.deepcopy(model)  # as an audit does
    if named.one_output is not None:
        return TwoClasses(model, named.one_output == "probability")
    if images is None and expected.shape:
        images = torch.rand(2, len(mean or (0, 0, 0)), *expected.shape, generator=torch.Generator().manual_seed(0))
    return model if images is None else as_classifier(model, images.to(device))


def options_for(named: Named, data: Data | None) -> dict[str, Any]:
    """The channels, classes and size of the data, where what builds the network is brittle's or given as `network`."""
    own = is_own(named.builder)
    if data is None or named.builder.startswith(TIMM) or not (own or named.network is not None):
        return {}
    found: Any = _found("network", named.builder)
    if isinstance(found, nn.Module) or not callable(found):
        return {}
    make: Callable[..., Any] = found
    return fitted_options(make, {}, data)


def _network(named: Named, options: Mapping[str, Any], trust: bool, say: Say) -> nn.Module:
    """The network itself, as whatever it is stored in has it."""
    path, suffix = named.path, named.path.suffix
    if named.network is not None and suffix not in WEIGHTS:
        raise InputError(f"--network goes with a file of weights, got {named.text!r}")
    if suffix in (".pt2", ".onnx", *WEIGHTS) and not path.is_file():
        raise InputError(f"model {path} cannot be read: there is no such file")
    whole = suffix in (".pt2", ".onnx", *WEIGHTS) or packages.is_folder(named.text)
    if named.weights is not None and whole:
        raise InputError(f"--weights goes with package.module:callable or timm:NAME, got {named.text!r}")
    if suffix == ".pt2":
        return _archive(path, trust)
    if suffix == ".onnx":
        return packages.onnx_network(path, say)
    if packages.is_folder(named.text):
        return packages.folder_network(path, say, trust=trust)
    file = path if suffix in WEIGHTS else None if named.weights is None else Path(named.weights)
    found = None if file is None else checkpoints.read(file, trust=trust)
    if file is path and isinstance(found, nn.Module):
        return found
    if file is path and named.network is None:
        raise InputError(f"{path} holds weights only: say with --network which network they are of")
    state = None if file is None else checkpoints.state_of(file, found, say)
    if named.builder.startswith(TIMM):
        model = packages.timm_network(named.builder.removeprefix(TIMM), state)
    else:
        model = _imported("model" if file is not path else "network", named.builder, options)
    if state is not None:
        checkpoints.fill(model, state, f"weights {file} do not fit the model", say)
    return model


def _found(kind: str, text: str) -> Any:
    """What an import path, or the name of one of brittle's networks, stands for."""
    if is_own(text):
        return getattr(networks, text.replace(":", ".").removeprefix(f"{_OWN}."))
    _check_path(kind, text)
    return users_code.imported(kind, text)


def _imported(kind: str, text: str, options: Mapping[str, Any]) -> nn.Module:
    """The network that an import path names, or what the function of that name builds; or that function of images."""
    found = _found(kind, text)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(f"{kind} {text!r} must be an nn.Module or a function that builds one, got {_kind(found)}")
    make: Callable[..., Any] = found
    if not options and _is_of_images(make):
        return Function(make)
    with users_code.users_code(f"{kind} {text!r} cannot be built{'' if options else ' without arguments'}"):
        made = build(make, seed=0, **options)
    if isinstance(made, nn.Module):
        return made
    if callable(made):
        return Function(made)
    raise InputError(f"{kind} {text!r} must build an nn.Module, got {_kind(made)}")


def _check_path(kind: str, text: str) -> None:
    if text.endswith(".py"):
        raise InputError(f"{kind} {text!r} is a file of code: say what in it builds the network, {text}:NAME")
    if Path(text).is_dir():
        raise InputError(f"{kind} {text!r} is a folder without {packages.CONFIG}: expected one of Hugging Face's")
    if not re.search(r"[\w.]+[.:]\w", text):
        raise InputError(f"{kind} {text!r} is not known: expected {KINDS}")


def _is_of_images(function: Callable[..., Any]) -> bool:
    """Whether a function is a model itself: it needs one argument, the images."""
    with users_code.users_code("the function has no readable parameters"):
        parameters = inspect.signature(function).parameters.values()
    needed = [
        one for one in parameters if one.default is one.empty and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    return len(needed) == 1 and needed[0].kind is not needed[0].KEYWORD_ONLY and not inspect.isclass(function)


def _archive(path: Path, trust: bool) -> nn.Module:
    """The network of a `torch.export` archive: torch evaluates its shapes as Python and unpickles parts of it."""
    if not trust:
        raise InputError(f"model {path} is a torch.export archive, which can run code: refused; --trust allows it")
    with users_code.users_code(f"model {path} cannot be loaded"), users_code.unlogged(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
        unchecked = {"check_guards": False} if takes(program.module, "check_guards") else {}
        return program.module(**unchecked)


def _without_modes(model: nn.Module) -> None:
    """An exported graph has one mode, that it was exported in, and refuses `train` and `eval`: here it ignores them."""
    for module in model.modules():
        for name in {"train", "eval"} & vars(module).keys():
            del vars(module)[name]


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
