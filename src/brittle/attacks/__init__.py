"""Attacks: functions (model, images, labels, *, targets=None, ...) -> AttackResult."""

from brittle.attacks.pixels import song_1, song_2, song_3, song_4
from brittle.attacks.result import AttackResult

__all__ = ["AttackResult", "song_1", "song_2", "song_3", "song_4"]
