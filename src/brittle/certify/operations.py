"""The operations that a network is made of: values, intervals, and linear functions taken back through them.

A lower bound of a linear function of a layer is taken back to the image layer by layer (CROWN; Zhang et al. 2018).
What is taken back is `Rows`: each row is one linear function of one tensor of one image. Of a tensor (C, H, W) a unit
deep in a network sees a window alone, so that rows hold the window and where it lies: for a convolutional network that
is a hundredth of the numbers and of the work.

Rounding
--------
All is computed in float64, with unit roundoff u = 2^-53. A sum of K products is off by at most K u / (1 - K u) times
the sum of the products' absolute values, in any order of summation (Higham 2002, section 3.1). A step back computes
coefficients A' = A W and a constant A c, sums of at most K = len(A) terms. Evaluated at the layer's input h, what is
computed is off from A (W h + c) by at most

    K u / (1 - K u) * |A| (|W| |h| + |c|)  <=  2 K u * sum |A| * max(|W| |h| + |c|).

`Operation.size` gives |W| |h| + |c| for the largest |h| of the interval, so that one number an image and layer, times
sum |A| of a row, bounds what rounding did. It is taken off each row's bound; EPS below is 2 u.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

EPS = torch.finfo(torch.float64).eps
_FEW = 8  # channels
_WHOLE = 0.6  # share of a tensor from which on a window is written out

Interval = tuple[Tensor, Tensor]  # lower and upper ends, (B, *shape) each


@dataclass(frozen=True)
class Rows:
    """n linear functions of a tensor of the network, one tensor for each image."""

    values: Tensor  # whole: (n, *shape); windows: (n, h, w, C), 0 outside of the tensor
    corner: Tensor | None = None  # windows: (n, 2) int64, the place of the window's first row and column; may be < 0

    def gathered(self, image: Tensor, values: Tensor) -> Tensor:
        """Of values (B, *shape) what the rows' coefficients stand at; anything outside of the tensor."""
        if self.corner is None:
            return last_to_first(first_to_last(values)[image])
        down, right = self._places(values.shape[2:])
        return first_to_last(values)[image[:, None, None], down[:, :, None], right[:, None, :]]

    def _places(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        assert self.corner is not None
        down, right = (
            (self.corner[:, axis, None] + torch.arange(self.values.shape[1 + axis])).clamp(0, size[axis] - 1)
            for axis in (0, 1)
        )
        return down, right

    def clipped(self, shape: Sequence[int]) -> Rows:
        """The same with zeros outside of the tensor (C, H, W); written out where the windows are nearly all of it."""
        assert self.corner is not None
        masks = []
        for axis in (0, 1):
            places = self.corner[:, axis, None] + torch.arange(self.values.shape[1 + axis])
            masks.append((places >= 0) & (places < shape[1 + axis]))
        values = self.values
        if not all(mask.all() for mask in masks):
            values = values * (masks[0][:, :, None, None] & masks[1][:, None, :, None])
        rows = Rows(values, self.corner)
        large = values.shape[1] * values.shape[2] >= _WHOLE * shape[1] * shape[2]
        return rows.whole(shape) if large else rows

    def whole(self, shape: Sequence[int]) -> Rows:
        """The same, written out as (n, *shape)."""
        if self.corner is None:
            return self
        down, right = self._places(shape[1:])
        which = torch.arange(len(self.values))[:, None, None]
        full = self.values.new_zeros(len(self.values), *shape[1:], shape[0])
        # a place outside is clamped to one inside and adds its zero there
        full = full.index_put((which, down[:, :, None], right[:, None, :]), self.values, accumulate=True)
        return Rows(last_to_first(full))

    def plus(self, other: Rows, shape: Sequence[int]) -> Rows:
        """The sum of two sets of rows over one tensor; windows stay windows where they lie alike in all rows."""
        if self.corner is not None and other.corner is not None:
            shift = other.corner - self.corner
            if (shift == shift[0]).all():
                first = torch.minimum(shift[0], torch.zeros_like(shift[0]))
                sizes = torch.tensor(
                    [self.values.shape[1:3], (torch.tensor(other.values.shape[1:3]) + shift[0]).tolist()]
                )
                last = sizes.amax(0)
                spread = [
                    _into(rows.values, (begin - first).tolist(), (last - first).tolist())
                    for rows, begin in ((self, torch.zeros_like(first)), (other, shift[0]))
                ]
                return Rows(spread[0] + spread[1], self.corner + first)
        return Rows(self.whole(shape).values + other.whole(shape).values)

    def total(self) -> Tensor:
        """(n,): the sum of absolute values."""
        return self.values.abs().flatten(1).sum(1)


def first_to_last(values: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), laid out so: a product of matrices takes all channels of a place at once."""
    return values.movedim(1, -1).contiguous() if values.ndim == 4 else values


def last_to_first(values: Tensor) -> Tensor:
    """(B, H, W, C) -> (B, C, H, W), a view."""
    return values.movedim(-1, 1) if values.ndim == 4 else values


def _into(values: Tensor, begin: Sequence[int], size: Sequence[int]) -> Tensor:
    """Windows (n, h, w, C) in larger ones of `size`, from `begin` on."""
    height, width = values.shape[1:3]
    right, below = size[1] - width - begin[1], size[0] - height - begin[0]
    return F.pad(values, (0, 0, begin[1], right, begin[0], below))


@dataclass(frozen=True)
class Operation:
    """A step of the network: an affine function of earlier tensors, or a subclass that is none.

    Attributes:
        inputs: numbers of the tensors that it takes.
        shape: of what it gives, for an image.
        name: for messages.
    """

    inputs: tuple[int, ...]
    shape: tuple[int, ...]
    name: str

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """(n, *shape) values; with the absolute values of all coefficients, and without constants, as asked for."""
        raise NotImplementedError

    def back(self, rows: Rows, shapes: Sequence[Sequence[int]]) -> tuple[list[Rows], Tensor | float]:
        """For each input of these shapes the rows that this operation makes of `rows`, and constants (n,)."""
        raise NotImplementedError

    def interval(self, *inputs: Interval) -> Interval:
        """What the values lie between, from what the inputs do."""
        middle = self.apply(*((low + high) / 2 for low, high in inputs))
        spread = self.apply(*((high - low) / 2 for low, high in inputs), absolute=True, bias=False)
        slack = 4 * EPS * self.terms * self.size(*inputs)
        return middle - spread - slack, middle + spread + slack

    def size(self, *inputs: Interval) -> Tensor:
        """|W| |h| + |c| at the largest |h|, (B, *shape)."""
        return self.apply(*(torch.maximum(low.abs(), high.abs()) for low, high in inputs), absolute=True)

    @property
    def terms(self) -> int:
        """K of the module's docstring, for a step back; for one forwards a subclass may have more."""
        return torch.Size(self.shape).numel() + 16


@dataclass(frozen=True)
class Conv(Operation):
    """A convolution."""

    weight: Tensor  # (O, I / groups, h, w)
    bias: Tensor | None
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """The convolution."""
        added = self.bias if bias else None
        weight = self.weight.abs() if absolute else self.weight
        if absolute and added is not None:
            added = added.abs()
        return F.conv2d(inputs[0], weight, added, self.stride, self.padding, self.dilation, self.groups)

    def back(self, rows: Rows, shapes: Sequence[Sequence[int]]) -> tuple[list[Rows], Tensor | float]:
        """Transposed, window by window."""
        (shape,) = shapes
        values = first_to_last(rows.values) if rows.corner is None else rows.values
        constant = values.sum((1, 2)) @ self.bias if self.bias is not None else 0.0
        spread = self._spread(values)
        if rows.corner is not None:
            corner = rows.corner * torch.tensor(self.stride) - torch.tensor(self.padding)
            return [Rows(spread, corner).clipped(shape)], constant
        (up, left), (height, width) = self.padding, shape[1:]
        cut = (0, 0, -left, width + left - spread.shape[2], -up, height + up - spread.shape[1])
        return [Rows(last_to_first(F.pad(spread, cut)))], constant

    def _spread(self, values: Tensor) -> Tensor:
        """Windows (n, h, w, O) of the output -> those of the input: one product of matrices for each tap."""
        count, high, wide, _ = values.shape
        (down, right), (far_down, far_right) = self.stride, self.dilation
        taps = self.weight.unflatten(0, (self.groups, -1)).permute(3, 4, 0, 1, 2).contiguous()  # (h, w, g, O/g, I/g)
        tall, broad = (high - 1) * down + 1, (wide - 1) * right + 1
        size = (tall + far_down * (len(taps) - 1), broad + far_right * (taps.shape[1] - 1))
        out = values.new_zeros(count, *size, self.groups * taps.shape[-1])
        split = values.unflatten(3, (self.groups, -1))
        few = self.groups == 1 and taps.shape[-1] < _FEW  # one product for all taps is then faster than one for each
        all_ = (values @ taps[:, :, 0].movedim(2, 0).flatten(1)).unflatten(3, (*taps.shape[:2], -1)) if few else None
        for i, line in enumerate(taps):
            for j, tap in enumerate(line):
                if all_ is not None:
                    put = all_[..., i, j, :]
                else:
                    put = (
                        values @ tap[0] if self.groups == 1 else torch.einsum("nhwgo,goi->nhwgi", split, tap).flatten(3)
                    )
                top, left = i * far_down, j * far_right
                out[:, top : top + tall : down, left : left + broad : right] += put
        return out

    @property
    def terms(self) -> int:
        """Sums over the taps and channels of a window, forwards."""
        return max(super().terms, self.weight[0].numel() + 16)


@dataclass(frozen=True)
class Dense(Operation):
    """W x + c of vectors."""

    weight: Tensor  # (O, I)
    bias: Tensor | None

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """W h + c."""
        added = self.bias if bias else None
        if absolute:
            return F.linear(inputs[0], self.weight.abs(), None if added is None else added.abs())
        return F.linear(inputs[0], self.weight, added)

    def back(self, rows: Rows, shapes: Sequence[Sequence[int]]) -> tuple[list[Rows], Tensor | float]:
        """A W, and A c."""
        return [Rows(rows.values @ self.weight)], rows.values @ self.bias if self.bias is not None else 0.0

    @property
    def terms(self) -> int:
        """Of either way."""
        return max(self.weight.shape) + 16


@dataclass(frozen=True)
class Scale(Operation):
    """Each value times its factor, plus its constant."""

    factor: Tensor  # `shape`
    constant: Tensor  # `shape`

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """Value by value."""
        factor, constant = (self.factor.abs(), self.constant.abs()) if absolute else (self.factor, self.constant)
        return inputs[0] * factor + constant if bias else inputs[0] * factor

    def back(self, rows: Rows, shapes: Sequence[Sequence[int]]) -> tuple[list[Rows], Tensor | float]:
        """Value by value."""
        first = torch.zeros(len(rows.values), dtype=torch.int64)
        factor, constant = (rows.gathered(first, each[None]) for each in (self.factor, self.constant))
        return [Rows(rows.values * factor, rows.corner)], (rows.values * constant).flatten(1).sum(1)


@dataclass(frozen=True)
class Sum(Operation):
    """The sum of tensors of one shape."""

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """The sum."""
        return torch.stack(inputs).sum(0)

    def back(self, rows: Rows, shapes: Sequence[Sequence[int]]) -> tuple[list[Rows], Tensor | float]:
        """The same rows for each of the tensors."""
        return [rows] * len(self.inputs), 0.0


@dataclass(frozen=True)
class Joined(Operation):
    """Tensors one after another along their first axis."""

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """One after another."""
        return torch.cat(inputs, 1)

    def back(self, rows: Rows, shapes: Sequence[Sequence[int]]) -> tuple[list[Rows], Tensor | float]:
        """Each tensor's part."""
        sizes = [shape[0] for shape in shapes]
        axis = 1 if rows.corner is None else 3
        return [Rows(values, rows.corner) for values in rows.values.split(sizes, axis)], 0.0


@dataclass(frozen=True)
class Weighted(Operation):
    """Any linear function whose coefficients are none below 0: averages, paddings, views, parts."""

    function: Callable[[Tensor], Tensor]  # (n, *shape of the input) -> (n, *shape)

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """The function itself: its coefficients are their own absolute values."""
        return self.function(inputs[0])

    def back(self, rows: Rows, shapes: Sequence[Sequence[int]]) -> tuple[list[Rows], Tensor | float]:
        """Taken back by torch's own derivative."""
        values = rows.whole(self.shape).values
        taken_back = torch.func.vjp(self.function, values.new_zeros(len(values), *shapes[0]))[1]
        return [Rows(taken_back(values)[0])], 0.0


@dataclass(frozen=True)
class Lines:
    """Lines below and above what is not linear, for each of its outputs."""

    low: Tensor  # (taps, B, *shape): slopes of the line below, for each input that an output has; channels last
    high: Tensor  # the same above
    below: Tensor | None  # (B, *shape): constant of the line below; None if it is 0 everywhere
    above: Tensor

    @classmethod
    def of(cls, low: Tensor, high: Tensor, below: Tensor | None, above: Tensor) -> Lines:
        """The same, laid out as rows are gathered."""

        def laid(values: Tensor) -> Tensor:
            return last_to_first(first_to_last(values))

        flat, steep = (laid(each.flatten(0, 1)).unflatten(0, each.shape[:2]) for each in (low, high))
        return cls(flat, steep, None if below is None else laid(below), laid(above))

    def largest(self, size: Tensor) -> Tensor:
        """(B,): bound of |slopes| |h| + |constant|, for the largest |h| (B,) of the input."""
        slopes = torch.maximum(self.low.abs().sum(0), self.high.abs().sum(0)).flatten(1).amax(1)
        shift = self.above.abs() if self.below is None else torch.maximum(self.below.abs(), self.above.abs())
        return slopes.clamp(min=1) * size + shift.flatten(1).amax(1)


@dataclass(frozen=True)
class Bent(Operation):
    """A function of each value that is not linear."""

    function: Callable[[Tensor], Tensor]  # never falls
    lines: Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]  # ends -> slope, slope, constant, constant
    kinks: bool  # whether it is linear on both sides of 0

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """The function."""
        return self.function(inputs[0])

    def interval(self, *inputs: Interval) -> Interval:
        """Between the values of the ends."""
        low, high = (self.function(end) for end in inputs[0])
        slack = 16 * EPS * torch.maximum(low.abs(), high.abs())
        return low - slack, high + slack

    def relaxed(self, low: Tensor, high: Tensor) -> Lines:
        """Lines below and above between two ends (B, *shape), with what rounding may have moved them by."""
        slopes, more, below, above = self.lines(low, high)
        largest = torch.maximum(low.abs(), high.abs())
        slack = 16 * EPS * (1 + largest) * (1 + torch.maximum(slopes.abs(), more.abs()))
        exact = self.function is torch.relu  # slopes of 0, 1 and what is chosen between: nothing is rounded below
        return Lines.of(slopes[None], more[None], None if exact else below - slack, above + slack)

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, *shape) bool: where tighter ends would make the lines tighter."""
        return (low < 0) & (high > 0) if self.kinks else high - low > 1e-6


@dataclass(frozen=True)
class MaxPool(Operation):
    """The largest value of each window; padding is never the largest."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def apply(self, *inputs: Tensor, absolute: bool = False, bias: bool = True) -> Tensor:
        """The largest of each window."""
        return self.taps(inputs[0]).amax(0)

    def interval(self, *inputs: Interval) -> Interval:
        """The largest of the lower ends, and of the upper ones."""
        return self.apply(inputs[0][0]), self.apply(inputs[0][1])

    def taps(self, values: Tensor) -> Tensor:
        """(B, C, H, W) -> (taps, B, *shape): the values in each output's window, -inf where there is none."""
        spans = [(self.shape[1 + a] - 1) * self.stride[a] + 1 for a in (0, 1)]
        need = [spans[a] + self.dilation[a] * (self.kernel[a] - 1) - self.padding[a] for a in (0, 1)]
        beyond = [max(0, need[a] - values.shape[2 + a]) for a in (0, 1)]  # a last window may hang over the edge
        padded = F.pad(values, (self.padding[1], beyond[1], self.padding[0], beyond[0]), value=-torch.inf)
        return torch.stack([padded[:, :, down, right] for down, right in self._places()])

    def _places(self) -> list[tuple[slice, slice]]:
        """Where each tap lies in a padded input, for all outputs."""
        return [self._places_in(self.shape[1:], i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]

    def _places_in(self, outputs: Sequence[int], i: int, j: int) -> tuple[slice, slice]:
        begin = (i * self.dilation[0], j * self.dilation[1])
        down, right = (
            slice(begin[a], begin[a] + (outputs[a] - 1) * self.stride[a] + 1, self.stride[a]) for a in (0, 1)
        )
        return down, right

    def spread(self, rows: Rows, taps: Tensor, shape: Sequence[int]) -> Rows:
        """Coefficients of each tap (taps, n, ...) in the layout of `rows`, put where the taps lie in the input."""
        windowed = rows.corner is not None
        outputs = rows.values.shape[1:3] if windowed else rows.values.shape[2:]
        size = [(outputs[a] - 1) * self.stride[a] + self.dilation[a] * (self.kernel[a] - 1) + 1 for a in (0, 1)]
        count, channels = len(rows.values), shape[0]
        out = rows.values.new_zeros((count, *size, channels) if windowed else (count, channels, *size))
        places = [self._places_in(outputs, i, j) for i in range(self.kernel[0]) for j in range(self.kernel[1])]
        for values, (down, right) in zip(taps, places, strict=True):
            if windowed:
                out[:, down, right] += values
            else:
                out[:, :, down, right] += values
        if windowed:
            assert rows.corner is not None
            return Rows(out, rows.corner * torch.tensor(self.stride) - torch.tensor(self.padding)).clipped(shape)
        (up, left), (height, width) = self.padding, shape[1:]
        return Rows(F.pad(out, (-left, width + left - size[1], -up, height + up - size[0])))

    def relaxed(self, low: Tensor, high: Tensor) -> Lines:
        """Below: the input whose interval lies highest. Above: a plane through the upper ends, see `_plane`."""
        lows, highs = self.taps(low), self.taps(high)
        best = (lows + highs).argmax(0, keepdim=True)
        chosen = torch.zeros_like(lows).scatter(0, best, 1.0)
        slopes, above = _plane(lows, highs)
        slack = 64 * EPS * (len(lows) + (slopes * lows.abs().nan_to_num(0, 0, 0)).sum(0) + above.abs())
        return Lines.of(chosen, slopes, None, above + slack)

    def loose(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, C, H, W) bool: inputs of a window in which it is open who is the largest."""
        lows, highs = self.taps(low), self.taps(high)
        largest = lows.amax(0)
        open_ = (highs > largest).sum(0) > 1
        marked = self.spread(Rows(open_.double()), ((highs > largest) & open_).double(), low.shape[1:])
        return marked.values > 0


def _plane(lows: Tensor, highs: Tensor) -> tuple[Tensor, Tensor]:
    """Slopes (taps, B, ...) and constant (B, ...) of a plane above the maximum of values within their ends.

    For any c >= all lower ends, c + sum over u_i > c of (u_i - c) / (u_i - l_i) (x_i - l_i) is no less than the
    maximum: that is convex and the plane linear, so that corners decide; at one it is at least c, and at least u_i
    for every x_i that is at u_i. c is where the slopes sum to 1 (Boopathy et al. 2019), or the least that is allowed.
    """
    least, most = lows.amax(0), highs.amax(0)
    width = (highs - lows).nan_to_num(1.0, 1.0, 1.0).clamp(min=1e-300)

    def slopes(c: Tensor) -> Tensor:
        return ((highs - c).clamp(min=0) / width).clamp(max=1)  # c is no less than any lower end

    low, high = least, most
    for _ in range(24):
        middle = (low + high) / 2
        steep = slopes(middle).sum(0) > 1
        low, high = torch.where(steep, middle, low), torch.where(steep, high, middle)
    c = torch.where(slopes(least).sum(0) > 1, high, least)
    found = slopes(c)
    return found, c - (found * lows.nan_to_num(0, 0, 0)).sum(0)
