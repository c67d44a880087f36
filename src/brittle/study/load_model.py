"""Opens somebody's model by a text: a cell of the store, or whatever `models.load` opens -> an `nn.Module`."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from os import PathLike, fspath
from typing import Any

import torch
from torch import nn

from brittle.data import Data
from brittle.data.arguments import typed
from brittle.errors import InputError
from brittle.models import load
from brittle.models.classifier import PROBED
from brittle.models.fingerprint import digest
from brittle.models.fit import resolve_device
from brittle.models.load import WEIGHTS, Named
from brittle.models.prepared import normalised
from brittle.study.kinds.network.cell import load_network
from brittle.study.run import scheduler
from brittle.study.store.store import Store

__all__ = ["KEY", "WEIGHTS", "Named", "digest", "is_key", "load_model"]

KEY = r"[0-9a-fA-F]{1,32}"  # the key of a cell, or its beginning


def is_key(text: str) -> bool:
    """Whether a text may be the key of a cell, or its beginning."""
    return re.fullmatch(KEY, text) is not None


def told(sentence: str) -> None:
    """A sentence on standard error."""
    print(f"brittle: {sentence}", file=sys.stderr)


@typed
def load_model(
    text: str,
    *,
    weights: str | PathLike[str] | None = None,
    network: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    data: Data | None = None,
    device: str | torch.device = "auto",
    store: Store | None = None,
    trust: bool = False,
    say: Callable[[str], None] = told,
) -> nn.Module:
    """Any classifier, by a text, as a module in evaluation mode: images in [0, 1], (B, C, H, W), to logits (B, K).

        brittle.load_model("timm:resnet18")                           # its published weights
        brittle.load_model("timm:resnet18", weights="mine.safetensors")
        brittle.load_model("mylab.models:build", weights="best.pth")  # a function that builds it, or the network
        brittle.load_model("vit-folder")                              # as Hugging Face's save_pretrained wrote it
        brittle.load_model("net.onnx", mean=0.5, std=0.25)

    Args:
        text: `package.module:name`, `package.module.name` or `folder/file.py:name`, a function without arguments that
            builds the network, the network itself, or a function of images; `timm:NAME`; a folder of Hugging Face's,
            with config.json and weights; an .onnx file; the name of one of brittle's networks; a `torch.export`
            archive (.pt2); TorchScript or a pickled network; the key of a trained cell, of which the beginning will
            do; or a file of weights, which goes with `network`. An import path runs code, so that `text` must come
            from the user.
        weights: for an import path or timm's network: a .safetensors file, or what torch.save wrote: a state dict,
            alone or in a training loop's dict. What wrappers put before names, `module.` or `_orig_mod.` or `model.`,
            is dropped.
        network: what a file of weights in `text` is for: one of brittle's networks, `timm:NAME` or an import path.
        mean: of each channel, or one number for all; taken from images in [0, 1] ahead of the model. Those of the
            model's own configuration, where it has one, when not given.
        std: what they are then divided by; likewise.
        data: what the model is for: brittle's own networks are built for its channels, classes and size, and its
            images tell one output's logit from a probability.
        device: where the model goes: auto, cpu or cuda[:N].
        store: where keys are looked up; the user's own when not given.
        trust: whether the code in an archive, a pickle, a folder's configuration, or named by a cell may run.
        say: told, in a sentence, what was done that the user should know; by default it is printed on standard error.

    Raises:
        InputError: if the model cannot be had; the message says in one line what came and what was expected.
    """
    chosen = resolve_device(device) if isinstance(device, str) else device
    named = Named(text, None if weights is None else fspath(weights), network, _numbers(mean), _numbers(std))
    if not is_key(text):
        images = None if data is None else data.test.images[:PROBED]
        options = load.options_for(named, data)
        return load.opened(named, options=options, images=images, device=chosen, trust=trust, say=say)
    for option, given in (("--weights", weights), ("--network", network)):
        if given is not None:
            raise InputError(f"{option} does not go with the key of a cell, got {text!r}")
    store = store or Store()
    cell = scheduler.recall_network(store, text, trust=trust)
    stored = store.get(cell.key)
    if stored is None:
        raise InputError(f"cell {cell.key[:8]} has gone from the store {store.root}")
    channels = None if data is None else data.image_shape[0]
    return normalised(load_network(cell, stored, chosen), named.mean, named.std, channels).to(chosen).eval()


def _numbers(given: Any) -> tuple[float, ...] | None:
    """One number, or several, as a tuple of floats."""
    if given is None:
        return None
    return tuple(float(value) for value in (given if isinstance(given, Iterable) else (given,)))
