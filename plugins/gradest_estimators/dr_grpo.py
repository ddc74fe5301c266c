"""Dr. GRPO: the score function with the mean loss of the whole group as baseline."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, State
from gradest.contract.neuron import Neuron
from gradest.contract.score_function import ScoreFunction
from gradest_estimators._score import centered


class DrGrpo(ScoreFunction):
    """The score function for a group of K samples, with the mean loss of all K as the baseline of each.

    ĝ = 1/K Σ_k (L_k - mean_j L_j)(d log P(h_k)/da)

    It estimates (K-1)/K of the gradient of E[L], for every loss: the baseline contains the sample's own loss, which takes 1/K of
    the gradient away. Multiplied by K/(K-1) it is `rloo`. The factor does not change the direction, so an optimiser that divides
    by the size of the gradient, as Adam does, takes nearly the same steps with either.

    Introduced by Liu et al. (2025), Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783, which removes
    from `grpo` the division by the standard deviation of the group and by the length of each sequence. Their clipped objective
    with its ratio of probabilities has this gradient at the parameters that drew the samples.
    """

    name = "dr_grpo"
    summary = "K samples, with the mean loss of the group as baseline: (K-1)/K of the gradient"
    reference = "Liu et al. 2025, arXiv 2503.20783"
    formula = r"\hat g = \frac1K \sum_k (L_k - \bar L)\,\nabla_a \log P(h_k)"

    examples = ({}, {"samples": 4})

    samples: int = Field(2, ge=2, description="number K of samples in the group")

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: the expectation is (K-1)/K of the gradient."""
        return Bias.BIASED

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return (L_k - mean L) / K."""
        return centered(loss) / len(loss), state
