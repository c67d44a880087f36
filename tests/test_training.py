"""The training loop against plain numpy, against itself, and against a death in the middle."""

from __future__ import annotations

import copy
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from problems import Counting, bits, blobs, convnet, linear
from safetensors import safe_open
from torch import nn

from brittle.data import Data, Split
from brittle.errors import InputError
from brittle.models.fit import DecayOn, Diverged, Fitted, fit, resolve_device, resolve_dtype

BLOBS = blobs()
RECIPE: dict[str, Any] = {"epochs": 4, "batch_size": 16, "momentum": 0.9, "seed": 3}
RECIPE |= {"device": "cpu", "dtype": "float32"}  # whose bits are the same every time


def trained(network: nn.Module | None = None, data: Data = BLOBS, **changes: Any) -> Fitted:
    return fit(convnet(classes=3, dropout=0.3) if network is None else network, data, **{**RECIPE, **changes})


# What a step does -------------------------------------------------------------------------------------------------


def by_hand(
    weights: np.ndarray,
    biases: np.ndarray,
    images: np.ndarray,
    targets: np.ndarray,
    *,
    steps: int,
    temperature: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    learning_rate_decay: float = 0.0,
    schedule: str = "constant",
    warmup: float = 0.0,
    clip_norm: float = math.inf,
    loss_scale: str = "1",
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Full-batch gradient descent of a linear classifier, as Sutskever et al. 2013 and PyTorch write momentum."""
    speeds, losses = [np.zeros_like(weights), np.zeros_like(biases)], []
    for step in range(steps):
        powers = np.exp((images @ weights.T + biases) / temperature)
        shares = powers / powers.sum(1, keepdims=True)
        losses.append(-(targets * np.log(shares)).sum(1).mean())
        error = (shares - targets) / temperature / len(images)
        error *= temperature**2 if loss_scale == "T2" else 1.0
        gradients = [error.T @ images, error.sum(0)]
        norm = math.sqrt(sum((gradient**2).sum() for gradient in gradients))  # of the loss, without the penalty
        gradients = [gradient * min(1.0, clip_norm / norm) for gradient in gradients]
        gradients[0] = gradients[0] + weight_decay * weights
        speeds = [momentum * speed + gradient for speed, gradient in zip(speeds, gradients, strict=True)]
        pushes = [g + momentum * s for g, s in zip(gradients, speeds, strict=True)] if nesterov else speeds
        rate = 0.5 / (1 + learning_rate_decay * step)  # as Keras has it
        rate *= min(1.0, (step + 1) / warmup) if warmup else 1.0  # one step is one epoch here
        rate *= 1 - step / steps if schedule == "linear" else 1.0
        weights, biases = weights - rate * pushes[0], biases - rate * pushes[1]
    return weights, biases, losses


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        {"temperature": 20.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0},
        {"temperature": 1.0, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0},
        {"temperature": 1.0, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0},
        {"temperature": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.3},
        {"temperature": 5.0, "momentum": 0.5, "nesterov": True, "weight_decay": 0.3},
        {"temperature": 1.0, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "learning_rate_decay": 0.4},
        {"temperature": 1.0, "momentum": 0.9, "nesterov": True, "weight_decay": 0.0, "warmup": 2.0},
        {"temperature": 1.0, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0, "schedule": "linear"},
        {"temperature": 1.0, "momentum": 0.5, "nesterov": False, "weight_decay": 0.3, "clip_norm": 0.05},
        {"temperature": 1.0, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "clip_norm": 1e3},
        {"temperature": 20.0, "momentum": 0.5, "nesterov": False, "weight_decay": 0.3, "loss_scale": "T2"},
    ],
)
@pytest.mark.parametrize("steps", [1, 3])
def test_steps_are_those_of_gradient_descent_written_out(steps: int, options: dict[str, Any], soft: bool):
    network, count = linear(classes=3, shape=(1, 6, 6), scale=0.2), len(BLOBS.train)
    weights, biases = (p.detach().double().numpy() for p in network.parameters())
    random = np.random.default_rng(0)
    targets = random.dirichlet([1, 1, 1], count) if soft else np.eye(3)[BLOBS.train.labels]
    labels = torch.from_numpy(targets) if soft else None
    images = BLOBS.train.images.flatten(1).double().numpy()
    expected = by_hand(weights, biases, images, targets, steps=steps, **options)
    found = trained(network, epochs=steps, labels=labels, batch_size=count, learning_rate=0.5, **options)
    for parameter, wanted in zip(network.parameters(), expected[:2], strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), wanted, rtol=1e-5, atol=1e-6)
    assert [epoch.loss for epoch in found.history] == pytest.approx(expected[2], rel=1e-5)


@pytest.mark.parametrize("decay_on", ["weights", "output"])
def test_a_step_pulls_at_the_weights_that_are_penalised_as_lasagnes_squares_do(decay_on: DecayOn):
    network = convnet(classes=3)
    by_hand = copy.deepcopy(network)
    names = {"weights": ["0.weight", "4.weight"], "output": ["4.weight"]}[decay_on]
    squares = torch.stack([by_hand.get_parameter(name).square().sum() for name in names]).sum()
    loss = nn.functional.cross_entropy(by_hand(BLOBS.train.images), BLOBS.train.labels) + 0.1 * squares
    loss.backward()
    whole: dict[str, Any] = {"epochs": 1, "batch_size": 60, "momentum": 0.0, "learning_rate": 0.5}
    trained(network, weight_decay=0.2, decay_on=decay_on, **whole)
    for found, start in zip(network.parameters(), by_hand.parameters(), strict=True):
        assert start.grad is not None
        torch.testing.assert_close(found, start - 0.5 * start.grad, rtol=1e-5, atol=1e-6)


def test_a_network_whose_last_parameter_is_no_bias_is_penalised_there():
    network = linear(classes=3, shape=(1, 6, 6), bias=False)
    same = copy.deepcopy(network)
    trained(network, weight_decay=0.2, decay_on="output")
    assert bits(network) == bits(trained(same, weight_decay=0.2).model)
    assert bits(network) != bits(trained(linear(classes=3, shape=(1, 6, 6), bias=False)).model)


def test_every_image_is_seen_once_an_epoch_and_the_last_step_takes_what_is_left():
    network = Counting(convnet(classes=3))
    trained(network, epochs=1, batch_size=16)
    while_training = network.sizes[1:5]  # the first call looks whether the network fits
    assert while_training == [16, 16, 16, 12]
    seen: list[torch.Tensor] = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]) if module.training else None)
    trained(network, epochs=1, batch_size=16)
    rows = sorted(torch.cat(seen).flatten(1).tolist())
    assert rows == sorted(BLOBS.train.images.flatten(1).tolist())


def test_the_loss_told_is_the_mean_over_the_images_however_they_fall_into_batches():
    network = convnet(classes=3)
    with torch.no_grad():
        expected = nn.functional.cross_entropy(network(BLOBS.train.images) / 5, BLOBS.train.labels).item()
    still = trained(network, epochs=1, batch_size=25, learning_rate=1e-30, temperature=5)
    assert still.history[0].loss == pytest.approx(expected, rel=1e-5)


def test_the_blobs_are_learned_to_100_percent():
    found = trained(epochs=15)
    assert found.history[-1].accuracy == 1
    assert found.history[-1].loss < 0.1 < found.history[0].loss


def test_accuracy_is_that_on_the_validation_images():
    wrong = replace(BLOBS, validation=Split(BLOBS.validation.images, (BLOBS.validation.labels + 1) % 3))
    assert trained(data=wrong, epochs=15).history[-1].accuracy == 0
    nothing = replace(BLOBS, validation=Split(BLOBS.validation.images[:0], BLOBS.validation.labels[:0]))
    assert math.isnan(trained(data=nothing, epochs=1).history[0].accuracy)


def test_hard_labels_and_the_same_labels_as_probabilities_train_alike():
    hard, soft = trained(), trained(labels=torch.eye(3)[BLOBS.train.labels])
    for one, other in zip(hard.model.parameters(), soft.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_trains_nearly_as_float32_does_and_keeps_float32_weights():
    wide, narrow = (trained(convnet(classes=3), dtype=dtype) for dtype in ("float32", "bfloat16"))
    assert bits(wide.model) != bits(narrow.model)
    for one, other in zip(wide.model.parameters(), narrow.model.parameters(), strict=True):
        assert other.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.02, rtol=0.02)


def test_no_epochs_leave_the_network_as_it_came_but_for_its_mode():
    network = convnet(classes=3, dropout=0.3)
    before = bits(network)
    found = trained(network, epochs=0)
    assert bits(network) == before
    assert found == Fitted(network, 1.0, ())
    assert not any(m.training for m in network.modules())


def test_a_trained_network_is_in_evaluation_mode_and_keeps_its_gradient_flags():
    network = trained(temperature=20).model
    assert not any(m.training for m in network.modules())
    assert all(p.requires_grad for p in network.parameters())


def test_progress_ends_with_every_step_done():
    told: list[tuple[int, int, str]] = []
    found = trained(epochs=2, progress=lambda done, total, note="": told.append((done, total, note)))
    assert told[-1] == (8, 8, f"loss {found.history[1].loss:.4f}, validation {found.history[1].accuracy:.2%}")
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)


# Seeds ------------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_bits_whatever_was_drawn_before():
    first = trained()
    torch.rand(7)
    again = trained()
    assert bits(again.model) == bits(first.model)
    assert again.history == first.history


def test_another_seed_orders_the_images_and_drops_units_differently():
    for network in (lambda: convnet(classes=3), lambda: convnet(classes=3, dropout=0.3)):
        assert bits(trained(network(), seed=3).model) != bits(trained(network(), seed=4).model)
    whole: dict[str, Any] = {"batch_size": 60, "epochs": 1}  # one batch: only dropout is left to the seed
    assert bits(trained(seed=3, **whole).model) != bits(trained(seed=4, **whole).model)


def test_training_leaves_the_callers_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    trained()
    assert torch.equal(torch.get_rng_state(), before)


# Checkpoints ------------------------------------------------------------------------------------------------------


class Mortal(Counting):
    """A network that raises KeyboardInterrupt in training step `life`."""

    def __init__(self, model: nn.Module, life: float = math.inf):
        super().__init__(model)
        self.life = life

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.life -= self.training
        if self.life < 0:
            raise KeyboardInterrupt
        return super().forward(images)


def test_an_interrupted_training_resumes_to_the_same_bits(tmp_path: Path):
    whole = trained(Mortal(convnet(classes=3, dropout=0.3)))
    checkpoint = tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):  # two epochs of 4 steps, then two steps of the third
        trained(Mortal(convnet(classes=3, dropout=0.3), life=10), checkpoint=checkpoint)
    resumed = trained(Mortal(convnet(classes=3, dropout=0.3, seed=99)), checkpoint=checkpoint)
    assert bits(resumed.model) == bits(whole.model)
    assert resumed.history == whole.history
    assert isinstance(resumed.model, Mortal)
    assert sum(size == 16 for size in resumed.model.sizes) == 2 * 3  # only the two epochs that were left


def test_a_training_interrupted_between_epochs_resumes_to_the_same_bits(tmp_path: Path):
    def stop(done: int, total: int, note: str = "") -> None:
        if done == 8:
            raise KeyboardInterrupt

    options = {"nesterov": True, "weight_decay": 0.1, "learning_rate_decay": 0.01, "warmup": 1.5, "clip_norm": 0.5}
    options |= {"schedule": "linear"}
    whole, checkpoint = trained(**options), tmp_path / "half.safetensors"
    with pytest.raises(KeyboardInterrupt):
        trained(**options, checkpoint=checkpoint, progress=stop)
    assert bits(trained(**options, checkpoint=checkpoint).model) == bits(whole.model)


KILLED = """
import os, signal, sys, torch
import test_training as t
from pathlib import Path

class Killed(t.Mortal):
    def forward(self, images):
        if self.training and self.life < 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)

