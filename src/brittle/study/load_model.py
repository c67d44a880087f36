"""Opens somebody's model: an import path, weights, an exported archive or a cell of the store -> an `nn.Module`.

An import path is the user's own code, and runs. A file of weights never runs code: safetensors has none, and a pickle
is read with `weights_only=True`. Archives, TorchScript, other pickles, and cells of a network from outside brittle are
code, and need `trust`.
"""

from __future__ import annotations

import copy
import io
import logging
import math
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from brittle.data import Data
from brittle.errors import InputError
from brittle.models import users_code
from brittle.models.fingerprint import digest
from brittle.models.networks import build
from brittle.study import lookup
from brittle.study.kinds.network.cell import fill, fitted_options, load_network
from brittle.study.run import scheduler
from brittle.study.store.store import Store

__all__ = ["KEY", "WEIGHTS", "Normalised", "digest", "open_model"]

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
KEY = r"[0-9a-fA-F]{1,32}"  # the key of a cell, or its beginning
WEIGHTS = (".safetensors", *PICKLES)
KINDS = (
    "package.module:callable, file.py:callable, one of brittle's networks, a .pt2 archive, the key of a trained cell, "
    "or a .safetensors file with --network"
)
CONVERT = "safetensors.torch.save_file(torch.load(FILE, weights_only=False).state_dict(), 'model.safetensors')"
_NESTED = ("state_dict", "model_state_dict", "model")  # under which training loops keep the weights


