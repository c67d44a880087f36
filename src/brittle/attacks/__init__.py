"""Attacks: functions (model, images, labels, *, targets=None, ...) -> AttackResult."""

from brittle.attacks.all_targets import Cases, cases, every_target
from brittle.attacks.carlini import carlini_l0, carlini_l2, carlini_linf
from brittle.attacks.export import write_images
from brittle.attacks.jsma import jsma
from brittle.attacks.masks import borrowed_mask, class_mask, linear_mask, transferred
from brittle.attacks.minimal import minimal
from brittle.attacks.pgd import fgsm, pgd
from brittle.attacks.result import AttackResult, Bound
from brittle.attacks.song import song_1, song_2, song_3, song_4
from brittle.attacks.square import noise, square

__all__ = [
    "AttackResult",
    "Bound",
    "Cases",
    "borrowed_mask",
    "carlini_l0",
    "carlini_l2",
    "carlini_linf",
    "cases",
    "class_mask",
    "every_target",
    "fgsm",
    "jsma",
    "linear_mask",
    "minimal",
    "noise",
    "pgd",
    "song_1",
    "song_2",
    "song_3",
    "song_4",
    "square",
    "transferred",
    "write_images",
]
