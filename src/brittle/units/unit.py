"""A unit, and a unit ranked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit by its layer's name and its place in the layer's output, from 0: (map,), (map, row, column) or (unit,)."""

    layer: str
    index: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.layer}[{', '.join(map(str, self.index))}]"


@dataclass(frozen=True)
class Ranked:
    """A unit and what it was ranked by."""

    unit: Unit
    log10: float  # of the magnitude; -inf if it is 0

    @property
    def value(self) -> float:
        """The magnitude; 0 below about 5e-324."""
        return 10.0**self.log10
