"""Neuron: a unit with random output h = f(a, z), and the capabilities that estimators ask for.

Shapes: a `[*batch, *event]`, where the event is the last `event_ndim` dims; noise `[draws, *batch, *event]` unless a neuron
says otherwise; h like the broadcast of a and noise. Every method preserves the dtype of `a`; all of them are pure.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradest.contract.plugin import Plugin
from gradest.kernels import portable, select
from gradest.kernels.stable import cast, leading_sum, leave_one_out, logit, sigmoid, softplus, widen
from gradest.random import Key

__all__ = [
    "Binary",
    "Differentiable",
    "Discrete",
    "LogisticBinary",
    "Neuron",
    "Relaxable",
    "Reparameterised",
    "Scored",
    "SoftmaxOneHot",
    "Step",
    "event_shape",
    "per_event",
]


_SHORTCUTS = {
    "sample": ("forward", "noise"),
    "sample_as": ("sample", "forward", "noise"),
    "antithetic": ("forward", "noise"),
    "pullback": ("forward", "noise", "backward"),
    "weighted_score": ("score",),
    "leave_one_out_score": ("score", "weighted_score"),
}
"""Methods that may be kernels, and the methods that they stand for."""


def _place(cls: type, name: str) -> int:
    return next(place for place, base in enumerate(cls.__mro__) if name in vars(base))


class Neuron(Plugin):
    """A stochastic unit: what it draws, and what is known about its law in closed form."""

    event_ndim: ClassVar[int] = 1
    """How many trailing dims of `a` make one event: 1 for units, 2 for units of several classes."""

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """What makes the neuron random, `[draws, *a.shape]`, a pure function of the key; by default uniform on (0, 1)."""
        return key.uniform_like(a, draws, self.event_ndim)

    @abstractmethod
    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """The output h = f(a, z)."""

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """`draws` outputs, `[draws, *a.shape]`: the bits of forward(a, noise(key, a, draws)), perhaps without holding the noise.

        A neuron may have a kernel that draws and computes in one pass. Subclasses that change forward or noise do not inherit it.
        """
        return self.forward(a, self.noise(key, a, draws))

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """`backward` at the noise of h = sample(key, a, draws), `[draws, *a.shape]`, perhaps without drawing it again.

        An output can tell all that backward takes from its noise. Subclasses that change forward, noise or backward do not
        inherit what makes use of that.
        """
        return self.backward(a, self.noise(key, a, h.shape[0]), grad_h)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for shortcut, parts in _SHORTCUTS.items():
            owner = next((base for base in cls.__mro__ if shortcut in vars(base)), None)
            if owner is not None and any(_place(cls, part) < cls.__mro__.index(owner) for part in parts):
                first = next(base for base in reversed(cls.__mro__) if shortcut in vars(base))
                setattr(cls, shortcut, vars(first)[shortcut])

    @abstractmethod
    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """grad_h · dh/da at fixed noise, any discrete choice inside the neuron held: 0 for a binary unit."""

    @abstractmethod
    def mean(self, a: Tensor) -> Tensor:
        """E[h]."""

    @abstractmethod
    def active_probability(self, a: Tensor) -> Tensor:
        """P(h > 0)."""

    @abstractmethod
    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The law of each unit as S atoms: values `[S, *a.shape]` and weights `[S, *batch, units]`, differentiable in a.

        E[g(h)] = Σ_s weight_s g(value_s): exactly for a unit with finitely many outputs, by a quadrature whose accuracy the
        neuron states for a continuous one. `gradest.exact` and separable objectives are built on it.
        """

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """A deterministic output for evaluation: E[h] where P(h > 0) > level, and 0 elsewhere."""
        return torch.where(self.active_probability(a) > level, self.mean(a), torch.zeros_like(a))


class Differentiable(Neuron):
    """`backward` carries information: h moves with a at fixed noise."""


