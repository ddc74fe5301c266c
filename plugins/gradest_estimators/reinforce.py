"""The score-function estimator without a baseline."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest_estimators._score import ScoreFunction, weighted_score


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

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of the loss times the score."""
        loss = feedback.get_loss()
        return weighted_score(draw, loss / self.samples if self.samples > 1 else loss), state
