"""The sparse categorical neuron, a stochastic one-hot unit most of whose classes have no weight."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import RandomOneHot
from gradest.contract.numerics import portable, select, widen
from gradest.random import Key

_LEAST = 1e-30  # a class of less probability has none
_CLOSED_FORMS = (1.5, 2.0)  # values of α for which the root follows from sums
_ROOT_STEPS = 24  # of Newton's method; half of them halve the root at worst, the others square its error
_DERIVATIVE_STEPS = 3  # of Newton's method, from which derivatives up to order 7 are right


class SparseCategorical(RandomOneHot):
    """A one-hot unit with the sparse probabilities p = α-entmax(a), of which many are exactly 0.

    p is the distribution that maximises pᵀa + H_α(p), where H_α is Tsallis' entropy:
    p_c = max(0, (α - 1) a_c - τ)^(1/(α - 1)), with τ such that the probabilities sum to 1. α = 2 is sparsemax, the point of the
    simplex nearest to a; α = 1 would be the softmax of `categorical`. A class gets probability 0 if its pre-activation is
    far enough below the largest, by 1/(α - 1) at most. a and h are `[*batch, units, classes]`, and h is one-hot over the
    last dimension, so E[h_c] = P(h_c = 1) = p_c. The class is drawn by the Gumbel-max trick at log p. At fixed noise h is
    constant in a almost everywhere: dh/da = 0.

    For α = 2 and α = 1.5, τ follows from sums over the sorted pre-activations, and else from Newton's method; p is right to
    about 1e-15 before it is rounded to the dtype of a. With s_c = p_c^(2 - α) where p_c > 0, and 0 elsewhere,
    dp/da = diag(s) - ssᵀ/Σs, which is 0 if a single class has weight.

    p is continuous in a, and a class enters the support with probability 0. So E[L(h)] is differentiable almost everywhere,
    and the score function is unbiased, although the support moves. The score of a class grows like p_c^(1 - α): its
    contribution to the variance is bounded at α = 1.5 and grows like 1/p_c at α = 2. `sparse_enumeration` has no variance if
    few classes have weight. log P(h) is -inf, and the score is 0, for a class without weight. A class whose a is -inf is
    masked. Each unit needs a finite class.

    Introduced by Martins and Astudillo (2016), From Softmax to Sparsemax, arXiv 1602.02068, and Peters, Niculae and Martins
    (2019), Sparse Sequence-to-Sequence Models, arXiv 1905.05702.
    """

    name = "sparse_categorical"
    summary = "one of several classes, one-hot, with sparse probabilities entmax(a)"
    reference = "Martins, Astudillo 2016, arXiv 1602.02068; Peters, Niculae, Martins 2019, arXiv 1905.05702"
    formula = r"P(h = e_c) = \max\bigl(0, (\alpha - 1) a_c - \tau\bigr)^{1/(\alpha - 1)}, \quad \sum_c P(h = e_c) = 1"

    examples = ({}, {"alpha": 2.0}, {"alpha": 1.7})

    alpha: float = Field(1.5, ge=1.5, le=2, description="α of the entmax; 2 is sparsemax, with the fewest classes")

    def draw_size(self, event: tuple[int, ...]) -> int:
        """Return the size of the event, twice where the root is found by steps."""
        return math.prod(event) * (1 if self.alpha in _CLOSED_FORMS else 2)

    def probability(self, a: Tensor) -> Tensor:
        """Return p = α-entmax(a) over the last dim, differentiable in a up to order 7.

        Its value is computed without autograd. Steps of Newton's method from there give it the derivatives of the root.
        """
        p = self._weights(a.detach())
        seen = p > 0
        move = torch.where(seen, (self.alpha - 1) * (a.double() - a.detach().double()), 0)  # 0, with a derivative
        at = torch.exp((self.alpha - 1) * torch.log(p.where(seen, 1)))
        power = 1 / (self.alpha - 1)
        shift = torch.zeros_like(p[..., :1])
        for _ in range(1 if self.alpha == 2 else _DERIVATIVE_STEPS):  # sparsemax is linear on its support
            y = at + move - shift
            slope = torch.where(seen, torch.exp((power - 1) * torch.log(y)), 0)
            shift = shift + (_last_sum(y * slope) - 1) / (power * _last_sum(slope))
        moved = torch.where(seen, torch.exp(power * torch.log(at + move - shift)), 0)
        return (p + (moved - moved.detach())).to(a.dtype)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return 1 at the class at which log p + G is largest, with G = -log(-log noise), else 0.

        It is computed as the smallest of exponential times -log(noise) / p, so that all draws share p.
        """
        logits = self._logits(a)
        wait = portable.exp(logits.amax(-1, keepdim=True) - logits)
        return self.one_hot((-portable.log(noise) * wait).argmin(-1), a)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, by the kernel that draws categorical units if the device has it."""
        h = key.fused("one_hot", self._logits(a), draws, self.event_ndim, a.shape[-1])
        return super().sample(key, a, draws) if h is None else h.to(a.dtype)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log p at the class of h, `[..., *batch, units]`; -inf if it has no weight."""
        p = (h * self.probability(widen(a))).contiguous().sum(-1)
        return torch.where(p > 0, torch.log(torch.where(p > 0, p, 1)), -torch.inf).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return p_c^(1 - α) (h - s/Σs) for the class c of h; 0 if c has no weight.

        At the class of h it sums the other s, which does not cancel at saturation.
        """
        p = self._weights(a)
        s = self._slopes(p)
        mine = _last_sum(h * p)
        factor = torch.where(mine > 0, torch.exp((1 - self.alpha) * torch.log(mine.where(mine > 0, 1))), 0)
        return (factor / _last_sum(s) * torch.where(h > 0, _last_sum((1 - h) * s), -s)).to(a.dtype)

    def smooth_vjp(self, a: Tensor, grad: Tensor) -> Tensor:
        """Return grad (diag(s) - ssᵀ/Σs), grad times the Jacobian of p."""
        s = self._slopes(self._weights(a))
        return (s * (grad - _last_sum(s * grad) / _last_sum(s))).to(a.dtype)

    def _slopes(self, p: Tensor) -> Tensor:
        """Return s = p^(2 - α) where p > 0, and 0 elsewhere."""
        return torch.where(p > 0, torch.exp((2 - self.alpha) * torch.log(p.where(p > 0, 1))), 0)

    def _logits(self, a: Tensor) -> Tensor:
        """Return log p without a derivative, -inf where p is 0, in float32 at least."""
        if self.alpha in _CLOSED_FORMS:
            return self._entmax(widen(a.detach()), logs=True)
        p = self._weights(a).to(widen(a).dtype)
        return torch.where(p > 0, portable.log(p.clamp(min=_LEAST)), -torch.inf)

    def _weights(self, a: Tensor) -> Tensor:
        """Return p in float64, without a derivative."""
        a = a.detach().double()
        if self.alpha in _CLOSED_FORMS:
            return self._entmax(a, logs=False)
        # of x, what is 1 below the largest has no weight
        x = ((self.alpha - 1) * (a - a.amax(-1, keepdim=True))).clamp(min=-1)
        y = (x - _root(x, 1 / (self.alpha - 1))).clamp(min=0)
        p = y * torch.exp((1 / (self.alpha - 1) - 1) * torch.log(y))
        p = torch.where(p > _LEAST, p, 0)
        return p / _last_sum(p)

    def _entmax(self, a: Tensor, logs: bool) -> Tensor:
        """Return p or log p, for an α with a closed form of the root."""
        return select("entmax", a.device)(a, self.alpha == 1.5, logs)  # type: ignore[no-any-return]


def _last_sum(x: Tensor) -> Tensor:
    """Return the sum over the last dim, kept, `[..., 1]`, added in an order that other rows do not change."""
    return x.contiguous().sum(-1, keepdim=True)


def _root(x: Tensor, power: float) -> Tensor:
    """Return τ `[..., 1]` with Σ max(0, x - τ)^power = 1, for x with maximum 0 and a power between 1 and 2.

    The sum is convex and decreasing in τ, and at least 1 at τ = -1, from where Newton's method rises to the root.
    """
    root = torch.full_like(x[..., :1], -1.0)
    for _ in range(_ROOT_STEPS):
        y = (x - root).clamp(min=0)
        slope = torch.exp((power - 1) * torch.log(y))
        root = root + (_last_sum(y * slope) - 1) / (power * _last_sum(slope))
    return root