class Reparameterised(Differentiable):
    """`backward` is the true pathwise derivative almost everywhere, and E[loss(h)] may be differentiated through it."""


class Scored(Neuron):
    """Makes a discrete choice whose log-probability has a derivative."""

    @abstractmethod
    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """d log P(the choice behind h | a) / da, with the value that belongs to the choice held."""

    def weighted_score(self, h: Tensor, a: Tensor, weights: Tensor) -> Tensor:
        """Σ_k weights_k score(h_k, a), for h `[K, *a.shape]` and weights `[K, *batch]`; perhaps in one pass.

        Subclasses that change score do not inherit a kernel.
        """
        return leading_sum(weights[(..., *[None] * self.event_ndim)] * self.score(h, a))

    def leave_one_out_score(self, h: Tensor, a: Tensor, loss: Tensor) -> Tensor:
        """`weighted_score` with (L_k - mean L) / (K - 1) for weights, of losses `[K, *batch]`, K > 1; perhaps in one pass.

        Subclasses that change score or weighted_score do not inherit a kernel.
        """
        return self.weighted_score(h, a, leave_one_out(loss))


class Discrete(Scored):
    """Has countably many outputs, which do not move with a.

    `law` lists them. A unit whose output is a number writes `support` and has `law` from it. A unit whose output is a vector
    writes `law` itself: how many outputs it has may depend on the shape of a, which `support` does not see.
    """

    finite: ClassVar[bool] = True
    """Whether `law` lists every output; else those that make up all but a share that the neuron states, at most as many as at
    the largest a."""

    def support(self) -> Tensor:
        """The numbers that a unit can be, `[S]`, increasing; raises TypeError where outputs are no numbers."""
        raise TypeError(f"{self.name} states no support; the outputs of a unit and their probabilities are in law(a)")

    @abstractmethod
    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """log P(h | a) of each unit, `[..., *batch, units]`."""

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The support, and its probabilities; for units that are numbers."""
        support = self.support().to(a)[(..., *[None] * a.ndim)]
        values = support.expand(-1, *a.shape)
        return values, self.log_prob(values, a).exp()


class Relaxable(Discrete):
    """Has a continuous relaxation that becomes the neuron as the temperature goes to 0."""

    @abstractmethod
    def relax(self, a: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """The relaxed output at the noise that `forward` takes, differentiable in a."""

    @abstractmethod
    def conditional_relax(self, a: Tensor, h: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """A relaxed output given that the neuron said h, from fresh uniform noise; differentiable in a."""


class Step(Neuron):
    """Outputs `low` or `high` and nothing between: it jumps as a grows, and a smooth function may stand for it in `backward`."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """0: the output does not move with a, but where it jumps."""
        return torch.zeros_like(grad_h, dtype=a.dtype)


class Binary(Discrete, Step):
    """Outputs `low` or `high` at random: high where the noise is below `probability`."""

    @abstractmethod
    def probability(self, a: Tensor) -> Tensor:
        """P(h = high)."""

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """High where noise < probability(a), else low."""
        return self.low + (self.high - self.low) * (noise < self.probability(a)).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """low + (high - low) P(h = high)."""
        return self.low + (self.high - self.low) * self.probability(a)

    def active_probability(self, a: Tensor) -> Tensor:
        """P(h > 0) = P(h = high): low is not positive and high is."""
        return self.probability(a)

    def support(self) -> Tensor:
        """(low, high)."""
        return torch.tensor([self.low, self.high])

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether this integer dtype, of uint8 and bool, holds low and high."""
        return {self.low, self.high} <= set(range(2 if dtype == torch.bool else 256))

    def sample_as(self, key: Key, a: Tensor, draws: int, dtype: torch.dtype) -> Tensor | None:
        """`sample` in a dtype that `fits`, without writing it in that of `a` first; None where nothing does that."""
        return None

    def antithetic(self, key: Key, a: Tensor, pairs: int) -> Tensor:
        """Outputs at noise u and then at 1 - u, `[2 pairs, *a.shape]`; perhaps without holding the noise."""
        noise = self.noise(key, a, pairs)
        return torch.cat([self.forward(a, noise), self.forward(a, 1 - noise)])

    def is_high(self, h: Tensor) -> Tensor:
        """1 where h is high and 0 where it is low, in the dtype of h."""
        return (h - self.low) / (self.high - self.low)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """High where P(h = high) > level, else low."""
        return self.low + (self.high - self.low) * (self.probability(a) > level).to(a.dtype)


