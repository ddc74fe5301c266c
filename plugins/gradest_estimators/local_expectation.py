"""Local expectation gradients."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import LogisticBinary, Neuron, Relaxable, SoftmaxOneHot
from gradest.random import Key
from gradest_estimators._binary import ask_at_all_flips, loss_difference, sigmoid_derivative
from gradest_estimators.measure_valued import MeasureValued


class LocalExpectation(MeasureValued):
    """Each unit summed out exactly, given a sample of the others.

    ĝ_i = Σ_c L(h with unit i in class c) dp_c/da_i over the classes of a one-hot unit. For a binary unit that is
    p_i(1-p_i) (L(h with unit i high) - L(h with unit i low)).

    Unbiased for every loss: given the other units, ĝ_i is the exact derivative. It has no variance for a loss that is a
    sum of functions of single units. It takes K = D + 1 evaluations for D binary units, and 1 + D (C - 1) for D units of
    C classes, and holds all their points, `[K, *batch, *event]`, once.

    For one-hot units it is `measure_valued`, number by number: with all classes evaluated, p_c (1 - p_c) (L(c) -
    E[L(z) | z ≠ c]) is this sum. IndeCateR of De Smet, Sansone and Zuidberg Dos Martires (2023), Differentiable Sampling
    of Categorical Distributions Using the CatLog-Derivative Trick, arXiv 2311.12569, with one sample of the other units is
    the same estimate again; with N samples it is the mean of N of them.

    Introduced by Titsias and Lázaro-Gredilla (2015), Local Expectation Gradients for Black Box Variational Inference,
    arXiv 1503.01494.
    """

    name = "local_expectation"
    summary = "each unit summed out exactly, given a sample of the others"
    reference = (
        "Titsias, Lázaro-Gredilla 2015, arXiv 1503.01494; De Smet, Sansone, Zuidberg Dos Martires 2023 (IndeCateR), "
        "arXiv 2311.12569"
    )
    formula = (
        r"\hat g_i = \sum_c L(h_{i \to c})\,\nabla_a p_{i,c}, \quad \text{or } p_i (1 - p_i)\bigl(L(h_{i \to 1}) - "
        r"L(h_{i \to 0})\bigr)"
    )
    capabilities = (Relaxable,)

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the unit is binary with P(high) = σ(a), or one-hot with P = softmax(a)."""
        return isinstance(neuron, LogisticBinary | SoftmaxOneHot)

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = D + 1 for D binary units, and 1 + D (C - 1) for D units of C classes."""
        return event_shape[0] + 1 if isinstance(neuron, LogisticBinary) else super().evaluations(neuron, event_shape)

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at h, and at h with one unit moved to each of its other outputs."""
        if isinstance(neuron, LogisticBinary):
            return ask_at_all_flips(neuron, a, key)
        return super().forward(neuron, a, key, state)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the exact derivative of each unit, given the others."""
        if not isinstance(draw.neuron, LogisticBinary):
            return super().backward(draw, feedback, state)
        loss = feedback.get_loss()
        difference = loss_difference(draw.neuron, draw.points[0], loss[0][..., None], loss[1:].movedim(0, -1), draw.a)
        return sigmoid_derivative(draw.a) * difference, state
