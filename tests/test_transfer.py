"""What fools one model, tried on others."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from problems import Brightness, convnet, linear, pictures, predicted
from torch import Tensor

from brittle.attacks import carlini_l2, song_3
from brittle.attacks.masks import linear_mask
from brittle.attacks.result import AttackResult, measured
from brittle.errors import InputError
from brittle.measures import Share
from brittle.measures.transfer import transfer, transfer_matrix

MODELS = {name: convnet(seed=seed, gain=40) for seed, name in enumerate(("one", "two", "three"))}


def request(rows: int = 40) -> tuple[Tensor, Tensor]:
    images = pictures(rows)
    return images, predicted(MODELS["one"], images)


@pytest.mark.parametrize("attack", [linear_mask, song_3, partial(carlini_l2, max_iterations=20)])
@pytest.mark.parametrize("targeted", [False, True])
def test_a_matrix_is_what_counting_by_hand_finds(attack: partial[AttackResult], targeted: bool):
    images, labels = request()
    targets = (labels + 1) % 4 if targeted else None
    found = transfer_matrix(attack, MODELS, images, labels, targets=targets)
    assert found.crafted == found.tried == ("one", "two", "three")

    def fooled(model: torch.nn.Module, shown: Tensor) -> list[bool]:
        said = predicted(model, shown)
        return (said != labels if targets is None else said == targets).tolist()

    for i, source in enumerate(MODELS.values()):
        result = attack(source, images, labels, targets=targets)
        for j, other in enumerate(MODELS.values()):
            before, here, after = fooled(source, images), fooled(other, images), fooled(other, result.adversarial)
            counted = [row for row in range(40) if not before[row] and not here[row]]
            crafted = [row for row in counted if result.success[row]]
            assert found.carried[i][j] == Share(sum(after[row] for row in crafted), len(crafted))
            assert found.fooled[i][j] == Share(sum(after[row] for row in crafted), len(counted))
    assert all(row[i].value == 1 for i, row in enumerate(found.carried))
    assert any(0 < share.value < 1 for row in found.carried for share in row)


def test_models_that_share_a_border_share_what_crosses_it():
    """Class 1 once the pixels sum to more than a threshold: what fools the bolder fools the more timid as well."""
    models = {"4": Brightness(4.0), "6": Brightness(6.0), "20": Brightness(20.0)}
    images = torch.full((10, 1, 3, 3), 0.1)
    found = transfer_matrix(partial(song_3, max_pixels=9), models, images, torch.zeros(10, dtype=torch.int64))
    assert [[share.count for share in row] for row in found.carried] == [[10, 0, 0], [10, 10, 0], [0, 0, 0]]
    assert [[share.total for share in row] for row in found.carried] == [[10] * 3, [10] * 3, [0] * 3]
    assert [share.total for share in found.fooled[2]] == [10] * 3
    low, high = found.carried[0][1].interval
    assert low == 0
    assert 0.2 < high < 0.4  # Wilson's interval of 0 of 10


def test_an_image_that_a_model_gets_wrong_from_the_start_does_not_count_for_it():
    model, images = linear(), pictures(6, (1, 5, 5))
    labels = predicted(model, images)
    labels[:2] = 1 - labels[:2]
    result = measured(model, images, labels, images, forwards=1, backwards=0)
    found = transfer({"model": result}, {"same": model})
    assert found.fooled[0][0] == Share(0, 4)
    assert found.carried[0][0] == Share(0, 0)


def test_results_of_other_attacks_and_images_may_be_compared_and_columns_need_not_be_rows():
    images, labels = request()
    results = {
        "few": linear_mask(MODELS["one"], images[:7], labels[:7]),
        "all": song_3(MODELS["two"], images, labels),
    }
    found = transfer(results, {"three": MODELS["three"]})
    assert (found.crafted, found.tried) == (("few", "all"), ("three",))
    assert found.fooled[0][0].total <= 7 < found.fooled[1][0].total


def test_a_failure_that_another_model_gets_wrong_is_not_carried():
    images, labels = request(8)
    failed = linear_mask(MODELS["one"], images, labels, etas=[0.0])
    assert not failed.success.any()
    odd = replace(failed, adversarial=1 - images)  # even if it did not hold the clean image
    found = transfer({"one": odd}, {"two": MODELS["two"]})
    assert found.fooled[0][0].count == 0


def test_nothing_to_try_and_models_that_do_not_fit_are_refused():
    images, labels = request(4)
    result = linear_mask(MODELS["one"], images, labels)
    with pytest.raises(InputError, match=r"^expected results and models, got 0 results and 1 models$"):
        transfer({}, {"one": MODELS["one"]})
    with pytest.raises(InputError, match=r"^expected results and models, got 0 results and 0 models$"):
        transfer_matrix(linear_mask, {}, images, labels)
    with pytest.raises(InputError, match=r"^labels must lie in 0\.\.1, as the model has 2 outputs"):
        transfer({"one": replace(result, labels=torch.full((4,), 3))}, {"two": linear(shape=(1, 6, 6))})


def test_progress_goes_from_attacks_to_trials():
    images, labels = request(4)
    told: list[tuple[int, int]] = []
    transfer_matrix(
        linear_mask, MODELS, images, labels, progress=lambda done, total, note="": told.append((done, total))
    )
    assert told[:3] == [(1, 6), (2, 6), (3, 6)]
    assert told[-1] == (6, 6)
