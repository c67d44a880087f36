"""Teacher -> assistant -> ... -> student."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from brittle.data import Data
from brittle.data.arguments import typed
from brittle.errors import InputError
from brittle.models.fit import Fitted, fit
from brittle.models.networks import build, frozen, logits_of
from brittle.models.softmax import check_temperature, softmax
from brittle.progress import Progress, barred, silent


@typed
@barred("soft labels")
def soft_labels(model: nn.Module, images: Tensor, temperature: float, *, progress: Progress | None = None) -> Tensor:
    """What the model says of each image, softmax(logits / temperature): (N, C, H, W) -> (N, K), float32, on the CPU.

    `progress` is told the images done; a bar is shown by default.
    """
    progress = progress or silent
    check_temperature(temperature)
    if images.ndim != 4 or not images.is_floating_point() or not len(images):
        raise InputError(f"images must be (N, C, H, W) and floating, got {tuple(images.shape)} {images.dtype}")
    device = next((p.device for p in model.parameters()), images.device)
    found = []
    with frozen(model), torch.no_grad():
        for batch in images.split(256):
            found.append(softmax(logits_of(model, batch.to(device)), temperature).float().cpu())
            progress(sum(map(len, found)), len(images))
    return torch.cat(found)


def generation_seed(seed: int, generation: int) -> int:
    """The seed of a chain's network: no student starts from its teacher's weights, nor from another chain's teacher's.

    Chains are run with seeds 0, 1, 2 and so on, and their intervals suppose that they share nothing.
    """
    return seed + 1000 * generation


@typed
@barred("distilling")
def distill(
    make: Callable[[], nn.Module],
    data: Data,
    *,
    temperature: float | Sequence[float],
    generations: int = 2,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
    **training: object,
) -> list[Fitted]:
    """Trains a teacher on hard labels, then each generation on the soft labels of the one before it.

    Papernot et al. 2016 for two generations; Mandal and Guo for three (teacher, assistant, student) and more.

    Args:
        make: builds one network, images in [0, 1] to logits; called once a generation.
        data: as for `fit`.
        temperature: one for all generations, or one for each. A generation's soft labels are read at the temperature
            of the network that gives them; the next one trains at its own.
        generations: networks in the chain with the teacher, >= 1.
        seed: generation g is built and trained with `generation_seed(seed, g)`.
        device: as for `fit`.
        progress: told training steps, each generation's in turn; by default a bar is shown on a terminal and in a
            notebook, and nothing with `brittle.progress.silent`.
        **training: passed to `fit`: epochs, learning_rate, ...

    Returns:
        One `Fitted` a generation, the teacher first.
    """
    if generations < 1:
        raise InputError(f"generations must be at least 1, got {generations}")
    if "checkpoint" in training:  # the student would take the teacher's, and be the teacher
        raise InputError("each generation needs its own checkpoint, got one for all: use fit and soft_labels")
    temperatures = [temperature] * generations if isinstance(temperature, int | float) else list(temperature)
    if len(temperatures) != generations:
        raise InputError(f"temperature must be one number or {generations}, got {len(temperatures)}")
    chain: list[Fitted] = []
    for generation, own in enumerate(temperatures):
        labels = None
        if chain:
            labels = soft_labels(chain[-1].model, data.train.images, chain[-1].temperature, progress=silent)
        drawn = generation_seed(seed, generation)
        network = build(make, seed=drawn)
        chain.append(
            fit(
                network,
                data,
                temperature=own,
                labels=labels,
                seed=drawn,
                device=device,
                progress=progress,
                **training,  # type: ignore[arg-type]
            )
        )
    return chain
