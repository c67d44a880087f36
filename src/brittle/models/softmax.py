"""Temperature, and losses and gradients that do not underflow.

With logits z, label y and temperature T, F = softmax(z / T), everything rests on the log-odds against the label

    m = logsumexp over l != y of (z_l - z_y) / T,      F_y = sigmoid(-m),      CE = -log F_y = softplus(m).

m rises exactly when the cross entropy CE rises, and it never underflows: at a margin of 200 a float32 softmax is
one-hot, CE is 0 and so is its gradient, while m is -200 and its gradient is as large as ever. What is smaller than any
float is returned as a `SignedLog`: its sign and the log10 of its magnitude.

Functions whose name ends in `_float32` are the arithmetic of the papers' code, kept so that their figures can be
reproduced: float32 probabilities, then the logarithm, then automatic differentiation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from brittle.errors import InputError, unknown
from brittle.models.inference import differentiated
from brittle.models.networks import frozen, input_gradient, logits_of, needed

Arithmetic = Literal["exact", "float32"]
LN10 = math.log(10.0)
TEMPERATURES = (1e-30, 1e30)  # the least and the largest


@dataclass(frozen=True)
class SignedLog:
    """Real numbers of any size: -1e-400 is sign -1, log10 -400."""

    sign: Tensor  # -1, 0 or 1, int8
    log10: Tensor  # log10 of the magnitude, float64; -inf where sign is 0

    @classmethod
    def of(cls, values: Tensor, log: Tensor | float = 0.0) -> SignedLog:
        """`values` times exp(`log`), for `values` that fit a float and factors that need not."""
        wide = values.double()
        return cls(wide.sign().to(torch.int8), (wide.abs().log() + log) / LN10)

    @classmethod
    def cat(cls, parts: Sequence[SignedLog]) -> SignedLog:
        """One after another, along the first dimension."""
        return cls(torch.cat([part.sign for part in parts]), torch.cat([part.log10 for part in parts]))

    def float(self) -> Tensor:
        """As float64: zeros below about 5e-324, which is the point of the class."""
        return self.sign * 10.0**self.log10

    def times(self, log: Tensor | float) -> SignedLog:
        """Each number times exp(`log`)."""
        return SignedLog(self.sign, self.log10 + log / LN10)

    def sum(self, dim: int) -> SignedLog:
        """The signed sum over `dim`, each at the scale of its own largest term."""
        scale = self.log10.amax(dim, keepdim=True).clamp(min=-1e300)  # a sum of zeros: keep -inf - -inf out of it
        total = (self.sign * 10.0 ** (self.log10 - scale)).sum(dim)
        return SignedLog.of(total, scale.squeeze(dim) * LN10)

    def mean_magnitude(self, dim: int | tuple[int, ...]) -> Tensor:
        """log10 of the mean of the magnitudes over `dim`, float64."""
        dims = (dim,) if isinstance(dim, int) else dim
        count = math.prod(self.log10.shape[d] for d in dims)
        return (torch.logsumexp(self.log10 * LN10, dims) - math.log(count)) / LN10


def check_temperature(temperature: float) -> None:
    """Raises InputError unless `temperature` is from 1e-30 to 1e30: beyond, a gradient does not fit a float32."""
    if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
        raise InputError(f"temperature must be a positive finite number, got {temperature}")
    if not TEMPERATURES[0] <= temperature <= TEMPERATURES[1]:
        raise InputError(f"temperature must lie between 1e-30 and 1e30, got {temperature}")


def check_arithmetic(arithmetic: str) -> None:
    """Raises InputError unless `arithmetic` is 'exact' or 'float32'."""
    if arithmetic not in get_args(Arithmetic):
        raise unknown("arithmetic", arithmetic, get_args(Arithmetic))


# From logits --------------------------------------------------------------------------------------------------------


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """F = softmax(logits / temperature), (..., K) -> (..., K), in the dtype of the logits."""
    return torch.softmax(_scaled(logits, temperature), -1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """(z - max z) / T, (..., K): what all else is computed from, for logits of any size that a float holds."""
    check_temperature(temperature)
    low = torch.finfo(logits.dtype).min / 4  # differences of two still fit
    return ((logits - logits.detach().amax(-1, keepdim=True)) / float(temperature)).clamp(min=low)


def _softplus(values: Tensor) -> Tensor:
    """log(1 + exp(values)) to the last bits. torch's leaves out the 1 above 20, where it still counts 2e-9."""
    return values.relu() + torch.log1p(torch.exp(-values.abs()))


