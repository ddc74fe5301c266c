"""The noisy top-k gate, the router of sparse mixtures of experts."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.law import MAX_POINTS, in_words
from gradest.contract.neuron import Continuous, TopGates
from gradest.contract.numerics import (
    gauss_legendre,
    leading_sum,
    normal_cdf,
    select,
    sinh_cosh,
    softmax_backward,
    widen,
)
from gradest.errors import InvalidInput, TooManyPoints
from gradest.random import Key
from gradest_neurons._continuous import normalised

_NODES = {1: 1, 2: 20}  # at level 0 of each distance, by k
_NODES_OF_MORE = 12
_REACH = 7.0  # of the noise and of the distance of two H, in standard deviations; beyond it lies less than 1e-11
_FURTHER = 2.5  # at each further level of the law; at level -1 it is 1 less
_SPACE = 2.0  # nodes of a distance are sinh(u) times this, so that they are dense where the softmax varies
_LEVEL_NODES = 32  # over the level of the smallest open gate
_NODES_OF_PROBABILITY = 48
_MAX_LAW = 1 << 27  # numbers in a law, over all groups


class NoisyTopK(Continuous, TopGates):
    """A gate that opens k of n experts: those with the largest noisy pre-activations, and their softmax as its values.

    With H = a + s z, z standard normal and T the set of the k largest H, h_i = exp(H_i)/Σ_{j in T} exp(H_j) for i in T, and
    h_i = 0 for the others. So the values sum to 1, and only k experts have to be computed. a and h are `[*batch, groups, n]`;
    groups are tokens, or routers. With k = 1 the one open value is 1, and with k = n all are open.

    At fixed noise and T, dh/da = diag(h) - hhᵀ, which is 0 for k = 1. Where two items change places, h jumps: a value opens at
    more than 0. So backpropagation (`held_noise`), with which Shazeer et al. (2017) train, is biased for k < n, even for linear
    losses. `dense_mixer` lets the values of closed experts have a derivative, too.

    `active_probability` returns P(i in T), an integral over H_i of the chance that at most k - 1 others are larger, and
    `expected_load` sums it over groups, differentiable in a: the expected number of tokens of each expert. The estimate of
    Shazeer et al. is an average of it given the other items' noise. The objective `load_balance` is their penalty on unequal
    sums of values.

    The law is a quadrature over the k - 1 distances of the open H from the smallest of them, for each set of k items and each
    smallest one, n C(n-1, k-1) in all; for k = 1 its weights are the probabilities of the n outputs. It lists at most 2^20
    nodes; `mean`, which sums over them, raises TooManyPoints beyond. `threshold` has no noise, and any n and k. `mean` is right
    to about 1e-3. `gradest.exact` compares two levels of the quadrature; with k of 4 or more, or k = 3 of many experts, they
    differ for many losses, since there are few nodes for each distance, and it raises Inexact. Fewer experts, a smaller k, or the
    value of `gradest.estimate` from many draws help there. -inf is refused; -1e9 masks an expert.

    In Shazeer et al. (2017) s is softplus of a second linear function of the input, for each expert; here it is the option `std`,
    as in most later routers. There is no capacity, a largest number of tokens that an expert takes: what a row gets would
    depend on the other rows of its batch.

    Introduced by Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton and Dean (2017), Outrageously Large Neural Networks: The
    Sparsely-Gated Mixture-of-Experts Layer, arXiv 1701.06538.
    """

    name = "noisy_top_k"
    summary = "the k largest of n noisy pre-activations, with their softmax: the router of a sparse mixture of experts"
    reference = "Shazeer et al. 2017, arXiv 1701.06538"
    formula = r"h = \mathrm{softmax}(\mathrm{KeepTopK}(a + s z, k)), \quad z \sim \mathcal N(0, 1)"

    examples = ({}, {"k": 1})

    k: int = Field(2, ge=1, description="number k of experts that each group opens, at most n")
    std: float = Field(1.0, ge=1e-6, le=1e6, description="standard deviation s of the noise")

    @property
    def size(self) -> int:
        """The number k of open gates in a group."""
        return self.k

    def check(self, a: Tensor) -> None:
        """Raise InvalidInput for groups of fewer than k experts."""
        self._check_experts(a)

    def limit(self, dtype: torch.dtype) -> float:
        """Return a quarter of the magnitude at which a/s overflows."""
        return torch.finfo(dtype).max / 4 * min(1.0, self.std)

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return s z, `[draws, *a.shape]` with z standard normal."""
        return self.std * key.normal_like(a, draws, self.event_ndim)

    def perturbed(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return H = a + s z, in at least float32."""
        return widen(a) + noise

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return the softmax of the k largest H, and 0 elsewhere. Of equal H the first is taken."""
        return self._gates(self.perturbed(a, noise)).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return h (grad_h - hᵀ grad_h): the derivative with the set of open gates held fixed."""
        h = self._gates(self.perturbed(a, noise))
        return softmax_backward(h, grad_h.to(h.dtype), 1.0).to(a.dtype)

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, from h alone unless h was rounded to 16 bits."""
        if h.dtype.itemsize == 2:
            return super().pullback(key, a, h, grad_h)
        return select("softmax_backward", a.device)(h, grad_h.to(h.dtype), 1.0)  # type: ignore[no-any-return]

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of the nodes of the law, and of the tables of `active_probability`, with a step for each item."""
        elements, n = math.prod(batch) * math.prod(event), event[-1]
        nodes, tables = self.atoms(event), _NODES_OF_PROBABILITY * self.k
        return Cost(elements * max(nodes, tables), elements * (nodes + tables * n))

    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], the weighted sum over the nodes of `law`."""
        values, weights = self.law(a.double())
        return leading_sum(weights[..., None] * values).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(i in T), differentiable in a, for any n and k: a sum over H_i, with the others counted one by one."""
        x, w = _standard_normal(_NODES_OF_PROBABILITY, _REACH)
        wide, n = a.double() / self.std, a.shape[-1]
        x, w = (y.to(a.device)[(..., *[None] * a.ndim)] for y in (x, w))
        fewer = torch.zeros(len(x), *a.shape, self.k, dtype=torch.float64, device=a.device)
        fewer[..., 0] = 1  # the probability that j items before this one are larger, for j < k
        items = torch.arange(n, device=a.device)
        for other in range(n):
            above = wide[..., other : other + 1] - wide - x
            larger, smaller = (torch.where(items == other, y, normal_cdf(z)) for y, z in ((0.0, above), (1.0, -above)))
            moved = torch.nn.functional.pad(fewer[..., :-1], (1, 0))
            fewer = fewer * smaller[..., None] + moved * larger[..., None]
        return leading_sum(w * fewer.contiguous().sum(-1)).clamp(max=1).to(a.dtype)

    def expected_load(self, a: Tensor) -> Tensor:
        """Return Σ P(i in T) over groups, `[*batch, n]`: the expected number of groups that open each expert."""
        return self.active_probability(a).sum(-2)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return the softmax of the k largest a, without noise, for any level, because k gates are always open."""
        return self._gates(widen(a)).to(a.dtype)

    def atoms(self, event: tuple[int, ...]) -> int:
        """Return the number of nodes of the law at level 0."""
        return self._count(event[-1], 0)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return nodes of h, weighted with its density: its integral over the level of the smallest open H.

        The nodes are fixed at the present value of a; only the density at them is differentiated in a.
        Raises TooManyPoints if there are more than 2^20, or if they times the size of `a` exceed 2^27.
        """
        self._check_experts(a)
        n, count = a.shape[-1], self._count(a.shape[-1], level)
        if count > MAX_POINTS or count * max(n, a.numel()) > _MAX_LAW:
            raise TooManyPoints(
                f"the law of {self.label()} for {n} experts has {in_words(count)} nodes for each of {a[..., 0].numel()} groups; "
                "the limits are 2^20 nodes, and 2^27 numbers in all. Use fewer experts, a smaller k, threshold, which has no "
                "noise, active_probability, or estimate"
            )
        wide, (open_items, closed_items) = a.double(), _sets(n, self.k)
        top, rest = wide[..., open_items.to(a.device)], wide[..., closed_items.to(a.device)]
        distance, volume = self._distances(top, level)
        heights = torch.cat([torch.zeros_like(volume)[..., None], distance], -1)  # of the open H above the smallest
        gates = torch.softmax(heights, -1)
        values = gates.new_zeros(*gates.shape[:-1], n).scatter(-1, open_items.to(a.device).expand_as(gates), gates)
        error = heights - top
        centre = -error.detach().mean(-1, keepdim=True)
        density = torch.zeros_like(volume)
        reach = _reach_at(level)
        nodes = round(_LEVEL_NODES * (1 + max(0, level) / 2) * max(1.0, reach / _REACH))
        for x, w in zip(*_standard_normal(nodes, reach), strict=True):
            lowest = centre + self.std / math.sqrt(self.k) * float(x)
            # the nodes have the density of x already, which is that of the open H at the centre
            fits = torch.exp(-0.5 * ((lowest + error) / self.std).square().sum(-1) + 0.5 * float(x) ** 2)
            density = density + float(w) * fits * normal_cdf((lowest - rest) / self.std).prod(-1)
        weights = normalised((volume * density).movedim(-1, 1).flatten(0, 1))
        return values.movedim(-2, 1).flatten(0, 1).to(a.dtype), weights.to(a.dtype)

    def _check_experts(self, a: Tensor) -> None:
        if a.shape[-1] < self.k:
            raise InvalidInput(
                f"{self.label()} opens {self.k} experts of each group, but pre-activations of the shape {list(a.shape)} have "
                f"groups of {a.shape[-1]}. Give [*batch, groups, n] with n of at least {self.k}, or use a smaller k"
            )

    def _distances(self, top: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return distances of the other open H from the smallest, `[G, ..., sets, k - 1]`, and volumes `[G, ..., sets]`."""
        if self.k == 1:
            return top[None, ..., :0], torch.ones_like(top[None, ..., 0]).detach()
        mean, reach = (top[..., 1:] - top[..., :1]).detach(), _reach_at(level) * math.sqrt(2) * self.std
        lower, upper = (torch.asinh(y / _SPACE) for y in ((mean - reach).clamp(min=0), mean.clamp(min=0) + reach))
        t, w = (y.to(top.device)[(..., *[None] * top.ndim)] for y in gauss_legendre(self._nodes(level)))
        u = lower + (upper - lower) * t
        sinh, cosh = sinh_cosh(u)
        x, dx = _SPACE * sinh, w * (upper - lower) * _SPACE * cosh
        grid = torch.cartesian_prod(*[torch.arange(len(x), device=x.device)] * (self.k - 1)).reshape(-1, self.k - 1)
        distance, volume = (
            torch.stack([y[grid[:, place], ..., place] for place in range(self.k - 1)], -1) for y in (x, dx)
        )
        return distance, volume.prod(-1)

    def _nodes(self, level: int) -> int:
        return round(_NODES.get(self.k, _NODES_OF_MORE) * 2.0**level)

    def _count(self, n: int, level: int) -> int:
        sets = n * math.comb(n - 1, self.k - 1)
        return sets * int(self._nodes(level) ** (self.k - 1))

    def _gates(self, x: Tensor) -> Tensor:
        """Return the softmax over the k largest entries of the last dim, the first of equals, and 0 elsewhere."""
        self._check_experts(x)
        return select("top_softmax", x.device)(x, self.k)  # type: ignore[no-any-return]


def _reach_at(level: int) -> float:
    """Return how far the nodes of a level of the law reach, in standard deviations: further at each level."""
    return _REACH + _FURTHER * level if level >= 0 else _REACH - 1


@functools.cache
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def _standard_normal(nodes: int, reach: float) -> tuple[Tensor, Tensor]:
    """Return nodes between -reach and reach and weights, `[nodes]`, float64, of an integral with the standard normal density."""
    t, w = gauss_legendre(nodes)
    x = reach * (2 * t - 1)
    return x, 2 * reach * w * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)
def _sets(n: int, k: int) -> tuple[Tensor, Tensor]:
    """Return every set of k items with each of them first, `[n C(n-1, k-1), k]`, and the other items, `[..., n - k]`."""
    chosen = [
        (first, *others)
        for first in range(n)
        for others in itertools.combinations([i for i in range(n) if i != first], k - 1)
    ]
    left = [[i for i in range(n) if i not in items] for items in chosen]
    return torch.tensor(chosen, device="cpu"), torch.tensor(left, dtype=torch.int64, device="cpu").reshape(
        len(chosen), n - k
    )
