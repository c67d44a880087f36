"""A model is read into operations that can be bounded.

torch's `make_fx` runs the model on tensors without values and notes every operation, in-place ones and views rewritten.
A model that branches on values, draws random numbers, or uses an operation that is not here is an error that names it:
nothing is guessed. What was read is then compared with the model on the images.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode

from brittle.certify import relaxations
from brittle.certify.operations import Bent, Conv, Dense, Joined, MaxPool, Operation, Scale, Sum, Weighted
from brittle.errors import InputError, first_line
from brittle.models.networks import frozen
from brittle.models.outputs import tensor_of

KNOWN = (
    "Linear, Conv2d, ReLU, ReLU6, LeakyReLU, tanh, sigmoid, batch normalisation, average and maximum pooling, "
    "sums, concatenations, views, and products with constants"
)
_TWO = 2  # images that a model is read with: what mixes them is seen
_AGREE = 1e-3  # of the largest logit: more than float32 rounds by, less than another function differs by


@dataclass(frozen=True)
class Network:
    """A model as operations in order; tensor 0 is the image, tensor i + 1 what operation i gives."""

    operations: tuple[Operation, ...]
    shapes: tuple[tuple[int, ...], ...]  # of all tensors, for an image

    def values(self, images: Tensor) -> list[Tensor]:
        """All tensors for images (B, C, H, W), float64."""
        found = [images]
        for one in self.operations:
            found.append(one.apply(*(found[i] for i in one.inputs)))
        return found


def read(model: nn.Module, images: Tensor, logits: Tensor) -> Network:
    """The operations of a model in evaluation mode.

    Args:
        model: (B, C, H, W) in [0, 1] -> (B, K), left as it was.
        images: (B, C, H, W), whose
        logits: (B, K) the model has given.

    Raises:
        InputError: if it does something that cannot be bounded.
    """
    model = _readable(model)
    with frozen(model), torch.no_grad():
        network = _Reading(model, tuple(images.shape[1:])).network()
    few = images[:8].double()
    found, expected = network.values(few)[-1], logits[:8].double()
    # a softmax at the end is left out, and changes which logits differ by how much, but not their order
    if found.shape != expected.shape:
        raise InputError(f"the model cannot be bounded: it was read as {tuple(found.shape)} logits")
    off, scale = _difference(found, expected), max(1.0, float(found.abs().max()))
    if not off <= _AGREE * scale:
        raise InputError(f"the model cannot be bounded: what was read of it gives logits that differ by {off:.3g}")
    return network


def _difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of logits, or of what a softmax or its logarithm makes of them."""
    each = (found, found.log_softmax(1), found.softmax(1))
    return min(float((one - expected).abs().max()) for one in each)


def _readable(model: nn.Module) -> nn.Module:
    """The model, or a copy of it on the CPU and in float32."""
    if any(one.device.type != "cpu" for one in (*model.parameters(), *model.buffers())):
        model = copy.deepcopy(model).cpu()
    halves = {p.dtype for p in model.parameters()} & {torch.float16, torch.bfloat16}
    if not halves:
        return model
    warnings.warn(f"the model's weights are {', '.join(map(str, halves))}: it is bounded in float64", stacklevel=4)
    return copy.deepcopy(model).float()


class _Unknown(Exception):
    """Why an operation cannot be read."""