class Normalised(nn.Module):
    """A network that is given (images - mean) / std, channel by channel.

    Args:
        model: the network.
        mean: (C,), of images in [0, 1].
        std: (C,), of images in [0, 1]; none is 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        return self.model((images - self.mean) / self.std)


def open_model(
    text: str,
    *,
    data: Data,
    device: torch.device,
    network: str | None = None,
    weights: Path | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    store: Store | None = None,
    trust: bool = False,
) -> nn.Module:
    """The model that `text` names, in evaluation mode.

    Args:
        text: `package.module:name`, `package.module.name` or `folder/file.py:name`, a function without arguments that
            builds the network, or the network itself; the name of one of brittle's networks; a `torch.export` archive
            (.pt2); the key of a `train` or `adopt` cell, of which the beginning will do; or a file of weights, which
            goes with `network`. An import path runs code, so that `text` must come from the user.
        data: what the model is for: brittle's own networks are built for its channels, classes and size.
        device: where the model goes.
        network: one of brittle's networks, or an import path, that a file of weights in `text` fits.
        weights: for an import path: a .safetensors file, or a state dict that `torch.save` wrote.
        mean: of each channel, or one number for all; taken from images in [0, 1] ahead of the model.
        std: what they are then divided by.
        store: where keys are looked up; the user's own when not given.
        trust: whether the code in an archive, a pickle, or named by a cell may run.

    Raises:
        InputError: if the model cannot be imported, built or copied, is no `nn.Module`, its weights do not fit, it
            needs `trust`, or `mean` and `std` are not one number or one a channel.
    """
    path = Path(text)
    is_file, is_key = path.suffix in (".pt2", *WEIGHTS), re.fullmatch(KEY, text)
    if weights is not None and (is_file or is_key):
        raise InputError(f"--weights goes with package.module:callable, got {text!r}")
    if network is not None and path.suffix not in WEIGHTS:
        raise InputError(f"--network goes with a file of weights, got {text!r}")
    if is_file and not path.is_file():
        raise InputError(f"model {path} cannot be read: there is no such file")
    if path.suffix == ".pt2":
        model = _archive(path, trust)
    elif is_file:
        model = _of_file(path, network, data, trust)
    elif is_key:
        store = store or Store()
        cell = scheduler.recall_network(store, text, trust=trust)
        stored = store.get(cell.key)
        if stored is None:
            raise InputError(f"cell {cell.key[:8]} has gone from the store {store.root}")
        model = load_network(cell, stored, device)
    else:
        model = _imported(text, data)
        if weights is not None:
            fill(model, _state(weights, _read(weights, trust)), f"weights {weights} do not fit the model")
    with users_code.users_code(f"model {text!r} cannot be put into evaluation mode, moved to {device} and copied"):
        model = _wrapped(model.eval(), mean, std, data).eval().to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, of exported graphs
            copy.deepcopy(model)  # as an audit does
    return model


# What a text may name -------------------------------------------------------------------------------------------------


def _imported(text: str, data: Data) -> nn.Module:
    """The network itself that an import path names, or what the function of that name builds."""
    if text.endswith(".py"):
        raise InputError(f"model {text!r} is a file of code: say what in it builds the network, {text}:NAME")
    if text not in lookup.network_names() and not re.search(r"[\w.]+[.:]\w", text):
        raise InputError(f"model {text!r} is not known: expected {KINDS}")
    own = text in lookup.network_names() or text.startswith("brittle.networks")
    found: Any = lookup.network(text) if own else users_code.imported("model", text)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(f"model {text!r} must be an nn.Module or a function that builds one, got {_kind(found)}")
    make: Callable[..., Any] = found
    with users_code.users_code(f"model {text!r} cannot be built without arguments"):
        made = build(make, seed=0, **(fitted_options(make, {}, data) if own else {}))
    if not isinstance(made, nn.Module):
        raise InputError(f"model {text!r} must build an nn.Module, got {_kind(made)}")
    return made


def _of_file(path: Path, network: str | None, data: Data, trust: bool) -> nn.Module:
    """What a pickle holds whole, or a network with the weights of a file."""
    found = _read(path, trust)
    if isinstance(found, nn.Module):
        return found
    if network is None:
        raise InputError(f"{path} holds weights only: say with --network which network they are of")
    make = lookup.network(network, trust=True)
    with users_code.users_code(f"network {network!r} cannot be built"):
        model = build(make, seed=0, **fitted_options(make, {}, data))
    if not isinstance(model, nn.Module):
        raise InputError(f"network {network!r} must build an nn.Module, got {_kind(model)}")
    fill(model, _state(path, found), f"weights {path} do not fit the model")
    return model


def _wrapped(model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None, data: Data) -> nn.Module:
    """The model behind the normalising layer that was asked for, if one was."""
    if mean is None and std is None:
        return model
    channels = data.image_shape[0]
    values = {"mean": mean or (0.0,), "std": std or (1.0,)}
    for name, given in values.items():
        if len(given) not in (1, channels):
            raise InputError(f"--{name} needs one number or one for each of {channels} channels, got {len(given)}")
        if not all(math.isfinite(value) for value in given):
            raise InputError(f"--{name} must be finite, got {', '.join(map(str, given))}")
    if not all(value > 0 for value in values["std"]):
        raise InputError(f"--std must be positive, got {', '.join(map(str, values['std']))}")
    return Normalised(model, values["mean"], values["std"])


# Files ----------------------------------------------------------------------------------------------------------------


def _read(path: Path, trust: bool) -> Any:
    """What a file of weights holds, on the CPU: tensors by name, unless it is a pickle of something else."""
    if path.suffix not in WEIGHTS:
        raise InputError(f"weights {path} must be a .safetensors file or a state dict ({', '.join(PICKLES)})")
    if not path.is_file():
        raise InputError(f"weights {path} cannot be read: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"weights {path} cannot be read: {users_code.reason(error)}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a file is TorchScript, or of another protocol
            return torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=not trust)
    except (Exception, SystemExit) as error:  # torch's refusal is an UnpicklingError, a damaged file anything
        said = str(error)
        if trust or ("weights_only" not in said and "Weights only" not in said):
            raise InputError(f"weights {path} cannot be read: {users_code.reason(error)}") from error
        named = re.search(r"GLOBAL ([\w.]+)", said)
        what = "TorchScript" if "TorchScript" in said else f"a pickled {named[1]}" if named else "no plain state dict"
        raise InputError(
            f"{path} holds {what}, which can run code: refused, and nothing was run; where you trust it, give --trust, "
            f"or convert it with {CONVERT}"
        ) from error


def _state(path: Path, found: Any) -> dict[str, Tensor]:
    """The tensors by name that a file of weights holds, alone or under a name that training loops use."""
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if isinstance(found, nn.Module):
        raise InputError(f"weights {path} hold a whole model: give the file as MODEL")
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"weights {path} must hold a state dict, tensors by name, got {_kind(found)}")
    if wrong := [name for name in found if not isinstance(name, str)]:
        raise InputError(f"weights {path} must hold tensors by name, got the name {wrong[0]!r}, {_kind(wrong[0])}")
    return dict(found)


def _archive(path: Path, trust: bool) -> nn.Module:
    """The network of a `torch.export` archive: torch evaluates its shapes as Python and unpickles parts of it."""
    if not trust:
        raise InputError(f"model {path} is a torch.export archive, which can run code: refused; --trust allows it")
    with users_code.users_code(f"model {path} cannot be loaded"), _unlogged(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(path)
        unchecked = {"check_guards": False} if lookup.takes(program.module, "check_guards") else {}
        model = program.module(**unchecked)
    for name in ("train", "eval"):  # an exported graph refuses both: it has one mode, that it was exported in
        model.__dict__.pop(name, None)
    return model


@contextmanager
def _unlogged() -> Iterator[None]:
    """Nothing is logged inside: torch logs a traceback of its own before it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
