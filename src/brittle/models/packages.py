"""Networks of other packages: timm, transformers and onnx2torch, each an extra of brittle's."""

from __future__ import annotations

import difflib
import importlib
import json
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from brittle.errors import InputError, first_line
from brittle.models import checkpoints
from brittle.models.checkpoints import Say
from brittle.models.prepared import Expected, FixedBatch
from brittle.models.users_code import reason, unlogged, users_code

TIMM = "timm:"
CONFIG, WEIGHTS, PROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
ALONE = ("timm", "onnx2torch")  # they import torchvision for what brittle does not use
INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # as Pillow numbers them


def needed(package: str, extra: str) -> Any:
    """A package that an extra of brittle installs.

    Raises:
        InputError: if it is not installed, or cannot be imported; the message says how to install it.
    """
    try:
        with _without_torchvision() if package in ALONE else nullcontext(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(package)
    except ImportError as error:
        if getattr(error, "name", None) == package:
            raise InputError(f"this needs the package {package}: pip install 'brittle[{extra}]'") from error
        raise InputError(f"{package} cannot be imported: {reason(error)}") from error
    except Exception as error:
        raise InputError(f"{package} cannot be imported: {reason(error)}") from error


# timm -----------------------------------------------------------------------------------------------------------------


def timm_network(name: str, state: Mapping[str, Tensor] | None) -> nn.Module:
    """A network of timm's, with its published weights unless others are given.

    Args:
        name: as timm has it, such as `resnet18` or `resnet18.a1_in1k`.
        state: the weights that it will be given: they say how many classes and channels it has.

    Raises:
        InputError: if timm has no such network, or its published weights cannot be had.
    """
    timm, config = needed("timm", "timm"), _timm_config(name)
    options = {} if state is None else _shape_of(config, state)
    with unlogged(), users_code(f"timm's network {name!r} cannot be built"):
        try:
            return timm.create_model(name, pretrained=state is None, **options)
        except Exception as error:
            if state is not None:
                raise
            raise InputError(
                f"timm's published weights of {name} cannot be downloaded: {first_line(error)}; --weights gives others"
            ) from error


def timm_expected(name: str) -> Expected:
    """What timm's configuration of a network says of its images."""
    config = needed("timm", "timm").data.resolve_data_config(pretrained_cfg=_timm_config(name))
    return _expected(config, f"timm's configuration of {name}")


def _timm_config(name: str) -> dict[str, Any]:
    timm = needed("timm", "timm")
    base, _, tag = name.partition(".")
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise InputError(f"timm {timm.__version__} has no network {base!r}{hint}")
    config = timm.get_pretrained_cfg(name, allow_unregistered=not tag)
    if config is None:
        raise InputError(f"timm {timm.__version__} has no weights {tag!r} for {base}")
    return config.to_dict()


def _shape_of(config: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, int]:
    """The classes and channels of weights, by the names that timm's configuration gives the first and last layer."""
    found: dict[str, int] = {}
    for option, part, axis in (("num_classes", "classifier", 0), ("in_chans", "first_conv", 1)):
        for layer in _layers(config.get(part)):
            held = [value for name, value in state.items() if f".{name}".endswith(f".{layer}.weight")]
            if len(held) == 1 and held[0].ndim > axis:
                found[option] = held[0].shape[axis]
    return found


def _layers(names: Any) -> Sequence[str]:
    return [names] if isinstance(names, str) else list(names or ())


def _expected(config: Mapping[str, Any], source: str) -> Expected:
    """Of timm's data configuration: the shorter side is resized to the crop's over `crop_pct`."""
    height, width = config["input_size"][-2:]
    mean, std, way = tuple(config["mean"]), tuple(config["std"]), config.get("interpolation", "bicubic")
    way = way if way in INTERPOLATIONS.values() else "bicubic"
    if config.get("crop_mode") == "squash" or height != width:
        return Expected((height, width), None, None, way, mean, std, source)
    return Expected(None, math.floor(height / config.get("crop_pct", 1.0)), height, way, mean, std, source)


# Hugging Face ---------------------------------------------------------------------------------------------------------


def is_folder(text: str) -> bool:
    """Whether a text names a folder as transformers or timm save a network in."""
    return (Path(text) / CONFIG).is_file()


def folder_network(folder: Path, say: Say, *, trust: bool) -> nn.Module:
    """The classifier in a folder of Hugging Face's: transformers', or timm's where its configuration names one.

    Raises:
        InputError: if the folder lacks weights, or they do not fit; or its configuration asks for code of its own
            without `trust`.
    """
    config = _json(folder / CONFIG)
    if "architecture" in config:  # as timm saves one
        return _timm_folder(folder, config, say)
    own = config.get("auto_map")
    if own and not trust:
        raise InputError(f"{folder / CONFIG} names code of its own, which was not run: --trust allows it")
    transformers = needed("transformers", "hf")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with unlogged(), users_code(f"the classifier in {folder} cannot be loaded"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, about = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=bool(own), output_loading_info=True
        )
        for problem in ("missing_keys", "mismatched_keys"):
            if lacking := sorted(map(str, about.get(problem) or ())):
                more = " ..." if len(lacking) > 4 else ""
                raise InputError(
                    f"the weights in {folder} do not fit its {CONFIG}; {problem}: {', '.join(lacking[:4])}{more}"
                )
    return network


def _timm_folder(folder: Path, config: Mapping[str, Any], say: Say) -> nn.Module:
    timm = needed("timm", "timm")
    state = checkpoints.state_of(folder / WEIGHTS, checkpoints.read(folder / WEIGHTS, trust=False), say)
    options = {"num_classes": config["num_classes"]} if "num_classes" in config else {}
    with users_code(f"timm's network in {folder} cannot be built"):
        network = timm.create_model(config["architecture"], pretrained=False, **options, **config.get("model_args", {}))
    checkpoints.fill(network, state, f"weights {folder / WEIGHTS} do not fit {config['architecture']}", say)
    return network


def folder_expected(folder: Path) -> Expected:
    """What the preprocessor's configuration in a folder says of the network's images."""
    config = _json(folder / CONFIG)
    if "architecture" in config:
        known = {"mean", "std", "input_size"} <= config.get("pretrained_cfg", {}).keys()
        return _expected(config["pretrained_cfg"], str(folder / CONFIG)) if known else Expected()
    if not (folder / PROCESSOR).is_file():
        return Expected()
    told = _json(folder / PROCESSOR)
    size, resize, crop = _processor_size(told)
    way = INTERPOLATIONS.get(told.get("resample", 2), "bilinear")
    mean, std = None, None
    if told.get("do_normalize", "image_mean" in told) and {"image_mean", "image_std"} <= told.keys():
        scale = 255 * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 255.0
        mean = tuple(value / scale for value in told["image_mean"])
        std = tuple(value / scale for value in told["image_std"])
    return Expected(size, resize, crop, way, mean, std, str(folder / PROCESSOR))


def _processor_size(told: Mapping[str, Any]) -> tuple[tuple[int, int] | None, int | None, int | None]:
    """The exact size of images, or the shorter side and what is cut of the centre."""
    size, crop = told.get("size"), told.get("crop_size") if told.get("do_center_crop", "crop_size" in told) else None
    cut = crop.get("height") if isinstance(crop, Mapping) else crop
    if not told.get("do_resize", True) or size is None:
        return None, None, cut
    if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
        return (size["height"], size["width"]), None, cut
    side = size.get("shortest_edge") if isinstance(size, Mapping) else size
    if isinstance(side, int) and "crop_pct" in told and cut is None:  # ConvNeXt's: a larger side, of which this is cut
        return (None, int(side / told["crop_pct"]), side) if side < 384 else ((side, side), None, None)
    if isinstance(size, int) and cut is None:
        return (size, size), None, None
    return None, side, cut


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} must hold a JSON object, got a {type(found).__name__}")
    return found


