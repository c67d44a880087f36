"""Files of weights, read without running code, and put into a network whatever a training loop called them."""

from __future__ import annotations

import argparse
import io
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.models import users_code

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")
WEIGHTS = (".safetensors", *PICKLES)
_DEEPEST = 8  # dicts within each other, as a pickle may lie in itself
_NESTED = ("state_dict", "model_state_dict", "model", "net", "network")  # in which order they are looked for
_WRAPPERS = {"module", "_orig_mod"}  # what DataParallel and torch.compile put between the names of layers
_LATE = ".num_batches_tracked"  # a buffer that older files lack, and that evaluation does not read
_NAMED = 4  # names that an error lists

Say = Callable[[str], None]


def read(path: Path, *, trust: bool) -> Any:
    """What a file of weights holds, on the CPU: tensors by name, unless it is a pickle of something else.

    Args:
        path: a .safetensors file, or what torch.save wrote.
        trust: whether a pickle may run code. Without it, nothing but tensors and plain values is read.

    Raises:
        InputError: if it is not there, damaged, or code without `trust`.
    """
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
        with warnings.catch_warnings(), torch.serialization.safe_globals([argparse.Namespace]):
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
            "or save its state dict alone, as docs/audit.md shows"
        ) from error


def state_of(path: Path, found: Any, say: Say) -> Mapping[str, Tensor]:
    """The tensors by name that a file of weights holds, alone or in a dict beside other things.

    Raises:
        InputError: if there are none; the message says what the file holds.
    """
    if isinstance(found, nn.Module):
        raise InputError(f"weights {path} hold a whole model: give the file as MODEL")
    state = found
    for _ in range(_DEEPEST):
        if not isinstance(state, Mapping) or _is_state(state):
            break
        states = {name: value for name, value in state.items() if isinstance(value, Mapping) and value}
        held = [name for name, value in states.items() if _is_state(value)]
        name = next((name for name in (*_NESTED, *held) if name in (held or states)), None)
        if name is None:
            break
        if len(held) > 1:
            say(f"{path} holds several sets of weights, {', '.join(map(str, held))}: {name!r} is used")
        state = states[name]
    if not isinstance(state, Mapping) or not _is_state(state):
        got = f"a {type(found).__name__}"
        if isinstance(found, Mapping):
            got = f"a dict with {_shortened([repr(name) for name in found])}" if found else "an empty dict"
        raise InputError(f"weights {path} must hold a state dict, tensors by name, got {got}")
    if wrong := [name for name in state if not isinstance(name, str)]:
        raise InputError(
            f"weights {path} must hold tensors by name, got the name {wrong[0]!r}, a {type(wrong[0]).__name__}"
        )
    return state


def _is_state(value: Mapping[Any, Any]) -> bool:
    """Whether a mapping holds tensors; layers in int8 keep packed values and plain numbers beside them."""
    return any(isinstance(one, Tensor) for one in value.values()) and not any(
        isinstance(one, Mapping) for one in value.values()
    )


def renamed(state: Mapping[str, Tensor], wanted: Sequence[str], say: Say) -> Mapping[str, Tensor]:
    """The same weights under the names that a network has, where they differ by wrappers or by what is put before them.

    `module.` of DataParallel and `_orig_mod.` of torch.compile are dropped wherever they stand, and one beginning of
    all names, such as `model.` of Lightning. What then has another beginning, as a loss with weights, is left out.
    """
    if not wanted or all(name in state for name in wanted if not name.endswith(_LATE)):
        return state
    plain = {_unwrapped(name): name for name in state}
    target = {_unwrapped(name): name for name in wanted}
    if len(plain) < len(state) or len(target) < len(wanted):  # two names would become one
        return state
    needed = [name for name in target if not name.endswith(_LATE)]
    begins = [name.removesuffix(needed[0]) for name in plain if name == needed[0] or name.endswith(f".{needed[0]}")]
    begin = next((one for one in sorted(begins, key=len) if all(one + name in plain for name in needed)), None)
    if begin is None:
        common = {name.partition(".")[0] for name in plain}
        begin = (
            f"{common.pop()}."
            if len(common) == 1 and not any(name.startswith(tuple(common)) for name in target)
            else ""
        )
    dropped = sorted({f"{part}." for name in state for part in name.split(".") if part in _WRAPPERS} | {begin} - {""})
    if dropped:
        say(f"dropped from the names of the weights: {', '.join(map(repr, dropped))}")
    kept = {short.removeprefix(begin): name for short, name in plain.items() if short.startswith(begin)}
    if others := sorted(set(state) - set(kept.values())):
        say(f"left out, as their names do not begin with {begin!r}: {_shortened(others)}")
    found = OrderedDict((target.get(short, short), state[name]) for short, name in kept.items())
    versions = getattr(state, "_metadata", {})  # of layers, by their names: those in int8 are read by them
    vars(found)["_metadata"] = {f"{_unwrapped(name)}.".removeprefix(begin)[:-1]: one for name, one in versions.items()}
    return found


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def fill(model: nn.Module, state: Mapping[str, Tensor], fault: str, say: Say = lambda _: None) -> None:
    """Loads weights into a model that has exactly these, but for their names; see `renamed`.

    Raises:
        InputError: that begins with `fault`, if names, shapes or kinds of numbers are others, or a tensor is not dense.
    """
    with users_code.users_code(fault):
        wanted = model.state_dict()
        state = renamed(state, list(wanted), say)
        both = [(name, state[name], value) for name, value in wanted.items() if name in state]
        pairs = [(name, found, value) for name, found, value in both if isinstance(value, Tensor)]
        tensors = [pair for pair in pairs if isinstance(pair[1], Tensor)]
        faults = {
            "missing": [name for name in wanted if name not in state and not name.endswith(_LATE)],
            "unexpected": [name for name in state if name not in wanted],
            "of another shape": [
                f"{name} is {tuple(found.shape)}, expected {tuple(value.shape)}"
                for name, found, value in tensors
                if found.shape != value.shape
            ],
            "of another kind": [
                f"{name} is {_number_kind(found)}, expected {_number_kind(value)}"
                for name, found, value in pairs
                if _number_kind(found) != _number_kind(value)
            ],
        }
        if said := [f"{what}: {_shortened(names)}" for what, names in faults.items() if names]:
            raise InputError(f"{fault}; {'; '.join(said)}")
        model.load_state_dict(state, strict=False)


def _number_kind(tensor: object) -> str:
    """What conversion must not change unseen: 'floating-point' of any precision, another dtype, or no dense numbers."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    if tensor.is_meta or tensor.layout is not torch.strided:
        return "without values" if tensor.is_meta else "sparse"
    return "floating-point" if tensor.is_floating_point() else str(tensor.dtype).removeprefix("torch.")


def _shortened(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