@dataclass
class _Reading:
    model: nn.Module
    shape: tuple[int, ...]
    operations: list[Operation] = field(default_factory=list)
    shapes: list[tuple[int, ...]] = field(default_factory=list)

    def network(self) -> Network:
        graph, state = self._traced()
        self.shapes.append(self.shape)
        held: dict[Node, Any] = {}  # an int is the number of a tensor of the network; all else is a constant
        inputs = iter([_Place(0), *state])
        for node in graph.graph.nodes:
            if node.op == "placeholder":
                held[node] = next(inputs)
            elif node.op == "get_attr":
                held[node] = getattr(graph, node.target)
            elif node.op == "output":
                return self._ending(node, held)
            elif node.users:
                held[node] = self._step(node, held)
        raise AssertionError("a graph has an output")

    def _traced(self) -> tuple[Any, list[Tensor]]:
        state = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

        def run(images: Tensor, *values: Tensor) -> Tensor:
            return tensor_of(functional_call(self.model, dict(zip(state, values, strict=True)), (images,)))

        dtype = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        example = torch.zeros(_TWO, *self.shape, dtype=dtype)
        try:
            with _quiet():
                traced = make_fx(functionalize(run), tracing_mode="fake", _allow_non_fake_inputs=True)(
                    example, *state.values()
                )
        except InputError:
            raise
        except Exception as error:
            said = first_line(error)
            why = "it branches on the values of an image" if "data-dependent" in said.lower() else said
            raise InputError(f"the model cannot be bounded: {why}") from error
        return traced, list(state.values())

    def _ending(self, node: Node, held: dict[Node, Any]) -> Network:
        (given,) = node.args
        last = given[0] if isinstance(given, list | tuple) else given
        place = held.get(last) if isinstance(last, Node) else None
        if not isinstance(place, _Place):
            raise InputError("the model cannot be bounded: its logits do not depend on the images")
        if place.number + 1 != len(self.shapes):  # the logits must be the last tensor
            self._add(Weighted, (place,), self.shapes[place.number], node, function=lambda x: x)
        return Network(tuple(self.operations), tuple(self.shapes))

    def _step(self, node: Node, held: dict[Node, Any]) -> Any:
        """A constant, or the place of a new tensor."""
        args, options = map_arg((node.args, node.kwargs), lambda one: held.get(one))
        flat = [*args, *options.values()]
        if not any(isinstance(one, _Place) or _has_place(one) for one in flat):
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise self._refused(node, "its answers are random")
            return node.target(*args, **options)  # type: ignore[operator]
        name = _name_of(node)
        if name not in _READERS:
            raise self._refused(node, "")
        try:
            return _READERS[name](self, node, *args, **options)
        except _Unknown as why:
            raise self._refused(node, str(why)) from why

    def _refused(self, node: Node, why: str) -> InputError:
        name = _name_of(node)
        layer = _layer_of(self.model, self.shape, node.target)
        where = f"layer {layer} ({name})" if layer else f"its operation {name}"
        return InputError(f"the model cannot be bounded: {where} {why or 'is not known'}; what is known: {KNOWN}")

    # New tensors ------------------------------------------------------------------------------------------------------

    def _add(
        self, kind: Callable[..., Operation], inputs: Sequence[Any], shape: Sequence[int], node: Node, **parts: Any
    ) -> _Place:
        numbers = tuple(one.number for one in inputs)
        self.operations.append(kind(inputs=numbers, shape=tuple(shape), name=node.name, **parts))
        self.shapes.append(tuple(shape))
        return _Place(len(self.shapes) - 1)

    def shape_of(self, node: Node, *, images: bool = True) -> tuple[int, ...]:
        """The shape of what a node gives, for an image."""
        value = node.meta["val"]
        shape = tuple((value[0] if isinstance(value, list | tuple) else value).shape)
        if images and (not shape or shape[0] != _TWO):
            raise _Unknown("mixes the images of a batch")
        return shape[1:]

    def weighted(self, node: Node, place: Any, function: Callable[[Tensor], Tensor]) -> _Place:
        """A linear function without negative coefficients, that is seen to treat each image by itself."""
        shape = self.shape_of(node)
        if not isinstance(place, _Place):
            raise _Unknown("is not known with such arguments")
        some = torch.rand(_TWO, *self.shapes[place.number], dtype=torch.float64)
        both = function(some)
        if tuple(both.shape) != (_TWO, *shape) or not torch.equal(both[:1], function(some[:1])):
            raise _Unknown("mixes the images of a batch")
        return self._add(Weighted, (place,), shape, node, function=function)

    def scaled(self, node: Node, place: Any, factor: Any = 1.0, constant: Any = 0.0) -> _Place:
        """x * factor + constant, of constants that broadcast to x or the other way round."""
        shape = self.shape_of(node)
        place = self.widened(node, place, shape)
        each = (_each_image(one, shape) for one in (factor, constant))
        return self._add(Scale, (place,), shape, node, **dict(zip(("factor", "constant"), each, strict=True)))

    def widened(self, node: Node, place: _Place, shape: tuple[int, ...]) -> _Place:
        """A tensor as it is broadcast to a shape."""
        if self.shapes[place.number] == shape:
            return place
        if len(self.shapes[place.number]) != len(shape):
            raise _Unknown("broadcasts over the images of a batch")
        return self._add(Weighted, (place,), shape, node, function=lambda x: x.expand(-1, *shape))

    def bent(self, node: Node, place: _Place, function: Any, lines: Any, kinks: bool) -> _Place:
        """A function of each value."""
        return self._add(Bent, (place,), self.shapes[place.number], node, function=function, lines=lines, kinks=kinks)


