"""Neurons whose output is one of several classes, as a vector with a single 1."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.neuron.base import Discrete, Neuron, Relaxable
from gradest.kernels import portable, select
from gradest.kernels.stable import cast, softplus, widen
from gradest.random import Key

__all__ = ["OneHot", "RandomOneHot", "SoftmaxOneHot"]


class OneHot(Neuron):
    """A unit of C classes whose output is a one-hot vector over the last dim, at random or not.

    `a`, h and the noise are `[*batch, units, classes]`. A smooth function of `a` may be substituted for the output in the
    derivative, as for a `Step`.
    """

    event_ndim: ClassVar[int] = 2
    maskable: ClassVar[bool] = True

    def one_hot(self, index: Tensor, a: Tensor) -> Tensor:
        """Return the one-hot outputs `[..., classes]` of the classes `index` `[...]`, in the dtype of `a`."""
        return (index[..., None] == torch.arange(a.shape[-1], device=a.device)).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0: a one-hot output does not move with `a`."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def smooth_vjp(self, a: Tensor, grad: Tensor) -> Tensor:
        """Return grad times the Jacobian of the smooth function that stands in for the output: E[h] if it is random.

        By default that function is softmax(a).
        """
        p = torch.softmax(widen(a), -1)
        grad = cast(grad, p.dtype)
        return (p * (grad - (p * grad).contiguous().sum(-1, keepdim=True))).to(a.dtype)


class RandomOneHot(OneHot, Discrete):
    """A one-hot unit that draws one of its C classes, each with its `probability`, which is also its mean."""

    @abstractmethod
    def probability(self, a: Tensor) -> Tensor:
        """Return the probability of each class, `[*batch, units, classes]`, differentiable in `a`."""

    def atoms(self, event: tuple[int, ...]) -> int:
        """Return C, the number of classes."""
        return event[-1]

    def mean(self, a: Tensor) -> Tensor:
        """Return the probabilities."""
        return self.probability(a)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return the probabilities: only the entry of the class drawn is positive."""
        return self.probability(a)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the C one-hot vectors and their probabilities."""
        classes = a.shape[-1]
        values = torch.eye(classes, dtype=a.dtype, device=a.device).reshape(classes, *[1] * (a.ndim - 1), classes)
        return values.expand(classes, *a.shape), self.probability(a).movedim(-1, 0)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return 1 at the most probable class (the first of equals), for any level, because exactly one class of a unit is 1."""
        return self.one_hot(a.argmax(-1), a)


class SoftmaxOneHot(RandomOneHot, Relaxable):
    """A unit of C classes: a one-hot vector over the last dim, of class c with probability softmax(a)_c.

    The class is the argmax of a + G for Gumbel noise G (the Gumbel-max trick). So noise and h have the shape
    `[*batch, units, classes]` of `a`, and only the log-probability of a unit has no dim of classes.
    """

    def probability(self, a: Tensor) -> Tensor:
        """Return softmax(a) over the last dim."""
        return torch.softmax(widen(a), -1).to(a.dtype)

    def perturbed(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return log softmax(a) + G with G = -log(-log noise).

        The largest entry is the class drawn; the k largest are k classes drawn without replacement.
        """
        return torch.log_softmax(widen(a), -1) - torch.log(-torch.log(noise))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return 1 at the class at which `perturbed` is largest, else 0.

        It is computed as the smallest of exponential times -log(noise) / softmax(a), so that all draws share softmax(a).
        """
        wide = widen(a)
        wait = portable.exp(wide.amax(-1, keepdim=True) - wide)
        return self.one_hot((-portable.log(noise) * wait).argmin(-1), a)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Compute `sample` in one pass if the device has a kernel for it."""
        h = key.fused("one_hot", a, draws, self.event_ndim, a.shape[-1])
        return super().sample(key, a, draws) if h is None else h

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log softmax(a) at the class of h, `[..., *batch, units]`."""
        log_p = torch.log_softmax(widen(a), -1)
        log_p = torch.where((h == 0) & (log_p == -math.inf), 0, log_p)  # a masked class, which 0 · -inf would make NaN
        return (h * log_p).contiguous().sum(-1).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return h - softmax(a). At the class of h it sums the other probabilities, which does not cancel at saturation."""
        p = torch.softmax(widen(a), -1)
        others = ((1 - h) * p).contiguous().sum(-1, keepdim=True)
        return torch.where(h > 0, others, -p).to(a.dtype)

    def relax(self, a: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """Return softmax((log softmax(a) + G) / temperature), which is largest where h is 1."""
        return torch.softmax(self.perturbed(a, noise) / temperature, -1).to(a.dtype)

    def relax_backward(
        self, a: Tensor, noise: Tensor, temperature: float, grad: Tensor, relaxed: Tensor | None = None
    ) -> Tensor:
        """Return s (grad - sᵀ grad) / temperature for the relaxed output s, unless s was rounded to 16 bits.

        A subclass that overrides `relax` or `perturbed` has the derivative by autograd.
        """
        own, here = type(self), SoftmaxOneHot
        changed = own.relax is not here.relax or own.perturbed is not here.perturbed
        if changed or widen(a).dtype != a.dtype:
            return super().relax_backward(a, noise, temperature, grad)
        s = self.relax(a, noise, temperature) if relaxed is None else relaxed
        return select("softmax_backward", a.device)(s, grad, 1 / temperature)  # type: ignore[no-any-return]

    def conditional_relax(self, a: Tensor, h: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """Return `relax` at noise drawn given h.

        Let E = -log u, which is exponential. The perturbed entry of the class k of h is -log E_k, the maximum, whose law does not
        depend on k; that of another class c is -log(E_c / p_c + E_k). It is computed in logarithms, so that p = 0 is allowed.
        """
        log_e = torch.log(-torch.log(noise))
        first = (h * log_e).contiguous().sum(-1, keepdim=True)
        other = log_e - torch.log_softmax(widen(a), -1)
        perturbed = -torch.where(h > 0, first, other + softplus(first - other))
        return torch.softmax(perturbed / temperature, -1).to(a.dtype)
