"""The augment-REINFORCE-swap-merge (ARSM) estimator."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot, event_shape
from gradest.contract.numerics import leading_sum
from gradest.random import Key


class Arsm(Estimator):
    """Loss differences between exchanges of the noise of two classes, weighted with that noise.

    ĝ_c = 1/C Σ_j (L(z^{c⇌j}) - 1/C Σ_m L(z^{m⇌j})) (1 - C π_j). For each unit, π is uniform on the simplex:
    Dirichlet(1), drawn as exponentials divided by their sum. z = argmin_i π_i e^{-a_i} is the class it selects, and
    z^{c⇌j} is the class that it selects with π_c and π_j exchanged; the exchange is made in all units at once, and π_j
    is the unit's own. So K = 1 + C(C-1)/2 for any number of units. Memory: the points, `[K, *batch, units, C]`, are
    held once, and their losses once for each unit.

    Unbiased for every loss: exchanging two entries does not change the law of π, so each j gives the REINFORCE estimate
    in π, and what is subtracted has mean zero, because the gradient of a softmax sums to zero over its classes.

    Introduced by Yin, Yue and Zhou (2019), ARSM: Augment-REINFORCE-Swap-Merge Estimator for Gradient Backpropagation
    Through Categorical Variables, arXiv 1905.01413.
    """

    name = "arsm"
    summary = "loss differences after exchanging the noise of two classes, for every pair of classes"
    reference = "Yin, Yue, Zhou 2019, arXiv 1905.01413"
    formula = (
        r"\hat g_c = \frac1C \sum_j \Bigl(L(z^{c \rightleftharpoons j}) - \frac1C \sum_m L(z^{m "
        r"\rightleftharpoons j})\Bigr)(1 - C \pi_j)"
    )
    needs = frozenset({"loss"})
    capabilities = (SoftmaxOneHot,)

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: unbiased for every loss, because an exchange of two entries of π does not change its law."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K = 1 + C(C-1)/2."""
        classes = event_shape[-1]
        return 1 + classes * (classes - 1) // 2

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the output without an exchange, and after each exchange; every one of them has the neuron's law."""
        classes = event_shape(neuron, a)[-1]
        noise = neuron.noise(key, a, 1)[0]
        points = a.new_empty(self.evaluations(neuron, event_shape(neuron, a)), *a.shape)
        points[0] = neuron.forward(a, noise)
        for at, (c, j) in enumerate(combinations(range(classes), 2)):
            order = list(range(classes))
            order[c], order[j] = j, c
            points[at + 1] = neuron.forward(a, noise[..., order])
        return Draw(neuron, a, key, points, saved={"noise": noise})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean of the estimates over the reference classes j."""
        loss, classes = feedback.get_loss(), draw.a.shape[-1]
        exponential = -torch.log(draw.saved["noise"]).contiguous()
        factor = 1 - classes * exponential / exponential.sum(-1, keepdim=True)
        point_of = torch.zeros(
            classes, classes, dtype=torch.int64, device="cpu"
        )  # index of the point with c and j exchanged
        for at, (c, j) in enumerate(combinations(range(classes), 2)):
            point_of[c, j] = point_of[j, c] = at + 1
        exchanged = loss[point_of]  # [c, j, *batch]
        centred = exchanged - leading_sum(exchanged) / classes
        # [c, j, *batch, units] summed over j
        terms = centred[..., None] * factor.movedim(-1, 0)
        return (leading_sum(terms.transpose(0, 1)) / classes).movedim(0, -1).contiguous(), state
