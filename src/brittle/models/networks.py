"""The papers' networks, and how any network is built and held still: images in [0, 1] to logits."""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from brittle.errors import InputError
from brittle.models.outputs import tensor_of
from brittle.models.users_code import reason

NO_GRADIENT = (
    "the model's logits have no gradient with respect to the images (no_grad, detach, rounding to integers, int8?)"
)
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "_STATUS_ALLOC_FAILED")


def papernot_mnist(
    *, channels: int = 1, classes: int = 10, size: int = 28, dropout: float = 0.5, pixel_scale: float = 1.0
) -> nn.Sequential:
    """Four 3 x 3 convolutions (32, 32, 64, 64), two dense layers of 200: the network of Song 2017, table 1.

    Papernot et al. 2016 and Carlini and Wagner 2017 use it for MNIST too. Convolutions are not padded. Weights are
    drawn by Glorot's uniform rule, as in Lasagne and Keras, which those papers used; biases start at zero.

    Args:
        channels: of the images.
        classes: K, the number of logits.
        size: height and width of the images, at least 16.
        dropout: rate before each dense layer, in [0, 1).
        pixel_scale: what images in [0, 1] are multiplied by ahead of the first layer, > 0. Song's code divides bytes
            by 256: 255/256. Unless it is 1, a `Scaled` comes first, and the weights of the layers after it are named
            one number higher, so that those of a scaled network do not load into a plain one.

    Returns:
        A network (B, channels, size, size) in [0, 1] -> (B, classes).

    Raises:
        InputError: if size is below 16, or pixel_scale not positive and finite.
    """
    return _papernot(channels, classes, size, dropout, pixel_scale, maps=(32, 64), dense=200)


def papernot_cifar(
    *, channels: int = 3, classes: int = 10, size: int = 32, dropout: float = 0.5, pixel_scale: float = 1.0
) -> nn.Sequential:
    """Four 3 x 3 convolutions (64, 64, 128, 128), two dense layers of 256: Papernot et al. 2016 on CIFAR-10.

    Arguments, initial weights, result and errors as for `papernot_mnist`.
    """
    return _papernot(channels, classes, size, dropout, pixel_scale, maps=(64, 128), dense=256)


def lo_ding_faces(*, channels: int = 1, classes: int = 15, size: int = 60) -> nn.Sequential:
    """Three 5 x 5 convolutions (5, 8, 10), each with tanh and 2 x 2 max pooling, and 20 hidden tanh units.

    Lo and Ding, section IV-A, on the Yale faces at 60 x 60; they train for 250 epochs at a learning rate of 0.1. What
    they leave open is chosen as in the LeNet that they start from: convolutions are not padded, the hidden layer is
    dense on the last maps, and a dense layer gives the logits. Weights are drawn by Glorot's uniform rule, which was
    made for tanh; biases start at zero. As tanh rises, it does not matter whether it stands before or after the
    pooling: a map's convolutional gradient and its knockout are the same in both.

    Layers are named conv1, tanh1, pool1, ..., pool3, flatten, hidden, tanh4, logits.

    Args:
        channels: of the images.
        classes: K, the number of logits.
        size: height and width of the images, at least 36.

    Returns:
        A network (B, channels, size, size) in [0, 1] -> (B, classes).

    Raises:
        InputError: if size is below 36.
    """
    side, inputs, layers = size, channels, OrderedDict[str, nn.Module]()
    for number, maps in enumerate((5, 8, 10), 1):
        layers |= {f"conv{number}": nn.Conv2d(inputs, maps, 5), f"tanh{number}": nn.Tanh()}
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        side, inputs = (side - 4) // 2, maps
    if side < 1:
        raise InputError(f"this network needs images of at least 36 x 36 pixels, got size={size}")
    layers |= {"flatten": nn.Flatten(), "hidden": nn.Linear(inputs * side * side, 20), "tanh4": nn.Tanh()}
    layers["logits"] = nn.Linear(20, classes)
    return _glorot(nn.Sequential(layers))


