"""PKPO: the score function for the best of k samples, and so for pass@k."""

from __future__ import annotations

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.estimator import Draw, State
from gradest.contract.numerics import leading_sum, leave_one_out
from gradest.contract.score_function import ScoreFunction
from gradest.contract.target import MaxOfSamples, Target


class PassAtK(ScoreFunction):
    """The score function for the least loss of k samples, estimated from n ≥ k of them.

    The target is E[min(L_1, ..., L_k)] for k independent samples. With losses 1 - right, right in {0, 1}, it is 1 - pass@k: one
    minus the probability that one of k attempts is right.

    ĝ = Σ_i w_i d log P(h_i)/da, with w_i the mean over all subsets I of k of the n samples of 1[i ∈ I] (min_I L - min_{I∖i} L).

    Unbiased for the target with every loss: the mean of min_I L over the subsets estimates it, and min_{I∖i} L is a baseline that
    does not depend on h_i. With the losses sorted upwards w_(i) = -Σ_{m≥i} (L_(m+1) - L_(m)) C(n-m, k-1) / C(n, k). So a sample
    is credited with what it improves on others, and the k - 1 worst get no credit. For k = 1 there is nothing to be better than
    in a subset without i; the baseline is then the mean loss of the others, as in `rloo`.

    The value is the mean of min_I L over the subsets. Its gradient gives the losses the shares C(n-i, k-1) / C(n, k) in sorted
    order; of equal losses the first gets the largest share.

    Introduced by Walder and Karkhanis (2025), Pass@K Policy Optimization: Solving Harder Reinforcement Learning Problems, arXiv
    2505.15201, for rewards, whose maximum is taken. The weights are those of their equation 33.
    """

    name = "pass_at_k"
    summary = "gradient of the least loss of k samples (pass@k), from at least k of them"
    reference = "Walder, Karkhanis 2025, arXiv 2505.15201"
    formula = (
        r"\hat g = \sum_i \binom{n}{k}^{-1} \sum_{I \ni i, |I| = k} \bigl(\min_I L - \min_{I \setminus i} L\bigr)\,"
        r"\nabla_a \log P(h_i)"
    )

    examples = ({}, {"samples": 2}, {"k": 1})

    samples: int = Field(4, ge=2, description="number n of samples, at least k; if omitted, the larger of 4 and k")
    k: int = Field(2, ge=1, description="number of samples of which the best counts")

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.samples < self.k:
            if "samples" in self.model_fields_set:
                raise ValueError(
                    f"the best of k = {self.k} samples needs at least as many, not samples = {self.samples}"
                )
            object.__setattr__(self, "samples", self.k)  # the model is frozen
        return self

    def target(self) -> Target:
        """Return E[min L] of k samples, which for k = 1 is E[L]."""
        return MaxOfSamples(self.k) if self.k > 1 else Target()

    def value(self, draw: Draw, loss: Tensor) -> Tensor:
        """Return the mean of the least loss over all subsets of k samples, `[*batch]`."""
        return self.combine(loss)

    def combine(self, loss: Tensor) -> Tensor:
        """Return the mean of the least loss over all subsets of k samples, `[*batch]`."""
        ordered = loss.sort(0).values
        return leading_sum(_per_sample(self._shares(len(loss)), ordered) * ordered)

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return the mean over all subsets of k samples of what sample i lowers their least loss by, negative."""
        if self.k == 1:
            return leave_one_out(loss), state
        ordered, order = loss.sort(0)
        gaps = (ordered[1:] - ordered[:-1]) * _per_sample(self._shares(len(loss))[:-1], ordered)
        gains = gaps.movedim(0, -1).flip(-1).contiguous().cumsum(-1).flip(-1).movedim(-1, 0)
        weights = torch.cat([-gains, torch.zeros_like(ordered[:1])])
        return torch.zeros_like(loss).scatter(0, order, weights), state

    def _shares(self, samples: int) -> Tensor:
        """Return, for each rank from the least loss on, the share C(n-i, k-1) / C(n, k) of subsets in which it is the least."""
        n, k = samples, self.k
        # the ratio of two neighbours, since the binomial coefficients themselves grow beyond all floats
        left = torch.arange(n - 1, 0, -1, dtype=torch.float64, device="cpu")
        ratios = (left - (k - 1)).clamp(min=0) / left
        return torch.cat([ratios.new_tensor([k / n]), ratios]).cumprod(0)


def _per_sample(numbers: Tensor, like: Tensor) -> Tensor:
    """Return the numbers as a tensor that broadcasts over the batch of `like`, `[K, *batch]`."""
    return numbers.to(like.device, like.dtype)[(..., *[None] * (like.ndim - 1))]
