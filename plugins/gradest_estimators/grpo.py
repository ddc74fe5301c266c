"""GRPO: the score function with losses that are standardised in their group."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, State
from gradest.contract.neuron import Neuron
from gradest.contract.numerics import leading_sum
from gradest.contract.score_function import ScoreFunction
from gradest_estimators._score import centered


class Grpo(ScoreFunction):
    """The score function for a group of K samples whose losses are standardised: centred, and divided by their spread.

    ĝ = 1/K Σ_k (L_k - mean L)/(std L + ε) (d log P(h_k)/da), with std² = 1/(K-1) Σ_j (L_j - mean L)².

    It does not estimate the gradient of E[L], nor a multiple of it: each element of the batch is rescaled by the spread of its
    own losses, so elements on which the losses nearly agree count as much as those on which they differ. For losses in {0, 1}
    with q = P(L = 1) the expectation is c_K(q) dq/da, where c_K depends on q and K alone and tends to 1/√(q(1-q)) as K grows:
    the gradient of 2 arcsin √q. Losses that are all equal give exactly 0.

    Introduced by Shao et al. (2024), DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv
    2402.03300. Their clipped objective with its ratio of probabilities has this gradient at the parameters that drew the samples,
    apart from its penalty on the divergence from a reference, which belongs into the loss, and its division of each sequence by
    its length. They do not say which standard deviation; this is the sample's, with K - 1, as in verl.
    """

    name = "grpo"
    summary = "K samples with losses standardised in their group: another quantity than the gradient"
    reference = "Shao et al. 2024, arXiv 2402.03300"
    formula = (
        r"\hat g = \frac1K \sum_k \frac{L_k - \bar L}{s_L + \varepsilon}\,\nabla_a \log P(h_k), \quad "
        r"s_L^2 = \frac{1}{K-1} \sum_j (L_j - \bar L)^2"
    )

    examples = ({}, {"samples": 4})

    samples: int = Field(2, ge=2, description="number K of samples in the group")
    epsilon: float = Field(
        1e-6, gt=0, allow_inf_nan=False, description="what is added to the standard deviation, in units of the loss"
    )

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: dividing by the standard deviation estimates another quantity."""
        return Bias.BIASED

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return (L_k - mean L) / (std L + ε) / K."""
        difference = centered(loss)
        largest = difference.abs().amax(0).clamp_min(torch.finfo(loss.dtype).tiny)
        relative = difference / largest  # at most 1, so that no square overflows or vanishes
        spread = (leading_sum(relative * relative) / (len(loss) - 1)).sqrt()
        return relative / (spread + self.epsilon / largest) / len(loss), state