torch.set_num_threads(int(sys.argv[2]))
t.trained(Killed(t.convnet(classes=3, dropout=0.3), life=10), checkpoint=Path(sys.argv[1]))
"""


def test_a_killed_process_resumes_to_the_same_bits(tmp_path: Path):
    checkpoint = tmp_path / "half.safetensors"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(torch.get_num_threads())]
    died = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    assert died.returncode == -signal.SIGKILL, died.stderr
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.name]
    whole = trained(Mortal(convnet(classes=3, dropout=0.3)))
    resumed = trained(Mortal(convnet(classes=3, dropout=0.3, seed=99)), checkpoint=checkpoint)
    assert bits(resumed.model) == bits(whole.model)


def test_a_finished_training_is_read_and_not_repeated(tmp_path: Path):
    checkpoint = tmp_path / "whole.safetensors"
    whole = trained(checkpoint=checkpoint)
    again = trained(convnet(classes=3, dropout=0.3, seed=99), checkpoint=checkpoint)
    assert bits(again.model) == bits(whole.model)
    assert again.history == whole.history


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"temperature": 3.0},
        {"learning_rate": 0.2},
        {"epochs": 9},
        {"warmup": 1.0},
        {"clip_norm": 0.1},
        {"schedule": "linear"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_checkpoint_of_another_request_is_not_gone_on_from(tmp_path: Path, other: dict[str, Any]):
    checkpoint = tmp_path / "other.safetensors"
    trained(checkpoint=checkpoint, **other)
    assert bits(trained(checkpoint=checkpoint).model) == bits(trained().model)


def test_a_checkpoint_of_another_penalty_is_not_gone_on_from(tmp_path: Path):
    checkpoint = tmp_path / "other.safetensors"
    trained(weight_decay=0.1, decay_on="output", checkpoint=checkpoint)
    assert bits(trained(weight_decay=0.1, checkpoint=checkpoint).model) == bits(trained(weight_decay=0.1).model)


def test_a_checkpoint_of_earlier_versions_is_of_the_same_request(tmp_path: Path):
    checkpoint = tmp_path / "earlier.safetensors"
    trained(epochs=1, weight_decay=0.1, checkpoint=checkpoint)
    with safe_open(checkpoint, "pt") as file:
        request = file.metadata()["request"]
    assert request == "96808397da0cfa1d60d4f556644ffa339fceb365c56ebb76df14a5c47e894ccf"  # as 0.1.0 wrote it


def test_a_checkpoint_of_another_architecture_is_not_gone_on_from(tmp_path: Path):
    checkpoint = tmp_path / "other.safetensors"
    trained(linear(classes=3, shape=(1, 6, 6)), checkpoint=checkpoint)
    assert bits(trained(checkpoint=checkpoint).model) == bits(trained().model)


def test_a_network_with_tied_weights_goes_on_from_its_checkpoint(tmp_path: Path):
    whole = nn.Sequential(nn.Flatten(), nn.Linear(36, 36), nn.ReLU(), nn.Linear(36, 36), nn.Linear(36, 3))
    whole[3].weight = whole[1].weight
    again, checkpoint = copy.deepcopy(whole), tmp_path / "tied.safetensors"
    trained(whole, checkpoint=checkpoint)
    assert bits(trained(again, checkpoint=checkpoint).model) == bits(whole)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 100, b"not a checkpoint", None], ids=["empty", "zeros", "something else", "cut off"]
)
def test_a_checkpoint_that_cannot_be_read_starts_anew_with_the_same_result(tmp_path: Path, content: bytes | None):
    checkpoint = tmp_path / "half.safetensors"
    whole = trained(checkpoint=checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100] if content is None else content)
    again = trained(checkpoint=checkpoint)
    assert bits(again.model) == bits(whole.model)
    assert bits(trained(convnet(classes=3, seed=99), checkpoint=checkpoint).model) == bits(whole.model)


# Requests that cannot be met --------------------------------------------------------------------------------------


def test_divergence_says_when_and_what_to_try():
    with pytest.raises(Diverged) as error:
        trained(convnet(classes=3, gain=10), learning_rate=1e30, epochs=3)
    assert str(error.value) == ("training diverged: the loss is nan in epoch 1; try a learning_rate below 1e+30")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": -1}, "epochs must be at least 0, got -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive and finite, got 0\.0"),
        ({"learning_rate": math.inf}, "learning_rate must be positive and finite, got inf"),
        ({"learning_rate_decay": -1.0}, r"learning_rate_decay must be at least 0, got -1\.0"),
        ({"warmup": -1.0}, r"warmup must be at least 0, got -1\.0"),
        ({"clip_norm": 0.0}, r"clip_norm must be positive, got 0\.0"),
        ({"clip_norm": math.nan}, "clip_norm must be positive, got nan"),
        ({"schedule": "linaer"}, "unknown schedule 'linaer': did you mean 'linear'"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1\.0"),
        ({"momentum": math.nan}, r"momentum must lie in \[0, 1\), got nan"),
        ({"momentum": 0.0, "nesterov": True}, "nesterov needs a momentum above 0"),
        ({"weight_decay": -0.1}, r"weight_decay must be at least 0, got -0\.1"),
        ({"decay_on": "ouput"}, "unknown decay_on 'ouput': did you mean 'output'"),
        ({"temperature": 0.0}, "temperature must be a positive finite number"),
        ({"dtype": "float61"}, "unknown dtype 'float61': did you mean 'bfloat16' or 'float32'"),
        ({"device": "gpu"}, "device must be auto, cpu or cuda"),
        ({"device": "meta"}, "device must be auto, cpu or cuda"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not here"),
        ({"labels": torch.ones(60, 2) / 2}, r"soft labels must be \(images, classes\) = \(60, 3\), got \(60, 2\)"),
        ({"labels": torch.ones(60, 3)}, "soft labels must be probabilities, got a minimum of 1, sums off 1 by 2"),
        ({"labels": torch.tensor([[1.5, -0.5, 0.0]]).repeat(60, 1)}, "got a minimum of -0.5"),
        ({"labels": torch.full((60, 3), math.nan)}, "got a minimum of nan"),
        ({"network": convnet(classes=4)}, r"the network must return 3 logits an image, got shape \(1, 4\)"),
        ({"network": convnet(classes=3, size=8)}, r"the network cannot take images of shape \(1, 6, 6\)"),
        ({"network": convnet(classes=3, channels=3)}, r"the network cannot take images of shape \(1, 6, 6\)"),
    ],
)
def test_a_request_that_cannot_be_met_says_what_came(wrong: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        trained(**wrong)


def test_auto_is_a_device_that_is_here_and_a_dtype_that_it_has():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert resolve_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
