"""Opens somebody's model: an import path, weights, an exported archive or a cell of the store -> an `nn.Module`.

A file of weights never runs code here: safetensors has none, a pickle is read with `weights_only=True`, and an exported
archive is looked through first. An import path is the user's own code, and runs as such.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from brittle import cells, naming
from brittle.data import Data
from brittle.errors import InputError, unknown
from brittle.networks import build
from brittle.store import Store

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
KEY = r"[0-9a-fA-F]{1,32}"  # the key of a cell, or its beginning
WEIGHTS = (".safetensors", *PICKLES)
KINDS = "package.module:callable, a .pt2 archive, the key of a trained cell, or a .safetensors file with --network"
CONVERT = "safetensors.torch.save_file(torch.load(FILE, weights_only=False).state_dict(), 'model.safetensors')"
_NESTED = ("state_dict", "model_state_dict", "model")  # under which training loops keep the weights
_NAMED = 4  # keys of weights that an error lists


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
        text: `package.module:name`, a function without arguments that builds the network, or the network itself; a
            `torch.export` archive (.pt2); the key of a `train` or `adopt` cell, of which the beginning will do; or a
            file of weights, which goes with `network`.
        data: what the model is for: it has the number of channels, and brittle's own networks are built for it.
        device: where the model goes.
        network: one of brittle's networks, or an import path, that a file of weights in `text` fits.
        weights: for an import path: a .safetensors file, or a state dict that `torch.save` wrote.
        mean: of each channel, or one number for all; taken from images in [0, 1] ahead of the model.
        std: what they are then divided by.
        store: where keys are looked up; the user's own when not given.
        trust: whether foreign code may run.

    Raises:
        InputError: if the model cannot be imported, is no `nn.Module`, its weights do not fit or cannot be read without
            running code, or `mean` and `std` are not one number or one a channel.
    """
    path = Path(text)
    if weights is not None and ":" not in text:
        raise InputError(f"--weights goes with package.module:callable, got {text!r}")
    if network is not None and path.suffix not in WEIGHTS:
        raise InputError(f"--network goes with a file of weights, got {text!r}")
    if path.suffix == ".pt2":
        model = _archive(path)
    elif path.suffix in WEIGHTS:
        model = _of_weights(path, network, data)
    elif ":" in text:
        model = _imported(text, data)
    else:
        return _wrapped(_of_cell(text, store or Store(), device), mean, std, data).to(device)
    if weights is not None:
        _fill(model, _state(weights), weights)
    return _wrapped(model.eval(), mean, std, data).eval().to(device)


def digest(model: nn.Module, text: str) -> str:
    """Hexadecimal sha256 of what a model computes, as far as can be seen: weights, layers, and the files of its code.

    Args:
        model: what `open_model` gave.
        text: what it was opened by; of an import path, the file is hashed too.
    """
    hashed = hashlib.sha256(str(model).encode())
    for name, value in sorted(model.state_dict().items()):
        hashed.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        hashed.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    files = {file for module in model.modules() if (file := _own_file(type(module).__module__))}
    if ":" in text and (file := _own_file(text.partition(":")[0])):
        files.add(file)
    for file in sorted(files):
        hashed.update(Path(file).read_bytes())
    hashed.update(getattr(model, "code", "").encode())  # of an exported graph
    return hashed.hexdigest()


def _own_file(module: str) -> str | None:
    """The file of a module that is neither torch's nor brittle's."""
    if module.partition(".")[0] in ("torch", "brittle"):
        return None
    return getattr(sys.modules.get(module), "__file__", None)


# What a text may name -------------------------------------------------------------------------------------------------