def log_odds(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """m, the log-odds against the label: negative while the label holds more than half of the probability.

    Args:
        logits: (B, K), K >= 2.
        labels: (B,), int64, in 0..K-1.
        temperature: T, from 1e-30 to 1e30.

    Returns:
        (B,), float64, finite for finite logits.
    """
    wide = _scaled(logits.double(), temperature)
    own = wide.gather(-1, labels[..., None])
    return torch.logsumexp((wide - own).scatter(-1, labels[..., None], -torch.inf), -1)


def cross_entropy(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> SignedLog:
    """-log F_y exactly: (B, K), (B,) -> (B,). At a margin of 5,000 it is about 1e-2171, not 0."""
    m = log_odds(logits, labels, temperature)
    # log(softplus(m)) is m - e^m / 2 + O(e^2m): below -30 the first term alone is exact to float64
    log = torch.where(m < -30, m, _softplus(m.clamp(min=-30)).log())
    return SignedLog(torch.ones_like(m, dtype=torch.int8), log / LN10)


def cross_entropy_float32(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """-log of the float32 softmax, as published: exactly 0 once F_y has rounded to 1, inf once it has to 0."""
    return -softmax(logits.float(), temperature).gather(-1, labels[..., None]).squeeze(-1).log()


def loss_gradient_logits(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> SignedLog:
    """dCE/dz_l = (F_l - [l = y]) / T exactly: (B, K), (B,) -> (B, K)."""
    logF = torch.log_softmax(_scaled(logits.double(), temperature), -1)
    own = F.logsigmoid(log_odds(logits, labels, temperature))[..., None]  # log(1 - F_y), which 1 - F_y would round to 0
    log = logF.scatter(-1, labels[..., None], own) - math.log(temperature)
    sign = torch.ones_like(log, dtype=torch.int8).scatter(-1, labels[..., None], -1)
    return SignedLog(sign, log / LN10)


def jacobian_logits(logits: Tensor, temperature: float = 1.0) -> SignedLog:
    """dF_i/dz_j = F_i ([i = j] - F_j) / T exactly: (B, K) -> (B, K, K), row i, column j."""
    classes = logits.shape[-1]
    logF = torch.log_softmax(_scaled(logits.double(), temperature), -1)
    rows = [
        F.logsigmoid(log_odds(logits, torch.full(logits.shape[:-1], i, device=logits.device), temperature))
        for i in range(classes)
    ]  # log(1 - F_i)
    log = logF[..., :, None] + logF[..., None, :] - math.log(temperature)
    own = logF + torch.stack(rows, -1) - math.log(temperature)
    eye = torch.eye(classes, dtype=torch.bool, device=logits.device)
    log = torch.where(eye, own[..., None], log)
    sign = torch.where(eye, 1, -1).to(torch.int8).expand_as(log)
    return SignedLog(sign, log / LN10)


# Through a model ----------------------------------------------------------------------------------------------------


def log_odds_gradient(model: nn.Module, images: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """dm/dx: the direction of dCE/dx at a scale that does not vanish.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), in [0, 1].
        labels: (B,), int64.
        temperature: at which the softmax is read, > 0.

    Returns:
        (B, C, H, W), in the dtype of the images. One backward pass, so a class whose share of m is under the float's
        rounding adds nothing to it; where that matters use `jacobian`.
    """
    return _odds_and_gradient(model, images, labels, temperature)[1]


def loss_gradient(model: nn.Module, images: Tensor, labels: Tensor, temperature: float = 1.0) -> SignedLog:
    """dCE/dx = sigmoid(m) dm/dx exactly, (B, C, H, W); arguments as for `log_odds_gradient`."""
    odds, gradient = _odds_and_gradient(model, images, labels, temperature)
    return SignedLog.of(gradient, F.logsigmoid(odds).view(-1, 1, 1, 1))


def _odds_and_gradient(model: nn.Module, images: Tensor, labels: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    with frozen(model):
        logits, gradient = differentiated(model, images, lambda z, rows: log_odds(z, labels[rows], temperature))
    return log_odds(logits, labels, temperature), needed(gradient)


def loss_gradient_float32(model: nn.Module, images: Tensor, labels: Tensor, temperature: float = 1.0) -> Tensor:
    """dCE/dx as published, (B, C, H, W), float32: zeros where the softmax has saturated."""
    with frozen(model):
        of = differentiated(model, images, lambda z, rows: cross_entropy_float32(z, labels[rows], temperature))
    return needed(of[1])


def jacobian(model: nn.Module, images: Tensor, temperature: float = 1.0, *, classes: Tensor | None = None) -> SignedLog:
    """dF_i/dx for every class i, exactly; or for one class of each image.

    dF_i/dx = (F_i / T) sum over l of F_l (dz_i/dx - dz_l/dx), equation (11) of Mandal and Guo, summed in logarithms.
    Costs one forward and K backward passes.

    Args:
        model: images in [0, 1] to logits, (B, C, H, W) -> (B, K), K >= 2.
        images: (B, C, H, W), in [0, 1].
        temperature: T > 0.
        classes: (B,), int64: the one class i of each image. It costs one way back: dF_i/dx = -F_i (1 - F_i) dm/dx.

    Returns:
        (B, K, C, H, W), or (B, 1, C, H, W) for one class.
    """
    check_temperature(temperature)
    if classes is not None:
        odds, gradient = _odds_and_gradient(model, images, classes, temperature)
        log = F.logsigmoid(odds) + F.logsigmoid(-odds)
        return SignedLog.of(-gradient[:, None], log.view(-1, 1, 1, 1, 1))
    logits, of_logits = _logit_jacobian(model, images)
    logF = torch.log_softmax(_scaled(logits.double(), temperature), 1)
    rows = []
    for i in range(logits.shape[1]):
        terms = SignedLog.of(of_logits[:, i : i + 1] - of_logits, logF.view(*logF.shape, 1, 1, 1))
        rows.append(terms.sum(1).times(logF[:, i].view(-1, 1, 1, 1) - math.log(temperature)))
    return SignedLog(torch.stack([r.sign for r in rows], 1), torch.stack([r.log10 for r in rows], 1))


def _logit_jacobian(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """z and dz_l/dx for every class l: (B, K) and (B, K, C, H, W)."""
    inputs = images.detach().clone().requires_grad_(True)
    with frozen(model), torch.enable_grad():
        logits = logits_of(model, inputs)
        classes = logits.shape[1]
        rows = [input_gradient(logits[:, i].sum(), inputs, retain_graph=i + 1 < classes) for i in range(classes)]
    return logits.detach(), torch.stack(rows, 1)


def jacobian_float32(
    model: nn.Module, images: Tensor, temperature: float = 1.0, *, classes: Tensor | None = None
) -> Tensor:
    """dF_i/dx as published, (B, K, C, H, W), float32: zeros where the softmax has saturated; arguments as for
    `jacobian`."""
    if classes is not None:
        with frozen(model):
            own = classes[:, None]
            of = differentiated(model, images, lambda z, rows: softmax(z.float(), temperature).gather(1, own[rows]))
        return needed(of[1])[:, None]
    inputs = images.detach().clone().requires_grad_(True)
    with frozen(model), torch.enable_grad():
        probabilities = softmax(logits_of(model, inputs).float(), temperature)
        last = probabilities.shape[1] - 1
        rows = [input_gradient(probabilities[:, i].sum(), inputs, retain_graph=i < last) for i in range(last + 1)]
    return torch.stack(rows, 1)
