"""The unordered set estimator: several classes of a unit, drawn without replacement."""

from __future__ import annotations

from itertools import combinations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import SoftmaxOneHot
from gradest_estimators._one_hot import OneUnitAtATime, losses_of


class UnorderedSet(OneUnitAtATime):
    """ĝ = Σ_{s in S} p_s R(S, s) (L(s) - B_s) d log p_s/da, S drawn without replacement (the k largest of a + G). Unbiased.

    R(S, s) = P(S | s first) / P(S), with P(S) the probability of the set in any order. B_s = Σ_{s'} p_s' R_s(S, s') L(s') is
    the source's built-in baseline: R_s(S, s') for s' ≠ s is the same ratio with s taken out of the classes, and 1 for s' = s;
    its weights sum to 1. For each unit, the other units held at one sample; K = 1 + units · (k - 1). With k = C one unit has
    no variance. The cost of P grows with 2^k.
    Memory: the points once, `[K, *batch, units, C]`.
    """

    name = "unordered_set"
    summary = "k classes of a unit without replacement, with their built-in baseline"
    reference = "Kool, van Hoof, Welling 2020, arXiv 2002.06043"
    formula = r"\hat g = \sum_{s \in S} p_s\,R(S, s)\,\bigl(L(s) - B_s\bigr)\nabla_a \log p_s"

    examples = ({}, {"samples": 3})

    samples: int = Field(
        2, ge=2, le=10, description="k, how many classes of each unit are drawn; all of them if it has fewer"
    )

    def tried(self, classes: int) -> int:
        """k, or all."""
        return min(self.samples, classes)

    def choose(self, neuron: SoftmaxOneHot, a: Tensor, perturbed: Tensor) -> Tensor:
        """The k largest: by the Gumbel-max trick a sample without replacement."""
        return perturbed.topk(self.tried(a.shape[-1]), -1).indices

    def weigh(self, neuron: SoftmaxOneHot, a: Tensor, chosen: Tensor) -> Tensor:
        """p_s R(S, s)."""
        log_p, tail = _log_chain(a, chosen)
        k = chosen.shape[-1]
        return torch.stack([torch.exp(log_p[..., s] + tail[1 << s] - tail[0]) for s in range(k)], -1)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Σ_s p_s R(S, s) (L(s) - B_s) d log p_s/da."""
        neuron, a, chosen = draw.neuron, draw.a, draw.saved["chosen"]
        assert isinstance(neuron, SoftmaxOneHot)
        loss, (log_p, tail) = losses_of(draw, feedback.get_loss()), _log_chain(a, chosen)
        k = chosen.shape[-1]
        # L(s) - B_s as a sum of differences: the weights of B_s sum to 1
        centred = [
            sum(
                (loss[..., s] - loss[..., t]) * torch.exp(log_p[..., t] + tail[1 << s | 1 << t] - tail[1 << s])
                for t in range(k)
                if t != s
            )
            for s in range(k)
        ]
        gap = torch.stack([torch.zeros_like(loss[..., 0]) + difference for difference in centred], -1)
        return self.gradient(draw, self.weigh(neuron, a, chosen) * gap), state


def _log_chain(a: Tensor, chosen: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """log p of the classes chosen, and log P(the rest of S comes next | the subset B was drawn) for every B, by its bits.

    P(S) = 1, and P(B) = Σ_{s in S \\ B} p_s / (1 - p(B)) P(B + s). In logarithms, 1 - p(B) as the sum of the others, so that a
    saturated p is neither 0 nor 1.
    """
    log_all, k = torch.log_softmax(a, -1), chosen.shape[-1]
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
