"""The score-function estimator without a baseline."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import State
from gradest.contract.score_function import ScoreFunction


class Reinforce(ScoreFunction):
    """The loss times the score: the score-function estimator without a baseline.

    ĝ = L(h) · d log P(h)/da; for a Bernoulli unit this is L (h - p).

    Unbiased for every loss, because dP(h)/da = P(h) d log P(h)/da: Theorem 1 of Bengio, Léonard and Courville (2013),
    Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation, arXiv 1308.3432.

    Introduced by Williams (1992), Simple Statistical Gradient-Following Algorithms for Connectionist Reinforcement
    Learning, Machine Learning 8.
    """

    name = "reinforce"
    summary = "loss times score, without a baseline"
    reference = "Williams 1992; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L(h)\,\nabla_a \log P(h)"

    examples = ({}, {"samples": 3})

    def credit(self, loss: Tensor, state: State, features: Tensor | None = None) -> tuple[Tensor, State]:
        """Return L_k / K."""
        samples = loss.shape[0]
        return loss / samples if samples > 1 else loss, state
