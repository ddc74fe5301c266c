"""The Plackett-Luce neuron, a random order of n items."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradest.contract.cost import Cost
from gradest.contract.law import MAX_POINTS, in_words
from gradest.contract.neuron import Discrete
from gradest.contract.numerics import leading_sum, portable, sigmoid, softplus
from gradest.errors import TooManyPoints
from gradest.random import Key

_MAX_LAW = 1 << 27  # numbers in a law, over all groups
_STEP, _FIRST, _LAST = 0.3, -30.0, 4.2  # of the grid over the logarithm of an item's time, relative to its mean


class PlackettLuce(Discrete):
    """A unit that puts n items into a random order, a permutation matrix: one item after the other, by softmax of those left.

    It takes a `[*batch, groups, n]` and gives h `[*batch, groups, n, n]`, with h_ri = 1 if item i has place r, so that h x has
    the entries of x in the order drawn. With σ_r the item at place r, P(h) = Π_r exp(a_σr)/Z_r and Z_r = Σ_{s ≥ r} exp(a_σs).
    The likeliest order is that of falling a. A constant added to all a of a group changes nothing. -inf is refused; items at
    -1e9 come last. At fixed noise h is constant in a almost everywhere: dh/da = 0.

    The order is that of falling a + G with Gumbel noise G (Yellott, 1977). log P and the score, 1 - Σ_{r ≤ place of i}
    exp(a_i)/Z_r, take O(n²) operations in float64, without cancellation. E[h_ri] is the probability that item i has place r:
    with exponential times T_i of rates exp(a_i), of which the shortest is first, it is an integral over log T_i of the chance
    that r - 1 others are shorter. A sum over 115 points of it is right to about 1e-11 for any n, in O(n³) operations. The
    law lists the n! orders, for n of at most 9.

    The law goes back to Luce (1959), Individual Choice Behavior, and Plackett (1975), The Analysis of Permutations; as a unit
    with gradient estimates: Gadetsky, Struminsky, Robinson, Quadrianto and Vetrov (2020), Low-Variance Black-Box Gradient
    Estimates for the Plackett-Luce Distribution, arXiv 1911.10036. Their control variates, from relaxed orders, are not here;
    every estimator by the score fits.
    """

    name = "plackett_luce"
    summary = "a random order of n items, as a permutation matrix, drawn one by one by softmax of those left"
    reference = "Plackett 1975; Gadetsky, Struminsky, Robinson, Quadrianto, Vetrov 2020, arXiv 1911.10036"
    formula = r"P(h) = \prod_r \frac{\exp(a_{\sigma_r})}{\sum_{s \ge r} \exp(a_{\sigma_s})}, \quad h_{r \sigma_r} = 1"

    event_ndim: ClassVar[int] = 2
    example_events: ClassVar[Sequence[tuple[int, ...]]] = ((2, 3), (3, 2), (1, 1))

    def output_event(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return (groups, n, n) for (groups, n)."""
        return (*event, event[-1])

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return the order of falling a + G, with G = -log(-log noise); the first of equals comes first."""
        perturbed = a.double() - portable.log(-portable.log(noise)).double()
        return _matrix(_falling(perturbed)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *batch, groups, n, n]`, in one pass if the device has a kernel for it."""
        n = a.shape[-1]
        h = key.fused("ordered", a, draws, self.event_ndim, n, event=(*a.shape[-2:], n))
        return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0: the order does not move with `a`."""
        return torch.zeros_like(grad_h[..., 0], dtype=a.dtype)

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a table for each point of the grid, with a step for each item."""
        elements = math.prod(batch) * self.draw_size(event) * round((_LAST - _FIRST) / _STEP)
        return Cost(elements, elements * event[-1])

    def mean(self, a: Tensor) -> Tensor:
        """Return the probability that item i has place r, `[*batch, groups, n, n]`, differentiable in `a`."""
        wide, n = a.double(), a.shape[-1]
        grid = torch.arange(_FIRST, _LAST + _STEP / 2, _STEP, dtype=torch.float64, device=a.device)
        x = grid[(..., *[None] * a.ndim)]
        items = torch.arange(n, device=a.device)
        # the probability that j of the items before this one are earlier, given its time, `[S, *batch, groups, n, j]`
        earlier = pad(torch.ones_like(x + wide)[..., None], (0, n - 1))
        for other in range(n):
            # the rate of the other, times the time of this one; its logarithm is bounded, so that none overflows
            due = torch.exp((x + wide[..., other : other + 1] - wide).clamp(max=40))
            before, after = -torch.expm1(-due), torch.exp(-due)
            before, after = torch.where(items == other, 0, before), torch.where(items == other, 1, after)
            earlier = earlier * after[..., None] + pad(earlier[..., :-1], (1, 0)) * before[..., None]
        weight = _STEP * torch.exp(x - torch.exp(x))[..., None]
        return leading_sum(weight * earlier).clamp(max=1).transpose(-1, -2).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return the means: an entry is positive where it is 1."""
        return self.mean(a)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return the likeliest order, that of falling a, for any level, because h is always a permutation."""
        return _matrix(_falling(a)).to(a.dtype)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log P(h | a) of each group, `[..., *batch, groups]`."""
        ordered, left = _in_order(h, a)
        return -softplus(left - ordered[..., :-1]).contiguous().sum(-1).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return d log P(h | a)/da; the first term, 1 - exp(a_i)/Z at the place of i, does not cancel at saturation."""
        ordered, left = _in_order(h, a)
        chosen = pad(sigmoid(left - ordered[..., :-1]), (0, 1))  # the last item has no choice
        log_z = _logaddexp(ordered[..., :-1], left)
        places = torch.arange(a.shape[-1], device=a.device)
        passed = torch.where(
            places[:, None] > places[:-1], torch.exp((ordered[..., :, None] - log_z[..., None, :]).clamp(max=0)), 0
        )
        by_place = chosen - passed.contiguous().sum(-1)
        return torch.zeros_like(by_place).scatter(-1, h.argmax(-1), by_place).to(a.dtype)

    def atoms(self, event: tuple[int, ...]) -> int:
        """Return n!, the number of orders; for more than 30 items 30!, which is far beyond every limit too."""
        return math.factorial(min(event[-1], 30))

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return all n! orders and their probabilities.

        Raises TooManyPoints if there are more than 2^20, or if they times the size of an output exceed 2^27.
        """
        n = a.shape[-1]
        orders = self.atoms((n,))
        if orders > MAX_POINTS or orders * max(n, a.numel()) * n > _MAX_LAW:
            raise TooManyPoints(
                f"listing the orders of {n} items takes {n}! = {in_words(orders)} outputs for each of {a[..., 0].numel()} "
                "groups; the limits are 2^20 outputs, and 2^27 numbers in all. Use fewer items, an objective with a closed form "
                "(objective.expectation), or estimate"
            )
        values = _matrix(_all_orders(n).to(a.device)).to(a.dtype)
        values = values.reshape(orders, *[1] * (a.ndim - 1), n, n).expand(orders, *a.shape, n)
        return values, self.log_prob(values, a).exp()


def _falling(x: Tensor) -> Tensor:
    """Return the item at each place of the order of falling x over the last dim, the first of equals first."""
    return torch.sort(x, dim=-1, descending=True, stable=True).indices


def _matrix(order: Tensor) -> Tensor:
    """Return the permutation matrices `[..., n, n]` of the items at each place, `[..., n]`."""
    return order[..., None] == torch.arange(order.shape[-1], device=order.device)


def _in_order(h: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """Return a in the order of h, `[..., n]`, and log Z of the places after each but the last, `[..., n - 1]`; float64."""
    items = h.argmax(-1)
    ordered = a.double().expand(items.shape).gather(-1, items)
    return ordered, _log_sums_from(ordered)[..., 1:]


def _log_sums_from(x: Tensor) -> Tensor:
    """Return log Σ_{s ≥ r} exp(x_s) for every r, by sums of 2, 4, 8, ... terms, differentiable any number of times.

    The second derivative of torch.logcumsumexp is NaN where the upstream gradient is 0.
    """
    step = 1
    while step < x.shape[-1]:
        x = torch.cat([_logaddexp(x[..., :-step], x[..., step:]), x[..., -step:]], -1)
        step *= 2
    return x


def _logaddexp(x: Tensor, y: Tensor) -> Tensor:
    """Return log(exp(x) + exp(y)), whose derivatives are finite also where torch.logaddexp's overflow, at |x - y| above 709."""
    first = x >= y
    larger, smaller = torch.where(first, x, y), torch.where(first, y, x)
    return larger + softplus(smaller - larger)


@functools.lru_cache(maxsize=4)
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def _all_orders(n: int) -> Tensor:
    """Return every order of n items, `[n!, n]`."""
    return torch.tensor(list(itertools.permutations(range(n))), device="cpu").reshape(math.factorial(n), n)
