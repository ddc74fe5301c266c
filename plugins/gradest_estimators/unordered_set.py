"""The unordered set estimator: several classes of a unit, drawn without replacement."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Cost, Draw, Feedback, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot
from gradest_estimators._one_hot import OneUnitAtATime, losses_by_class

_LEAST_LOG = -1e30  # of a class that is masked with -inf, so that differences are not NaN


class UnorderedSet(OneUnitAtATime):
    """A set S of k classes of a unit, drawn without replacement, each with an importance weight and a built-in baseline.

    ĝ = Σ_{s in S} p_s R(S, s) (L(s) - B_s) d log p_s/da for each unit, while the other units stay at one sample. S is
    the k largest entries of a + G. R(S, s) = P(S | s first) / P(S), with P(S) the probability of the set in any order.
    B_s = Σ_{s'} p_s' R_s(S, s') L(s') is the built-in baseline of Kool et al. (2020): for s' ≠ s, R_s(S, s') is the
    same ratio with s taken out of the classes; it is 1 for s' = s. The weights of B_s sum to 1.

    Unbiased for every loss: without B_s it is the conditional expectation, given S, of the estimate from the first
    class drawn, and B_s is constructed so that the mean does not change. K = 1 + units · (k - 1). With k = C a single
    unit has no variance. The cost of P grows with 2^k. Memory: the points, `[K, *batch, units, C]`, are held once.

    Introduced by Kool, van Hoof and Welling (2020), Estimating Gradients for Discrete Random Variables by Sampling
    without Replacement, arXiv 2002.06043.
    """

    name = "unordered_set"
    summary = "k classes of a unit drawn without replacement, with a built-in baseline"
    reference = "Kool, van Hoof, Welling 2020, arXiv 2002.06043"
    formula = r"\hat g = \sum_{s \in S} p_s\,R(S, s)\,\bigl(L(s) - B_s\bigr)\nabla_a \log p_s"

    examples = ({}, {"samples": 3})

    samples: int = Field(
        2, ge=2, le=10, description="number k of classes drawn for each unit; all of them if there are fewer"
    )

    def number_tried(self, classes: int) -> int:
        """Return k, or the number of classes if that is smaller."""
        return min(self.samples, classes)

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw with the probabilities of the 2^k subsets of the classes drawn."""
        subsets = event[0] * math.prod(batch) << self.number_tried(event[1])
        return super().cost(neuron, event, batch) + Cost(subsets, self.samples * subsets)

    def choose_classes(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """Return the k classes where `perturbed` is largest, which by the Gumbel-max trick are a sample without replacement."""
        return perturbed.topk(self.number_tried(a.shape[-1]), -1).indices

    def class_weights(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """Return p_s R(S, s)."""
        log_p, tail = _log_completions(a, chosen)
        k = chosen.shape[-1]
        return torch.stack([torch.exp(log_p[..., s] + tail[1 << s] - tail[0]) for s in range(k)], -1)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_s p_s R(S, s) (L(s) - B_s) d log p_s/da."""
        neuron, a, chosen = draw.neuron, draw.a, draw.saved["chosen"]
        assert isinstance(neuron, SoftmaxOneHot)
        loss, (log_p, tail) = losses_by_class(draw, feedback.get_loss()), _log_completions(a, chosen)
        k = chosen.shape[-1]
        # L(s) - B_s is a sum of differences, because the weights of B_s sum to 1
        centred = [
            sum(
                (loss[..., s] - loss[..., t]) * torch.exp(log_p[..., t] + tail[1 << s | 1 << t] - tail[1 << s])
                for t in range(k)
                if t != s
            )
            for s in range(k)
        ]
        gap = torch.stack([torch.zeros_like(loss[..., 0]) + difference for difference in centred], -1)
        return self.weighted_class_score(draw, self.class_weights(neuron, a, chosen) * gap), state


def _log_completions(a: Tensor, chosen: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """Return log p of the chosen classes, and, for every subset B of S, the log-probability that S is completed from B.

    The second is log P(the next classes drawn are the rest of S | B was drawn), keyed by the bits of B. It follows from
    P(S) = 1 and P(B) = Σ_{s in S without B} p_s / (1 - p(B)) P(B + s). In logarithms, and with 1 - p(B) as the sum of
    the other classes, a saturated p is neither rounded to 0 nor to 1.
    """
    log_all, k = torch.log_softmax(a, -1).clamp(min=_LEAST_LOG), chosen.shape[-1]
    log_p = log_all.gather(-1, chosen)
    outside = torch.logsumexp(log_all.scatter(-1, chosen, float("-inf")).contiguous(), -1)
    tail = {(1 << k) - 1: torch.zeros_like(outside)}
    for size in range(k - 1, -1, -1):
        for drawn in combinations(range(k), size):
            bits = sum(1 << s for s in drawn)
            rest = [s for s in range(k) if s not in drawn]
            left = torch.stack([outside, *(log_p[..., s] for s in rest)], -1)
            terms = torch.stack([log_p[..., s] + tail[bits | 1 << s] for s in rest], -1)
            tail[bits] = torch.logsumexp(terms, -1) - torch.logsumexp(left, -1)
    return log_p, tail
