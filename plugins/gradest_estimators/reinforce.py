"""The score-function estimator without a baseline."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest_estimators._score import ScoreFunction, weighted_score


class Reinforce(ScoreFunction):
    """ĝ = L(h) · d log P(h)/da; for a Bernoulli unit L (h - p). Theorem 1 of the source: unbiased."""

    name = "reinforce"
    summary = "loss times score, no baseline"
    reference = "Williams 1992; Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"\hat g = L(h)\,\nabla_a \log P(h)"

    examples = ({}, {"samples": 3})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over samples of loss times score."""
        loss = feedback.get_loss()
        return weighted_score(draw, loss / self.samples if self.samples > 1 else loss), state