# ONNX -----------------------------------------------------------------------------------------------------------------


def onnx_network(path: Path, say: Say) -> nn.Module:
    """The network of an ONNX file, which holds no code. It takes any number of images, whatever it was exported for.

    Raises:
        InputError: if the file cannot be read, or has an operator that onnx2torch does not know.
    """
    onnx, onnx2torch = needed("onnx", "onnx"), needed("onnx2torch", "onnx")
    try:
        model = onnx.load(str(path))
        _lift_constants(onnx, model.graph)
        inputs = {one.name for one in model.graph.initializer}
        shapes = [
            [one.dim_value for one in value.type.tensor_type.shape.dim]
            for value in model.graph.input
            if value.name not in inputs
        ]
        with _without_torchvision(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = onnx2torch.convert(model)
    except Exception as error:  # onnx, protobuf and onnx2torch raise whatever a file leads them to
        raise InputError(f"model {path} cannot be read as ONNX: {reason(error)}") from error
    if len(shapes) != 1 or len(shapes[0]) != 4:
        got = f"{len(shapes)} inputs" if len(shapes) != 1 else f"an input of {len(shapes[0])} dimensions"
        raise InputError(f"model {path} must take one input of images, (B, C, H, W), got {got}")
    batch, channels, _, last = shapes[0]
    backwards = last in (1, 3) and channels not in (1, 3)
    if not (batch or backwards):
        return network
    if batch:
        say(f"{path} was exported for batches of {batch}: images are given to it in such batches")
    if backwards:
        say(f"{path} takes images channels last: they are given to it so")
    return FixedBatch(network, batch or None, backwards)


def _lift_constants(onnx: Any, graph: Any) -> None:
    """Weights that nodes of constants hold become initialisers, where onnx2torch looks for them."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        values = [attribute.t for attribute in node.attribute if attribute.name == "value"]
        if values:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(values[0])
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            graph.node.remove(node)


# torchvision ----------------------------------------------------------------------------------------------------------


class _Absent(type):
    """A class of torchvision that is not there: it has any attribute, and no instances."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {})


class _AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Absent(name, (), {})


class _Finder(MetaPathFinder, Loader):
    """Finds modules without content for torchvision and all in it."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname.partition(".")[0] == "torchvision":
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Where torchvision cannot be imported, timm and onnx2torch can all the same inside.

    They import it for detection and for transforms of photos, which brittle does not use.
    """
    try:
        importlib.import_module("torchvision")
        yield
        return
    except Exception:  # not installed, or built for another torch, which raises a RuntimeError
        _forget_torchvision()
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _forget_torchvision()


def _forget_torchvision() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
