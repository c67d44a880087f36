"""The logits of every image that differs from a given one in a single pixel.

A changed pixel changes only the part of each layer that sees it. For a stack of convolutions and poolings the change is
followed as a window that grows from layer to layer: each layer computes the window's outputs alone, from a patch that
is gathered partly from the window before it and partly from the unchanged image. On the MNIST network of Papernot et
al. 2016 that needs 1.24 million multiply-adds a flip where the whole image needs 9.95 million. Pixels near a border
have smaller windows, so pixels are grouped by the size of theirs, and many images share a batch.

What follows the first layer that cannot be windowed (a dense layer, a residual block, anything unknown) is computed
whole, and so is a model that is not an `nn.Sequential`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.attacks.result import BATCH, answers, frozen
from brittle.models.networks import Scaled, parameter_dtype
from brittle.progress import Progress, silent

LEVELS = (0.0, 1.0)  # what a pixel is set to, in all its channels
BLOCK = 16  # images whose flips share batches: enough that most groups of windows fill one
WORTH = 0.75  # a window larger than this share of its layer costs more to gather than it saves
POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Softplus, nn.Tanh, nn.Sigmoid, nn.Hardtanh, nn.ReLU6,
    nn.Identity, nn.Dropout, nn.Dropout2d, nn.BatchNorm2d, Scaled,
)  # fmt: skip

# From (rows, 2, H * W) bool, which flips to evaluate, to batches of them: row, level and pixel, and logits (n, K)
Evaluate = Callable[[Tensor], Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]]


def flip_logits(
    model: nn.Module, images: Tensor, clean: Tensor, *, wanted: Tensor | None = None, progress: Progress = silent
) -> tuple[Tensor, Tensor]:
    """Logits after each pixel alone has been set to 0 and to 1: what Song's algorithm 2 needs.

    A pixel that already has the level is not evaluated: its entry holds the clean logits. So does one not wanted.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K).
        images: (B, C, H, W), in [0, 1].
        clean: (B, K), the model's logits of `images`.
        wanted: (B, 2, H * W) bool, which flips to evaluate; all when not given.
        progress: told the images done.

    Returns:
        logits: (B, 2, H * W, K), at level 0 and at level 1.
        forwards: (B,), int64, evaluations spent on each row.
    """
    return flip_values(model, images, clean, lambda logits, _rows: logits, wanted=wanted, progress=progress)


def flip_values(
    model: nn.Module,
    images: Tensor,
    clean: Tensor,
    of: Callable[[Tensor, Tensor], Tensor],
    *,
    wanted: Tensor | None = None,
    progress: Progress = silent,
) -> tuple[Tensor, Tensor]:
    """What `of` makes of each of these logits, which are not kept: with 1,000 classes they take 400 MB an image of 224
    x 224 pixels.

    Arguments as for `flip_logits`, except:
        of: from logits (n, K) and the rows of their images (n,) to (n, ...).

    Returns:
        (B, 2, H * W, ...), and the evaluations spent on each row.
    """
    flat = images.flatten(2)
    unchanged = of(clean, torch.arange(len(images), device=images.device))
    found = unchanged[:, None, None].repeat(1, len(LEVELS), flat.shape[2], *[1] * (unchanged.ndim - 1))
    changes = torch.stack([(flat != level).any(1) for level in LEVELS], 1)  # (B, 2, H * W)
    if wanted is not None:
        changes &= wanted
    with frozen(model), torch.no_grad():
        stack = _stack(model, images[:1])
        for start in range(0, len(images), BLOCK):
            block = slice(start, start + BLOCK)
            evaluate = _windowed(stack, images[block]) if stack else _whole(model, images[block])
            for row, level, pixel, logits in evaluate(changes[block]):
                found[start + row, level, pixel] = of(logits.to(clean.dtype), start + row)
            progress(min(start + BLOCK, len(images)), len(images))
    return found, changes.sum((1, 2))


def _batches(wanted: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Where `wanted` is true, its indices by axis, at most BATCH at a time; nothing if it is nowhere."""
    places = wanted.nonzero()
    for start in range(0, len(places), BATCH):
        yield places[start : start + BATCH].unbind(1)