def pseudo_alexnet(*, channels: int = 3, classes: int = 10, size: int = 32) -> nn.Sequential:
    """Three convolutions with ReLU and max pooling (32, 32, 64 maps) and a softmax classifier, for CIFAR-10.

    Lo and Ding, section VII-A: Krizhevsky's quick CIFAR network, but for its average pooling and its contrast
    normalisation; they train at a learning rate of 0.01 with a momentum of 0.9. What they leave open is as in that
    network (cuda-convnet's `layers-80sec`): 5 x 5 convolutions padded by 2, and 3 x 3 pooling at a stride of 2 whose
    last window may hang over the edge. Weights are drawn by Glorot's uniform rule and not, as there, from a normal
    distribution of deviation 0.0001, from which nothing is learned for many epochs; biases start at zero.

    Layers are named conv1, relu1, pool1, ..., pool3, flatten, logits.

    Args:
        channels: of the images.
        classes: K, the number of logits.
        size: height and width of the images, at least 8.

    Returns:
        A network (B, channels, size, size) in [0, 1] -> (B, classes).

    Raises:
        InputError: if size is below 8.
    """
    if size < 8:
        raise InputError(f"this network needs images of at least 8 x 8 pixels, got size={size}")
    side, inputs, layers = size, channels, OrderedDict[str, nn.Module]()
    for number, maps in enumerate((32, 32, 64), 1):
        layers |= {f"conv{number}": nn.Conv2d(inputs, maps, 5, padding=2), f"relu{number}": nn.ReLU()}
        layers[f"pool{number}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        side, inputs = math.ceil((side - 3) / 2) + 1, maps
    layers |= {"flatten": nn.Flatten(), "logits": nn.Linear(inputs * side * side, classes)}
    return _glorot(nn.Sequential(layers))


def mlp(*, channels: int = 3, classes: int = 10, size: int = 32, hidden: int = 500) -> nn.Sequential:
    """One hidden layer of tanh units: the network to which Lo and Ding, section X-B, transfer their masks.

    They train it on CIFAR-10 at a learning rate of 0.1. Weights are drawn by Glorot's uniform rule, which they leave
    open; biases start at zero. Layers are named flatten, hidden, tanh, logits.

    Args:
        channels: of the images.
        classes: K, the number of logits.
        size: height and width of the images, at least 1.
        hidden: units of the hidden layer, at least 1.

    Returns:
        A network (B, channels, size, size) in [0, 1] -> (B, classes).

    Raises:
        InputError: if size or hidden is below 1.
    """
    for name, value in (("size", size), ("hidden", hidden)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten(), "hidden": nn.Linear(channels * size * size, hidden)}
    layers |= {"tanh": nn.Tanh(), "logits": nn.Linear(hidden, classes)}
    return _glorot(nn.Sequential(OrderedDict(layers)))


class Scaled(nn.Module):
    """What it is given, times `factor`: a layer without weights."""

    def __init__(self, factor: float):
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return images * self.factor

    def extra_repr(self) -> str:
        """The factor, for whoever prints the network."""
        return f"{self.factor:g}"


def _papernot(
    channels: int, classes: int, size: int, dropout: float, pixel_scale: float, *, maps: tuple[int, int], dense: int
) -> nn.Sequential:
    side = ((size - 4) // 2 - 4) // 2
    if side < 1:
        raise InputError(f"this network needs images of at least 16 x 16 pixels, got size={size}")
    if not (math.isfinite(pixel_scale) and pixel_scale > 0):
        raise InputError(f"pixel_scale must be positive and finite, got {pixel_scale}")
    few, many = maps
    network = nn.Sequential(
        *([] if pixel_scale == 1 else [Scaled(pixel_scale)]),
        nn.Conv2d(channels, few, 3),
        nn.ReLU(),
        nn.Conv2d(few, few, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(few, many, 3),
        nn.ReLU(),
        nn.Conv2d(many, many, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(many * side * side, dense),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(dense, dense),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(dense, classes),
    )
    return _glorot(network)


def _glorot(network: nn.Sequential) -> nn.Sequential:
    """The same network with weights drawn anew by Glorot's uniform rule, and biases of zero."""
    for layer in network:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network


def build(make: Callable[..., nn.Module], *, seed: int, **options: object) -> nn.Module:
    """`make(**options)` with initial weights that depend on `seed` alone; the caller's random state is untouched."""
    with seeded(seed):
        return make(**options)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's random numbers start from `seed` inside, on every device, and go on as they were on the way out."""
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"seed must fit into 64 bits, got {seed}")
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def channels_last(model: nn.Module) -> nn.Module:
    """The same model with the weights of its convolutions laid out channels last: up to twice the speed on a CPU."""
    return nn.Module.to(model, memory_format=torch.channels_last)  # type: ignore[call-overload]


def parameter_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of the model's weights, float32 if it has none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """`model(images)` at the precision of the model's weights, returned in float32 or better.

    The model is given a copy: one that normalises its input in place changes nobody's images, and may do so where a
    gradient is taken.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K).
        images: (B, C, H, W), any floating dtype.

    Returns:
        (B, K), float32, or float64 if the model computes in float64. Gradients flow through.

    Raises:
        InputError: if the model fails, or there are no logits in what it returns; see `outputs.tensor_of`. That memory
            ran out is raised as it came.
    """
    try:
        outputs = model(images.to(parameter_dtype(model), copy=True))
    except Exception as error:  # a model's code may raise anything
        if isinstance(error, InputError) or out_of_memory(error):
            raise
        raise InputError(f"the model fails on images {tuple(images.shape)}: {reason(error)}") from error
    logits = tensor_of(outputs)
    return logits if logits.dtype == torch.float64 else logits.float()


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, of a device or of the machine."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def input_gradient(output: Tensor, inputs: Tensor, *, retain_graph: bool = False) -> Tensor:
    """The gradient of a number that was computed from `inputs` through a model, in their shape.

    Raises:
        InputError: if nothing that can be differentiated lies between the two.
    """
    gradient = None
    if output.requires_grad:
        (gradient,) = torch.autograd.grad(output, inputs, retain_graph=retain_graph, allow_unused=True)
    return needed(gradient)


def needed(gradient: Tensor | None) -> Tensor:
    """The same gradient with respect to images.

    Raises:
        InputError: if there is none.
    """
    if gradient is not None:
        return gradient
    raise InputError(f"{NO_GRADIENT}: use an attack that needs none, such as square or song_2")


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode and no parameter gradients inside; modes, flags and buffers as they were on the way out.

    Buffers change where batch normalisation stays in training mode all the same, or a model counts its calls. A module
    without modes, as an exported graph or frozen TorchScript is, stays as it is.
    """
    modes = [(module, module.training) for module in model.modules() if hasattr(module, "training")]
    wanted = [(one, one.requires_grad) for one in model.parameters() if not one.is_inference()]
    buffers = [
        (
            module,
            {name: (buffer, None if buffer is None else buffer.clone()) for name, buffer in module._buffers.items()},
        )
        for module in model.modules()
    ]
    try:
        evaluated(model)
        for parameter, _ in wanted:
            parameter.requires_grad_(False)
        with _uncompiled():
            yield model
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in wanted:
            parameter.requires_grad_(flag)
        for module, kept in buffers:
            _put_back(module, kept)


def evaluated(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, also one that holds an exported graph, which refuses to be asked for it."""
    try:
        model.eval()
    except (NotImplementedError, RuntimeError, AttributeError):
        for module in model.modules():
            if getattr(module, "training", False):
                module.training = False
    return model


def _uncompiled() -> AbstractContextManager[object]:
    """What torch.compile has made runs as it was written: compiled for one shape, its layers' hooks are not called."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def _put_back(module: nn.Module, buffers: dict[str, tuple[Tensor | None, Tensor | None]]) -> None:
    """A module's own buffers as they were: the same tensors, with their values of then."""
    for name, (buffer, values) in buffers.items():
        module._buffers[name] = buffer
        if buffer is not None and values is not None and not torch.equal(buffer, values):
            with torch.no_grad():
                buffer.copy_(values)