class LogisticBinary(Binary, Relaxable):
    """A binary unit with P(h = high) = σ(a). Bernoulli and bipolar units differ only in their two values."""

    def probability(self, a: Tensor) -> Tensor:
        """σ(a)."""
        return sigmoid(a).to(a.dtype)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """High where noise < σ(a), compared in at least float32."""
        wide = widen(a)
        return (self.low + (self.high - self.low) * (noise < portable.sigmoid(wide)).to(wide.dtype)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("binary", a, draws, self.event_ndim, self.low, self.high)
        return super().sample(key, a, draws) if h is None else h

    def sample_as(self, key: Key, a: Tensor, draws: int, dtype: torch.dtype) -> Tensor | None:
        """In one pass where there is a kernel."""
        return key.fused("binary", a, draws, self.event_ndim, self.low, self.high, dtype=dtype)

    def antithetic(self, key: Key, a: Tensor, pairs: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("antithetic", a, pairs, self.event_ndim, self.low, self.high)
        return super().antithetic(key, a, pairs) if h is None else h

    def weighted_score(self, h: Tensor, a: Tensor, weights: Tensor) -> Tensor:
        """In one pass where there is a kernel."""
        scored = self._scored("logistic_score", h, a, weights)
        return super().weighted_score(h, a, weights) if scored is None else scored

    def leave_one_out_score(self, h: Tensor, a: Tensor, loss: Tensor) -> Tensor:
        """In one pass where there is a kernel."""
        scored = self._scored("leave_one_out_score", h, a, loss)
        return super().leave_one_out_score(h, a, loss) if scored is None else scored

    def _scored(self, kernel: str, h: Tensor, a: Tensor, of_points: Tensor) -> Tensor | None:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (h, a, of_points)):
            return None  # autograd would want to see inside
        wide = widen(a)
        scored = select(kernel, a.device)(wide, cast(h, wide.dtype), cast(of_points, wide.dtype), self.high)
        return cast(scored, a.dtype)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """-softplus(-a) where high, -softplus(a) where low."""
        return -softplus(torch.where(h == self.high, -a, a)).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """b - σ(a), where b is 1 for high and 0 for low; written as ±σ(∓a), which does not cancel at saturation."""
        return torch.where(h == self.high, sigmoid(-a), -sigmoid(a)).to(a.dtype)

    def relax(self, a: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """low + (high - low) σ((a - logit u) / temperature): above the middle exactly where h is high."""
        return self._squash(a - logit(noise), temperature).to(a.dtype)

    def conditional_relax(self, a: Tensor, h: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """`relax` at a noise drawn given h: u·p where high, p + u·(1 - p) where low, in logarithms so that no tail is lost."""
        p, q = sigmoid(a), sigmoid(-a)
        log_u, log_1mu = torch.log(noise), torch.log1p(-noise)
        # with v the conditional noise, logit v = log v - log(1 - v)
        if_high = log_u - softplus(-a) - torch.log1p(-noise * p)
        if_low = torch.log1p(-(1 - noise) * q) - log_1mu + softplus(a)
        return self._squash(a - torch.where(h == self.high, if_high, if_low), temperature).to(a.dtype)

    def _squash(self, z: Tensor, temperature: float | Tensor) -> Tensor:
        return self.low + (self.high - self.low) * sigmoid(z / temperature)


class SoftmaxOneHot(Relaxable):
    """A unit of C classes: a one-hot vector over the last dim, of class c with probability softmax(a)_c.

    What is drawn is the argmax of a + G, G Gumbel noise (the Gumbel-max trick), so noise, h and all but the probability of
    a unit have the shape `[*batch, units, classes]` of a.
    """

    event_ndim: ClassVar[int] = 2

    def probability(self, a: Tensor) -> Tensor:
        """softmax(a) over the last dim."""
        return torch.softmax(widen(a), -1).to(a.dtype)

    def perturbed(self, a: Tensor, noise: Tensor) -> Tensor:
        """log softmax(a) + G, G = -log(-log noise): its largest entry is the class drawn, its k largest k without replacement."""
        return torch.log_softmax(widen(a), -1) - torch.log(-torch.log(noise))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """One at the class that `perturbed` is largest at, else 0.

        That is the first to arrive in a race of exponential times -log(noise) / softmax(a), in which K draws share softmax(a).
        """
        wide = widen(a)
        wait = portable.exp(wide.amax(-1, keepdim=True) - wide)
        return self.one_hot((-portable.log(noise) * wait).argmin(-1), a)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = key.fused("one_hot", a, draws, self.event_ndim, a.shape[-1])
        return super().sample(key, a, draws) if h is None else h

    def one_hot(self, index: Tensor, a: Tensor) -> Tensor:
        """The output of class `index` `[...]`, `[..., classes]` with the classes and the dtype of a."""
        return (index[..., None] == torch.arange(a.shape[-1], device=a.device)).to(a.dtype)

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """0: a one-hot output does not move with a."""
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """softmax(a)."""
        return self.probability(a)

    def active_probability(self, a: Tensor) -> Tensor:
        """softmax(a): the class drawn is the one that is not 0."""
        return self.probability(a)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """The C one-hot vectors, and softmax(a)."""
        classes = a.shape[-1]
        values = torch.eye(classes, dtype=a.dtype, device=a.device).reshape(classes, *[1] * (a.ndim - 1), classes)
        return values.expand(classes, *a.shape), self.probability(a).movedim(-1, 0)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """log softmax(a) at the class that h is, `[..., *batch, units]`."""
        return (h * torch.log_softmax(widen(a), -1)).contiguous().sum(-1).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """h - softmax(a), with the sum of the others for 1 - p, which does not cancel at saturation."""
        p = torch.softmax(widen(a), -1)
        others = ((1 - h) * p).contiguous().sum(-1, keepdim=True)
        return torch.where(h > 0, others, -p).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """One at the likeliest class, whatever the level: a one-hot unit has exactly one class open. Of equals, the first."""
        return self.one_hot(a.argmax(-1), a)

    def relax(self, a: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """softmax((log softmax(a) + G) / temperature): largest where h is 1."""
        return torch.softmax(self.perturbed(a, noise) / temperature, -1).to(a.dtype)

    def conditional_relax(self, a: Tensor, h: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """`relax` at a noise drawn given h.

        With E = -log u, exponential: the entry of h's class k is -log E_k, the largest of them all, whose law does not depend
        on k; another class c has -log(E_c / p_c + E_k). In logarithms, so that p = 0 is no division by 0.
        """
        log_e = torch.log(-torch.log(noise))
        first = (h * log_e).contiguous().sum(-1, keepdim=True)
        other = log_e - torch.log_softmax(widen(a), -1)
        perturbed = -torch.where(h > 0, first, other + softplus(first - other))
        return torch.softmax(perturbed / temperature, -1).to(a.dtype)


def event_shape(neuron: Neuron, a: Tensor) -> tuple[int, ...]:
    """The trailing dims of `a` that make one event."""
    return tuple(a.shape[a.ndim - neuron.event_ndim :])


def per_event(x: Tensor, neuron: Neuron) -> Tensor:
    """`[..., *batch]` with singleton dims appended, so that it broadcasts over events."""
    return x[(..., *[None] * neuron.event_ndim)]
