"""ARMS: antithetic samples of any number."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, State
from gradest.contract.neuron import Binary, Neuron, per_event
from gradest.contract.numerics import leading_mean, leading_sum, sigmoid, softplus
from gradest.random import Key
from gradest_estimators._binary import UnbiasedBinary
from gradest_estimators._score import scores


class Arms(UnbiasedBinary):
    """ĝ = 1/(K-1) Σ_k (L_k - mean L)(b_k - p) · p(1-p)/(p - J), of K samples that repel each other, J = P(b_j = b_k = 1).

    For each unit d ~ Dirichlet(1, ..., 1) in K dims (exponentials over their sum); each v_k = (1 - d_k)^(K-1) is uniform, and
    few of them are small at once. With q = min(p, 1-p), the rarer output is taken where v_k < q, with the probability
    J' = max(0, 2q^(1/(K-1)) - 1)^(K-1) in two samples at once. Both cases of the source, p < ½ and p >= ½, have
    p - J = q - J', so the factor is (1-q)/(1 - J'/q), between 1/2 and 1. Unbiased. For K = 2 it is `disarm` in law.
    """

    name = "arms"
    summary = "K samples that repel each other, with leave-one-out baselines"
    reference = "Dimitriev, Zhou 2021, arXiv 2105.14141"
    formula = r"\hat g = \frac{1}{K-1} \sum_k (L_k - \bar L)(b_k - p)\,\frac{p(1-p)}{p - J}"

    examples = ({}, {"samples": 2})

    samples: int = Field(4, ge=2, description="K")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """K."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at the K samples, all made in logarithms, so that saturation is as any other case."""
        assert isinstance(neuron, Binary)
        spacings = -torch.log(neuron.noise(key, a, self.samples))
        log_v = (self.samples - 1) * torch.log1p(-spacings / leading_sum(spacings))
        rare = log_v < -softplus(a.abs())
        points = torch.where(rare == (a < 0), neuron.high, neuron.low).to(a.dtype)
        return Draw(neuron, a, key, points, a.new_full((self.samples,), 1 / self.samples))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The leave-one-out estimate of independent samples, times what their repulsion makes of it."""
        loss, others = feedback.get_loss(), self.samples - 1
        minus_log_q = softplus(draw.a.abs())
        root = torch.exp(-minus_log_q / others)
        both_given_one = torch.exp(others * torch.log((2 * root - 1).clamp(min=0)) + minus_log_q)
        factor = sigmoid(draw.a.abs()) / (1 - both_given_one)
        centred = per_event(loss - leading_mean(loss), draw.neuron)
        return leading_sum(centred * scores(draw)) / others * factor, state
