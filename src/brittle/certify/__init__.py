"""Proved lower bounds: how far no image fools a model, and the bracket that an attack closes from above."""

from brittle.certify.bounds import bounds
from brittle.certify.bracket import Bracket, bracket
from brittle.certify.exact import Exact, exact
from brittle.certify.radius import Certificate, radius

__all__ = ["Bracket", "Certificate", "Exact", "bounds", "bracket", "exact", "radius"]