@dataclass(frozen=True)
class _Place:
    """A tensor of the network that depends on the image."""

    number: int


def _has_place(value: Any) -> bool:
    return isinstance(value, list | tuple) and any(isinstance(one, _Place) for one in value)


def _name_of(node: Node) -> str:
    packet = getattr(node.target, "overloadpacket", node.target)
    return getattr(packet, "__name__", str(packet))


@contextmanager
def _quiet() -> Iterator[None]:
    """torch logs graphs and warnings of its own where it cannot trace."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _each_image(value: Any, shape: tuple[int, ...]) -> Tensor:
    """A constant as (*shape), float64, the same for each image."""
    tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    both = tensor.expand(_TWO, *shape)
    if not torch.equal(both[0], both[1]):
        raise _Unknown("has constants that differ between the images of a batch")
    return both[0].clone()


def _layer_of(model: nn.Module, shape: tuple[int, ...], target: Any) -> str:
    """The module in which an operation runs first, by its name and class; empty if that is not seen."""
    inside: list[str] = []
    found: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is target and inside:
                found.append(inside[-1])
            return func(*args, **(kwargs or {}))

    handles = []
    for name, module in model.named_modules():
        if name:
            handles.append(
                module.register_forward_pre_hook(lambda m, _, n=name: inside.append(f"{n}, {type(m).__name__}"))
            )
            handles.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        with Watch():
            model(torch.zeros(_TWO, *shape, dtype=dtype))
    except Exception:
        return ""
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else ""


# One reader for each operation of torch -------------------------------------------------------------------------------


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach().double().cpu()


def _constants(*values: Any) -> None:
    if any(isinstance(one, _Place) for one in values):
        raise _Unknown("has weights that depend on the image")


def _same(_r: _Reading, _node: Node, place: _Place, *_: Any, **__: Any) -> _Place:
    return place


def _to_copy(reading: _Reading, node: Node, place: _Place, **options: Any) -> _Place:
    if options.get("dtype", torch.float64) not in (torch.float32, torch.float64):
        raise _Unknown(f"rounds to {options['dtype']}")
    return place


def _getitem(_r: _Reading, _node: Node, place: Any, index: int) -> _Place:
    if index != 0:
        raise _Unknown("gives more than its values")
    return place


def _convolution(
    reading: _Reading, node: Node, place: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, _output_padding: Any, groups: int,
) -> _Place:  # fmt: skip
    _constants(weight, bias)
    if transposed or weight.ndim != 4 or not isinstance(place, _Place):
        raise _Unknown("is no Conv2d")
    pairs = {"stride": stride, "padding": padding, "dilation": dilation}
    pairs = {name: tuple(one) * (2 // len(one)) for name, one in pairs.items()}
    parts = {"weight": _double(weight), "bias": _double(bias), "groups": groups, **pairs}
    return reading._add(Conv, (place,), reading.shape_of(node), node, **parts)


def _addmm(reading: _Reading, node: Node, bias: Any, place: Any, weight: Any, **options: Any) -> _Place:
    _constants(bias, weight)
    if options:
        raise _Unknown("is scaled")
    shape = reading.shape_of(node)
    added = None if bias is None else _each_image(bias, shape)
    if not isinstance(place, _Place) or len(reading.shapes[place.number]) != 1:
        raise _Unknown("is no dense layer of vectors")
    return reading._add(Dense, (place,), shape, node, weight=_double(weight.T), bias=added)


def _mm(reading: _Reading, node: Node, place: Any, weight: Any) -> _Place:
    return _addmm(reading, node, None, place, weight)


def _add(reading: _Reading, node: Node, one: Any, other: Any, *, alpha: float = 1) -> _Place:
    if isinstance(other, _Place) and alpha != 1:
        other = _times(reading, node, other, float(alpha))
    elif not isinstance(other, _Place):
        other = other * alpha
    if isinstance(one, _Place) and isinstance(other, _Place):
        shape = reading.shape_of(node)
        both = [reading.widened(node, place, shape) for place in (one, other)]
        return reading._add(Sum, both, shape, node)
    place, constant = (one, other) if isinstance(one, _Place) else (other, one)
    return reading.scaled(node, place, 1.0, constant)


def _times(reading: _Reading, node: Node, place: _Place, factor: float) -> _Place:
    shape = reading.shapes[place.number]
    constant = torch.zeros(shape, dtype=torch.float64)
    return reading._add(Scale, (place,), shape, node, factor=torch.full_like(constant, factor), constant=constant)


def _sub(reading: _Reading, node: Node, one: Any, other: Any, *, alpha: float = 1) -> _Place:
    return _add(reading, node, one, other, alpha=-alpha)


def _rsub(reading: _Reading, node: Node, one: Any, other: Any, *, alpha: float = 1) -> _Place:
    return _add(reading, node, other, one, alpha=-alpha)


def _mul(reading: _Reading, node: Node, one: Any, other: Any) -> _Place:
    if isinstance(one, _Place) and isinstance(other, _Place):
        raise _Unknown("multiplies two tensors that depend on the image")
    place, factor = (one, other) if isinstance(one, _Place) else (other, one)
    return reading.scaled(node, place, factor)


def _div(reading: _Reading, node: Node, one: Any, other: Any, **options: Any) -> _Place:
    if not isinstance(one, _Place) or isinstance(other, _Place) or options:
        raise _Unknown("divides by what depends on the image, or rounds")
    return reading.scaled(node, one, 1 / torch.as_tensor(other, dtype=torch.float64))


def _neg(reading: _Reading, node: Node, place: Any) -> _Place:
    return reading.scaled(node, place, -1.0)


def _batch_norm(
    reading: _Reading, node: Node, place: Any, weight: Any, bias: Any, mean: Any, variance: Any, *rest: Any
) -> _Place:
    """Two steps: the mean of the images' values may be many times larger than what is left."""
    _constants(weight, bias, mean, variance)
    *training, _momentum, eps = rest
    if mean is None or any(training):
        raise _Unknown("normalises by the batch")
    over = (len(mean), *(1 for _ in reading.shape_of(node)[1:]))
    gain, shift = (None if one is None else one.double().view(over) for one in (weight, bias))
    centred = reading.scaled(node, place, 1.0, -mean.double().view(over))
    factor = (1.0 if gain is None else gain) / (variance.double().view(over) + eps).sqrt()
    return reading.scaled(node, centred, factor, 0.0 if shift is None else shift)


