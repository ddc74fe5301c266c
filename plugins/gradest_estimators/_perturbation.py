"""Shared parts of the estimators that perturb the pre-activations."""

from __future__ import annotations

from abc import abstractmethod

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron, per_event
from gradest.contract.numerics import leading_mean
from gradest.random import Key


class Perturbation(Estimator):
    """A finite difference of the loss along a random direction Δ with E[ΔΔᵀ] = 1.

    ĝ = (L(f(a + cΔ, z)) - L(f(a - cΔ, z))) / (2c) · Δ, where f is the neuron and z its noise. It fits every neuron and
    needs only the loss. Both points of a pair share the noise z; for a unit whose output jumps, the variance is then of
    order 1/c instead of 1/c².

    Biased: with J(a) = E[L], E[ĝ] is the mean over Δ of (J(a + cΔ) - J(a - cΔ))/(2c) Δ, which differs from the gradient
    of J by O(c²). The value is the mean loss of the perturbed units, so it is biased as well.
    """

    needs = frozenset({"loss"})

    samples: int = Field(2, ge=2, multiple_of=2, description="number of points; a draw averages over pairs of them")
    scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="step size c, in units of a")

    @abstractmethod
    def direction(self, uniform: Tensor) -> Tensor:
        """Return Δ, computed from uniform noise of the same shape."""

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: a finite difference differs from the derivative by O(c²)."""
        return Bias.BIASED

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K, the number of points."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the outputs of a + cΔ, and then at those of a - cΔ, with the same noise."""
        pairs = self.samples // 2
        noise = neuron.noise(key, a, pairs)
        delta = self.direction(key.with_stream(1).uniform_like(a, pairs, neuron.event_ndim))
        moved = [neuron.forward(a + side * self.scale * delta, noise) for side in (1, -1)]
        return Draw(neuron, a, key, torch.cat(moved), saved={"delta": delta})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over pairs of the slope along Δ times Δ."""
        upper, lower = feedback.get_loss().chunk(2)
        slope = (upper - lower) / (2 * self.scale)
        return leading_mean(per_event(slope, draw.neuron) * draw.saved["delta"]), state
