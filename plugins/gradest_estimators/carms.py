"""The CARMS estimator: any number of antithetic samples of units with several classes."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_sum, widen
from gradest.random import Key


class Carms(Estimator):
    """Leave-one-out REINFORCE for K negatively correlated samples, each pair corrected for its correlation.

    ĝ = 1/(K(K-1)) Σ_{j<k} r(h_j, h_k) (L_j - L_k)(h_j - h_k) for each unit, with r(c, c') = p_c p_c' / P(h_j = c, h_k = c')
    for the classes c ≠ c' of this unit.

    The samples of a unit are drawn class by class, from the rarest class to the most probable one. At class c, each
    sample that is still without a class takes it with probability q_c = p_c / (sum of the p of the classes not yet
    passed); the last class takes all that are left. The K decisions at a class are coupled as in `arms`: with
    d ~ Dirichlet(1, ..., 1) in K dimensions, sample k takes the class where (1 - d_k)^(K-1) < q_c. So two samples
    both take it with probability J_c = max(0, 2 q_c^(1/(K-1)) - 1)^(K-1), which is below q_c². Decisions at different
    classes are independent. Every q_c but the last is at most ½, so no pair of different classes is impossible, and
    with c the class that comes first of the two

    r = (1 - q_c)/(1 - J_c/q_c) · Π_b (1 - q_b)²/(1 - 2 q_b + J_b), over the classes b before c.

    r lies between ½ and 2 for all K, all classes and all probabilities.

    Unbiased for every loss: a pair of independent samples would give ĝ with r = 1, and r is the ratio of the two laws
    of a pair. Pairs of equal classes contribute 0 to either. The other units do not depend on this one's noise.

    For two classes this is `arms`, and for K = 2 it then is `disarm`. Memory: the points, `[K, *batch, units, C]`, are
    held once.

    Introduced by Dimitriev and Zhou (2021), CARMS: Categorical-Antithetic-REINFORCE Multi-Sample Gradient Estimator,
    arXiv 2110.14002. The estimate is theirs for any coupling of which the law of a pair is known; the coupling class by
    class is gradest's, because it has that law in closed form and no pair that is impossible.
    """

    name = "carms"
    summary = "K negatively correlated samples of a one-hot unit, each pair corrected for its correlation"
    reference = "Dimitriev, Zhou 2021, arXiv 2110.14002"
    formula = r"\hat g = \frac{1}{K(K-1)} \sum_{j<k} \frac{p_{h_j}\,p_{h_k}}{P(h_j, h_k)}\,(L_j - L_k)(h_j - h_k)"
    needs = frozenset({"loss"})
    capabilities = (SoftmaxOneHot,)

    examples = ({}, {"samples": 2})

    samples: int = Field(4, ge=2, description="number K of samples")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE`: unbiased for every loss, because r is the ratio of the laws of independent and coupled pairs."""
        return Bias.NONE

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K, the number of samples."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the K samples, drawn in logarithms so that saturated units need no special case."""
        assert isinstance(neuron, SoftmaxOneHot)
        order, log_q = _log_conditionals(a)
        spacings = -torch.log(neuron.noise(key, a, self.samples))
        log_v = (self.samples - 1) * torch.log1p(-spacings / leading_sum(spacings))
        # the noise of a class decides about that class; the first one that is taken has the largest value
        taken = log_v.gather(-1, order.expand_as(log_v)) < log_q
        first = taken.to(torch.uint8).argmax(-1, keepdim=True)
        points = neuron.one_hot(order.expand_as(log_v).gather(-1, first)[..., 0], a)
        return Draw(neuron, a, key, points)

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw, of which each pair of samples is compared at each unit."""
        return super().cost(neuron, event, batch) + Cost(0, self.samples**2 * math.prod(batch) * event[0])

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over all pairs of r (L_j - L_k)(h_j - h_k)/2."""
        h, loss = draw.points, feedback.get_loss()
        order, log_q = _log_conditionals(draw.a)
        correction = _pair_corrections(log_q, self.samples - 1)  # by the place of the class that comes first
        places = order.argsort(-1).expand_as(h).gather(-1, h.argmax(-1, keepdim=True))[..., 0]  # [K, *batch, units]
        loss, weights = loss[..., None], []
        for place, own in zip(places, loss, strict=True):
            first = torch.minimum(places, place).movedim(0, -1)
            pairs = correction.gather(-1, first).movedim(-1, 0) * (own - loss).to(h)
            weights.append(leading_sum(pairs))
        total = leading_sum(torch.stack(weights)[..., None] * h)
        return total / (self.samples * (self.samples - 1)), state


def _log_conditionals(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return the order of the classes, the rarest first, and log q in that order, both `[*batch, units, classes]`.

    q is the probability of a class, given that none before it was taken: ½ at most, except 1 for the last class.
    """
    order = a.argsort(dim=-1, stable=True)
    log_p = torch.log_softmax(widen(a), -1).gather(-1, order)
    left, step, classes = log_p.exp(), 1, a.shape[-1]
    while step < classes:  # sums of what follows, by doubling, so that a row has the same bits in any batch
        left = left + torch.nn.functional.pad(left[..., step:], (0, step))
        step *= 2
    log_q = log_p - torch.log(left)
    log_q = log_q.clamp(max=-math.log(2))  # what rounding adds to it where the last two classes are equally probable
    return order, torch.nn.functional.pad(log_q[..., :-1], (0, 1))


def _pair_corrections(log_q: Tensor, others: int) -> Tensor:
    """Return r for the pairs of which the earlier class is at each place, and 0 at the last, which cannot be earlier."""
    log_q = log_q[..., :-1]
    q = torch.exp(log_q)
    both = torch.exp(others * torch.log((2 * torch.exp(log_q / others) - 1).clamp(min=0)))
    one = torch.where(both > 0, (1 - q) / (1 - torch.exp(torch.log(both) - log_q)), 1 - q)
    neither, step = (1 - q) ** 2 / (1 - 2 * q + both), 1
    before = torch.nn.functional.pad(neither[..., :-1], (1, 0), value=1.0)
    while step < before.shape[-1]:  # each step doubles how many of the factors before a place its product has
        before = before * torch.nn.functional.pad(before[..., :-step], (step, 0), value=1.0)
        step *= 2
    return torch.nn.functional.pad(one * before, (0, 1))
