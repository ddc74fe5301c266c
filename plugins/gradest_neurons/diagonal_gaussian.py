"""The diagonal Gaussian neuron: each unit has its own mean and its own standard deviation, and both are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.neuron import Density
from gradest.contract.numerics import computable, normal_cdf, panels, portable, widen
from gradest.errors import InvalidInput
from gradest.random import Key
from gradest_neurons._continuous import nodes_at, normalised, reach_at

_MOST = {torch.float32: 30.0, torch.float64: 200.0}  # of the log std; beyond, powers of a sample overflow soon
_LEAST = {torch.float32: -80.0, torch.float64: -600.0}  # below, exp would underflow


class DiagonalGaussian(Density):
    """A unit with two pre-activations, the mean m and the logarithm of the standard deviation s, and one output.

    h = m + s z with z standard normal and s = exp(a_1), so E[h] = m, P(h > 0) = Φ(m/s), dh/dm = 1 and dh/d log s = s z. It takes
    `a` `[*batch, units, 2]` and gives h `[*batch, units]`: the latent variables of a variational autoencoder, whose encoder has
    two outputs for each. `gaussian` has one pre-activation and a fixed s.

    log s may be at most 30 in float32 and 200 in float64, because powers of greater samples overflow. Below -80 in float32 and
    -600 in float64, s is exp(-80) and exp(-600).

    Introduced by Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv 1312.6114.
    """

    name = "diagonal_gaussian"
    summary = "Gaussian unit with a learned mean and a learned log std"
    reference = "Kingma, Welling 2014, arXiv 1312.6114"
    formula = r"h = m + s z, \quad (m, \log s) = a, \quad z \sim \mathcal N(0, 1)"

    event_ndim: ClassVar[int] = 2
    example_events: ClassVar[Sequence[tuple[int, ...]]] = ((2, 2), (3, 2), (1, 2))

    def output_event(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return (units,) for (units, 2). Raises InvalidInput for a last dim of another size."""
        if event[-1] != 2:
            raise InvalidInput(
                f"{self.name} takes pre-activations [*batch, units, 2], the mean and the log std of each unit, but here an event "
                f"is {list(event)}; torch.stack([mean, log_std], -1) makes them"
            )
        return event[:-1]

    def check(self, a: Tensor) -> None:
        """Raise InvalidInput for a log std above 30 in float32 or 200 in float64."""
        largest = _MOST[a.dtype]
        # the largest entry of all takes a fraction of the time that the strided ones take, and is seldom too large
        if a.numel() and bool(a.amax() > largest) and bool((a[..., 1] > largest).any()):
            raise InvalidInput(
                f"{self.name} takes a log std of at most {largest:g} in {a.dtype}, because losses of greater samples overflow. "
                "Bound it, as in log_std.clamp(max=10)"
            )

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return z, `[draws, *batch, units]`, from uniform noise by the normal quantile function."""
        return key.normal_like(a[..., 0], draws)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = m + s z."""
        mean, log_std = _parts(a)
        return (mean + portable.exp(log_std) * noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *batch, units]`, in one pass if the device has a kernel for it."""
        least = _LEAST[torch.promote_types(a.dtype, torch.float32)]
        h = key.fused("scaled_normal", a, draws, self.event_ndim, least, event=a.shape[-2:-1])
        return super().sample(key, a, draws) if h is None else h

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass if the device has a kernel for it, which draws the noise again."""
        wide = torch.promote_types(a.dtype, torch.float32)
        found = key.fused("scaled_normal_pullback", a, len(h), self.event_ndim, computable(grad_h, a), _LEAST[wide])
        return super().pullback(key, a, h, grad_h) if found is None else found

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · (1, s z)."""
        _, log_std = _parts(a)
        return torch.stack([grad_h.to(log_std.dtype), grad_h * portable.exp(log_std) * noise], -1).to(a.dtype)

    def density_score(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return (z/s, z² - 1), the derivative of -(h - m)²/(2s²) - log s in m and log s."""
        _, log_std = _parts(a)
        return torch.stack([noise * portable.exp(-log_std), noise * noise - 1], -1).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h] = m."""
        return a[..., 0].clone()

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = Φ(m/s)."""
        mean, log_std = _parts(a)
        return normal_cdf(mean * portable.exp(-log_std)).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return nodes of h, weighted with its density.

        They are the nodes of `gaussian` at m/s with unit variance, times s. Neither moves with `a`; the density at them is
        differentiated in m and in log s.
        """
        mean, log_std = _parts(a)
        std = log_std.detach().exp()
        place = mean.detach() / std
        reach = reach_at("gaussian", level)
        u, z, du = panels(place, place - reach, place + reach, (0.0, 1.0), 1.0, nodes_at(level))
        moved = (z * std + (mean.detach() - mean)) * torch.exp(-log_std)  # z, as a function of m and log s at fixed h
        return u * std, normalised(du * torch.exp(-0.5 * moved**2 - (log_std - log_std.detach())))


def _parts(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return m and log s, `[*batch, units]`, in at least float32."""
    wide = widen(a)
    return wide[..., 0], wide[..., 1].clamp(min=_LEAST[wide.dtype])
