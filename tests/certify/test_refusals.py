"""What cannot be bounded, or is asked for wrongly, is one line that says what and where; a model is left as it was."""

from __future__ import annotations

import problems
import pytest
import torch
from certify import nets
from torch import nn

from brittle import InputError, certify

IMAGES, LABELS = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])


class Does(nn.Module):
    """What `function` makes of flat images and a layer's output."""

    def __init__(self, function):
        super().__init__()
        self.layer, self.function = nn.Linear(16, 3), function

    def forward(self, images):
        return self.function(images.flatten(1), self.layer)


class BatchOnly(nn.BatchNorm1d):
    """Batch normalisation that stays in training mode."""

    def forward(self, input):
        return nn.functional.batch_norm(input, None, None, training=True)


REFUSED = {
    "a GELU is named by its layer": (nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.GELU()), "layer 2, GELU"),
    "a branch on values": (Does(lambda x, f: f(x) * (2 if x.max() > 0.5 else 1)), "branches on the values"),
    "a product of two": (Does(lambda x, f: f(x) * f(x)), "multiplies two tensors"),
    "a division": (Does(lambda x, f: f(x) / (1 + x[:, :3])), "divides by what depends"),
    "the batch's own mean": (Does(lambda x, f: f(x - x.mean(0, keepdim=True))), "mixes the images"),
    "batch normalisation by the batch": (Does(lambda x, f: BatchOnly(3)(f(x))), "normalises by the batch"),
    "noise": (Does(lambda x, f: f(x + torch.randn(1, 16))), "random"),
    "half precision inside": (Does(lambda x, f: f(x.half().float())), "rounds to torch.float16"),
    "logits of nothing": (Does(lambda x, f: torch.ones(len(x), 3) * torch.arange(3.0)), "do not depend on the images"),
}


@pytest.mark.filterwarnings("ignore:the model")  # that it varies, or looks at the batch
@pytest.mark.parametrize(("model", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_bounded_is_named_in_one_line(model, said):
    with pytest.raises(InputError, match=said) as caught:
        certify.bounds(model.eval(), IMAGES, LABELS, eps=0.1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eps": 0.0}, "eps must be a finite number above 0, got 0.0"),
        ({"eps": 0.1, "norm": "l0"}, "unknown norm 'l0'"),
        ({"eps": 0.1, "slopes": "best"}, "unknown slopes 'best'"),
        ({"eps": 0.1, "steps": 0}, "steps must be a whole number of at least 1"),
    ],
)
def test_wrong_options_are_one_line(options, said):
    with pytest.raises(InputError, match=said):
        certify.bounds(problems.linear(classes=3, shape=(1, 4, 4)), IMAGES, LABELS, **options)


def test_a_time_limit_of_nothing_is_refused_and_a_short_one_tells_both_ends():
    model, images = problems.convnet(gain=3.0), problems.pictures(1)
    labels = problems.predicted(model, images)
    with pytest.raises(InputError, match="time_limit must be a finite number above 0"):
        certify.exact(model, images, labels, time_limit=0)
    found = certify.exact(model, images, labels, time_limit=1e-3)
    assert 0 <= found.lower[0] <= found.upper[0]


def test_exact_distances_of_what_is_not_piecewise_linear_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh())
    with pytest.raises(InputError, match="piecewise linear"):
        certify.exact(model, IMAGES, LABELS)


def test_an_image_that_is_wrong_already_has_a_radius_of_0_and_is_told_apart():
    model = problems.linear(classes=3, shape=(1, 4, 4))
    labels = problems.predicted(model, IMAGES)
    wrong = torch.stack([labels[0], (labels[1] + 1) % 3])
    found = certify.bracket(model, IMAGES, wrong, evaluations=5)
    assert found.correct.tolist() == [True, False]
    assert found.proved[0] > 0
    assert (found.proved[1], found.found[1]) == (0, 0)
    proved, survived = found.shares(1e-9)
    assert proved == survived == 0.5


def test_a_model_is_left_as_it_was_and_dropout_is_off_although_it_trains():
    model = nets.Everything().train()
    before = problems.condition(model)
    images = problems.pictures(2, (1, 8, 8))
    labels = torch.tensor([0, 1])
    found = certify.bounds(model, images, labels, eps=0.01)
    assert problems.condition(model) == before
    assert torch.equal(found, certify.bounds(model.eval(), images, labels, eps=0.01))


def test_half_weights_are_widened_and_that_is_said():
    model = problems.linear(classes=3, shape=(1, 4, 4)).half()
    with pytest.warns(UserWarning, match=r"torch.float16: it is bounded in float64"):
        found = certify.bounds(model, IMAGES, LABELS, eps=0.1)
    assert torch.allclose(found, certify.bounds(model.float(), IMAGES, LABELS, eps=0.1))


@pytest.mark.parametrize("ending", [nn.Softmax(1), nn.LogSoftmax(1), nn.Identity()])
def test_a_softmax_at_the_end_changes_no_lead(ending):
    body = problems.convnet(size=4, classes=3)
    plain = certify.bounds(body, IMAGES, LABELS, eps=0.02)
    with pytest.warns(UserWarning, match="look like probabilities") if isinstance(ending, nn.Softmax) else _nothing():
        assert torch.allclose(certify.bounds(nn.Sequential(body, ending).eval(), IMAGES, LABELS, eps=0.02), plain)


def _nothing():
    import contextlib

    return contextlib.nullcontext()
