"""OPO: the score function with a weighted mean of the group's losses as baseline."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, State
from gradest.contract.neuron import Discrete, Neuron
from gradest.contract.numerics import leading_sum
from gradest.contract.score_function import ScoreFunction
from gradest.errors import InvalidInput
from gradest_estimators._score import event_sum


class Opo(ScoreFunction):
    """The score function for a group of K samples, with a mean of their losses as baseline that is weighted by W.

    ĝ = 1/K Σ_k (L_k - B)(d log P(h_k)/da), with B = Σ_j W_j L_j / Σ_j W_j.

    W stands for the squared norm of the score s = d log P(h)/da, because E[|s|² L] / E[|s|²] is the constant baseline with the
    least variance, summed over coordinates. For each coordinate by itself it is Corollary 1 of Bengio, Léonard and Courville
    (2013), arXiv 1308.3432, of which `reinforce_centered` keeps moving averages. On a layer of units W is |s|² itself. For
    sequences it is given as features, `[K, *batch]`: their lengths, to which the squared norm is proportional if the scores of
    tokens are uncorrelated and equally large. Samples with W = 0 are left out of the baseline; it is 0 if all are.

    B contains the sample's own loss, so ĝ does not estimate the gradient of E[L], but that of E[L] - E[B]/K, in which each W is
    held fixed where it depends on a. If all W are equal, that is (K-1)/K of the gradient of E[L], as of `dr_grpo`. With
    `leave_one_out` the baseline of each sample is the weighted mean of the others, and ĝ is unbiased for every loss.

    Introduced by Hao et al. (2025), On-Policy RL with Optimal Reward Baseline, arXiv 2505.23585, with the sequence's length as W.
    """

    name = "opo"
    summary = "K samples with a weighted mean of the group's losses as baseline, by length or squared score"
    reference = "Hao et al. 2025, arXiv 2505.23585; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = \frac1K \sum_k (L_k - B)\,\nabla_a \log P(h_k), \quad B = \frac{\sum_j W_j L_j}{\sum_j W_j}"

    examples = ({}, {"samples": 4}, {"samples": 3, "leave_one_out": True})

    samples: int = Field(2, ge=2, description="number K of samples in the group")
    leave_one_out: bool = Field(
        False, description="whether a sample's own loss is left out of its baseline, which removes the bias"
    )

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.NONE` with `leave_one_out`: the baseline then does not depend on the sample. Else `Bias.BIASED`."""
        return Bias.NONE if self.leave_one_out else Bias.BIASED

    def features(self, neuron: Neuron, h: Tensor, a: Tensor) -> Tensor:
        """Return the squared norm of the score of each sample, `[K, *batch]`."""
        assert isinstance(neuron, Discrete)
        return event_sum(neuron.score(h, a).square(), neuron)

    def check_features(self, loss: Tensor, features: Tensor | None) -> None:
        """Raise InvalidInput unless the features are `[K, *batch]`, and not negative."""
        if bool((self._check(loss, features) < 0).any()):
            raise InvalidInput(f"{self.name} weights losses by its features, which must not be negative")

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return (L_k - B) / K, or (L_k - B_k) / K with `leave_one_out`.

        features: W, `[K, *batch]`, not negative.
        """
        weight = self._check(loss, features)
        weight = weight / weight.amax(0).clamp_min(torch.finfo(weight.dtype).tiny)
        relative = loss - loss[0]  # equal losses are then exactly 0, and so are their weights
        total, product = (
            (_sum_of_others(x) if self.leave_one_out else leading_sum(x)) for x in (weight, weight * relative)
        )
        none = total == 0
        baseline = torch.where(none, -loss[0], product / torch.where(none, 1, total))
        return (relative - baseline) / len(loss), state

    def _check(self, loss: Tensor, features: Tensor | None) -> Tensor:
        if features is None or features.shape != loss.shape:
            found = "there are none" if features is None else f"they have shape {list(features.shape)}"
            tokens = features is not None and features.shape[:-1] == loss.shape
            remedy = (
                "Features of each token need the loss of each token, of which that of a whole sequence is due at its last one"
                if tokens
                else "Give features=lengths, or use dr_grpo, which weights all alike"
            )
            raise InvalidInput(
                f"{self.name} weights the losses of its baseline by features of their shape, {list(loss.shape)}, such as the "
                f"lengths of the sequences; {found}. {remedy}"
            )
        return features


def _sum_of_others(x: Tensor) -> Tensor:
    """Return Σ_{j≠k} x_j for each k, `[K, ...]`, as the sum before k plus the sum after it: nothing is subtracted."""
    x = x.movedim(0, -1).contiguous()
    before = x.cumsum(-1).roll(1, -1)
    after = x.flip(-1).cumsum(-1).roll(1, -1).flip(-1)
    first = torch.arange(x.shape[-1], device=x.device)
    return (torch.where(first == 0, 0, before) + torch.where(first == x.shape[-1] - 1, 0, after)).movedim(-1, 0)
