"""The Gumbel-softmax (or concrete) neuron, a continuous relaxation of the categorical neuron."""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.quasirandom import SobolEngine

from gradest.contract.cost import Cost
from gradest.contract.numerics import (
    gauss_legendre,
    leading_sum,
    portable,
    select,
    softmax_backward,
    softplus,
    spread,
    widen,
)
from gradest.errors import InvalidInput
from gradest.random import Key
from gradest_neurons._continuous import Squashed, normalised

_NODES_PER_DIM = {1: 1, 2: 64, 3: 18}  # by the number of classes, for each winner; the simplex has one dimension fewer
_SOBOL_POINTS = 1024  # for more classes than these
_NODES_PER_CHUNK = 16  # nodes that `mean` holds at a time


class GumbelSoftmax(Squashed):
    """A relaxed one-hot unit: the softmax of a plus Gumbel noise, divided by a temperature τ.

    h = softmax((a + G)/τ) over the last dimension, with G = -log(-log z) and z uniform on (0, 1); a and h are
    `[*batch, units, classes]`. dh/da = (diag h - hhᵀ)/τ, P(h > 0) = 1, and h_c is the largest entry with probability
    softmax(a)_c. As τ goes to 0 the unit becomes the categorical unit. With two classes its first entry is the binary
    concrete unit at a_1 - a_2.

    E[h] is an integral over the simplex. For two and three classes it is computed for each class that may be the largest:
    64 nodes for two classes, with an error of at most 1e-9, and 18² for three, with an error of at most 1e-4 at every τ
    (5e-6 at 0.5). For more classes 1,024 fixed points of a Sobol sequence are used; at logits that spread over 1 to 5
    the error is 1e-3 at 4 classes and 6e-3 at 100, and up to 1e-2 at τ below 0.5. The gradient of E[h] is about as
    accurate.

    Introduced by Maddison, Mnih and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random
    Variables, arXiv 1611.00712, and by Jang, Gu and Poole (2017), Categorical Reparameterization with Gumbel-Softmax,
    arXiv 1611.01144.
    """

    name = "gumbel_softmax"
    summary = "softmax of a plus Gumbel noise, a relaxed one-hot unit"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"h = \mathrm{softmax}\!\left(\frac{a + G}{\tau}\right), \quad G_c = -\log(-\log z_c)"

    event_ndim: ClassVar[int] = 2
    maskable: ClassVar[bool] = True

    temperature: float = Field(0.5, ge=1e-30, le=1e30, description="temperature τ")

    def limit(self, dtype: torch.dtype) -> float:
        """Return a quarter of the magnitude at which (a + G)/τ overflows."""
        return torch.finfo(dtype).max / 4 * min(1.0, self.temperature)

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the Gumbel noise G, `[draws, *a.shape]`, from uniform noise by the Gumbel quantile function."""
        return -portable.log(-portable.log(key.uniform_like(a, draws, self.event_ndim)))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = softmax((a + G)/τ) over the last dimension."""
        return self._relaxed(a, noise).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = key.fused("softmax", a, draws, self.event_ndim, a.shape[-1], 1 / self.temperature)
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return h (grad_h - hᵀ grad_h)/τ."""
        h = self._relaxed(a, noise)
        return softmax_backward(h, grad_h.to(h.dtype), 1 / self.temperature).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, computed from h alone unless h was rounded to 16 bits."""
        if widen(a).dtype != h.dtype:
            return super().pullback(key, a, h, grad_h)
        kernel = select("softmax_backward", a.device)
        return kernel(h, grad_h.to(h.dtype), 1 / self.temperature)  # type: ignore[no-any-return]

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of the nodes that are held at a time, and the work of all."""
        elements, nodes = math.prod(batch) * math.prod(event), self._count_nodes(event[-1])
        return Cost(elements * min(nodes, _NODES_PER_CHUNK), elements * nodes)

    def law_size(self, a: Tensor) -> int:
        """Return the number of nodes times the size of `a`."""
        return self._count_nodes(a.shape[-1]) * a.numel()

    def _count_nodes(self, classes: int) -> int:
        of_dim = _NODES_PER_DIM.get(classes)
        return _SOBOL_POINTS if of_dim is None else int(classes * of_dim ** (classes - 1))

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], summed over a few nodes of the law at a time to save memory."""
        wide, (nodes, weights) = widen(a), _simplex(a.shape[-1], 0)
        winners = _winners(a.shape[-1])
        total = torch.zeros_like(wide)
        for winner in winners:
            share = 1.0 if winner is None else torch.softmax(wide, -1)[..., winner : winner + 1]
            for part, weight in zip(
                torch.split(nodes, _NODES_PER_CHUNK), torch.split(weights, _NODES_PER_CHUNK), strict=True
            ):
                h = torch.softmax(_perturbed(wide, part, winner) / self.temperature, -1)
                total = total + share * leading_sum(spread(weight, wide) * h)
        return total.to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return a one-hot output at the most likely class, for every level.

        This is the unit without noise in the limit of τ to 0. Of equally likely classes the first is taken.
        """
        return (a.argmax(-1, keepdim=True) == torch.arange(a.shape[-1], device=a.device)).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h, `[S, *a.shape]`, at the S nodes of a quadrature over the noise, and the weights of the nodes.

        h is fixed at the present value of a; only its density is differentiated in a. With y = a + G up to a constant,
        log p(y) = Σ_c (a_c - y_c) - C log Σ_c exp(a_c - y_c) + const.
        """
        wide, (nodes, weights) = widen(a), _simplex(a.shape[-1], level)
        still, at, shares = wide.detach(), [], []
        for winner in _winners(a.shape[-1]):
            at.append(_perturbed(still, nodes, winner))
            share = 1.0 if winner is None else torch.softmax(still, -1)[..., winner]
            shares.append(spread(weights, still[..., 0]) * share)
        y, share = torch.cat(at), torch.cat([x.expand(len(nodes), *a.shape[:-1]) for x in shares])
        values = torch.softmax(y / self.temperature, -1)
        if wide.requires_grad and torch.is_grad_enabled():
            seen = torch.isfinite(still)  # classes that are masked with -inf never occur
            gap = torch.where(seen, wide, -math.inf) - torch.where(seen, y, 0)
            moved = torch.where(seen, wide, 0).sum(-1) - seen.sum(-1) * torch.logsumexp(gap, -1)
            share = share * torch.exp(moved - moved.detach())
        return values.to(a.dtype), normalised(share).to(a.dtype)

    def _relaxed(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h in at least float32, with the same bits as the kernel."""
        return portable.softmax((widen(a) + noise) * (1 / self.temperature))


def _winners(classes: int) -> list[int | None]:
    """Return the classes for which the law is computed apart, as the largest; [None] if it is computed for all at once."""
    return [*range(classes)] if classes in _NODES_PER_DIM else [None]


def _perturbed(a: Tensor, nodes: Tensor, winner: int | None) -> Tensor:
    """Return a + G up to a constant, `[S, *a.shape]`, at the nodes of `_simplex`.

    Given that class k is the largest, class c is below it by log(1 + E_c/(E p_c)) with E and E_c exponentially
    distributed: the node has log E_c/E.
    """
    at = nodes.to(a).reshape(len(nodes), *[1] * (a.ndim - 1), nodes.shape[-1])
    if winner is None:
        return a + at
    at = torch.cat([at[..., :winner], at.new_zeros(*at.shape[:-1], 1), at[..., winner:]], -1)
    below = softplus(at - torch.log_softmax(a, -1))
    return -torch.where(torch.arange(a.shape[-1], device=a.device) == winner, 0, below)


@functools.lru_cache(maxsize=8)  # of many classes, a table has tens of megabytes
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def _simplex(classes: int, level: int) -> tuple[Tensor, Tensor]:
    """Return quadrature nodes, with twice as many in each dimension at each further level, and weights `[S]` that sum to 1.

    Level -1 has five sixths of the nodes of level 0: an even coarser rule would say little of the error of level 0.

    For up to three classes the nodes are log E_c/E, `[S, classes - 1]`, for exponentially distributed E_c and E: the
    logarithms of ratios of the coordinates of a point that is uniform on the simplex, built by stick breaking. A break
    leaves the share U^(1/k) to the k parts still to come, with U uniform on (0, 1). The substitution
    U = t³/(t³ + (1-t)³) moves the nodes towards both ends, which are corners of the simplex. For more classes the nodes
    are Gumbel noise, `[S, classes]`.
    """
    finer = 2.0**level if level >= 0 else 5 / 6
    if classes not in _NODES_PER_DIM:
        if classes > SobolEngine.MAXDIM:
            raise InvalidInput(
                f"the law of gumbel_softmax can be integrated for at most {SobolEngine.MAXDIM} classes, not {classes}"
            )
        points = max(4, round(_SOBOL_POINTS * finer))
        with torch.device("cpu"):
            sobol = SobolEngine(classes, scramble=True, seed=0)  # type: ignore[no-untyped-call]
            u = sobol.draw(points, dtype=torch.float64) + 0.5 ** (sobol.MAXBIT + 1)  # the middle of a cell, never 0
        return -torch.log(-torch.log(u)), u.new_full((points,), 1 / points)
    t, w = gauss_legendre(max(1, round(_NODES_PER_DIM[classes] * finer)))
    cubes = t**3 + (1 - t) ** 3
    w = w * 3 * (t * (1 - t)) ** 2 / cubes**2
    logs, rest, weights = t.new_zeros(1, 0), t.new_zeros(1), t.new_ones(1)
    for parts in range(classes - 1, 0, -1):
        left = torch.log((1 - t) ** 3 / cubes) / parts
        broken = rest[:, None] + torch.log(-torch.expm1(left))
        logs = torch.cat([logs.repeat_interleave(len(t), 0), broken.reshape(-1, 1)], -1)
        rest = (rest[:, None] + left).flatten()
        weights = (weights[:, None] * w).flatten()
    return logs - rest[:, None], weights / weights.sum()
