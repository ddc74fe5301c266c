"""The invertible Gaussian neuron: a normal vector mapped to the simplex by a function that has an inverse."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.neuron import Density, output_shape
from gradest.contract.numerics import leading_sum, portable, select, softmax_backward, spread, widen
from gradest.random import Key
from gradest_neurons._continuous import normalised
from gradest_neurons._normal import count_normal_nodes, normal_nodes

_STEP = 0.65  # of the grid at level 0 and a standard deviation of at most 1


class InvertibleGaussian(Density):
    """A relaxed one-hot unit of C + 1 classes with C pre-activations: the softmax of a + s z, with 0 for the last class.

    h = softmax(a_1 + s z_1, ..., a_C + s z_C, 0) with z standard normal, so P(h > 0) = 1. It takes `a` `[*batch, units, C]` and
    gives h `[*batch, units, C + 1]`. With D = diag h - hhᵀ without its last row, dh/da = D. The map from a + s z to the simplex,
    softmax++ with δ = 1, has the inverse log(h_c/h_{C+1}); that of `logistic_normal`, which adds noise to all classes, has none.
    So h has a density on the simplex, exp(-|log(h/h_{C+1}) - a|²/(2 s²)) / ((2π)^(C/2) s^C Π_c h_c), and the divergence of two
    such laws is that of their normal ones. `lax` fits for that reason.

    A temperature would divide a and s alike, and δ would add to a, so neither is an option. With C = 1 the
    first entry is `noisy_sigmoid`.

    E[h] is an integral over C normal variables. For C up to 2 it is a sum over a grid, with an error of at most 1e-6 for s up to
    4. For larger C 1,024 fixed points of a Sobol sequence are used, with errors of up to 1e-2. -inf is refused; -1e9 masks a
    class.

    Introduced by Potapczynski, Loaiza-Ganem and Cunningham (2020), Invertible Gaussian Reparameterization: Revisiting the
    Gumbel-Softmax, arXiv 1912.09588, who learn s too.
    """

    name = "invertible_gaussian"
    summary = "softmax of a plus Gaussian noise beside a last class that is fixed, which has an inverse"
    reference = "Potapczynski, Loaiza-Ganem, Cunningham 2020, arXiv 1912.09588"
    formula = r"h = \mathrm{softmax}(a_1 + s z_1, \dots, a_C + s z_C, 0), \quad z \sim \mathcal N(0, 1)"

    event_ndim: ClassVar[int] = 2
    example_events: ClassVar[tuple[tuple[int, ...], ...]] = ((2, 2), (3, 1))

    std: float = Field(1.0, ge=1e-6, le=4, description="standard deviation s of the noise")

    def output_event(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return (units, C + 1) for (units, C)."""
        return *event[:-1], event[-1] + 1

    def limit(self, dtype: torch.dtype) -> float:
        """Return a quarter of the magnitude at which a/s overflows."""
        return torch.finfo(dtype).max / 4 * min(1.0, self.std)

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return s z, `[draws, *a.shape]` with z standard normal."""
        return self.std * key.normal_like(a, draws, self.event_ndim)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = softmax(a + s z, 0) over the last dimension."""
        return portable.softmax(_with_last(widen(a) + noise)).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return h (grad_h - hᵀ grad_h) without its last entry."""
        h = portable.softmax(_with_last(widen(a) + noise))
        return softmax_backward(h, grad_h.to(h.dtype), 1.0)[..., :-1].to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, from h alone unless h was rounded to 16 bits."""
        if h.dtype.itemsize == 2:
            return super().pullback(key, a, h, grad_h)
        slope: Tensor = select("softmax_backward", a.device)(h, grad_h.to(h.dtype), 1.0)
        return slope[..., :-1]

    def density_score(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return z/s, the derivative of -|log(h/h_{C+1}) - a|²/(2 s²) in a."""
        return (noise / self.std / self.std).to(a.dtype)

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of the nodes of the law, all of which are held."""
        elements = math.prod(batch) * math.prod(self.output_event(event)) * count_normal_nodes(event[-1], self._step)
        return Cost(elements, elements)

    def law_size(self, a: Tensor) -> int:
        """Return the number of nodes times the size of h."""
        return count_normal_nodes(a.shape[-1], self._step) * math.prod(output_shape(self, a))

    @property
    def _step(self) -> float:
        return _STEP / max(1.0, self.std)

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], the weighted sum over the nodes of `law`."""
        values, weights = self.law(widen(a))
        return leading_sum(weights[..., None] * values).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1, because the output is always positive."""
        return torch.ones_like(_with_last(a))

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return softmax(a, 0), the output without noise, for any level."""
        return torch.softmax(_with_last(widen(a)), -1).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h, `[S, *batch, units, C + 1]`, at the S nodes of a quadrature over the noise, and the weights of the nodes.

        h is fixed at the present value of a; only the density of a + s z is differentiated in a.
        """
        wide = widen(a)
        nodes, weights = normal_nodes(a.shape[-1], self._step, level, self.name)
        still = wide.detach()
        z = nodes.to(still).reshape(len(nodes), *[1] * (a.ndim - 1), a.shape[-1])
        values = torch.softmax(_with_last(still + self.std * z), -1)
        share = spread(weights, wide[..., 0]).expand(len(nodes), *a.shape[:-1])
        if wide.requires_grad and torch.is_grad_enabled():
            away = (still - wide) / self.std
            share = share * torch.exp(-(z * away + 0.5 * away.square()).sum(-1))
        return values.to(a.dtype), normalised(share).to(a.dtype)


def _with_last(x: Tensor) -> Tensor:
    """Return x with a 0 appended to its last dim, for the last class."""
    return torch.nn.functional.pad(x, (0, 1))