def _imported(text: str, data: Data) -> nn.Module:
    """`package.module:name`: the network itself, or what the function of that name builds."""
    module_name, _, name = text.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it is the user's file that is run here
        raise InputError(f"model {text!r} cannot be imported: {_line(error)}") from error
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            known = [n for n, value in vars(found).items() if callable(value) and not n.startswith("_")]
            raise unknown(f"model in {module_name}", name, known)
        found = getattr(found, part)
    if isinstance(found, nn.Module):
        return found
    if not callable(found):
        raise InputError(f"model {text!r} must be an nn.Module or a function that builds one, got {_kind(found)}")
    options = fitted_options(found, data) if module_name.partition(".")[0] == "brittle" else {}
    try:
        made = found(**options)
    except Exception as error:
        raise InputError(f"model {text!r} cannot be built without arguments: {_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise InputError(f"model {text!r} must build an nn.Module, got {_kind(made)}")
    return made


def fitted_options(make: Callable[..., Any], data: Data) -> dict[str, int]:
    """The channels, classes and size of the data, as far as a network takes them."""
    channels, height, _ = data.image_shape
    known = {"channels": channels, "classes": len(data.classes), "size": height}
    return {name: value for name, value in known.items() if naming.takes(make, name)}


def _of_weights(path: Path, network: str | None, data: Data) -> nn.Module:
    if network is None:
        raise InputError(f"{path} holds weights only: say with --network which network they are of")
    make = naming.network(network)
    model = build(make, seed=0, **fitted_options(make, data))
    _fill(model, _state(path), path)
    return model


def _of_cell(text: str, store: Store, device: torch.device) -> nn.Module:
    if not re.fullmatch(KEY, text):
        raise InputError(f"model {text!r} is not known: expected {KINDS}")
    key = store.find(text)
    stored = store.get(key)
    if stored is None:
        raise InputError(f"cell {key[:8]} is damaged: {store.damage(key)}")
    if stored.record["function"] not in ("train", "adopt"):
        raise InputError(f"cell {key[:8]} is no network: it is '{stored.record['title']}'")
    return cells.load_model(stored, device)


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
    return Normalised(model, values["mean"], values["std"]).eval()


# Weights --------------------------------------------------------------------------------------------------------------


def _state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights, on the CPU."""
    if path.suffix not in WEIGHTS:
        raise InputError(f"weights {path} must be a .safetensors file or a state dict ({', '.join(PICKLES)})")
    if not path.is_file():
        raise InputError(f"weights {path} cannot be read: there is no such file")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise InputError(f"weights {path} cannot be read: {_line(error)}") from error
    found = _unpickled(path.read_bytes(), f"weights {path}")
    for name in _NESTED:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise InputError(f"weights {path} must hold a state dict, tensors by name, got {_kind(found)}")
    return dict(found)


def _unpickled(content: bytes, what: str) -> Any:
    """What a pickle holds, if that is tensors, numbers, text, and lists and dicts of them: no other name is called."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch's refusal is an UnpicklingError, a damaged file anything
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise InputError(f"{what} cannot be read: {_line(error)}") from error
        calls = f" ({named[1]})" if named else ""
        raise InputError(
            f"{what} is a pickle that wants to run code{calls}: refused, and nothing was run; where you trust it, "
            f"convert it with {CONVERT}"
        ) from error


def _fill(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Loads weights into a model that has exactly these."""
    if state and all(name.startswith("module.") for name in state):  # written by DataParallel
        state = {name.removeprefix("module."): value for name, value in state.items()}
    wanted = model.state_dict()
    missing = [name for name in wanted if name not in state]
    unexpected = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    faults = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    said = [f"{what}: {_listed(names)}" for what, names in faults if names]
    if said:
        raise InputError(f"weights {path} do not fit the model; {'; '.join(said)}")
    model.load_state_dict(state)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


# Exported archives ----------------------------------------------------------------------------------------------------

# torch.export.load (2.13) unpickles with weights_only=False where the safe way fails, evaluates shape expressions as
# Python, and looks operators up by any path below `torch`. So an archive is read first, by torch's own reader, and
# loaded only if all of its text is plain names, its operators are ATen's, and its tensors are raw bytes.
_RECORDS = re.compile(
    r"data/(weights|constants)/((weight|tensor)_\d+|model_(weights|constants)_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|version|\.data/.*|extra/.*"
)
_OPERATOR = re.compile(r"torch\.ops\.aten\.\w+\.\w+|_operator\.\w+")
_PLAIN = re.compile(r"[\w.:]*")
_SHAPE = re.compile(r"(Symbol\('\w+'(, \w+=(True|False))*\)|\d|[-+ ]|\*(?!\*)|(Mul|Add|Mod|FloorDiv)\(|,|\))*")
_TREE = re.compile(r'[\[\]{}:, \d]|"(type|context|children_spec|builtins\.(tuple|list|dict)|null|\[\])"|null')
_UNREAD = {"metadata", "guards_code"}  # for people; and checks that are not asked for below


def _archive(path: Path) -> nn.Module:
    """The network of a `torch.export` archive that holds nothing but ATen's operators and plain tensors."""
    try:
        content = path.read_bytes()
        reader = torch._C.PyTorchFileReader(io.BytesIO(content))  # type: ignore[call-arg]
        records = {name: reader.get_record(name) for name in reader.get_all_records()}
    except OSError as error:
        raise InputError(f"model {path} cannot be read: {error.strerror}") from error
    except RuntimeError as error:
        raise InputError(f"model {path} is no torch.export archive: {_line(error)}") from error
    for fault in _faults(records):
        raise InputError(
            f"model {path} holds {fault}, which could run code: refused; name the model as package.module:callable"
        )
    _unpickled(records["data/sample_inputs/model.pt"], f"model {path}: its sample inputs")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.load(io.BytesIO(content))
            unchecked = {"check_guards": False} if naming.takes(program.module, "check_guards") else {}
            model = program.module(**unchecked)
    except Exception as error:
        raise InputError(f"model {path} cannot be loaded: {_line(error)}") from error
    for name in ("train", "eval"):  # an exported graph refuses both: it has one mode, that it was exported in
        model.__dict__.pop(name, None)
    return model


def _faults(records: Mapping[str, bytes]) -> Iterator[str]:
    """What an archive holds that is no plain name, number or tensor; in words."""
    lacking = {"models/model.json", "data/sample_inputs/model.pt"} - records.keys()
    yield from (f"no {name}" for name in sorted(lacking))
    for name, content in records.items():
        if not _RECORDS.fullmatch(name):
            yield f"the record {name!r}"
        elif name.endswith("config.json"):
            for one in json.loads(content)["config"].values():
                if one["use_pickle"] or not re.fullmatch(r"(weight|tensor)_\d+", one["path_name"]):
                    yield f"the pickle {one['path_name']!r}"
    if "models/model.json" in records:
        yield from _unsafe(json.loads(records["models/model.json"]), "")


def _unsafe(value: Any, name: str) -> Iterator[str]:
    """Texts in a graph that torch could take for more than a name; `name` is the key that the value stands under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if not _PLAIN.fullmatch(key):
                yield f"the name {key[:40]!r}"
            if key not in _UNREAD:
                yield from _unsafe(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _unsafe(inner, name)
    elif isinstance(value, str):
        allowed = {"target": _OPERATOR, "expr_str": _SHAPE}.get(name, _PLAIN)
        tree = name in ("in_spec", "out_spec") and not _TREE.sub("", value)
        version = name == "torch_version"
        if not (allowed.fullmatch(value) or tree or version):
            yield f"{name} {value[:60]!r}"


# Words ----------------------------------------------------------------------------------------------------------------


def _line(error: Exception) -> str:
    """The first line of what an error says, after its kind where that says more."""
    said = str(error).strip().splitlines()
    kind = type(error).__name__
    return f"{kind}: {said[0]}" if said else kind


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
