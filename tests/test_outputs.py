from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

import brittle
from brittle.errors import InputError
from brittle.models.classifier import TwoClasses, as_classifier
from brittle.models.networks import frozen, logits_of, seeded

with seeded(0):
    IMAGES = torch.rand(12, 1, 8, 8)
    NET = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).eval()
    ONE = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
    ONE[1].bias.data -= ONE(IMAGES).median()  # half of the images are of each class
SHAPES = {
    "tensor": lambda z: z,
    "tuple": lambda z: (z, 0),
    "list with the features last": lambda z: [None, z, z.square()],
    "dict": lambda z: {"logits": z, "loss": z.sum()},
    "dict of one tensor": lambda z: {"out": z, "step": 3},
    "object": lambda z: SimpleNamespace(logits=z, hidden=None),
    "map of one pixel": lambda z: z[:, :, None, None],
    "array": lambda z: z.detach().numpy(),
}


class Answers(nn.Module):
    """A network whose logits are given back in another way."""

    def __init__(self, how, net: nn.Module = NET):
        super().__init__()
        self.net, self.how = net, how

    def forward(self, images):
        return self.how(self.net(images))


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_found_in_whatever_a_model_returns(shape):
    expected = NET(IMAGES)
    found = logits_of(Answers(SHAPES[shape]).eval(), IMAGES)
    assert torch.equal(found, expected)
    assert found.requires_grad == (shape != "array")


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda z: {"probs": z, "boxes": z}, "got a dict with 'probs', 'boxes'"),
        (lambda z: (None, 3), "got a tuple without a tensor"),
        (lambda z: "cat", "got a str"),
        (lambda z: None, "got a NoneType"),
    ],
)
def test_answers_without_logits_are_said(how, said):
    with pytest.raises(InputError, match="must return one tensor of logits") as caught:
        logits_of(Answers(how), IMAGES)
    assert said in str(caught.value)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("probability", [False, True])
@pytest.mark.parametrize("gradient", [False, True])
def test_one_output_is_two_classes(flat, probability, gradient):
    def how(z):
        z = z.sigmoid() if probability else 3 * z
        z = z.flatten() if flat else z
        return z if gradient else z.detach()

    z = ONE(IMAGES).detach()
    assert (z > 0).any()
    assert (z < 0).any()
    found = logits_of(as_classifier(Answers(how, ONE).eval(), IMAGES), IMAGES).detach()
    p = z.sigmoid()
    expected = torch.cat([1 - p, p], 1) if probability else torch.cat([0 * z, 3 * z], 1)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found.argmax(1), (z[:, 0] > 0).long())


def test_a_logit_that_lies_between_0_and_1_is_no_probability():
    inside = Answers(lambda z: 0.5 + z / 100, ONE).eval()
    found = as_classifier(inside, IMAGES)
    assert isinstance(found, TwoClasses)
    assert not found.probability


@pytest.mark.filterwarnings("error")
def test_attacks_take_what_is_no_module_and_models_of_one_output():
    labels = (ONE(IMAGES)[:, 0] > 0).long()
    wanted = brittle.attacks.square(as_classifier(ONE, IMAGES), IMAGES, labels, eps=0.3, queries=40)
    answering: Any = lambda x: ONE(x).detach().numpy()[:, 0]  # noqa: E731
    found = brittle.attacks.square(answering, IMAGES, labels, eps=0.3, queries=40)
    assert wanted.success.any()
    assert torch.equal(found.adversarial, wanted.adversarial)
    assert brittle.attacks.pgd(ONE, IMAGES, labels, eps=0.3, steps=5).success.any()
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        brittle.attacks.pgd(cast(Any, "resnet"), IMAGES, labels)


def test_a_classifier_is_itself_and_a_model_s_words_are_kept():
    assert as_classifier(NET, IMAGES) is NET

    def fails(images):
        raise AssertionError("Input height (8) doesn't match model (224)\nmore")

    with pytest.raises(
        InputError,
        match=r"^the model fails on images \(12, 1, 8, 8\): AssertionError: Input height \(8\)",
    ):
        brittle.attacks.pgd(cast(Any, fails), IMAGES, torch.zeros(12, dtype=torch.int64))


def modeless():
    """Networks without modes, and one with a part that refuses to change its mode."""
    script = torch.jit.freeze(torch.jit.script(NET))
    exported = torch.export.export(NET, (IMAGES,)).module()
    return {"frozen TorchScript": script, "exported": exported, "part exported": Answers(SHAPES["tensor"], exported)}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_without_modes_are_attacked_and_left_as_they_are():
    labels = NET(IMAGES).argmax(1)
    wanted = brittle.attacks.fgsm(NET, IMAGES, labels, eps=0.1)
    for name, model in modeless().items():
        assert torch.equal(brittle.attacks.fgsm(model, IMAGES, labels, eps=0.1).success, wanted.success), name
        with frozen(model):
            assert torch.equal(model(IMAGES), NET(IMAGES))
