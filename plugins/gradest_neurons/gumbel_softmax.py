"""The Gumbel-softmax (or concrete) neuron, a continuous relaxation of the categorical neuron."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.numerics import (
    leading_sum,
    portable,
    select,
    softmax_backward,
    spread,
    widen,
)
from gradest.random import Key
from gradest_neurons._continuous import Squashed, normalised
from gradest_neurons._simplex import count_nodes, perturbed, simplex_nodes, winners

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
        if h.dtype.itemsize == 2:
            return super().pullback(key, a, h, grad_h)
        kernel = select("softmax_backward", a.device)
        return kernel(h, grad_h.to(h.dtype), 1 / self.temperature)  # type: ignore[no-any-return]

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of the nodes that are held at a time, and the work of all."""
        elements, nodes = math.prod(batch) * math.prod(event), count_nodes(event[-1])
        return Cost(elements * min(nodes, _NODES_PER_CHUNK), elements * nodes)

    def law_size(self, a: Tensor) -> int:
        """Return the number of nodes times the size of `a`."""
        return count_nodes(a.shape[-1]) * a.numel()

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], summed over a few nodes of the law at a time to save memory."""
        wide, (nodes, weights) = widen(a), simplex_nodes(a.shape[-1], 0)
        total = torch.zeros_like(wide)
        for winner in winners(a.shape[-1]):
            share = 1.0 if winner is None else torch.softmax(wide, -1)[..., winner : winner + 1]
            for part, weight in zip(
                torch.split(nodes, _NODES_PER_CHUNK), torch.split(weights, _NODES_PER_CHUNK), strict=True
            ):
                h = torch.softmax(perturbed(wide, part, winner) / self.temperature, -1)
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
        wide, (nodes, weights) = widen(a), simplex_nodes(a.shape[-1], level)
        still, at, shares = wide.detach(), [], []
        for winner in winners(a.shape[-1]):
            at.append(perturbed(still, nodes, winner))
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
