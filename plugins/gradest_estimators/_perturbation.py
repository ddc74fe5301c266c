"""What the estimators that move the pre-activations have in common."""

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
    """ĝ = (L(f(a + cΔ, z)) - L(f(a - cΔ, z))) / (2c) · Δ: a finite difference along a random direction Δ, E[ΔΔᵀ] = 1.

    It needs the loss alone, of any neuron. Both points share their noise z: for a unit that jumps this makes the variance go
    with 1/c instead of 1/c². With J(a) = E[L], E[ĝ] is the mean over Δ of (J(a + cΔ) - J(a - cΔ))/(2c) Δ, which differs
    from the gradient of J by O(c²). The value is the mean of the losses, of the perturbed units as well.
    """

    needs = frozenset({"loss"})

    samples: int = Field(2, ge=2, multiple_of=2, description="how many points, two a pair; a draw averages over pairs")
    scale: float = Field(1.0, gt=0, allow_inf_nan=False, description="c, in units of a")

    @abstractmethod
    def direction(self, uniform: Tensor) -> Tensor:
        """Δ, from uniform noise."""

    def bias(self, neuron: Neuron) -> Bias:
        """Biased, by O(c²)."""
        return Bias.BIASED

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """The number of points."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks at the outputs of a + cΔ, and then at those of a - cΔ, with the same noise."""
        pairs = self.samples // 2
        noise = neuron.noise(key, a, pairs)
        delta = self.direction(key.with_stream(1).uniform_like(a, pairs, neuron.event_ndim))
        moved = [neuron.forward(a + side * self.scale * delta, noise) for side in (1, -1)]
        weights = a.new_full((self.samples,), 1 / self.samples)
        return Draw(neuron, a, key, torch.cat(moved), weights, {"delta": delta})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The mean over pairs of the slope along Δ, times Δ."""
        upper, lower = feedback.get_loss().chunk(2)
        slope = (upper - lower) / (2 * self.scale)
        return leading_mean(per_event(slope, draw.neuron) * draw.saved["delta"]), state
