"""What every attack promises, for every kind of input: a result that keeps the contract, or one line that says why not.

The attacks are those that `brittle.attacks` exports, so that none can be forgotten.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from problems import Constant, convnet, pictures, predicted
from torch import Tensor, nn

from brittle import attacks
from brittle.attacks.options import check_options
from brittle.attacks.result import AttackResult, predictions
from brittle.errors import InputError
from brittle.models.networks import frozen, logits_of

SHAPE = (1, 8, 8)
IMAGES = pictures(5, SHAPE)
NET = convnet(size=8, classes=3, gain=3)
LABELS = predicted(NET, IMAGES)
TARGETS = (LABELS + 1) % 3
EXAMPLES = pictures(6, SHAPE, seed=1)
FUNCTIONS = {
    name: function
    for name in attacks.__all__
    if inspect.isfunction(function := getattr(attacks, name))
    and next(iter(inspect.signature(function).parameters)) == "model"
}
FEW: dict[str, dict[str, Any]] = {  # evaluations, so that all cases take seconds; and what has no default
    "carlini_l0": {"max_iterations": 2, "patience": 1},
    "carlini_l2": {"max_iterations": 3},
    "carlini_linf": {"max_iterations": 3},
    "song_1": {"max_pixels": 5},
    "song_2": {"max_pixels": 5},
    "song_3": {"max_pixels": 5},
    "song_4": {"max_pixels": 3},
    "pgd": {"steps": 3},
    "square": {"queries": 5},
    "noise": {"draws": 3},
    "minimal": {"evaluations": 6},
    "jsma": {"gamma": 0.1, "targets": TARGETS},
    "class_mask": {"epochs": 2, "targets": TARGETS},
    "borrowed_mask": {"examples": EXAMPLES},
    "transferred": {"source": convnet(size=8, classes=3, seed=1)},
}
MINIMISES = {"carlini_l0": 0, "carlini_l2": 2, "carlini_linf": math.inf, "jsma": 0, "minimal": 2} | {
    f"song_{number}": 0 for number in range(1, 5)
}
BOUND = ("fgsm", "pgd", "square", "noise")
NO_GRADIENT = ("fgsm", "pgd", "square", "noise", "song_2", "song_4")  # what goes on where there is none
every_attack = pytest.mark.parametrize("name", FUNCTIONS)


@dataclass(frozen=True)
class Case:
    """One kind of input."""

    model: Any = NET
    images: Any = IMAGES
    labels: Any = LABELS
    options: dict[str, Any] = field(default_factory=dict)
    refused: str = ""  # the pattern of the line that refuses it, whatever the attack
    without_gradient: str = ""  # of the line by which attacks that need a gradient refuse it
    warns: str = ""  # the pattern of what may be said beside the result
    by_batch: bool = False  # whether the model's answers depend on the batch: then success cannot be asked again
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


class Answering(nn.Module):
    """What `answer` makes of the images and of a network's logits."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any], network: nn.Module = NET):
        super().__init__()
        self.network, self.answer = network, answer

    def forward(self, images: Tensor) -> Any:
        return self.answer(images, self.network(images))


class InPlace(nn.Module):
    """Normalises its input in place, as torchvision's Normalize(inplace=True) does, or behind autograd's back."""

    def __init__(self, hidden: bool):
        super().__init__()
        self.network, self.hidden = convnet(size=8, classes=3, gain=3), hidden

    def forward(self, images: Tensor) -> Tensor:
        if self.hidden:
            images.data.mul_(0.5)
            return self.network(images)
        return self.network(images.sub_(0.5).div_(0.25))


