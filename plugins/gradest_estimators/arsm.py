"""The augment-REINFORCE-swap-merge estimator."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot, event_shape
from gradest.contract.numerics import leading_sum
from gradest.random import Key


class Arsm(Estimator):
    """ĝ_c = 1/C Σ_j (L(z^{c⇌j}) - 1/C Σ_m L(z^{m⇌j})) (1 - C π_j). Unbiased.

    π is uniform on the simplex (Dirichlet(1), exponential noise divided by its sum) and z = argmin_i π_i e^{-a_i} the class it
    draws; z^{c⇌j} is what it draws with π_c and π_j exchanged, in all units at once. π_j is the unit's own. K = 1 + C(C-1)/2,
    for any number of units. Memory: the points, `[K, *batch, units, C]`, once, and their losses for each unit.
    """

    name = "arsm"
    summary = "exchanges the noises of two classes in all units at once, for each pair of classes"
    reference = "Yin, Yue, Zhou 2019, arXiv 1905.01413"
    formula = (
        r"\hat g_c = \frac1C \sum_j \Bigl(L(z^{c \rightleftharpoons j}) - \frac1C \sum_m L(z^{m "
        r"\rightleftharpoons j})\Bigr)(1 - C \pi_j)"
    )
    needs = frozenset({"loss"})
    capabilities = (SoftmaxOneHot,)

    def bias(self, neuron: Neuron) -> Bias:
        """None."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """1 + C(C-1)/2."""
        classes = event_shape[-1]
        return 1 + classes * (classes - 1) // 2

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at the output without an exchange and at that of each exchange; each has the neuron's law."""
        classes = event_shape(neuron, a)[-1]
        noise = neuron.noise(key, a, 1)[0]
        points = a.new_empty(self.evaluations(neuron, event_shape(neuron, a)), *a.shape)
        points[0] = neuron.forward(a, noise)
        for at, (c, j) in enumerate(combinations(range(classes), 2)):
            order = list(range(classes))
            order[c], order[j] = j, c
            points[at + 1] = neuron.forward(a, noise[..., order])
        weights = a.new_full((len(points),), 1 / len(points))
        return Draw(neuron, a, key, points, weights, {"noise": noise})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over the reference classes j."""
        loss, classes = feedback.get_loss(), draw.a.shape[-1]
        exponential = -torch.log(draw.saved["noise"]).contiguous()
        factor = 1 - classes * exponential / exponential.sum(-1, keepdim=True)
        number = torch.zeros(classes, classes, dtype=torch.int64)  # of the exchange of c and j among the points
        for at, (c, j) in enumerate(combinations(range(classes), 2)):
            number[c, j] = number[j, c] = at + 1
        exchanged = loss[number]  # [c, j, *batch]
        centred = exchanged - leading_sum(exchanged) / classes
        # [c, j, *batch, units] summed over j
        terms = centred[..., None] * factor.movedim(-1, 0)
        return (leading_sum(terms.transpose(0, 1)) / classes).movedim(0, -1).contiguous(), state
