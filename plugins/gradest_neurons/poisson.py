"""A count unit without an upper end."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.neuron import Discrete
from gradest.contract.numerics import portable, sigmoid, softplus
from gradest.errors import TooManyPoints
from gradest.random import Key

_SHARE = 1e-12  # of the probability, what law leaves out
_MOST = 1 << 27  # numbers in a law
_TAIL = 37.0  # e^-37 is below 2^-53, the smallest noise
_LARGE = 64.0  # up to here on a count takes so few terms that adding them up is faster than bisection
_LEAST = -36.0  # from here on down softplus(a) is e^a


class Poisson(Discrete):
    """h ~ Poisson(λ), λ = softplus(a), by the inverse of its distribution function: E[h] = λ, P(h > 0) = 1 - e^-λ, dh/da = 0.

    score = (h/λ - 1) σ(a). The rate is softplus(a), and not e^a, so that it stays finite however large a is. A float32 noise has
    24 bits: the probability of a count as drawn is off by less than 2^-23, and counts are never drawn whose upper tail is below
    2^-24. float32 holds counts exactly up to 2^24, bfloat16 up to 256.
    """

    name = "poisson"
    summary = "count of events at the rate softplus(a)"
    reference = "Williams 1992"
    formula = r"h \sim \mathrm{Poisson}(\lambda), \quad \lambda = \log(1 + e^a)"

    finite: ClassVar[bool] = False

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """The smallest k with F(k) > z, F the distribution function; it increases with the noise."""
        wide, z = a.double(), noise.double()
        is_large = wide > _LARGE
        h = _count(wide.where(~is_large, 0), z)
        if bool(is_large.any()):
            h = torch.where(is_large, _quantile(softplus(wide.where(is_large, _LARGE)), z), h)
        return h.to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel and no rate is large."""
        h = None if bool((a > _LARGE).any()) else key.fused("poisson", a, draws, self.event_ndim)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """0: a count does not move with a."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """λ."""
        return softplus(a).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """1 - e^-λ."""
        return (-torch.expm1(-softplus(a))).to(a.dtype)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """h log λ - λ - log h!."""
        h, wide = h.double(), a.double()
        least = wide.clamp(min=_LEAST)
        log_rate = torch.log(softplus(least)) + (wide - least)
        return (h * log_rate - softplus(wide) - torch.lgamma(h + 1)).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """(h - λ) · σ(a)/λ; the ratio goes to 1 as a falls, and to 1/a as it grows."""
        wide = a.double()
        least = wide.clamp(min=_LEAST)
        return ((h.double() - softplus(wide)) * (sigmoid(least) / softplus(least))).to(a.dtype)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The counts of each unit that make up all but 1e-12 of its probability, as many for each as the largest λ needs.

        They are about 14 √λ, or at small λ a dozen. Raises TooManyPoints where they are more than 2^27 numbers together.
        """
        rate = softplus(a.detach().double())
        first, last = (_quantile(rate, torch.full_like(rate, z)) for z in (_SHARE / 2, 1 - _SHARE / 2))
        atoms = int((last - first).max()) + 1 if a.numel() else 1
        if atoms * a.numel() > _MOST:
            raise TooManyPoints(
                f"the law of {a.numel()} Poisson units takes {atoms} counts of each; the limit is 2^27 in all"
            )
        values = (first + torch.arange(atoms, device=a.device)[(..., *[None] * a.ndim)]).to(a.dtype)
        return values, self.log_prob(values, a).exp()


def _count(a: Tensor, z: Tensor) -> Tensor:
    """The smallest k with F(k) > z, by adding P(0), P(1), ...: e^-λ = σ(-a), and P(k) = P(k-1) λ/k. float64.

    Counting ends also where a term is so small that it changes nothing.
    """
    e = portable.exp(-a.abs())
    rate = a.clamp(min=0) + portable.log(1 + e)
    term = torch.where(a > 0, e, 1) / (1 + e)
    below, h, k = torch.zeros_like(term), torch.zeros_like(z), 0
    while True:
        k, above = k + 1, below + term
        more = (z >= above) & (above > below)
        if not bool(more.any()):
            return h
        h, below, term = h + more, above, term * (rate * (1 / k))


def _quantile(rate: Tensor, z: Tensor) -> Tensor:
    """The smallest k with F(k) > z, by bisection; float64.

    It begins where Chernoff's bounds leave less than the smallest noise on either side. Once k is found further steps change
    nothing, so it does not matter to a row how many the others need.
    """
    reach = math.sqrt(2 * _TAIL) * rate.sqrt()
    below = (rate - reach).floor().clamp(min=0) - 1
    above = (rate + reach + 2 / 3 * _TAIL).ceil()
    widest = int((above - below).max()) if rate.numel() else 1
    for _ in range(widest.bit_length()):
        middle = below + ((above - below) / 2).floor()
        beyond = torch.special.gammaincc(middle + 1, rate) > z
        below, above = torch.where(beyond, below, middle), torch.where(beyond, middle, above)
    return above
