"""The tempered Gumbel-softmax neuron: each unit has its own logits and its own temperature, and all are learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.numerics import computable, leading_sum, portable, softmax_backward, spread, widen
from gradest.random import Key
from gradest_neurons._continuous import Squashed, normalised
from gradest_neurons._simplex import count_nodes, perturbed, simplex_nodes, winners
from gradest_neurons._tempered import MOST, check_log_temperature, check_parts, with_temperature

_NODES_PER_CHUNK = 16  # nodes that `mean` holds at a time


class TemperedGumbelSoftmax(Squashed):
    """A relaxed one-hot unit of C classes with C + 1 pre-activations: C logits m, and the logarithm of the temperature τ.

    h = softmax((m + G)/τ), with Gumbel noise G = -log(-log z) and τ = exp(a_C), so P(h > 0) = 1, and h_c is the largest entry
    with probability softmax(m)_c. With x = (m + G)/τ, dh/dm = (diag h - hhᵀ)/τ and dh/d log τ = -(diag h - hhᵀ) x. It takes `a`
    `[*batch, units, C + 1]` and gives h `[*batch, units, C]`. With two classes the first entry of h is
    `tempered_binary_concrete` at m_1 - m_2. `gumbel_softmax` has a fixed τ.

    The magnitude of log τ may be at most 69, so that τ is between 1e-30 and 1e30. -inf is refused; -1e9 masks a class,
    unless τ is as large. E[h] is integrated as for `gumbel_softmax`, with the same errors.

    The law is that of Maddison, Mnih and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random
    Variables, arXiv 1611.00712. That the temperature can be learned is a remark of Jang, Gu and Poole (2017), Categorical
    Reparameterization with Gumbel-Softmax, arXiv 1611.01144; one for each unit, by its logarithm, is gradest's choice.
    """

    name = "tempered_gumbel_softmax"
    summary = "relaxed one-hot unit with learned logits and a learned log temperature"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = (
        r"h = \mathrm{softmax}\!\left(\frac{m + G}{\tau}\right), \quad (m_1, \dots, m_C, \log \tau) = a, \quad "
        r"G_c = -\log(-\log z_c)"
    )

    event_ndim: ClassVar[int] = 2
    example_events: ClassVar[Sequence[tuple[int, ...]]] = ((2, 3), (1, 4))

    def output_event(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return (units, C) for (units, C + 1). Raises InvalidInput for a last dim of 1."""
        shape = "[*batch, units, C + 1], the logits of C classes and the log temperature of each unit"
        check_parts(self, event, event[-1] > 1, shape, "logits")
        return *event[:-1], event[-1] - 1

    def limit(self, dtype: torch.dtype) -> float:
        """Return a quarter of the largest number, so that differences of logits are finite."""
        return torch.finfo(dtype).max / 4

    def check(self, a: Tensor) -> None:
        """Raise InvalidInput for a log temperature of a magnitude above 69."""
        check_log_temperature(self, a)

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the Gumbel noise G, `[draws, *batch, units, C]`, from uniform noise by the Gumbel quantile function."""
        return -portable.log(-portable.log(key.uniform_like(a[..., :-1], draws, self.event_ndim)))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = softmax((m + G)/τ) over the last dimension."""
        x, _ = _scaled(a, noise)
        return portable.softmax(x).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *batch, units, C]`, in one pass if the device has a kernel for it."""
        units, parts = a.shape[-2:]
        h = key.fused("scaled_softmax", a, draws, self.event_ndim, parts - 1, MOST, event=(units, parts - 1))
        return super().sample(key, a, draws) if h is None else h

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass if the device has a kernel for it, which draws the noise again."""
        grad = computable(grad_h, a)
        found = key.fused("scaled_softmax_pullback", a, len(h), self.event_ndim, grad, a.shape[-1] - 1, MOST)
        return super().pullback(key, a, h, grad_h) if found is None else found

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return h (grad_h - hᵀ grad_h), divided by τ for m, and times -x, summed over classes, for log τ.

        A class of which h is the least that the softmax gives counts as 0: in truth its h is less, and x may be -inf.
        """
        x, steep = _scaled(a, noise)
        least = x <= -portable.CONSTANTS[x.dtype].limit
        h = torch.where(least, 0, portable.softmax(x))
        slope = softmax_backward(h, grad_h.to(x.dtype), 1.0)
        moved = portable.last_sum(torch.where(least, 0, slope * x))[..., None]
        return torch.cat([slope * steep, -moved], -1).to(a.dtype)

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of the nodes that are held at a time, and the work of all."""
        elements, nodes = math.prod(batch) * math.prod(event), count_nodes(event[-1] - 1)
        return Cost(elements * min(nodes, _NODES_PER_CHUNK), elements * nodes)

    def law_size(self, a: Tensor) -> int:
        """Return the number of nodes times the size of `a`."""
        return count_nodes(a.shape[-1] - 1) * a.numel()

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], summed over a few nodes of the law at a time to save memory."""
        wide = widen(a)
        logits, temperature = wide[..., :-1], with_temperature(wide).exp()[..., None]
        nodes, weights = simplex_nodes(logits.shape[-1], 0)
        total = torch.zeros_like(logits)
        for winner in winners(logits.shape[-1]):
            share = 1.0 if winner is None else torch.softmax(logits, -1)[..., winner : winner + 1]
            for part, weight in zip(
                torch.split(nodes, _NODES_PER_CHUNK), torch.split(weights, _NODES_PER_CHUNK), strict=True
            ):
                h = torch.softmax(perturbed(logits, part, winner) / temperature, -1)
                total = total + share * leading_sum(spread(weight, logits) * h)
        return total.to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1, because the output is always positive."""
        return torch.ones_like(a[..., :-1])

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return a one-hot output at the most likely class, for every level: the unit without noise in the limit of τ to 0.

        Of equally likely classes the first is taken.
        """
        logits = a[..., :-1]
        return (logits.argmax(-1, keepdim=True) == torch.arange(logits.shape[-1], device=a.device)).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h, `[S, *batch, units, C]`, at the S nodes of a quadrature over the noise, and the weights of the nodes.

        h, and so x = (m + G)/τ up to a constant, is fixed at the present value of a; only its density is differentiated. That of
        y = τ x has the logarithm Σ_c (m_c - y_c) - C log Σ_c exp(m_c - y_c) + const, and the factor of τ between the two is the
        same at all nodes, so that `normalised` supplies it. Of a class whose entry of h is 0 at all nodes, y is held
        instead, because x is then so large that its changes would drown those of other classes.
        """
        wide = widen(a)
        logits, log_temperature, classes = wide[..., :-1], with_temperature(wide), wide.shape[-1] - 1
        nodes, weights = simplex_nodes(classes, level)
        still, at, shares = logits.detach(), [], []
        for winner in winners(classes):
            at.append(perturbed(still, nodes, winner))
            share = 1.0 if winner is None else torch.softmax(still, -1)[..., winner]
            shares.append(spread(weights, still[..., 0]) * share)
        y, share = torch.cat(at), torch.cat([x.expand(len(nodes), *log_temperature.shape) for x in shares])
        values = torch.softmax(y / log_temperature.detach().exp()[..., None], -1)
        if wide.requires_grad and torch.is_grad_enabled():
            warmer = log_temperature - log_temperature.detach()
            seen = ((values > 0) & (share[..., None] > 0)).any(0)
            gap = logits - y * torch.where(seen, torch.exp(warmer)[..., None], 1)
            density = gap.sum(-1) - classes * torch.logsumexp(gap, -1)
            share = share * torch.exp(density - density.detach())
        return values.to(a.dtype), normalised(share).to(a.dtype)


def _scaled(a: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return x = (m + G)/τ, less its maximum over classes, and 1/τ, in at least float32."""
    wide = widen(a)
    steep = portable.exp(-with_temperature(wide))[..., None]
    shifted = wide[..., :-1] + noise
    return (shifted - shifted.amax(-1, keepdim=True)) * steep, steep
