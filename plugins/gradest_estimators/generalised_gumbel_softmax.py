"""The generalised Gumbel-softmax relaxation of units that output numbers, as an estimator."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Cost, Draw, Estimator, Feedback, State
from gradest.contract.neuron import Discrete, Neuron, Relaxable, keeps_event
from gradest.contract.numerics import leading_mean, leading_sum, portable
from gradest.random import Key


class GeneralisedGumbelSoftmax(Estimator):
    """The pathwise gradient of the loss at a mean s of the counts, whose weights are a softmax of their log-probabilities.

    ĝ = L'(s) · ds/da, with s = Σ_c c w_c and w = softmax((log P(c | a) + G)/τ) over counts c, with Gumbel noise G. Since
    dw_c/da = w_c/τ (score(c) - Σ_j w_j score(j)), ds/da is 1/τ times the covariance of the count and its score under w. L is
    evaluated at s as well, so it must be defined between the counts.

    A unit of finitely many outputs has one weight for each. Of one without an upper limit, `outcomes` consecutive counts have
    weights, around the mean or from 0 on. The law is then cut, so choose `outcomes` above 8 times the
    standard deviation: 32 is enough for rates of `poisson` up to 16. For larger rates, ĝ shrinks.

    Unbiased for the gradient of E[L(s)], the relaxed objective of the cut law, but biased for that of E[L(h)], as is the value: s
    does not have the mean of h. For a unit of two outputs it is `concrete`, which units with a relaxation of their own take.

    Introduced by Joo, Kim, Shin and Moon (2020), Generalized Gumbel-Softmax Gradient Estimator for Generic Discrete Random
    Variables, arXiv 2003.01847. Only its abstract could be read, which names the truncation, the Gumbel-softmax trick and a
    linear map. That the counts that are kept follow the mean is gradest's choice.
    """

    name = "generalised_gumbel_softmax"
    summary = "loss and gradient at a mean of the counts, weighted by a softmax of their perturbed log-probabilities"
    reference = "Joo, Kim, Shin, Moon 2020, arXiv 2003.01847"
    formula = (
        r"\hat g = L'(s)\,\frac{ds}{da}, \quad s = \sum_c c\, w_c, \quad "
        r"w = \mathrm{softmax}\!\left(\frac{\log P(\cdot \mid a) + G}{\tau}\right)"
    )
    needs = frozenset({"grad"})
    off_support = True
    capabilities: ClassVar[tuple[type[Neuron], ...]] = (Discrete,)

    examples = ({}, {"samples": 3, "temperature": 1.0, "outcomes": 20})

    samples: int = Field(1, ge=1, description="number of independent samples that a draw averages over")
    temperature: float = Field(0.5, ge=1e-3, le=1e3, description="temperature τ of the relaxation")
    outcomes: int = Field(
        32, ge=2, le=4096, description="number of counts with a weight, for a unit without an upper limit"
    )

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the neuron outputs numbers that do not move with a, and has no relaxation of its own."""
        return (
            isinstance(neuron, Discrete)
            and not isinstance(neuron, Relaxable)
            and neuron.event_ndim == 1
            and keeps_event(neuron)
            and (not neuron.finite or type(neuron).support is not Discrete.support)
        )

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: s does not have the mean of h, so even linear losses are biased."""
        return Bias.BIASED

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return the number of samples."""
        return self.samples

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return what the weights of all counts take, for every sample."""
        assert isinstance(neuron, Discrete)
        return super().cost(neuron, event, batch) * (len(neuron.support()) if neuron.finite else self.outcomes)

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the weighted means of the counts."""
        counts, weights = self._relax(neuron, a, key)
        points = leading_sum(counts[:, None] * weights).to(a.dtype)
        return Draw(neuron, a, key, points)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of L'(s) times the covariance of count and score under the weights, over τ."""
        neuron, a = draw.neuron, draw.a
        assert isinstance(neuron, Discrete)
        counts, weights = self._relax(neuron, a, draw.key)
        score = neuron.score(counts.to(a.dtype), a).double()
        centred = counts[:, None] - leading_sum(counts[:, None] * weights)
        slope = leading_sum(weights * centred * score[:, None])
        gradient = leading_mean(feedback.get_grad().double() * slope) / self.temperature
        return gradient.to(a.dtype), state

    def _relax(self, neuron: Neuron, a: Tensor, key: Key) -> tuple[Tensor, Tensor]:
        """Return the counts, `[C, *a.shape]`, and the weights of each sample, `[C, samples, *a.shape]`, in float64."""
        assert isinstance(neuron, Discrete)
        counts = neuron.support().to(a) if neuron.finite else torch.arange(self.outcomes, device=a.device).to(a)
        counts = counts[(..., *[None] * a.ndim)].expand(-1, *a.shape)
        if not neuron.finite:
            counts = counts + (neuron.mean(a).round() - self.outcomes // 2).clamp(min=0)
        log_p = neuron.log_prob(counts, a).double()
        noise = torch.stack([key.with_stream(place).uniform_like(a, self.samples) for place in range(len(counts))])
        perturbed = log_p[:, None] - portable.log(-portable.log(noise.double()))
        weights = portable.exp((perturbed - perturbed.amax(0)) / self.temperature)
        return counts.double(), weights / leading_sum(weights)
