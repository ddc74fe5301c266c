"""Target: the quantity whose gradient is estimated. Beside E[L], there are the best of several samples, and risks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gradest.errors import InvalidInput
from gradest.kernels.stable import drop_impossible, leading_mean, leading_sum

__all__ = ["ConditionalValueAtRisk", "MaxOfSamples", "Risk", "Target"]


@dataclass(frozen=True)
class Target:
    """A quantity that is made of the losses of n independent outputs h_1 to h_n of a neuron, and of nothing else.

    `Target()` is E[L(h)]. `Target(n)` is E[-log (1/n) Σ_k exp(-L(h_k))], which, where L is -log of an importance weight, is the
    negative of the multi-sample bound of Burda, Grosse and Salakhutdinov (2016), arXiv 1509.00519.

    A subclass has a `combine` of its own, and the target is then E[combine(L(h_1), ..., L(h_n))]. One that is no expectation
    overrides `outer` too, which makes the target of the law of what `combine` returns:

        @dataclass(frozen=True)
        class ExponentialLoss(Target):                 # E[exp L]
            def combine(self, loss):
                return loss.exp().mean(0)              # [1, ...] to [...], since samples is 1

        @dataclass(frozen=True)
        class LogExponentialLoss(ExponentialLoss):     # log E[exp L]
            def outer(self, value, probability):
                return (probability * value).sum(0).log()

    `exact`, `compare`, the measurement of bias and the conformance kit take both methods as they are, for any number of samples.
    They call them with float64 losses, and differentiate them by autograd. Equal targets compare equal: a subclass with options
    is a frozen dataclass.

    samples: n, at least 1.

    >>> import torch, gradest
    >>> value, gradient = gradest.exact(lambda h: h.sum(-1), torch.zeros(1), "bernoulli", gradest.Target(2))
    >>> round(value.item(), 3)  # below the 0.5 of one sample
    0.44
    """

    samples: int = 1

    def __post_init__(self) -> None:
        """Raise InvalidInput unless the number of samples is an integer of at least 1."""
        if isinstance(self.samples, bool) or not isinstance(self.samples, int) or self.samples < 1:
            raise InvalidInput(f"a target is of at least 1 sample, so samples cannot be {self.samples!r}")

    def combine(self, loss: Tensor) -> Tensor:
        """Combine the losses of n samples, `[n, ...]`, into one number, `[...]`, elementwise in all dims but the first."""
        if len(loss) == 1:
            return loss[0]
        # exp(-least) is the largest weight; the others are taken relative to it, unless it is 0 or infinite
        least = loss.detach().amin(0).nan_to_num(posinf=0.0, neginf=0.0)
        return least - torch.log(leading_mean(torch.exp(least - loss)))

    def outer(self, value: Tensor, probability: Tensor) -> Tensor:
        """Return the target, `[...]`, from the values that `combine` can take and their probabilities, both `[S, ...]`.

        By default it is their mean, Σ_s probability_s value_s. Its derivative in the probabilities need be right only for changes
        that keep their sum. Losses of probability 0 arrive here as that of the most probable output.
        """
        return leading_sum(probability * drop_impossible(value, probability))

    @property
    def is_mean(self) -> bool:
        """Whether the target is the mean of `combine`, so that a sum over the law needs to hold only a part of it at a time."""
        return type(self).outer is Target.outer

    def __str__(self) -> str:
        if type(self) is not Target:
            return repr(self)
        return "E[L]" if self.samples == 1 else f"E[-log mean exp(-L)] of {self.samples} samples"


@dataclass(frozen=True)
class MaxOfSamples(Target):
    """The expected largest reward of n samples, where the reward is -L, as a loss: E[min(L(h_1), ..., L(h_n))].

    With losses 1 - right, right in {0, 1}, it is 1 - pass@n: one minus the probability that one of n attempts is right.

    >>> import torch, gradest
    >>> value, _ = gradest.exact(lambda h: h.sum(-1), torch.zeros(1), "bernoulli", gradest.MaxOfSamples(2))
    >>> value  # the less of two coins is 1 in one case of four
    tensor(0.2500)
    """

    def combine(self, loss: Tensor) -> Tensor:
        """Return the least of the losses."""
        return loss.amin(0)

    def __str__(self) -> str:
        return f"E[min L] of {self.samples} samples"


@dataclass(frozen=True)
class Risk(Target):
    """The entropic risk (1/β) log E[exp(β L)], the mean loss with a weight on large ones that grows with β.

    It tends to E[L] as β tends to 0, to the largest loss as β grows, and to the least one as -β does. No fixed number of samples
    has an unbiased estimate of it. Introduced by Howard and Matheson (1972), Risk-Sensitive Markov Decision Processes.

    aversion: β, finite and not 0.

    >>> import torch, gradest
    >>> value, _ = gradest.exact(lambda h: h.sum(-1), torch.zeros(1), "bernoulli", gradest.Risk(1.0))
    >>> round(value.item(), 3)  # log((1 + e) / 2)
    0.62
    """

    samples: int = field(default=1, init=False, repr=False)
    aversion: float = 1.0

    def __post_init__(self) -> None:
        """Raise InvalidInput unless the aversion is finite and not 0."""
        if isinstance(self.aversion, bool) or not isinstance(self.aversion, int | float) or self.aversion == 0:
            raise InvalidInput(f"aversion must be a number other than 0, not {self.aversion!r}; Target() is E[L]")
        if not math.isfinite(self.aversion):
            raise InvalidInput(f"aversion must be finite, not {self.aversion!r}")

    def outer(self, value: Tensor, probability: Tensor) -> Tensor:
        """Return (1/β) log Σ_s probability_s exp(β value_s)."""
        scaled = self.aversion * value
        possible = scaled.detach().masked_fill(probability.detach() == 0, -torch.inf)
        largest = possible.amax(0).nan_to_num(posinf=0.0, neginf=0.0)
        # a value of probability 0 may be far above the others, and its exponential infinite
        power = torch.exp(torch.where(possible == -torch.inf, -torch.inf, scaled - largest))
        return (largest + torch.log(leading_sum(probability * power))) / self.aversion

    def __str__(self) -> str:
        if self.aversion == 1:
            return "log E[exp L]"
        return f"1/({self.aversion:g}) log E[exp({self.aversion:g} L)]"


@dataclass(frozen=True)
class ConditionalValueAtRisk(Target):
    """The mean of the largest losses, those above the quantile q of the loss: q + E[max(L - q, 0)] / (1 - level).

    q is the quantile at `level`. That makes the expression least over q (Rockafellar and Uryasev 2000, Optimization of
    Conditional Value-at-Risk), so a change of the law does not change it by way of q. Level 0 is E[L].

    level: the share of the smallest losses that do not count, at least 0 and below 1.

    >>> import torch, gradest
    >>> value, _ = gradest.exact(lambda h: h.sum(-1), torch.zeros(1), "bernoulli", gradest.ConditionalValueAtRisk(0.5))
    >>> round(value.item(), 3)
    1.0
    """

    samples: int = field(default=1, init=False, repr=False)
    level: float = 0.9

    def __post_init__(self) -> None:
        """Raise InvalidInput unless the level is at least 0 and below 1."""
        if isinstance(self.level, bool) or not isinstance(self.level, int | float) or not 0 <= self.level < 1:
            raise InvalidInput(f"level must be at least 0 and below 1, such as 0.9, not {self.level!r}")

    def outer(self, value: Tensor, probability: Tensor) -> Tensor:
        """Return q + Σ_s probability_s max(value_s - q, 0) / (1 - level), with the quantile q of these values."""
        order = value.detach().argsort(0)
        below = probability.detach().gather(0, order).movedim(0, -1).cumsum(-1).movedim(-1, 0) < self.level
        rank = below.sum(0, keepdim=True).clamp(max=len(value) - 1)
        quantile = value.gather(0, order.gather(0, rank))
        excess = drop_impossible((value - quantile).clamp(min=0), probability)
        return quantile[0] + leading_sum(probability * excess) / (1 - self.level)

    def __str__(self) -> str:
        return f"the conditional value at risk of L at level {self.level:g}"