class StaysInTraining(nn.Module):
    """Batch normalisation that `eval` does not reach, and a buffer that is made anew at each call."""

    def __init__(self):
        super().__init__()
        self.norm, self.network = nn.BatchNorm2d(1), convnet(size=8, classes=3, gain=3)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def train(self, mode: bool = True) -> StaysInTraining:
        super().train(mode)
        self.norm.training = True
        return self

    def forward(self, images: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.network(self.norm(images))


def off(images: Tensor) -> Tensor:
    """(n, 1): whether each image is none of the clean ones."""
    near = [(images.detach() - clean.to(images)).flatten(1).abs().amax(1) for clean in IMAGES]
    return (torch.stack(near).amin(0) > 1e-6)[:, None]


def leaf(images: Tensor) -> Tensor:
    return images.clone().requires_grad_(True)


@torch.inference_mode()
def born_in_inference(values: Tensor) -> Tensor:
    return values.clone()


def born_model() -> nn.Module:
    with torch.inference_mode():
        return convnet(size=8, classes=3, gain=3)


def outside() -> Tensor:
    images = IMAGES.clone()
    images[0, 0, 0, :2], images[:, 0, 3, 3] = torch.tensor([-9e-7, 1 + 9e-7]), -5e-7
    return images


def half_frozen() -> nn.Sequential:
    """Some layers in training, some not, some weights without gradients, and a gradient left over."""
    model = convnet(size=8, classes=3, dropout=0.5).train()
    model[0].requires_grad_(False)
    model[3].eval()
    weight = model[4].weight
    assert isinstance(weight, Tensor)
    weight.grad = torch.ones_like(weight)
    return model


def in_inference(_images: Tensor, logits: Tensor) -> Tensor:
    with torch.inference_mode():
        return logits * 1


NONE = "the model's logits have no gradient with respect to the images"
CASES: dict[str, Case] = {
    "ordinary": Case(),
    "targeted": Case(options={"targets": TARGETS}),
    "wrong from the start": Case(labels=(LABELS + 2) % 3),
    "on target from the start": Case(labels=TARGETS, options={"targets": LABELS}),
    "batch of 1": Case(images=IMAGES[:1], labels=LABELS[:1], options={"targets": TARGETS[:1]}),
    "float64": Case(images=IMAGES.double()),
    "float64 model": Case(model=convnet(size=8, classes=3, gain=3).double()),
    "bfloat16 model": Case(model=convnet(size=8, classes=3, gain=3).bfloat16(), by_batch=True),
    "float16 images": Case(images=IMAGES.half()),
    "bfloat16 images": Case(images=IMAGES.bfloat16()),
    "not contiguous": Case(images=IMAGES.flip(3).transpose(2, 3).repeat(1, 1, 1, 2)[..., ::2]),
    "channels last": Case(images=IMAGES.to(memory_format=torch.channels_last)),
    "expanded": Case(images=IMAGES[:1].expand(5, -1, -1, -1), labels=LABELS[:1].expand(5)),
    "images with gradients": Case(images=leaf(IMAGES)),
    "images within rounding of [0, 1]": Case(images=outside()),
    "labels of inference mode": Case(labels=born_in_inference(LABELS), options={"targets": born_in_inference(TARGETS)}),
    "images of inference mode": Case(images=born_in_inference(IMAGES)),
    "where, one for all": Case(options={"where": IMAGES[4, 0] > 0.4}),
    "where, one for each": Case(options={"where": IMAGES.flip(0) > 0.4, "targets": TARGETS}),
    "where of nothing": Case(options={"where": torch.zeros(8, 8).bool()}),
    "where of nothing for some": Case(options={"where": (torch.arange(5) % 2 > 0).view(5, 1, 1, 1).expand(5, 1, 8, 8)}),
    "called under no_grad": Case(context=torch.no_grad),
    "called under inference mode": Case(context=torch.inference_mode),
    "two classes": Case(
        model=convnet(size=8, classes=2, gain=3), labels=LABELS % 2, options={"targets": 1 - LABELS % 2}
    ),
    "training mode, dropout": Case(model=convnet(size=8, classes=3, dropout=0.5).train()),
    "half frozen": Case(model=half_frozen()),
    "tuple outputs": Case(model=Answering(lambda x, z: (z, x))),
    "writes into its input": Case(model=InPlace(hidden=False)),
    "writes into its input's data": Case(model=InPlace(hidden=True)),
    "batch normalisation in training": Case(model=StaysInTraining(), by_batch=True, warns=".*alone$"),
    "NaN off the clean images": Case(
        model=Answering(lambda x, z: torch.where(off(x), torch.nan, z)), warns=".*none counts as fooled$"
    ),
    "NaN for a class": Case(
        model=Answering(lambda x, z: torch.where(off(x) & (z < 0), torch.nan, z)), warns=".*none counts as fooled$"
    ),
    "+inf off the clean images": Case(
        model=Answering(lambda x, z: torch.where(off(x), torch.inf, z)), warns=".*none counts as fooled$"
    ),
    "NaN gradients": Case(
        model=Answering(lambda x, z: z + 0 * (x - IMAGES[0, 0, 0, 0]).abs().flatten(1).sqrt()[:, :3])
    ),
    "huge logits": Case(model=Answering(lambda x, z: 1e30 * z)),
    "small logits": Case(model=Answering(lambda x, z: 1e-30 * z)),
    "constant": Case(
        model=Constant((3.0, 1.0, 0.0)), labels=torch.zeros(5).long(), options={"targets": torch.ones(5).long()}
    ),
    "ties": Case(model=Constant((1.0, 1.0, 1.0))),
    "one-hot answers": Case(
        model=Answering(lambda x, z: nn.functional.one_hot(z.argmax(1), 3).float() * 2), without_gradient=NONE
    ),
    "no_grad inside": Case(model=Answering(lambda x, z: z.detach()), without_gradient=NONE),
    "inference mode inside": Case(model=Answering(in_inference), without_gradient=NONE),
    "integer logits": Case(model=Answering(lambda x, z: (10 * z).long()), without_gradient=NONE),
    "constant without a graph": Case(
        model=Answering(lambda x, z: torch.tensor([[2.0, 1.0, 0.0]]).repeat(len(x), 1)),
        labels=torch.zeros(5).long(),
        without_gradient=NONE,
    ),
    # Refused, whatever the attack
    "one dimension too few": Case(
        images=IMAGES[0], refused=r"images must be \(B, C, H, W\) and floating, got \(1, 8, 8\)"
    ),
    "bytes": Case(images=(255 * IMAGES).byte(), refused=r"images must be .* floating, got \(5, 1, 8, 8\) torch\.uint8"),
    "complex": Case(images=IMAGES.to(torch.complex64), refused="images must be .* floating, got .* torch.complex64"),
    "out of range": Case(images=255 * IMAGES, refused=r"images must lie in \[0, 1\], got \[0, 255\]"),
    "NaN": Case(
        images=IMAGES.index_fill(0, torch.tensor(2), math.nan), refused=r"images must lie in \[0, 1\], got \[nan"
    ),
    "no images": Case(
        images=IMAGES[:0], labels=LABELS[:0], refused=r"images must hold at least one image .*, got \(0,"
    ),
    "no pixels": Case(
        images=IMAGES[..., :0], refused=r"images must hold at least one image with pixels, got \(5, 1, 8, 0\)"
    ),
    "numpy images": Case(images=IMAGES.numpy(), refused=r"images must be a tensor \(B, C, H, W\), got numpy's ndarray"),
    "a list of images": Case(images=IMAGES.tolist(), refused=r"images must be a tensor \(B, C, H, W\), got list"),
    "int32 labels": Case(labels=LABELS.int(), refused=r"labels must be int64 .*, got \(5,\) torch\.int32"),
    "labels of two dimensions": Case(labels=LABELS[:, None], refused=r"labels must be int64 .*, \(5,\), got \(5, 1\)"),
    "too few labels": Case(labels=LABELS[:3], refused=r"labels must be int64 .*, \(5,\), got \(3,\)"),
    "labels too high": Case(labels=LABELS + 2, refused=r"labels must lie in 0\.\.2, as the model has 3 outputs, got"),
    "labels below 0": Case(labels=LABELS - 3, refused=r"labels must lie in 0\.\.2, .*, got -"),
    "numpy labels": Case(labels=np.zeros(5, int), refused="labels must be a tensor of int64 .*, got numpy's ndarray"),
    "a list of labels": Case(labels=[0] * 5, refused="labels must be a tensor of int64 .*, got list"),
    "targets that are the labels": Case(options={"targets": LABELS}, refused="targets must differ from labels, row 0"),
    "too few targets": Case(options={"targets": TARGETS[:2]}, refused=r"targets must be int64 .*, got \(2,\)"),
    "targets too high": Case(options={"targets": TARGETS + 5}, refused=r"targets must lie in 0\.\.2, .*, got"),
    "float targets": Case(options={"targets": TARGETS.float()}, refused=r"targets must be int64 .* torch\.float32"),
    "a list of targets": Case(options={"targets": [1] * 5}, refused=r"targets must be a tensor.*, got \[1, 1"),
    "where of another size": Case(
        options={"where": torch.ones(8, 7).bool()},
        refused=r"where must be bool and \(8, 8\) or \(5, 1, 8, 8\), got \(8, 7",
    ),
    "where of channels": Case(
        options={"where": torch.ones(5, 3, 8, 8).bool()}, refused=r"where must be .*, got \(5, 3"
    ),
    "where in floats": Case(
        options={"where": torch.ones(8, 8)}, refused=r"where must be bool .*, got .* torch.float32"
    ),
    "text for a model": Case(model="resnet", refused="the model must be a torch.nn.Module .*, got str"),
    "a model of inference mode": Case(model=born_model(), refused="the model was made under torch.inference_mode"),
    "outputs without logits": Case(model=Answering(lambda x, z: {"a": z, "b": z}), refused="got a dict with 'a', 'b'"),
    "outputs of other rows": Case(model=Answering(lambda x, z: z[:2]), refused=r"logits \(5, K\) .*, got \(2, 3\)"),
    "NaN logits": Case(model=Answering(lambda x, z: z * math.nan), refused="not finite on the clean images"),
    "another image size": Case(model=convnet(size=6), refused=r"the model fails on images \(5, 1, 8, 8\): "),
    "a model that raises": Case(model=Answering(lambda x, z: {}["a"]), refused="the model fails on images"),
}


def request(name: str, case: Case, **more: Any) -> tuple[Callable[..., AttackResult], dict[str, Any]]:
    options = FEW.get(name, {}) | case.options | more
    if name in ("class_mask", "jsma") and "targets" not in case.options and isinstance(case.labels, Tensor):
        options["targets"] = (case.labels + 1) % 3
    if name == "transferred" and case.model is not NET and isinstance(case.model, nn.Module) and not case.refused:
        options["source"] = case.model
    return functools.partial(FUNCTIONS[name], case.model, case.images, case.labels), options


def snapshot(case: Case) -> list[Any]:
    """What an attack must leave as it found it."""
    tensors = [one for one in (case.images, case.labels, case.options.get("targets")) if isinstance(one, Tensor)]
    kept = [(one.detach().clone(), one.dtype, one.requires_grad, one.is_leaf) for one in tensors]
    model = case.model
    return [[str(one.tolist()), *rest] for one, *rest in kept] + [
        [condition(model) if isinstance(model, nn.Module) else [], torch.get_rng_state().tolist()]
    ]


def condition(model: nn.Module) -> list[object]:
    """Modes, hooks, flags, gradients, weights and buffers, those that are not stored too."""
    hooks = [
        (len(one._forward_hooks), len(one._forward_pre_hooks), len(one._backward_hooks)) for one in model.modules()
    ]
    parameters = [(str(one.tolist()), one.requires_grad, str(one.grad)) for one in model.parameters()]
    return [[one.training for one in model.modules()], hooks, parameters, [one.tolist() for one in model.buffers()]]


@every_attack
@pytest.mark.parametrize("kind", CASES)
def test_an_attack_keeps_its_promises_or_says_in_one_line_why_not(name: str, kind: str):
    case = CASES[kind]
    attack, options = request(name, case)
    before = snapshot(case)
    refused = case.refused or (case.without_gradient if name not in NO_GRADIENT else "")
    with warnings.catch_warnings(), case.context():
        warnings.simplefilter("error")
        if case.warns:
            warnings.filterwarnings("ignore", case.warns)
        if case.without_gradient and name in ("fgsm", "pgd"):
            warnings.filterwarnings("ignore", f"{NONE} .*: the only points tried are where the walks begin")
        if refused:
            with pytest.raises(InputError, match=refused) as said:
                attack(**options)
            assert "\n" not in str(said.value)
        else:
            keeps_the_contract(name, case, attack(**options), options)
    assert snapshot(case) == before


def keeps_the_contract(name: str, case: Case, found: AttackResult, options: dict[str, Any]) -> None:
    clean = case.images.detach().to(torch.promote_types(case.images.dtype, torch.float32)).clamp(0, 1)
    count = len(clean)
    assert found.adversarial.shape == clean.shape
    assert found.adversarial.dtype == clean.dtype
    assert torch.equal(found.images, clean)
    assert torch.equal(found.labels, case.labels)
    for tensor in (value for value in vars(found).values() if isinstance(value, Tensor)):
        assert not tensor.requires_grad
        assert not tensor.is_inference()
        assert len(tensor) == count
    assert 0 <= found.adversarial.min() <= found.adversarial.max() <= 1  # false for NaN
    assert torch.equal(found.adversarial[~found.success], clean[~found.success])
    where = options.get("where", torch.ones(8, 8).bool())
    assert torch.equal(found.adversarial.where(~where, clean), clean)
    assert where.flatten(-2).any() or not found.success.any()
    assert (found.success.dtype, found.prediction.dtype) == (torch.bool, torch.int64)
    assert (found.forwards >= 1).all()
    assert (found.backwards >= 0).all()
    if not case.by_batch:
        targets = options.get("targets")
        seen = predictions(case.model, found.adversarial)
        with frozen(case.model), torch.no_grad():
            finite = logits_of(case.model, found.adversarial).isfinite().all(1)
        reached = seen != case.labels if targets is None else seen == targets
        assert torch.equal(found.success, reached & finite)
        assert torch.equal(found.prediction, seen)
        assert found.robust_accuracy == pytest.approx((seen == case.labels).double().mean().item())
    assert found.minimises == MINIMISES.get(name)
    assert (found.bound is not None) == (name in BOUND)
    if found.bound is not None:
        assert (found.bound.norm, found.bound.eps) == (math.inf, 0.3)
        assert found.norm(found.bound.norm).max() <= found.bound.eps * (1 + 1e-5)
    assert "tensor" not in repr(found)


def test_an_answer_of_nan_fools_nobody():
    """The table asks that success is what the model says; here, that NaN says nothing."""
    for kind in ("NaN off the clean images", "+inf off the clean images"):
        for name in FUNCTIONS:
            attack, options = request(name, CASES[kind])
            with pytest.warns(UserWarning, match="answers of the model were NaN or infinity: none counts as fooled"):
                assert not attack(**options).success.any()


# Options -------------------------------------------------------------------------------------------------------------

TEXTS: list[Any] = ["3", "", [], {}, object()]
COUNT: list[Any] = [0, -1, 2.5, math.nan, math.inf, True, None, *TEXTS]
NATURAL: list[Any] = [-1, 2.5, math.nan, True, None, *TEXTS]
NUMBER: list[Any] = [0, -1.0, math.nan, math.inf, -math.inf, True, 1j, *TEXTS]
FLAG: list[Any] = ["no", "true", 1, 0, 1.0, None, []]
CHOICE: list[Any] = ["nothing", 3, True, None, [], ""]
WRONG: dict[str, list[Any]] = {
    **dict.fromkeys(("steps", "queries", "draws", "max_iterations", "binary_search_steps", "patience"), COUNT),
    **dict.fromkeys(("evaluations", "max_pixels", "refresh_every", "epochs"), COUNT),
    "batch_size": [value for value in COUNT if value is not None],
    "eps": [*NUMBER, None],
    "temperature": [*NUMBER, 1e-300, 1e300, None],
    **dict.fromkeys(("step_size", "learning_rate", "initial_const", "epsilon"), NUMBER),
    **dict.fromkeys(("random_start", "decay", "rivals", "abort_early", "quantize", "signed", "darken", "clip"), FLAG),
    **dict.fromkeys(("stop_at_zeros", "values"), FLAG),
    **dict.fromkeys(("norm", "loss", "keep", "arithmetic", "of", "output"), CHOICE),
    "area": [*NUMBER, 1.5, None],
    "gamma": [*NUMBER, 1.5, None],
    "theta": [0, 1.5, -2, math.nan, True, None, *TEXTS],
    "confidence": [*NUMBER[1:], None],
    "seed": [*NATURAL, 10**22],
    "etas": [[], [-1.0], [math.nan], [math.inf], ["a"], [True], 5, 750.0, "750", None, {1.0}],
    "targets": [3, "every", [1, 2]],
    "where": [3, "all", [[True]], IMAGES.numpy() > 0],
    "examples": [3, "mnist", IMAGES.numpy()],
    "source": [3, "resnet", print],
    "flips": [3, "no", (1, 2), (IMAGES,)],
    "progress": [3, "yes", None],
}


class Untouched(nn.Module):
    """Fails the test when it is called: options are to be checked before any work begins."""

    def forward(self, images: Tensor) -> Tensor:
        raise AssertionError("the model was called")


def wrong_options() -> Iterator[tuple[str, str]]:
    for name, function in FUNCTIONS.items():
        for option, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                yield name, option


@pytest.mark.parametrize(("name", "option"), list(wrong_options()))
def test_a_wrong_option_is_refused_by_its_name_before_any_work(name: str, option: str):
    counts = COUNT if name == "pgd" else NATURAL
    for value in counts if option == "restarts" else WRONG[option]:
        with pytest.raises(InputError, match=rf"^(unknown )?{option} ") as said:
            FUNCTIONS[name](Untouched(), IMAGES, LABELS, **FEW.get(name, {}) | {option: value})
        assert len(str(said.value)) < 250
        assert "\n" not in str(said.value)


@every_attack
def test_what_is_missing_or_unknown_is_named_and_the_defaults_are_fine(name: str):
    function = FUNCTIONS[name]
    parameters = inspect.signature(function).parameters.values()
    required = [one.name for one in parameters if one.kind is one.KEYWORD_ONLY and one.default is one.empty]
    given = {one.name: one.default for one in parameters if one.kind is one.KEYWORD_ONLY and one.name not in required}
    for missing in required:
        with pytest.raises(InputError, match=f"^{name} needs {missing}, a .*, which Python code alone can give"):
            check_options(function, given)
    check_options(function, given, given=required)
    with pytest.raises(InputError, match=rf"unknown option of {name} 'stepz'"):
        function(Untouched(), IMAGES, LABELS, stepz=3)


def test_an_attack_of_somebody_elses_is_checked_as_far_as_it_is_annotated():
    def mine(model, images, labels, *, plain, count: int = 1, way: np.ndarray | None = None, **rest):
        raise NotImplementedError

    def unknown_names(model, images, labels, *, size: NotThere = 3):  # type: ignore[name-defined]  # noqa: F821
        raise NotImplementedError

    check_options(mine, {"plain": object(), "anything": 3, "count": np.int64(3), "way": np.zeros(3)})
    check_options(unknown_names, {"size": "large"})
    for options, said in (
        ({"plain": 1, "count": 2.5}, r"^count must be a whole number, got 2\.5$"),
        ({"plain": 1, "way": 3}, "^way must be a ndarray or none, got 3$"),
        ({"count": 3}, "^mine needs plain, a value: it has no default$"),
    ):
        with pytest.raises(InputError, match=said):
            check_options(mine, options)


# Batches -------------------------------------------------------------------------------------------------------------

DRAWN: dict[str, tuple[str, dict[str, Any]]] = {
    name: (name, {}) for name in FUNCTIONS if name not in ("class_mask", "jsma")
}
DRAWN |= {f"{name}, restarts": (name, {"restarts": 2}) for name in ("carlini_l0", "carlini_l2", "carlini_linf", "pgd")}
DRAWN |= {f"minimal, L{norm}": ("minimal", {"norm": norm, "evaluations": 90}) for norm in (0, 1, math.inf)}
DRAWN |= {f"{name}, L2": (name, {"norm": "l2", "eps": 1.0}) for name in ("pgd", "square", "noise")}


@pytest.mark.parametrize("drawn", DRAWN)
def test_a_row_gets_the_same_in_any_batch_and_at_any_place(drawn: str):
    """A class mask is left out: it is one mask for all the images that share its target."""
    name, more = DRAWN[drawn]
    network = convnet(size=8, classes=3, gain=3).double()
    images = pictures(12, SHAPE, dtype=torch.float64)
    labels = predicted(network, images)
    attack = functools.partial(FUNCTIONS[name], network, **FEW.get(name, {}) | more)
    if name == "transferred":
        attack = functools.partial(attack, source=convnet(size=8, classes=3, seed=1).double())
    whole = attack(images, labels)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for rows in (torch.arange(5), torch.arange(5, 12), order):
        part = attack(images[rows], labels[rows])
        torch.testing.assert_close(part.adversarial, whole.adversarial[rows], rtol=0, atol=1e-9)
        for values in ("success", "prediction", "forwards", "backwards"):
            assert torch.equal(getattr(part, values), getattr(whole, values)[rows])
    assert re.match(r"<AttackResult: attack .*; images 12; fooled \d+ of the 12 that were right before", repr(whole))
