"""The measure-valued derivative for units of several classes."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import SoftmaxOneHot
from gradest_estimators._one_hot import OneUnitAtATime, losses_by_class


class MeasureValued(OneUnitAtATime):
    """Each class of a unit compared with all its other classes, while the other units stay at one sample.

    ĝ_c = p_c (1 - p_c) (L(c) - E[L(z) | z ≠ c]) for each unit and class c.

    Unbiased for every loss: the derivative of a unit's law in a_c is p_c (1 - p_c) times the difference of two laws,
    certainly c and anything but c. Mohamed et al. (2020) draw z from the second law. Since the losses of all C classes
    are evaluated anyway, the expectation over z is taken here instead, and a single unit has no variance. So it is the
    sum Σ_c L(c) dp_c/da, the estimate of `local_expectation` and of IndeCateR (2023, arXiv 2311.12569).
    K = 1 + units · (C - 1). Memory: the points, `[K, *batch, units, C]`, are held once.

    Described by Mohamed, Rosca, Figurnov and Mnih (2020), Monte Carlo Gradient Estimation in Machine Learning,
    arXiv 1906.10652.
    """

    name = "measure_valued"
    summary = "each class compared with all others, with the other units held fixed"
    reference = "Mohamed, Rosca, Figurnov, Mnih 2020, arXiv 1906.10652"
    formula = r"\hat g_c = p_c (1 - p_c)\bigl(L(c) - \mathbb E[L(z) \mid z \ne c]\bigr)"

    def number_tried(self, classes: int) -> int:
        """Return C, because all classes are tried."""
        return classes

    def choose_classes(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """Return all classes, in cyclic order from the drawn one on."""
        classes = a.shape[-1]
        return (perturbed.argmax(-1, keepdim=True) + torch.arange(classes, device=a.device)) % classes

    def class_weights(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """Return the probabilities of the chosen classes."""
        return neuron.probability(a).gather(-1, chosen)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return p_c (L(c) - E[L]), which equals p_c (1 - p_c) (L(c) - E[L | z ≠ c])."""
        assert isinstance(draw.neuron, SoftmaxOneHot)
        loss, p = (
            losses_by_class(draw, feedback.get_loss()),
            self.class_weights(draw.neuron, draw.a, draw.saved["chosen"]),
        )
        # relative to the loss of the drawn class, because then the terms of a saturated unit are small and do not cancel
        loss = loss - loss[..., :1]
        return self.weighted_class_score(draw, p * loss), state
