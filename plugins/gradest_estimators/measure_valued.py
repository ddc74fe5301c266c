"""The measure-valued derivative of units of several classes."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import SoftmaxOneHot
from gradest_estimators._one_hot import OneUnitAtATime, losses_of


class MeasureValued(OneUnitAtATime):
    """ĝ_c = p_c (1 - p_c) (L(c) - E[L(z) | z ≠ c]) for each unit and class, the other units held at one sample. Unbiased.

    The derivative of the law of a unit is a difference of two laws: certainly c, and anything but c. The source draws z from
    the second; since the losses of all C classes are asked for anyway, its expectation is taken instead, and one unit alone
    has no variance. K = 1 + units · (C - 1).
    Memory: the points once, `[K, *batch, units, C]`.
    """

    name = "measure_valued"
    summary = "each class against all others, the other units held"
    reference = "Mohamed, Rosca, Figurnov, Mnih 2020, arXiv 1906.10652"
    formula = r"\hat g_c = p_c (1 - p_c)\bigl(L(c) - \mathbb E[L(z) \mid z \ne c]\bigr)"

    def tried(self, classes: int) -> int:
        """All."""
        return classes

    def choose(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """The class drawn, and on from it, in a circle."""
        classes = a.shape[-1]
        return (perturbed.argmax(-1, keepdim=True) + torch.arange(classes, device=a.device)) % classes

    def weigh(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """p."""
        return neuron.probability(a).gather(-1, chosen)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """p_c (L(c) - E[L]), which is p_c (1 - p_c) (L(c) - E[L | z ≠ c])."""
        assert isinstance(draw.neuron, SoftmaxOneHot)
        loss, p = losses_of(draw, feedback.get_loss()), self.weigh(draw.neuron, draw.a, draw.saved["chosen"])
        # from the drawn class's loss on: a saturated unit then subtracts equal numbers
        loss = loss - loss[..., :1]
        return self.gradient(draw, p * loss), state
