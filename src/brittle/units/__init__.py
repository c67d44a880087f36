"""Which units of a network matter: gradients of its outputs with respect to any unit, and what goes when units go.

Lo and Ding, sections III and V. A layer is named as `model.get_submodule` names it, and a unit by its place in that
layer's output. A convolutional layer's unit is a whole map, or one position of it; a dense layer's is one number. A
layer that the model uses several times has the same units each time: their gradients are added up, and they are knocked
out together.

The softmax's gradients are exact: a network trained at T = 20 and read at T = 1 has some of 1e-40, and what a float
cannot hold comes as a `SignedLog`, its sign and the log10 of its magnitude. With m the log-odds against class i
(`softmax.log_odds`), F_i = sigmoid(-m), so that

    dF_i/do = -F_i (1 - F_i) dm/do,

where dm/do keeps its scale and the factor is known by its logarithm.
"""

from brittle.units.activations import activity, outputs, telling_layers
from brittle.units.gradients import (
    Output,
    class_gradient,
    convolutional_gradient,
    prediction_gradient,
    rank_agreement,
    rank_units,
)
from brittle.units.knockout import KnockoutCurve, knockout, knockout_curves, knockout_orders, predictions_without
from brittle.units.unit import Ranked, Unit

__all__ = [
    "KnockoutCurve",
    "Output",
    "Ranked",
    "Unit",
    "activity",
    "class_gradient",
    "convolutional_gradient",
    "knockout",
    "knockout_curves",
    "knockout_orders",
    "outputs",
    "prediction_gradient",
    "predictions_without",
    "rank_agreement",
    "rank_units",
    "telling_layers",
]