def _relu(reading: _Reading, node: Node, place: Any) -> _Place:
    return reading.bent(node, place, torch.relu, relaxations.relu, kinks=True)


def _leaky(reading: _Reading, node: Node, place: Any, slope: float = 0.01) -> _Place:
    if slope < 0:
        raise _Unknown("falls and rises")
    function = partial(nn.functional.leaky_relu, negative_slope=slope)
    return reading.bent(node, place, function, partial(relaxations.leaky_relu, slope=slope), kinks=True)


def _clamp(reading: _Reading, node: Node, place: Any, low: Any = None, high: Any = None) -> _Place:
    """low + relu(x - low), and then high - relu(high - that)."""
    _constants(low, high)
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raise _Unknown("has limits that are tensors")
    if low is not None:
        place = _relu(reading, node, place if low == 0 else reading.scaled(node, place, 1.0, -float(low)))
        place = place if low == 0 else reading.scaled(node, place, 1.0, float(low))
    if high is not None:
        room = _relu(reading, node, reading.scaled(node, place, -1.0, float(high)))
        place = reading.scaled(node, room, -1.0, float(high))
    return place


def _tanh(reading: _Reading, node: Node, place: Any) -> _Place:
    return reading.bent(node, place, torch.tanh, relaxations.tanh, kinks=False)


def _sigmoid(reading: _Reading, node: Node, place: Any) -> _Place:
    """(1 + tanh(x / 2)) / 2."""
    return reading.scaled(node, _tanh(reading, node, reading.scaled(node, place, 0.5)), 0.5, 0.5)


