"""The stochastic gate, a Gaussian unit that is clipped to [0, 1]."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.neuron import Continuous, Reparameterised
from gradest.contract.numerics import gauss_legendre, leading_sum, normal_cdf, panels, portable, spread, widen
from gradest.random import Key
from gradest_neurons._continuous import nodes_at, normalised, reach_at, rectified_normal_mean

_NODES_OF_MEAN = 24


class StochasticGate(Continuous, Reparameterised):
    """A gate: a plus ½ plus Gaussian noise of standard deviation s, clipped to [0, 1].

    h = min(1, max(0, a + ½ + s z)) with z standard normal, so that a = 0 is a gate that is as often above ½ as below. h is
    exactly 0 with probability Φ(-(a + ½)/s) and exactly 1 with probability Φ((a - ½)/s), and yet it is continuous in a:
    dh/da is 1 between the clips, and 0 where h is clipped. With G(x) = x Φ(x/s) + s φ(x/s),
    E[h] = G(a + ½) - G(a - ½). The sum of P(h > 0) = Φ((a + ½)/s) over units is the expected number of open gates,
    the penalty with which Yamada et al. (2020) select features; `expected_l0` returns it. Their mean μ of a gate is a + ½,
    and for evaluation they use the clipped mean; `threshold` also sets it to 0 where P(h > 0) is at most the level.

    a and h are `[*batch, units]`. The gates of `hard_concrete` have logistic noise and a sigmoid instead.

    Introduced by Yamada, Lindenbaum, Negahban and Kluger (2020), Feature Selection using Stochastic Gates, arXiv 1810.04247.
    """

    name = "stochastic_gate"
    summary = "a plus ½ plus Gaussian noise, clipped to [0, 1]: a gate, 0 or 1 with positive probability"
    reference = "Yamada, Lindenbaum, Negahban, Kluger 2020, arXiv 1810.04247"
    formula = r"h = \min(1, \max(0, a + \tfrac12 + s z)), \quad z \sim \mathcal N(0, 1)"

    examples = ({}, {"std": 2.0})

    std: float = Field(0.5, ge=1e-6, le=1e6, description="standard deviation s of the noise")

    def limit(self, dtype: torch.dtype) -> float:
        """Return a quarter of the magnitude at which (a + ½)/s overflows."""
        return torch.finfo(dtype).max / 4 * min(1.0, self.std)

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return s z, `[draws, *a.shape]`, from uniform noise by the normal quantile function."""
        return self.std * portable.ndtri(key.uniform_like(a, draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h, a + ½ + s z clipped to [0, 1]."""
        return (a + noise + 0.5).clamp(0, 1).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, by the kernel that draws Gaussian units if the device has it."""
        x = key.fused("normal", widen(a), draws, self.event_ndim, self.std, 0)
        return super().sample(key, a, draws) if x is None else (x + 0.5).clamp(0, 1).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h between the clips, and 0 where h is clipped."""
        return _between(a + noise + 0.5, grad_h).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, from h alone unless h was rounded to 16 bits."""
        return super().pullback(key, a, h, grad_h) if widen(h).dtype != h.dtype else _between(h, grad_h).to(a.dtype)

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a closed form, or of the nodes that stand in for it."""
        return super().mean_cost(event, batch) * (_NODES_OF_MEAN if self.std > 1 else 1)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], in the form ∫ P(h > t) dt over t from 0 to 1 for s > 1, where the two terms of the closed form cancel.

        E[h] at -a is 1 - E[h] at a, so only a <= 0 is computed. Each term then has its full relative accuracy.
        """
        wide = widen(a)
        positive = wide > 0
        upper = (0.5 + torch.where(positive, -wide, wide)) / self.std
        if self.std > 1:
            t, w = (spread(x, wide) for x in gauss_legendre(_NODES_OF_MEAN))
            below = leading_sum(w * normal_cdf(upper - t / self.std))
        else:
            below = self.std * (rectified_normal_mean(upper) - rectified_normal_mean(upper - 1 / self.std))
        return torch.where(positive, 1 - below, below).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = Φ((a + ½)/s)."""
        return normal_cdf((widen(a) + 0.5) / self.std).to(a.dtype)

    def expected_l0(self, a: Tensor) -> Tensor:
        """Return Σ_i P(h_i > 0), `[*batch]`: the expected number of open gates, differentiable in a."""
        return self.active_probability(a).contiguous().sum(-1)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return a + ½ clipped to [0, 1] where P(h > 0) > level, and 0 elsewhere."""
        h = (widen(a) + 0.5).clamp(0, 1).to(a.dtype)
        return torch.where(self.active_probability(a) > level, h, torch.zeros_like(h))

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return the atoms at 0 and 1, and nodes of h between them, weighted with its density.

        The nodes are fixed at the present value of a; only the density at them is differentiated in a.
        """
        mean, reach = a + 0.5, reach_at("gaussian", level) * self.std
        lower, upper = ((mean.detach() + side * reach).clamp(0, 1) for side in (-1, 1))
        h, z, dh = panels(mean, lower, upper, (0.5, self.std), self.std, nodes_at(level))
        closed, opened = normal_cdf(-mean / self.std)[None], normal_cdf((mean - 1) / self.std)[None]
        density = torch.exp(-0.5 * (z / self.std) ** 2) / (self.std * (2 * torch.pi) ** 0.5)
        values = torch.cat([torch.zeros_like(closed), h, torch.ones_like(opened)])
        return values, normalised(torch.cat([closed, dh * density, opened]))


def _between(x: Tensor, grad: Tensor) -> Tensor:
    """Return grad where 0 < x < 1, and 0 elsewhere."""
    return torch.where((x > 0) & (x < 1), grad, torch.zeros_like(grad))
