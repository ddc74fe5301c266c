"""The ARMS estimator: any number of antithetic samples."""

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
    """Leave-one-out REINFORCE for K negatively correlated samples, corrected for their correlation.

    ĝ = 1/(K-1) Σ_k (L_k - mean L)(b_k - p) · p(1-p)/(p - J), with b_k = 1 for high and 0 for low, and
    J = P(b_j = b_k = 1).

    For each unit, d ~ Dirichlet(1, ..., 1) in K dimensions is drawn as exponentials divided by their sum. Each
    v_k = (1 - d_k)^(K-1) is uniform, and few of them are small at once. With q = min(p, 1-p), sample k takes the rarer
    output where v_k < q; two samples both take it with probability J' = max(0, 2q^(1/(K-1)) - 1)^(K-1). In both cases
    of Dimitriev and Zhou (2021), p < ½ and p >= ½, p - J = q - J', so the factor is (1-q)/(1 - J'/q), which lies
    between ½ and 1.

    Unbiased for every loss: the factor undoes what the correlation does to the mean of the leave-one-out estimate. For
    K = 2 it has the law of `disarm`.

    Introduced by Dimitriev and Zhou (2021), ARMS: Antithetic-REINFORCE-Multi-Sample Gradient for Binary Variables,
    arXiv 2105.14141.
    """

    name = "arms"
    summary = "K negatively correlated samples with leave-one-out baselines"
    reference = "Dimitriev, Zhou 2021, arXiv 2105.14141"
    formula = r"\hat g = \frac{1}{K-1} \sum_k (L_k - \bar L)(b_k - p)\,\frac{p(1-p)}{p - J}"

    examples = ({}, {"samples": 2})

    samples: int = Field(4, ge=2, description="number K of samples")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K, the number of samples."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the K samples, drawn in logarithms so that saturated units need no special case."""
        assert isinstance(neuron, Binary)
        spacings = -torch.log(neuron.noise(key, a, self.samples))
        log_v = (self.samples - 1) * torch.log1p(-spacings / leading_sum(spacings))
        rare = log_v < -softplus(a.abs())
        points = torch.where(rare == (a < 0), neuron.high, neuron.low).to(a.dtype)
        return Draw(neuron, a, key, points)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the leave-one-out estimate for independent samples, times the factor that corrects for their correlation."""
        loss, others = feedback.get_loss(), self.samples - 1
        minus_log_q = softplus(draw.a.abs())
        root = torch.exp(-minus_log_q / others)
        both_given_one = torch.exp(others * torch.log((2 * root - 1).clamp(min=0)) + minus_log_q)
        factor = sigmoid(draw.a.abs()) / (1 - both_given_one)
        centred = per_event(loss - leading_mean(loss), draw.neuron)
        return leading_sum(centred * scores(draw)) / others * factor, state