def _view(reading: _Reading, node: Node, place: Any, *_: Any) -> _Place:
    shape = reading.shape_of(node)
    if not isinstance(place, _Place) or math.prod(shape) != math.prod(reading.shapes[place.number]):
        raise _Unknown("mixes the images of a batch")
    return reading._add(Weighted, (place,), shape, node, function=lambda x: x.reshape(-1, *shape))


def _by_itself(reading: _Reading, node: Node, place: Any, *args: Any, **options: Any) -> _Place:
    """torch's own function, with all other arguments as they are."""
    function: Any = node.target
    return reading.weighted(node, place, lambda x: function(x, *args, **options))


def _pad(reading: _Reading, node: Node, place: Any, pads: Any, value: float = 0.0) -> _Place:
    if value:
        raise _Unknown(f"pads with {value:g}, which is not 0")
    return _by_itself(reading, node, place, pads)


def _cat(reading: _Reading, node: Node, places: Any, dim: int = 0) -> _Place:
    shape = reading.shape_of(node)
    if dim % (len(shape) + 1) != 1:
        raise _Unknown("joins other axes than the first of an image")
    some = next(one for one in places if isinstance(one, _Place))
    own = reading.shapes[some.number]
    joined = []
    for one in places:  # a constant of the same shape is a tensor times 0, and it
        if not isinstance(one, _Place):
            parts = {"factor": torch.zeros(own, dtype=torch.float64), "constant": _each_image(one, own)}
            one = reading._add(Scale, (some,), own, node, **parts)
        joined.append(one)
    return reading._add(Joined, joined, shape, node)


def _zeros(reading: _Reading, node: Node, place: Any, **_: Any) -> Any:
    """A constant."""
    return torch.zeros(_TWO, *reading.shape_of(node), dtype=torch.float64)


def _max_pool(
    reading: _Reading, node: Node, place: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
    _ceil: bool = False,
) -> _Place:  # fmt: skip
    stride = stride or kernel
    pairs = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    pairs = {
        name: tuple(one) * (2 // len(one)) if isinstance(one, list | tuple) else (one, one)
        for name, one in pairs.items()
    }
    return reading._add(MaxPool, (place,), reading.shape_of(node), node, **pairs)


def _adaptive_max_pool(reading: _Reading, node: Node, place: Any, size: Any) -> _Place:
    given, shape = reading.shapes[place.number], reading.shape_of(node)
    if any(given[a] % shape[a] for a in (1, 2)):
        raise _Unknown("has windows of several sizes")
    return _max_pool(reading, node, place, [given[a] // shape[a] for a in (1, 2)])


def _softmax(reading: _Reading, node: Node, place: Any, dim: int, *_: Any) -> _Place:
    """At the end it changes neither order nor, as a logarithm, differences: it is left out."""
    if dim not in (1, -1) or len(reading.shape_of(node)) != 1 or not all(user.op == "output" for user in node.users):
        raise _Unknown("is known at the end alone, over the classes")
    return place


_READERS: dict[str, Callable[..., _Place]] = {
    **dict.fromkeys(("clone", "detach", "alias", "lift_fresh_copy", "contiguous"), _same),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "squeeze", "unsqueeze", "flatten"), _view),
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(("_native_batch_norm_legit_no_training",), _batch_norm),
    **dict.fromkeys(
        (
            "permute", "transpose", "slice", "select", "mean", "sum", "avg_pool2d", "_adaptive_avg_pool2d", "flip",
            "reflection_pad2d", "replication_pad2d", "upsample_nearest2d", "pixel_shuffle", "adaptive_avg_pool2d",
        ),
        _by_itself,
    ),
    "_to_copy": _to_copy,
    "zeros_like": _zeros,
    "getitem": _getitem,
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": _mm,
    "add": _add,
    "sub": _sub,
    "rsub": _rsub,
    "mul": _mul,
    "div": _div,
    "neg": _neg,
    "relu": _relu,
    "leaky_relu": _leaky,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "hardtanh": _clamp,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "constant_pad_nd": _pad,
    "cat": _cat,
    "max_pool2d_with_indices": _max_pool,
    "adaptive_max_pool2d": _adaptive_max_pool,
    "_softmax": _softmax,
    "_log_softmax": _softmax,
}  # fmt: skip
