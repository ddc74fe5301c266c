"""The leave-one-out score-function estimator."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Discrete
from gradest.contract.numerics import leave_one_out
from gradest.contract.score_function import ScoreFunction


class Rloo(ScoreFunction):
    """The score function for K samples, each with the mean loss of the others as its baseline.

    ĝ = 1/(K-1) Σ_k (L_k - mean_j L_j)(d log P(h_k)/da), which equals 1/K Σ_k (L_k - mean_{j≠k} L_j)(d log P(h_k)/da).

    Unbiased for every loss: the samples are independent, so the baseline of each does not depend on it, and the score
    has mean zero.

    Introduced by Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples, Get a Baseline for Free!, ICLR workshop on
    deep reinforcement learning meets structured prediction.
    """

    name = "rloo"
    summary = "K samples, each with the mean loss of the others as its baseline"
    reference = "Kool, van Hoof, Welling 2019"
    formula = r"\hat g = \frac{1}{K-1} \sum_k (L_k - \bar L)\,\nabla_a \log P(h_k)"

    examples = ({}, {"samples": 4})

    samples: int = Field(2, ge=2, description="number K of samples")

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return (L_k - mean L) / (K - 1)."""
        return leave_one_out(loss), state

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return Σ_k (L_k - mean L) score_k / (K - 1), in one pass where the neuron has a kernel for it."""
        assert isinstance(draw.neuron, Discrete)
        return draw.neuron.leave_one_out_score(draw.points, draw.a, feedback.get_loss()), state
