"""Neurons that are steps of their noise, those with two outputs, and those whose noise is logistic."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.neuron.base import Discrete, Neuron, Relaxable
from gradest.kernels import portable, select
from gradest.kernels.stable import cast, logit, sigmoid, softplus, widen
from gradest.random import Key

__all__ = ["Binary", "LogisticBinary", "LogisticStep", "Step"]


class Step(Neuron):
    """A neuron that outputs `low` or `high`: a step in `a`, for whose derivative a smooth function may be substituted."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0: between its jumps the output does not move with `a`."""
        return torch.zeros_like(grad_h, dtype=a.dtype)


class Binary(Discrete, Step):
    """A neuron that outputs `low` or `high` at random: high where the noise is below `probability`."""

    @abstractmethod
    def probability(self, a: Tensor) -> Tensor:
        """Return P(h = high)."""

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return high where noise < probability(a), else low."""
        return self.low + (self.high - self.low) * (noise < self.probability(a)).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return low + (high - low) P(h = high)."""
        return self.low + (self.high - self.low) * self.probability(a)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = P(h = high), for a unit with low <= 0 < high."""
        return self.probability(a)

    def support(self) -> Tensor:
        """Return (low, high)."""
        return torch.tensor([self.low, self.high], device="cpu")

    def fits(self, dtype: torch.dtype) -> bool:
        """Return whether this dtype, uint8 or bool, represents both low and high."""
        return {self.low, self.high} <= set(range(2 if dtype == torch.bool else 256))

    def sample_as(self, key: Key, a: Tensor, draws: int, dtype: torch.dtype) -> Tensor | None:
        """Return `sample` in a dtype that `fits`, written by a kernel; None if there is no such kernel."""
        return None

    def antithetic(self, key: Key, a: Tensor, pairs: int) -> Tensor:
        """Return outputs at noise u, then at noise 1 - u, `[2 pairs, *a.shape]`, perhaps by a kernel."""
        noise = self.noise(key, a, pairs)
        return torch.cat([self.forward(a, noise), self.forward(a, 1 - noise)])

    def is_high(self, h: Tensor) -> Tensor:
        """Return 1 where h is high and 0 where it is low, in the dtype of h."""
        return (h - self.low) / (self.high - self.low)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return high where P(h = high) > level, else low."""
        return self.low + (self.high - self.low) * (self.probability(a) > level).to(a.dtype)


class LogisticStep(Discrete, Step):
    """A random step that is high with probability σ(a), by itself; units of a group may depend on each other."""

    def mean(self, a: Tensor) -> Tensor:
        """Return low + (high - low) σ(a)."""
        return self.low + (self.high - self.low) * sigmoid(a).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = σ(a), for a unit with low <= 0 < high."""
        return sigmoid(a).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return high where σ(a) > level, else low."""
        return self.low + (self.high - self.low) * (sigmoid(a).to(a.dtype) > level).to(a.dtype)


class LogisticBinary(Binary, LogisticStep, Relaxable):
    """A binary unit with P(h = high) = σ(a). Bernoulli and bipolar units differ only in their two values."""

    def probability(self, a: Tensor) -> Tensor:
        """Return σ(a)."""
        return sigmoid(a).to(a.dtype)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return high where noise < σ(a), compared in float32 or wider."""
        wide = widen(a)
        return (self.low + (self.high - self.low) * (noise < portable.sigmoid(wide)).to(wide.dtype)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Compute `sample` in one pass if the device has a kernel for it."""
        h = key.fused("binary", a, draws, self.event_ndim, self.low, self.high)
        return super().sample(key, a, draws) if h is None else h

    def sample_as(self, key: Key, a: Tensor, draws: int, dtype: torch.dtype) -> Tensor | None:
        """Compute `sample_as` in one pass if the device has a kernel for it."""
        return key.fused("binary", a, draws, self.event_ndim, self.low, self.high, dtype=dtype)

    def antithetic(self, key: Key, a: Tensor, pairs: int) -> Tensor:
        """Compute `antithetic` in one pass if the device has a kernel for it."""
        h = key.fused("antithetic", a, pairs, self.event_ndim, self.low, self.high)
        return super().antithetic(key, a, pairs) if h is None else h

    def weighted_score(self, h: Tensor, a: Tensor, weights: Tensor) -> Tensor:
        """Compute `weighted_score` in one pass if the device has a kernel for it."""
        scored = self._scored("logistic_score", h, a, weights)
        return super().weighted_score(h, a, weights) if scored is None else scored

    def leave_one_out_score(self, h: Tensor, a: Tensor, loss: Tensor) -> Tensor:
        """Compute `leave_one_out_score` in one pass if the device has a kernel for it.

        Losses wider than `a` are taken relative to the first, in their own precision, because the kernel has that of `a`.
        """
        if loss.dtype != a.dtype:
            loss = loss - loss[:1]
        scored = self._scored("leave_one_out_score", h, a, loss)
        return super().leave_one_out_score(h, a, loss) if scored is None else scored

    def _scored(self, kernel: str, h: Tensor, a: Tensor, of_points: Tensor) -> Tensor | None:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (h, a, of_points)):
            return None  # autograd has to record the computation
        wide = widen(a)
        scored = select(kernel, a.device)(wide, cast(h, wide.dtype), cast(of_points, wide.dtype), self.high)
        return cast(scored, a.dtype)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return -softplus(-a) where h is high and -softplus(a) where it is low."""
        return -softplus(torch.where(h == self.high, -a, a)).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return b - σ(a), b being 1 for high and 0 for low, computed as ±σ(∓a), which does not cancel at saturation."""
        return torch.where(h == self.high, sigmoid(-a), -sigmoid(a)).to(a.dtype)

    def relax(self, a: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """Return low + (high - low) σ((a - logit u) / temperature), which is above the midpoint exactly where h is high."""
        return self._squash(a - logit(noise), temperature).to(a.dtype)

    def conditional_relax(self, a: Tensor, h: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """Return `relax` at noise drawn given h: u·p where h is high, p + u·(1 - p) where it is low.

        It is computed in logarithms, so that it is exact in both tails.
        """
        p, q = sigmoid(a), sigmoid(-a)
        log_u, log_1mu = torch.log(noise), torch.log1p(-noise)
        # with v the conditional noise, logit v = log v - log(1 - v)
        if_high = log_u - softplus(-a) - torch.log1p(-noise * p)
        if_low = torch.log1p(-(1 - noise) * q) - log_1mu + softplus(a)
        return self._squash(a - torch.where(h == self.high, if_high, if_low), temperature).to(a.dtype)

    def _squash(self, z: Tensor, temperature: float | Tensor) -> Tensor:
        return self.low + (self.high - self.low) * sigmoid(z / temperature)
