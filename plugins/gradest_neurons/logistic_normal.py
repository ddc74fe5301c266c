"""The logistic-normal neuron, the softmax of a normal vector."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.numerics import leading_sum, portable, select, softmax_backward, spread, widen
from gradest.random import Key
from gradest_neurons._continuous import Squashed, normalised
from gradest_neurons._normal import GRID_DIMS, count_normal_nodes, normal_nodes

_STEP = 0.65  # of the grid over each whitened difference, at level 0 and a standard deviation of at most 1


class LogisticNormal(Squashed):
    """A relaxed one-hot unit: the softmax of a plus Gaussian noise of standard deviation s.

    h = softmax(a + s z) over the last dimension, with z standard normal for each class; a and h are
    `[*batch, units, classes]`. dh/da = diag h - hhᵀ, P(h > 0) = 1. The log-ratios log h_c/h_C are normal, with means a_c - a_C,
    variances 2 s² and covariances s²: a logistic-normal law of equal variances. With two classes the first entry is
    `noisy_sigmoid` at a_1 - a_2 with the deviation √2 s. `gumbel_softmax` has Gumbel noise and a temperature instead, and
    `noisy_top_k` sets all but the k largest entries to 0.

    E[h] is an integral over the C - 1 log-ratios. For two and three classes it is a sum over a grid, with an error of at most
    1e-6 for s up to 4. For more classes 1,024 fixed points of a Sobol sequence are used, with errors of up to 1e-2. -inf is
    refused; -1e9 masks a class.

    The law goes back to Aitchison and Shen (1980), Logistic-Normal Distributions: Some Properties and Uses, Biometrika 67.
    As a unit beside an invertible form: Potapczynski, Loaiza-Ganem and Cunningham (2020), Invertible Gaussian
    Reparameterization: Revisiting the Gumbel-Softmax, arXiv 1912.09588.
    """

    name = "logistic_normal"
    summary = "softmax of a plus Gaussian noise, a relaxed one-hot unit"
    reference = "Aitchison, Shen 1980; Potapczynski, Loaiza-Ganem, Cunningham 2020, arXiv 1912.09588"
    formula = r"h = \mathrm{softmax}(a + s z), \quad z \sim \mathcal N(0, 1)"

    event_ndim: ClassVar[int] = 2

    std: float = Field(1.0, ge=1e-6, le=4, description="standard deviation s of the noise")

    def limit(self, dtype: torch.dtype) -> float:
        """Return a quarter of the magnitude at which a/s overflows."""
        return torch.finfo(dtype).max / 4 * min(1.0, self.std)

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return s z, `[draws, *a.shape]` with z standard normal."""
        return self.std * key.normal_like(a, draws, self.event_ndim)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = softmax(a + s z) over the last dimension."""
        return portable.softmax(widen(a) + noise).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return h (grad_h - hᵀ grad_h)."""
        h = portable.softmax(widen(a) + noise)
        return softmax_backward(h, grad_h.to(h.dtype), 1.0).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, from h alone unless h was rounded to 16 bits."""
        if h.dtype.itemsize == 2:
            return super().pullback(key, a, h, grad_h)
        return select("softmax_backward", a.device)(h, grad_h.to(h.dtype), 1.0)  # type: ignore[no-any-return]

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of the nodes of the law, all of which are held."""
        elements = math.prod(batch) * math.prod(event) * self._count_nodes(event[-1])
        return Cost(elements, elements)

    def law_size(self, a: Tensor) -> int:
        """Return the number of nodes times the size of `a`."""
        return self._count_nodes(a.shape[-1]) * a.numel()

    def _count_nodes(self, classes: int) -> int:
        return count_normal_nodes(_dims(classes), _STEP / max(1.0, self.std))

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], the weighted sum over the nodes of `law`."""
        values, weights = self.law(widen(a))
        return leading_sum(weights[..., None] * values).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return softmax(a), the output without noise, for any level."""
        return torch.softmax(widen(a), -1).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h, `[S, *a.shape]`, at the S nodes of a quadrature over the noise, and the weights of the nodes.

        h is fixed at the present value of a; only the density of the log-ratios is differentiated in a.
        """
        wide, classes = widen(a), a.shape[-1]
        z, weights = _nodes(classes, _STEP / max(1.0, self.std), level)
        still = wide.detach()
        values = torch.softmax(still + self.std * z.to(still).reshape(len(z), *[1] * (a.ndim - 1), classes), -1)
        share = spread(weights, wide[..., 0]).expand(len(z), *a.shape[:-1])
        if wide.requires_grad and torch.is_grad_enabled():
            # what z would have to be for the same log-ratios, up to a constant of all classes: its mean is taken out
            away = (still - wide) / self.std
            away = away - away.mean(-1, keepdim=True)
            centred = (z - z.mean(-1, keepdim=True)).to(still).reshape(len(z), *[1] * (a.ndim - 1), classes)
            share = share * torch.exp(-(centred * away + 0.5 * away.square()).sum(-1))
        return values.to(a.dtype), normalised(share).to(a.dtype)


def _dims(classes: int) -> int:
    """Return how many normal variables are integrated over: a grid leaves out the direction (1, ..., 1), in which h stays."""
    return classes if classes - 1 > GRID_DIMS else max(0, classes - 1)


def _nodes(classes: int, step: float, level: int) -> tuple[Tensor, Tensor]:
    """Return noise `[S, classes]` and weights `[S]` of a level; that of a grid is orthogonal to (1, ..., 1)."""
    nodes, weights = normal_nodes(_dims(classes), step, level, LogisticNormal.name)
    if nodes.shape[-1] == classes:
        return nodes, weights
    basis = torch.tensor([[1.0, -1, 0], [1, 1, -2]], dtype=torch.float64, device="cpu")[: classes - 1, :classes]
    return nodes @ (basis / basis.norm(dim=-1, keepdim=True)), weights
