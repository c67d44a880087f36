"""Attacks: functions (model, images, labels, *, targets=None, ...) -> AttackResult."""

from brittle.attacks.carlini import carlini_l0, carlini_l2, carlini_linf
from brittle.attacks.descent import fgsm, pgd
from brittle.attacks.masks import borrowed_mask, class_mask, linear_mask, transferred
from brittle.attacks.pixels import song_1, song_2, song_3, song_4
from brittle.attacks.result import AttackResult, Bound
from brittle.attacks.square import noise, square
from brittle.attacks.targets import Cases, cases, every_target

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
    "linear_mask",
    "noise",
    "pgd",
    "song_1",
    "song_2",
    "song_3",
    "song_4",
    "square",
    "transferred",
]
