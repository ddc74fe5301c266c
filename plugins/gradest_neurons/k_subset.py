"""The k-subset neuron: k of n items, by the conditional Poisson law."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from gradest.contract.law import MAX_POINTS, in_words
from gradest.contract.neuron import Subset
from gradest.contract.numerics import fused, portable
from gradest.errors import InvalidInput, TooManyPoints
from gradest.random import Key

_MAX_LOG_WEIGHT = 150.0  # of an item relative to the k-th largest: beyond, its probability is within e^-150 of 0 or 1
_MAX_ROW = 1 << 26  # entries of the table of one group, n·k
_MAX_TABLE = 1 << 24  # entries of a table, groups·n·k, which is computed for so many groups at a time
_MAX_LAW = 1 << 27  # numbers in a law, over all groups


class KSubset(Subset):
    """A unit that chooses exactly k of n items, each set h with a probability proportional to exp(Σ_i a_i h_i).

    a and h are `[*batch, groups, n]`, and h is k-hot over the last dimension: P(h) = exp(Σ_i a_i h_i) / e_k(w), with
    w = exp(a) and e_k the k-th elementary symmetric polynomial, Σ over all sets of k items of the products of their w.
    This is the conditional Poisson law: that of n independent Bernoulli units of logits a, given that their sum is k.
    A constant added to all a of a group changes nothing. With k = 1 it is the categorical unit, and with k = n all items
    are chosen. E[h_i] = P(h_i = 1) is the marginal μ_i, the score is h - μ, and dμ/da is the covariance of h. At fixed
    noise h is constant in a almost everywhere: dh/da = 0.

    Everything takes O(nk) operations in float64. The ratios R_j = e_j / e_(j-1) of the first items follow from those of
    one item less by R_j ← (R_j + w)/(1 + w/R_(j-1)): all terms are positive, and an error of a ratio grows no further,
    because the relative errors of R_j and R_(j-1) enter with weights whose sum is at most 1. Items are drawn from the
    last to the first: with j of them still to be chosen, item i is chosen with probability w_i/(R_j + w_i), where R_j is
    that of the items before it. μ and 1 - μ follow from the same probabilities, without cancellation. Logits of any size
    are taken. A logit more than 150 above or below the k-th largest of its group counts as 150 in R, which changes a
    probability by less than about e^-150. Sampling holds at most 128 MB of ratios at a time, or those of one group,
    8 n k bytes; a group with n k above 2^26 is refused.

    Precision: with the 24 bits of float32 noise an item is hardly ever chosen, or left out, where the probability of
    that is below 2^-24 = 6e-8. Pass a.double() where that matters. An item whose a is -inf is masked: it is never chosen
    and has no gradient. Each group needs at least k finite items.

    The k largest of a + G, with Gumbel noise G, are no sample of this law but of successive sampling (Plackett-Luce
    without the order), so the score h - μ is wrong for them. With n = 5, k = 2 and a = (2, 1, 0, -1, -2), that pair has
    for the constant loss 1, whose gradient is 0, a mean of up to 0.049 in a coordinate, and for the loss
    (h·(1, -2, 3, 0, 1) - 1)² a bias of 24 % of the norm of the gradient.

    The law goes back to Hájek (1964), Asymptotic Theory of Rejective Sampling; see Chen, Dempster and Liu (1994),
    Weighted Finite Population Sampling to Maximize Entropy. As a unit of networks: Ahmed, Zeng, Niepert and Van den
    Broeck (2023), SIMPLE: A Gradient Estimator for k-Subset Sampling, arXiv 2210.01941.
    """

    name = "k_subset"
    summary = "exactly k of n items, each set with a probability proportional to exp(Σ a h)"
    reference = "Chen, Dempster, Liu 1994; Ahmed, Zeng, Niepert, Van den Broeck 2023, arXiv 2210.01941"
    formula = r"P(h) = \frac{\exp(a^\top h)}{e_k(\exp a)}, \quad \textstyle\sum_i h_i = k"

    k: int = Field(2, ge=1, description="number k of items that each group chooses, at most n")

    @property
    def size(self) -> int:
        """The number k of items that a group chooses."""
        return self.k

    def check(self, a: Tensor) -> None:
        """Raise InvalidInput for groups of fewer than k items, or of fewer than k finite ones, or with n k above 2^26."""
        self._check_items(a)
        if bool((torch.isfinite(a).sum(-1) < self.k).any()):
            raise InvalidInput(
                f"{self.label()} chooses {self.k} items of each group, so at least {self.k} pre-activations of a group must "
                "be finite, but one has fewer. Mask fewer items with -inf, or use a smaller k"
            )

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h, drawn item by item, from the last to the first."""
        with torch.no_grad():
            if noise.shape[max(0, noise.ndim - a.ndim) :] != a.shape:
                shape = torch.broadcast_shapes(a.shape, noise.shape)  # type: ignore[no-untyped-call]
                a, noise = a.expand(shape), noise.expand(shape)
            n = a.shape[-1]
            groups = self._shifted(a).reshape(-1, n)
            z = noise.reshape(*noise.shape[: noise.ndim - a.ndim], *groups.shape)
            step = max(1, _MAX_TABLE // (n * (self.k + 1)))
            drawn = [self._draw(b, u) for b, u in zip(torch.split(groups, step), torch.split(z, step, -2), strict=True)]
            return torch.cat(drawn, -2).reshape(noise.shape).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        with torch.no_grad():
            logits = _clamped(self._shifted(a))
            h = key.fused("subset", a, draws, self.event_ndim, a.shape[-1], self.k, logits)
            return super().sample(key, a, draws) if h is None else h

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0: the set chosen does not move with `a`."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return the marginals μ, differentiable in `a`."""
        return self._marginals(a)[0].to(a.dtype)

    def mean_backward(self, a: Tensor, grad: Tensor) -> Tensor:
        """Return grad · dμ/da, the covariance matrix of h times grad, in one pass if the device has a kernel for it."""
        kernel, b = fused("subset_mean_backward", a.device), self._shifted(a)
        found = (
            None if kernel is None else kernel(_clamped(b), grad.double(), self.k)
        )  # None while it is being compiled
        return super().mean_backward(a, grad) if found is None else torch.where(b == -math.inf, 0, found).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return the marginals μ: an item is positive where it is chosen."""
        return self.mean(a).clamp(max=1)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return the likeliest set, the k largest a (the first of equals), for any level, because k items are always chosen."""
        self._check_items(a)
        order = torch.sort(a, dim=-1, descending=True, stable=True).indices
        return torch.zeros_like(a).scatter(-1, order[..., : self.k], 1)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log P(h | a) = Σ_i a_i h_i - log e_k(exp a) of each group, `[..., *batch, groups]`."""
        b = self._shifted(a)
        chosen = torch.where(h > 0, b, 0).contiguous().sum(-1)
        return (chosen - self._log_partition(b)).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return h - μ, from 1 - μ where h is 1, which does not cancel at saturation."""
        chosen, left_out = self._marginals(a)
        return torch.where(h > 0, left_out, -chosen).to(a.dtype)

    def draw_size(self, event: tuple[int, ...]) -> int:
        """Return groups · n · k, the size of the tables of the symmetric polynomials."""
        return math.prod(event) * self.k

    def atoms(self, event: tuple[int, ...]) -> int:
        """Return C(n, k), the number of sets."""
        return math.comb(event[-1], self.k)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return all sets, C(n, k) of them, and their probabilities.

        Raises TooManyPoints if there are more than 2^20, or if they times the size of `a` exceed 2^27.
        """
        self._check_items(a)
        n = a.shape[-1]
        sets = math.comb(n, self.k)
        if sets > MAX_POINTS or sets * max(n, a.numel()) > _MAX_LAW:
            raise TooManyPoints(
                f"listing the sets of {self.k} of {n} items takes C({n}, {self.k}) = {in_words(sets)} outputs for each of "
                f"{a[..., 0].numel()} groups; the limits are 2^20 outputs, and 2^27 numbers in all. Use fewer items, an "
                "objective with a closed form (objective.expectation), or estimate"
            )
        values = _all_sets(n, self.k).to(a).reshape(sets, *[1] * (a.ndim - 1), n).expand(sets, *a.shape)
        return values, self.log_prob(values, a).exp()

    def entropy(self, a: Tensor) -> Tensor:
        """Return the entropy -E[log P(h)] of each group, `[*batch, groups]`, differentiable in `a`."""
        b = self._shifted(a)
        chosen = self._marginals(a)[0]
        mean = (chosen * torch.where(torch.isfinite(b), b, 0)).contiguous().sum(-1)
        return (self._log_partition(b) - mean).to(a.dtype)

    def _check_items(self, a: Tensor) -> None:
        n = a.shape[-1]
        if n < self.k:
            raise InvalidInput(
                f"{self.label()} chooses {self.k} items of each group, but pre-activations of the shape {list(a.shape)} have "
                f"groups of {n}. Give [*batch, groups, n] with n of at least {self.k}, or use a smaller k"
            )
        if n * self.k > _MAX_ROW:
            raise InvalidInput(
                f"{self.label()} takes groups with n·k of at most 2^26 = {_MAX_ROW}, because it holds as many ratios, but "
                f"{n}·{self.k} = {n * self.k}. Use smaller groups or a smaller k"
            )

    def _shifted(self, a: Tensor) -> Tensor:
        """Return `a` minus the k-th largest of its group, in float64. A constant does not change the law."""
        self._check_items(a)
        wide = a.double()
        return wide - torch.topk(wide.detach(), self.k, -1).values[..., -1:]

    def _log_partition(self, b: Tensor) -> Tensor:
        """Return log e_k(exp b), `[..., *batch, groups]`: Σ_j log R_j, and what `_clamped` cut off the largest b."""
        ratios = self._ratios(torch.exp(_clamped(b)))[-1]
        beyond = torch.relu(b - _MAX_LOG_WEIGHT).contiguous().sum(-1)
        return torch.log(ratios).contiguous().sum(-1) + beyond

    def _ratios(self, w: Tensor) -> list[Tensor]:
        """Return R_1 to R_min(i, k) of the first i items, `[..., min(i, k)]`, for i = 0 to n."""
        ratios = [w[..., :0]]
        for i in range(w.shape[-1]):
            before, here = ratios[-1], w[..., i : i + 1]
            above = before + here if i >= self.k else pad(before, (0, 1)) + here
            below = 1 + here / (before[..., : self.k - 1])
            ratios.append(above / pad(below, (1, 0), value=1.0))
        return ratios

    def _draw(self, b: Tensor, u: Tensor) -> Tensor:
        """Return h `[..., groups, n]` for noise u of this shape and shifted pre-activations `[groups, n]`.

        It takes only additions, multiplications and divisions of `portable` weights, so the bits are the same on every device.
        """
        w = portable.exp(_clamped(b))
        ratios = self._ratios(w)
        left = torch.full(u.shape[:-1], self.k, dtype=torch.int64, device=u.device)[..., None]
        drawn = []
        for i in reversed(range(b.shape[-1])):
            # no item is chosen if none is left to be (R_0 is infinite), and every item if all before it are (R is 0)
            table = pad(ratios[i], (1, 0), value=math.inf)
            table = pad(table, (0, self.k + 1 - table.shape[-1]))
            here = w[..., i : i + 1]
            ratio = table.expand(*left.shape[:-1], self.k + 1).gather(-1, left)
            chosen = u[..., i : i + 1].double() * (ratio + here) < here
            left = left - chosen.to(left.dtype)
            drawn.append(chosen)
        return torch.cat(drawn[::-1], -1)

    def _marginals(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and 1 - μ, `[*batch, groups, n]`, in float64, by a kernel unless autograd has to record the computation."""
        b = self._shifted(a)
        masked, b = b == -math.inf, _clamped(b)
        kernel = None if torch.is_grad_enabled() and a.requires_grad else fused("subset_marginals", a.device)
        found = None if kernel is None else kernel(b.detach(), self.k)  # None while the kernel is being compiled
        chosen, left_out = self._sums_over_states(torch.exp(b)) if found is None else found
        return torch.where(masked, 0, chosen), torch.where(masked, 1, left_out)

    def _sums_over_states(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Return μ and 1 - μ for weights w, `[*batch, groups, n]`, differentiable any number of times.

        From the last item to the first, `states` holds the probability that j items are left to be chosen, for each j.
        """
        ratios, n = self._ratios(w), w.shape[-1]
        states = pad(torch.ones_like(w[..., :1]), (self.k, 0))
        chosen, left_out = [], []
        for i in reversed(range(n)):
            here, before = w[..., i : i + 1], ratios[i]
            # with as many left to be chosen as there are items, each is chosen; with none, none is
            certain = 1 if i < self.k else 0
            take = pad(pad(here / (before + here), (1, 0)), (0, certain), value=1.0)
            leave = pad(pad(before / (before + here), (1, 0), value=1.0), (0, certain))
            taken, stayed = states * take, states * leave
            chosen.append(taken.contiguous().sum(-1))
            left_out.append(stayed.contiguous().sum(-1))
            moved = taken[..., 1:]
            states = stayed[..., : moved.shape[-1]] + moved if certain else stayed + pad(moved, (0, 1))
        return torch.stack(chosen[::-1], -1), torch.stack(left_out[::-1], -1)


def _clamped(b: Tensor) -> Tensor:
    """Return b between -150 and 150, where no ratio of two weights exp(b), or of their squares, overflows."""
    return b.clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT)


@functools.lru_cache(maxsize=8)
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def _all_sets(n: int, k: int) -> Tensor:
    """Return every k-hot vector of n entries, `[C(n, k), n]`, uint8, in the order of their items."""
    items = torch.tensor(list(itertools.combinations(range(n), k)), device="cpu")
    return torch.zeros(len(items), n, dtype=torch.uint8, device="cpu").scatter_(1, items, 1)
