"""What the score-function estimators share."""

from __future__ import annotations

from torch import Tensor

from gradest.estimator import Bias, Draw, MonteCarlo
from gradest.neuron import Discrete, Neuron


class ScoreFunction(MonteCarlo):
    """An estimator of the form ĝ = mean_k (L_k - baseline) · d log P(h_k | a)/da, for neurons with a discrete law."""

    needs = frozenset({"loss"})
    capabilities = (Discrete,)

    def bias(self, neuron: Neuron) -> Bias:
        """None: E[score] = 0, so a baseline that does not depend on the sample changes no mean."""
        return Bias.NONE


def scores(draw: Draw) -> Tensor:
    """d log P(h | a)/da at the points, `[K, *batch, *event]`."""
    assert isinstance(draw.neuron, Discrete)
    return draw.neuron.score(draw.points, draw.a)