def _whole(model: nn.Module, images: Tensor) -> Evaluate:
    """Evaluates flips of a block of images by putting the whole changed images through the model."""
    flat = images.flatten(2)

    def evaluate(changes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for row, level, pixel in _batches(changes):
            batch = flat[row]
            batch[torch.arange(len(row)), :, pixel] = level[:, None].to(batch.dtype)
            yield row, level, pixel, answers(model, batch.view(-1, *images.shape[1:]))

    return evaluate


# What of a model can be windowed ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Step:
    """A convolution or pooling, and the pointwise layers that follow it."""

    layer: nn.Module
    pointwise: nn.Sequential
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    fill: float  # what lies in the padding

    def __call__(self, patch: Tensor) -> Tensor:
        """Outputs for a patch (n, C, h, w) that already holds its padding."""
        layer = self.layer
        if isinstance(layer, nn.Conv2d):
            patch = F.conv2d(patch, layer.weight, layer.bias, self.stride, 0, self.dilation, layer.groups)
        elif isinstance(layer, nn.MaxPool2d):
            patch = F.max_pool2d(patch, self.kernel, self.stride, 0, self.dilation)
        else:
            patch = F.avg_pool2d(patch, self.kernel, self.stride)
        return self.pointwise(patch)

    def padded(self, maps: Tensor) -> Tensor:
        """Whole maps (n, C, h, w) with their padding around them."""
        high, wide = self.padding
        return F.pad(maps, (wide, wide, high, high), value=self.fill)

    def reach(self, start: int, length: int, size: int, axis: int) -> tuple[int, int]:
        """Which of `size` outputs along an axis see inputs start..start+length-1: the first, and how many (>= 1)."""
        kernel, stride, padding, dilation = (x[axis] for x in (self.kernel, self.stride, self.padding, self.dilation))
        low = -((dilation * (kernel - 1) - start - padding) // stride)  # rounded up
        high = (start + length - 1 + padding) // stride
        low = min(max(low, 0), size - 1)
        return low, max(1, min(high, size - 1) - low + 1)


def _step(leaves: list[nn.Module]) -> tuple[_Step, list[nn.Module]] | None:
    """The step that `leaves` begin with, and what follows it; None if their first is no layer that can be windowed."""
    if not leaves or _is_watched(leaves[0]):
        return None
    layer = leaves[0]
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        fill = 0.0
    elif type(layer) is nn.MaxPool2d and not layer.ceil_mode and not layer.return_indices:
        geometry = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        fill = -torch.inf
    elif type(layer) is nn.AvgPool2d and not layer.ceil_mode and layer.padding in (0, (0, 0)):
        if layer.divisor_override is not None:
            return None
        geometry = layer.kernel_size, layer.stride, 0, 1
        fill = 0.0
    else:
        return None
    pointwise, rest = _split(leaves[1:])
    kernel, stride, padding, dilation = map(_pair, geometry)
    return _Step(layer, pointwise, kernel, stride, padding, dilation, fill), rest


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _leaves(model: nn.Module) -> list[nn.Module]:
    """The layers that a model applies one after another: those of nested `nn.Sequential`s, else the model itself."""
    if type(model) is not nn.Sequential or _is_watched(model):
        return [model]
    return [leaf for child in model for leaf in _leaves(child)]


def _is_watched(module: nn.Module) -> bool:
    """Whether somebody's hooks must see this module called."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _split(leaves: list[nn.Module]) -> tuple[nn.Sequential, list[nn.Module]]:
    """The pointwise layers that `leaves` begin with, and what follows them."""
    count = 0
    while count < len(leaves) and type(leaves[count]) in POINTWISE and not _is_watched(leaves[count]):
        count += 1
    return nn.Sequential(*leaves[:count]), leaves[count:]


# Where windows lie --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gather:
    """How a group's patches are put together, one entry after another, for one step or for the whole map at the end.

    An entry comes from the window before it where `inside` is true and from the unchanged padded map elsewhere;
    `source` is its index there.
    """

    source: Tensor  # (n, height * width), int64
    inside: Tensor  # (n, height * width), bool
    patch: tuple[int, int]  # height and width

    def to(self, device: torch.device) -> _Gather:
        """The same on another device."""
        return _Gather(self.source.to(device), self.inside.to(device), self.patch)


@dataclass(frozen=True)
class _Group:
    """Pixels whose windows are of the same sizes."""

    pixels: Tensor  # (n,), h * W + w
    gathers: tuple[_Gather, ...]  # one a step, and one for the map after the last


@dataclass(frozen=True)
class _Stack:
    """A model cut in two: steps that are windowed, and a rest that is not."""

    before: nn.Sequential  # pointwise layers ahead of the first step
    steps: tuple[_Step, ...]
    rest: nn.Sequential
    groups: tuple[_Group, ...]
    dtype: torch.dtype


Windows = list[list[tuple[int, int]]]  # for each pixel along an axis, for the input and each step: start and length


def _stack(model: nn.Module, image: Tensor) -> _Stack | None:
    """Cuts a model in two, for images like `image` (1, C, H, W); None if nothing of it can be windowed."""
    before, leaves = _split(_leaves(model))
    dtype = parameter_dtype(model)
    maps = before(image.to(dtype, copy=True))
    sizes = [tuple(maps.shape[2:])]
    windows: tuple[Windows, Windows] = (
        [[(at, 1)] for at in range(maps.shape[2])],
        [[(at, 1)] for at in range(maps.shape[3])],
    )
    steps: list[_Step] = []
    while found := _step(leaves):
        step, rest = found
        maps = step(step.padded(maps))
        size = tuple(maps.shape[2:])
        grown = [[[*path, step.reach(*path[-1], size[axis], axis)] for path in windows[axis]] for axis in (0, 1)]
        shares = [sum(path[-1][1] for path in grown[axis]) / len(grown[axis]) / size[axis] for axis in (0, 1)]
        if shares[0] * shares[1] > WORTH:
            break
        windows = grown[0], grown[1]
        steps.append(step)
        sizes.append(size)
        leaves = rest
    if not steps:
        return None
    groups = tuple(_groups(steps, sizes, windows, image.device))
    return _Stack(before, tuple(steps), nn.Sequential(*leaves), groups, dtype)


def _groups(
    steps: list[_Step], sizes: list[tuple[int, ...]], windows: tuple[Windows, Windows], device: torch.device
) -> Iterator[_Group]:
    """All pixels, by the height and width of their last window rounded up to an even number."""
    classes: list[dict[int, list[int]]] = [{}, {}]
    for axis in (0, 1):
        for at, path in enumerate(windows[axis]):
            classes[axis].setdefault((path[-1][1] + 1) // 2, []).append(at)
    axes = [
        [
            (torch.tensor(members), _axis(steps, sizes, windows[axis], members, axis))
            for members in classes[axis].values()
        ]
        for axis in (0, 1)
    ]
    for rows, of_rows in axes[0]:
        for columns, of_columns in axes[1]:
            pixels = rows[:, None] * sizes[0][1] + columns
            gathers = tuple(_gather(r, c).to(device) for r, c in zip(of_rows, of_columns, strict=True))
            yield _Group(pixels.flatten().to(device), gathers)


@dataclass(frozen=True)
class _Axis:
    """A `_Gather` along one axis: (n, length) each."""

    place: Tensor  # in the padded map
    local: Tensor  # in the window before, where that holds it
    inside: Tensor
    padded: int  # the padded map's size
    window: int  # the size of the window before


def _axis(
    steps: list[_Step], sizes: list[tuple[int, ...]], windows: Windows, members: list[int], axis: int
) -> list[_Axis]:
    """Where the patches of some pixels lie along an axis, with windows widened to the largest among these pixels."""
    start, length, found = torch.tensor(members), 1, []
    for number, step in enumerate(steps, 1):
        kernel, stride, padding, dilation = (x[axis] for x in (step.kernel, step.stride, step.padding, step.dilation))
        paths = [windows[at][number] for at in members]
        wide = max(count for _, count in paths)
        first = torch.tensor([low for low, _ in paths]).clamp(max=sizes[number][axis] - wide)
        reach = (wide - 1) * stride + (kernel - 1) * dilation + 1
        place = first[:, None] * stride + torch.arange(reach)
        local = place - padding - start[:, None]
        inside = (local >= 0) & (local < length)
        found.append(_Axis(place, local, inside, sizes[number - 1][axis] + 2 * padding, length))
        start, length = first, wide
    place = torch.arange(sizes[-1][axis]).expand(len(members), -1)
    local = place - start[:, None]
    found.append(_Axis(place, local, (local >= 0) & (local < length), sizes[-1][axis], length))
    return found


def _gather(rows: _Axis, columns: _Axis) -> _Gather:
    """The patches of every pixel in some rows and columns, from those along either axis."""

    def grid(of_rows: Tensor, of_columns: Tensor) -> tuple[Tensor, Tensor]:
        return of_rows[:, None, :, None], of_columns[None, :, None, :]

    inside = torch.logical_and(*grid(rows.inside, columns.inside))
    down, across = grid(rows.place, columns.place)
    local_down, local_across = grid(rows.local, columns.local)
    source = torch.where(inside, local_down * columns.window + local_across, down * columns.padded + across)
    return _Gather(source.flatten(0, 1).flatten(1), inside.flatten(0, 1).flatten(1), (down.shape[2], across.shape[3]))


# Windowed evaluation ------------------------------------------------------------------------------------------------


def _windowed(stack: _Stack, images: Tensor) -> Evaluate:
    """Evaluates flips of a block of images by following their windows."""
    maps = stack.before(images.to(stack.dtype, copy=True))
    tables = []
    for step in stack.steps:
        padded = step.padded(maps)
        tables.append(padded.permute(0, 2, 3, 1).flatten(0, 2))  # (images * height * width, C)
        maps = step(padded)
    tables.append(maps.permute(0, 2, 3, 1).flatten(0, 2))
    channels = torch.tensor(LEVELS, dtype=stack.dtype, device=images.device).view(-1, 1, 1, 1)
    levels = stack.before(channels.repeat(1, images.shape[1], 1, 1)).flatten(1)  # (2, C)

    def follow(group: _Group, row: Tensor, level: Tensor, member: Tensor) -> Tensor:
        window = levels[level]  # (n * height * width, C), at first one pixel
        for number, gather in enumerate(group.gathers):
            table, flips = tables[number], torch.arange(len(row), device=row.device)
            offset = torch.where(
                gather.inside[member],
                (flips * (len(window) // len(row)) + len(table))[:, None],
                (row * (len(table) // len(images)))[:, None],
            )
            entries = torch.cat([table, window]).index_select(0, (gather.source[member] + offset).flatten())
            patch = entries.view(len(row), *gather.patch, -1).permute(0, 3, 1, 2)
            if number == len(stack.steps):
                return stack.rest(patch)
            window = stack.steps[number](patch).permute(0, 2, 3, 1).flatten(0, 2)
        raise AssertionError("the last gather gives the whole map")

    def evaluate(changes: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        for group in stack.groups:
            for row, level, member in _batches(changes[:, :, group.pixels]):
                yield row, level, group.pixels[member], follow(group, row, level, member)

    return evaluate
