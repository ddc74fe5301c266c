"""The stochastic rounding neuron: a rounded to a grid at random, without bias."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import UnbiasedRounding
from gradest.contract.numerics import widen
from gradest.errors import GradestWarning

_LEAST = 1e-30  # stands for the probability 0 of an output, so that its product with the score is the derivative

_ON_THE_GRID = (
    "pre-activations of stochastic_rounding are exactly on the grid, as 0 is. The sample there is always the same, while its "
    "probability changes with a, so an estimator that uses the score has a wrong gradient in these units. Use enumeration or "
    "straight_through, or start off the grid"
)


class _Neighbours(NamedTuple):
    """The two grid points around a, in the dtype of a, and their probabilities, which are differentiable in a."""

    down: Tensor
    up: Tensor
    p_down: Tensor
    p_up: Tensor


class StochasticRounding(UnbiasedRounding):
    """A unit that rounds its pre-activation to a grid of spacing δ, up or down at random, so that E[h] = a.

    Let d = δ ⌊a/δ⌋ be the grid point at or below a. h = d + δ with probability p = (a - d)/δ, and h = d otherwise. a and h are
    `[*batch, units]`. At fixed noise h is constant in a almost everywhere: dh/da = 0. Since E[h] = a, the straight-through
    estimator with the identity is exact for losses that are linear in each unit. The score is 1/(δ p) for h above a and
    -1/(δ (1 - p)) for h below it, which is unbiased between grid points, with a variance that grows without bound as a
    nears one.

    At a grid point itself h = a, and E[L(h)] has a kink. The law and the score are those of the limit from above, so that
    `exact` and `enumeration` return the derivative from the right, (L(a + δ) - L(a))/δ; a sample there always shows
    h = a, from which a score-function estimator cannot tell it: its estimate there is wrong, and gives a
    GradestWarning. Pre-activations that start at 0, as biases do, start at a grid point: use `straight_through` or
    `enumeration` for those.

    Precision in float32: the share of h above a differs from p by at most 2^-24 for the noise and, unless δ is a power of two,
    |a/δ| 2^-23 for the rounding of a/δ. From |a/δ| = 2^23 on, every number is on the grid.

    Introduced for training with few bits by Gupta, Agrawal, Gopalakrishnan and Narayanan (2015), Deep Learning with Limited
    Numerical Precision, arXiv 1502.02551.
    """

    name = "stochastic_rounding"
    summary = "a rounded to a grid, up or down at random, with E[h] = a"
    reference = "Gupta, Agrawal, Gopalakrishnan, Narayanan 2015, arXiv 1502.02551"
    formula = (
        r"h = \delta \lfloor a/\delta \rfloor + \delta b, \quad "
        r"b \sim \mathrm{Bernoulli}\bigl(a/\delta - \lfloor a/\delta \rfloor\bigr), \quad \mathbb E[h] = a"
    )

    examples = ({}, {"step": 0.25})

    step: float = Field(1.0, ge=1e-6, le=1e6, description="spacing δ of the grid")

    def limit(self, dtype: torch.dtype) -> float:
        """Return a quarter of the magnitude at which a/δ or δ ⌈a/δ⌉ overflows."""
        return torch.finfo(dtype).max / 4 * min(1.0, self.step)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return the grid point above a where noise < p, and the one at or below a elsewhere."""
        x = widen(a.detach()) * (1 / self.step)
        below = x.floor()
        return (self.step * (below + (noise < x - below).to(x.dtype))).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0, because h is constant in a almost everywhere."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h] = a."""
        return a

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0), which is a/δ clipped to [0, 1]."""
        return (widen(a) * (1 / self.step)).clamp(0, 1).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return the grid point above a where its probability exceeds the level, and the one at or below a elsewhere.

        At the level ½ this rounds to the nearest.
        """
        near = self._neighbours(a)
        return torch.where(near.p_up > level, near.up, near.down)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log P(h | a), which is -inf unless h is one of the two grid points around a."""
        return torch.log(self._probability(h, self._neighbours(a))).to(a.dtype)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the two grid points around a, the lower one first, and their probabilities."""
        near = self._neighbours(a)
        return torch.stack([near.down, near.up]), torch.stack([near.p_down, near.p_up]).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return 1/(δ p) where h is above a, and -1/(δ (1 - p)) where it is below; 0 for other h, whose probability is 0."""
        near = self._neighbours(a)
        p = self._probability(h, near)
        slope = ((h == near.up).to(p.dtype) - (h == near.down).to(p.dtype)) * (1 / self.step)
        return torch.where(p > 0, slope / p.clamp(min=_LEAST), 0).to(a.dtype)

    def check_scores(self, h: Tensor, a: Tensor) -> None:
        """Warn of grid points, unless the output above is among the outputs, as for enumeration."""
        near = self._neighbours(a)
        if bool(((near.p_up <= _LEAST) & ~(h == near.up).any(0)).any()):
            warnings.warn(_ON_THE_GRID, GradestWarning, stacklevel=5)

    def _neighbours(self, a: Tensor) -> _Neighbours:
        x = widen(a) * (1 / self.step)
        below = x.detach().floor()
        p_up = x - below
        # 1 - p keeps its digits where p is near 1: the grid point above is then exact
        p_down = torch.where(p_up > 0.5, (below + 1) - x, 1 - p_up)
        p_up, p_down = (p + (p.clamp(min=_LEAST) - p).detach() for p in (p_up, p_down))
        return _Neighbours((self.step * below).to(a.dtype), (self.step * (below + 1)).to(a.dtype), p_down, p_up)

    def _probability(self, h: Tensor, near: _Neighbours) -> Tensor:
        """Return P(h | a). Where 16 bits round both grid points to one number, it is 1."""
        return (h == near.down) * near.p_down + (h == near.up) * near.p_up
