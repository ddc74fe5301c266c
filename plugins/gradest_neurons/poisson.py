"""The Poisson neuron, a count without an upper limit."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradest.contract.neuron import PoissonCount
from gradest.contract.numerics import leading_sum, portable, sigmoid, softplus
from gradest.errors import TooManyPoints
from gradest.random import Key

_OMITTED_PROBABILITY = 1e-12  # of the counts that `law` leaves out
_FURTHER = 1.4  # at each further level of the law, as a power of the probability that it leaves out
_MAX_LAW_SIZE = 1 << 27  # counts in a law, over all units
_TAIL_EXPONENT = 37.0  # e^-37 is below 2^-53, the smallest noise
_LARGE_INPUT = 64.0  # up to this a, a count takes so few terms that adding them up is faster than bisection
_EXPONENTIAL_BELOW = -36.0  # below this a, softplus(a) equals e^a in float64


class Poisson(PoissonCount):
    """A count unit: a Poisson variable with the rate λ = softplus(a).

    h ~ Poisson(λ) is drawn by inverting its distribution function, so E[h] = λ, P(h > 0) = 1 - e^-λ, and the score is
    (h/λ - 1) σ(a). At fixed noise h is constant in a almost everywhere: dh/da = 0. The rate is softplus(a) rather than
    e^a, so that it stays finite for large a.

    Precision: float32 noise has 24 bits. The probability of a drawn count is therefore off by less than 2^-23, and a
    count whose upper tail is below 2^-24 is never drawn. float32 represents every count up to 2^24, bfloat16 every
    count up to 256.

    Exponential families such as this one are treated by Williams (1992), Simple Statistical Gradient-Following
    Algorithms for Connectionist Reinforcement Learning, Machine Learning 8.
    """

    name = "poisson"
    summary = "count of events at the rate softplus(a)"
    reference = "Williams 1992"
    formula = r"h \sim \mathrm{Poisson}(\lambda), \quad \lambda = \log(1 + e^a)"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return the smallest k with F(k) > z, where F is the distribution function; it increases with the noise."""
        wide, z = a.double(), noise.double()
        is_large = wide > _LARGE_INPUT
        h = _quantile_by_summation(wide.where(~is_large, 0), z)
        if bool(is_large.any()):
            h = torch.where(is_large, _quantile_by_bisection(softplus(wide.where(is_large, _LARGE_INPUT)), z), h)
        return h.to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it and no rate is large."""
        h = None if bool((a > _LARGE_INPUT).any()) else key.fused("poisson", a, draws, self.event_ndim)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0, because a count is constant in a almost everywhere."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def log_rate(self, a: Tensor) -> Tensor:
        """Return log λ, which tends to a as a falls."""
        wide = a.double()
        least = wide.clamp(min=_EXPONENTIAL_BELOW)
        return (torch.log(softplus(least)) + (wide - least)).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h] = λ."""
        return softplus(a).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1 - e^-λ."""
        return (-torch.expm1(-softplus(a))).to(a.dtype)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log P(h | a) = h log λ - λ - log h!."""
        h, wide = h.double(), a.double()
        return (h * self.log_rate(wide) - softplus(wide) - torch.lgamma(h + 1)).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return (h/λ - 1) σ(a), computed as (h - λ) · σ(a)/λ.

        The ratio σ(a)/λ tends to 1 as a falls, and to 1/a as a grows.
        """
        wide = a.double()
        least = wide.clamp(min=_EXPONENTIAL_BELOW)
        return ((h.double() - softplus(wide)) * (sigmoid(least) / softplus(least))).to(a.dtype)

    def law_size(self, a: Tensor) -> int:
        """Return the number of counts of the unit with the largest rate, times the size of `a`."""
        if not a.numel():
            return 0
        first, last = _range_of_law(a.amax(), 0)
        return (int(last - first) + 1) * a.numel()

    def truncated_law(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the counts of each unit that hold all but 1e-12 of its probability, and their probabilities, which sum to 1.

        That is level 0, and `law`; level l leaves out 1e-12 to the power 1.4^l, and has at least one count more than level l - 1.
        Every unit has as many counts S as the one with the largest rate needs: at level 0 about 14 √λ, or a dozen at small rates.
        Raises TooManyPoints if S times the size of a exceeds 2^27.
        """
        first, last = _range_of_law(a, level)
        atoms = int((last - first).max()) + 1 if a.numel() else 1
        if atoms * a.numel() > _MAX_LAW_SIZE:
            raise TooManyPoints(
                f"the law of {a.numel()} Poisson units needs {atoms} counts for each unit; the limit is 2^27 counts in all"
            )
        values = (first + torch.arange(atoms, device=a.device)[(..., *[None] * a.ndim)]).to(a.dtype)
        weights = self.log_prob(values, a).exp()
        return values, weights / leading_sum(weights)


def _range_of_law(a: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """Return the first and the last count of each unit's law at a level, each of which extends that of the level before."""
    rate = softplus(a.detach().double())
    first, last = torch.full_like(rate, math.inf), torch.full_like(rate, -math.inf)
    for at in range(-1, level + 1):
        lower, upper = _ends_of_law(rate, (_OMITTED_PROBABILITY / 2) ** (_FURTHER**at))
        first, last = torch.minimum(first - 1, lower).clamp(min=0), torch.maximum(last + 1, upper)
    return first, last


def _ends_of_law(rate: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return the largest k with P(h < k) <= share, and the smallest with P(h > k) <= share, by bisection, in float64."""
    below, above = _bracket(rate, -math.log(share))
    middle = rate.floor()
    # P(h < k + 1) > share holds from some k on, and P(h > k) <= share from another
    lower = _first(below, middle, lambda k: torch.special.gammaincc(k + 1, rate) > share)
    return lower, _first(middle - 1, above, lambda k: torch.special.gammainc(k + 1, rate) <= share)


def _quantile_by_summation(a: Tensor, z: Tensor) -> Tensor:
    """Return the smallest k with F(k) > z, by adding up P(0), P(1), ..., in float64.

    P(0) = e^-λ = σ(-a), and P(k) = P(k-1) λ/k. The summation also ends where a further term would no longer change the
    sum.
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


def _quantile_by_bisection(rate: Tensor, z: Tensor) -> Tensor:
    """Return the smallest k with F(k) > z, by bisection, in float64. Beyond the bracket lies less than the smallest noise."""
    return _first(*_bracket(rate, _TAIL_EXPONENT), lambda k: torch.special.gammaincc(k + 1, rate) > z)


def _bracket(rate: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Return k, one below and one above, beyond which Chernoff's bounds leave less than exp(-exponent) on either side."""
    reach = math.sqrt(2 * exponent) * rate.sqrt()
    return (rate - reach).floor().clamp(min=0) - 1, (rate + reach + 2 / 3 * exponent).ceil()


def _first(below: Tensor, above: Tensor, holds: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the smallest k above `below`, and at most `above`, from which on a condition holds, by bisection.

    Further steps do not change a k that is found, so the result of a row does not depend on how many steps other rows need.
    """
    widest = int((above - below).max()) if below.numel() else 1
    for _ in range(widest.bit_length()):
        middle = below + ((above - below) / 2).floor()
        beyond = holds(middle)
        below, above = torch.where(beyond, below, middle), torch.where(beyond, middle, above)
    return above
