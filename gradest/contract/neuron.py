"""Neuron: a unit with random output h = f(a, z), and the capabilities that estimators ask for.

Shapes: `a` is `[*batch, *event]`, where the event is the last `event_ndim` dims. h is `[draws, *batch, *event']`, where event' is
`neuron.output_event(event)`: the event itself for most neurons, and another where a unit has several pre-activations or outputs.
What belongs to outputs has event': samples, the mean, the values of the law, dL/dh. What belongs to pre-activations has the
event: scores and gradients. Noise is `[draws, *batch, *event]` unless a neuron states another shape. Every method keeps the
dtype of `a` and is pure.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.plugin import Plugin
from gradest.errors import Inexact
from gradest.kernels import portable, select
from gradest.kernels.stable import cast, leading_sum, leave_one_out, logit, sigmoid, softplus, widen
from gradest.random import Key

__all__ = [
    "Binary",
    "Continuous",
    "Density",
    "Differentiable",
    "Discrete",
    "LogisticBinary",
    "LogisticStep",
    "Neuron",
    "OneHot",
    "PoissonCount",
    "RandomOneHot",
    "Relaxable",
    "Reparameterised",
    "Scored",
    "SoftmaxOneHot",
    "Step",
    "Subset",
    "TopGates",
    "UnbiasedRounding",
    "event_shape",
    "keeps_event",
    "output_shape",
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
"""Methods that a kernel may implement, each with the methods whose composition it computes."""


_EXAMPLE_EVENT = (2, 3)  # units, and classes of each
_USUAL_NODES = 100  # of the quadrature of a unit whose output is a number, at level 0


def _place(cls: type, name: str) -> int:
    return next(place for place, base in enumerate(cls.__mro__) if name in vars(base))


class Neuron(Plugin):
    """A stochastic unit: how its output is drawn, and what is known of its law in closed form."""

    event_ndim: ClassVar[int] = 1
    """The number of trailing dims of `a` that make one event: 1 for units, 2 for units of several classes."""

    example_events: ClassVar[Sequence[tuple[int, ...]]] = ((2,),)
    """Shapes of events on which the conformance kit tries the neuron, the first one in every check. By default one of 2 units,
    with 3 and 2 as its further dims. A neuron that does not take every shape lists some that it takes."""

    kernel_devices: ClassVar[tuple[str, ...]] = ()
    """The types of devices, such as "cuda", beside the CPU, for which the neuron has a kernel of its own, in `sample` or another
    method. The conformance kit compares it with what it is a shortcut for on each of them that the machine has."""

    maskable: ClassVar[bool] = False
    """Whether -inf is a valid pre-activation, of a class that a unit never takes, as long as another class is finite. Its
    gradient is 0, whatever the estimator returns."""

    @model_validator(mode="after")
    def _refuse_modules_that_would_be_trained(self) -> Self:
        """Raise ValueError for an option that is a module with parameters that require a gradient: they would never get one."""
        for name, module in self.modules().items():
            if any(parameter.requires_grad for parameter in module.parameters()):
                raise ValueError(
                    f"{name} cannot be a module that is to be trained, because gradients reach the pre-activations of a neuron "
                    f"alone. Call {name}.requires_grad_(False), and let what is to be learned be a pre-activation"
                )
        return self

    def output_event(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return event', the shape of the output h of one event, given that of its pre-activations; by default the same.

        event'[0] counts the units, which are independent of each other. A unit with two pre-activations, a mean and a log std,
        maps (units, 2) to (units,). Every event of a neuron has as many dims as every other, and so has every event'. It depends
        on the shape and the options alone. Raises InvalidInput for a shape that the neuron cannot take.
        """
        return event

    @cached_property
    def output_ndim(self) -> int:
        """The number of trailing dims of h that make one event, as `output_event` has it."""
        return self.event_ndim if keeps_event(self) else len(self.output_event(self.example_events[0]))

    def atoms(self, event: tuple[int, ...]) -> int:
        """Return how many atoms `law` has for an event of this shape, S, without computing them.

        It is asked before `law` runs, so that a sum over too many outputs is refused before memory is taken. The default is 1,
        which refuses nothing; `law` is then counted when it has run. A neuron whose atoms may be many overrides it.
        """
        return 1

    def draw_size(self, event: tuple[int, ...]) -> int:
        """Return how many elements it takes to draw one output of an event of this shape, or its score or derivative.

        By default the size of the event or that of the output's, whichever is larger. A neuron that computes larger tables
        overrides it; see `gradest.contract.estimator.Cost`.
        """
        return max(math.prod(event), math.prod(self.output_event(event)))

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return what `mean` and `active_probability` take for pre-activations `[*batch, *event]`, without computing them.

        By default rows · `draw_size(event)`. A neuron that sums over nodes, or fills tables, overrides it.
        """
        elements = math.prod(batch) * self.draw_size(event)
        return Cost(elements, elements)

    def law_size(self, a: Tensor) -> int:
        """Return how many elements the values of `law(a)` have, or a few times fewer, without computing them.

        By default `atoms(event)` times the size of an output. A neuron whose number of atoms depends on `a` overrides it.
        """
        return self.atoms(event_shape(self, a)) * math.prod(output_shape(self, a))

    def limit(self, dtype: torch.dtype) -> float:
        """Return the largest magnitude of a pre-activation that the neuron takes in this dtype, float32 or float64."""
        return math.inf

    def check(self, a: Tensor) -> None:
        """Raise InvalidInput for pre-activations that the neuron cannot take, with the reason and what to do about it.

        They are finite, or masked where `maskable` says so, at least float32, and of an event that `output_event` takes; by
        default all of these are taken. It may read values, and so is called only where that is possible: not inside
        torch.compile and torch.func. What must hold there too is a matter of shapes, for `output_event`.
        """

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the noise, `[draws, *a.shape]`, a pure function of the key; by default uniform on (0, 1)."""
        return key.uniform_like(a, draws, self.event_ndim)

    @abstractmethod
    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return the output h = f(a, z), `[draws, *batch, *event']`."""

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return `draws` outputs, `[draws, *batch, *event']`, with the same bits as forward(a, noise(key, a, draws)).

        A neuron may override it with a kernel that draws and computes in one pass, without storing the noise, from
        `key.row_words`. Where the kernel does not serve, as on another device, for another dtype, or if `a` requires a gradient,
        it returns super().sample(key, a, draws). Subclasses that override forward or noise do not inherit such an override.
        """
        return self.forward(a, self.noise(key, a, draws))

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return `backward` at the noise of h = sample(key, a, draws), `[draws, *batch, *event']`.

        Where h determines what backward reads from the noise, a neuron may override it to avoid drawing the noise again.
        Subclasses that override forward, noise or backward do not inherit such an override.
        """
        return self.backward(a, self.noise(key, a, h.shape[0]), grad_h)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for shortcut, parts in _SHORTCUTS.items():
            owner = next((base for base in cls.__mro__ if shortcut in vars(base)), None)
            if owner is not None and any(_place(cls, part) < cls.__mro__.index(owner) for part in parts):
                first = next(base for base in reversed(cls.__mro__) if shortcut in vars(base))
                setattr(cls, shortcut, vars(first)[shortcut])
        if "event_ndim" in vars(cls) and "example_events" not in vars(cls):
            cls.example_events = ((*_EXAMPLE_EVENT, *[2] * cls.event_ndim)[: cls.event_ndim],)

    @abstractmethod
    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · dh/da at fixed noise, with any discrete choice inside the neuron held fixed: 0 for a binary unit.

        grad_h: `[draws, *batch, *event']`. The result is `[draws, *batch, *event]`, one gradient for each draw.
        """

    @abstractmethod
    def mean(self, a: Tensor) -> Tensor:
        """Return E[h], `[*batch, *event']`."""

    @abstractmethod
    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) of each entry of h, `[*batch, *event']`."""

    @abstractmethod
    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the law of each unit as S atoms: values `[S, *batch, *event']` and weights `[S, *batch, units]`.

        They are differentiable in `a`, and `units` is event'[0]. E[g(h)] = Σ_s weight_s g(value_s), and the weights of a unit
        sum to 1. It is exact for a unit of finitely many outputs. For a `Continuous` unit it is a quadrature, and for counts
        without an upper limit it leaves out the least likely. `gradest.exact` and separable objectives use it.
        """

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return a deterministic output for evaluation: E[h] where P(h > 0) > level, and 0 elsewhere.

        A neuron whose output is always positive, or for which 0 is no boundary, overrides it.
        """
        mean = self.mean(a)
        return torch.where(self.active_probability(a) > level, mean, torch.zeros_like(mean))


class Differentiable(Neuron):
    """A neuron whose output moves with `a` at fixed noise, so that `backward` is not 0 everywhere."""


class Reparameterised(Differentiable):
    """A neuron whose `backward` is the pathwise derivative almost everywhere, so that E[loss(h)] may be differentiated by it."""


class Continuous(Neuron):
    """A neuron whose output has a density, perhaps beside atoms, so that its `law` is a quadrature.

    `gradest.exact` and separable objectives compare two levels of the quadrature on the loss at hand, refine it where they can,
    and raise Inexact where they still differ. The law of a neuron that is neither Continuous nor an infinite `Discrete` one is
    taken to be exact.
    """

    @abstractmethod
    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return nodes and weights in the form of `law`, with at least twice as many nodes at each further level from 0 on.

        Level -1 has fewer nodes than level 0, and serves to estimate the error of level 0.

        Each level reaches further into the tails than the one before, by a tenth at least, up to level 9. So a loss that gives
        weight to what lies beyond the nodes, such as exp(20 h), shows as a difference of two levels. Levels that shared one
        reach would agree on a wrong number.

        The weights of a unit sum to 1. If the nodes do not move with `a`, and the density at them is differentiated instead, the
        derivative is right for losses that jump, too.
        """

    def law_size(self, a: Tensor) -> int:
        """Return `atoms(event)`, or a hundred nodes for a unit where that is not stated, times the size of an output."""
        atoms = self.atoms(event_shape(self, a))
        return (atoms if atoms > 1 else _USUAL_NODES) * math.prod(output_shape(self, a))

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the quadrature of level 0."""
        return self.quadrature(a, 0)


class Scored(Neuron):
    """A neuron that makes a discrete choice whose log-probability is differentiable in `a`."""

    @abstractmethod
    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return d log P(choice | a) / da for the choice that gave h, with the value that belongs to the choice held fixed.

        h: `[draws, *batch, *event']`. The result is `[draws, *batch, *event]`.
        """

    def check_scores(self, h: Tensor, a: Tensor) -> None:
        """Give a GradestWarning where the scores of these outputs do not estimate a gradient, with the reason and what to do.

        That is so where an output of probability 0 has a probability that changes with `a`: no sample shows it. By default
        nothing is done. h: `[draws, *batch, *event']`, all outputs at which an estimator asked for the loss. It may read values,
        and so is called only where that is possible.
        """

    def weighted_score(self, h: Tensor, a: Tensor, weights: Tensor) -> Tensor:
        """Return Σ_k weights_k score(h_k, a), `[*batch, *event]`, for h `[K, *batch, *event']` and weights `[K, *batch]`.

        A neuron may override it with a kernel, which subclasses that override score do not inherit.
        """
        return leading_sum(weights[(..., *[None] * self.event_ndim)] * self.score(h, a))

    def leave_one_out_score(self, h: Tensor, a: Tensor, loss: Tensor) -> Tensor:
        """Return `weighted_score` with the weights (L_k - mean L) / (K - 1) of losses `[K, *batch]`, K > 1.

        A neuron may override it with a kernel, which subclasses that override score or weighted_score do not inherit.
        """
        return self.weighted_score(h, a, leave_one_out(loss))


class Density(Continuous, Reparameterised):
    """A reparameterised neuron whose output has a density, on a set that does not move with `a`, without atoms."""

    @abstractmethod
    def density_score(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return d log q(h | a)/da of the density q at h = forward(a, noise), with h held, `[draws, *batch, *event]`.

        It is asked for by the noise, because h - `a` would cancel where the noise is small beside `a`.
        """


class Discrete(Scored):
    """A neuron with countably many outputs, which do not move with `a`.

    `law` lists them. A unit whose output is a number implements `support`, from which `law` follows. A unit whose output is a
    vector implements `law` itself, because the number of its outputs may depend on the shape of `a`.
    """

    finite: ClassVar[bool] = True
    """Whether `law` lists every output. If not, the neuron implements `truncated_law`, of which `law` is level 0."""

    def support(self) -> Tensor:
        """Return the numbers that a unit can output, `[S]`, increasing. Raises TypeError if outputs are not numbers."""
        raise TypeError(
            f"{self.name} has no support of numbers; law(a) lists the outputs of a unit and their probabilities"
        )

    def atoms(self, event: tuple[int, ...]) -> int:
        """Return the size of the support for units that output numbers, and 1 for others, which override it."""
        return 1 if type(self).support is Discrete.support else len(self.support())

    @abstractmethod
    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log P(h | a) of each unit, `[..., *batch, units]`, where `units` is event'[0]."""

    def truncated_law(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return outputs and their probabilities in the form of `law`, of a unit with infinitely many outputs.

        Each level, from -1 on, leaves out much less probability than the one before, as from 1e-9 to 1e-12. `gradest.exact`
        compares two levels on the loss at hand, as those of a `Continuous` unit. A unit that is not `finite` implements it; by
        default it raises Inexact, because nothing then shows whether the loss gives weight to what `law` leaves out.
        """
        raise Inexact(
            f"{self.label()} has infinitely many outputs, of which its law leaves out some, and it does not implement "
            "truncated_law(a, level), by which an expectation can be checked. Use gradest.estimate with an unbiased estimator"
        )

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the support and its probabilities, for units that output numbers, or level 0 of `truncated_law`."""
        if not self.finite:
            return self.truncated_law(a, 0)
        shape = output_shape(self, a)
        support = self.support().to(a)[(..., *[None] * len(shape))]
        values = support.expand(-1, *shape)
        return values, self.log_prob(values, a).exp()


class PoissonCount(Discrete):
    """A unit that counts the arrivals of a Poisson process in a unit of time, so that its output is Poisson distributed."""

    finite: ClassVar[bool] = False

    @abstractmethod
    def log_rate(self, a: Tensor) -> Tensor:
        """Return the logarithm of the rate, which is the mean, `[*batch, *event]`, differentiable in `a` and finite."""


class UnbiasedRounding(Discrete):
    """A discrete neuron that rounds `a` to other numbers at random, with E[h] = a, so that the identity may stand in for it."""


class Relaxable(Discrete):
    """A discrete neuron with a continuous relaxation, which converges to the neuron as the temperature goes to 0."""

    @abstractmethod
    def relax(self, a: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """The relaxed output at the noise that `forward` takes, differentiable in a."""

    @abstractmethod
    def conditional_relax(self, a: Tensor, h: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """A relaxed output given that the neuron said h, from fresh uniform noise; differentiable in a."""


class Subset(Discrete):
    """A unit that chooses `size` of n items: a vector over the last dim with so many entries 1 and all others 0.

    a and h are `[*batch, groups, n]`. `mean` is the probability of each item to be chosen, differentiable in `a`.
    """

    event_ndim: ClassVar[int] = 2
    maskable: ClassVar[bool] = True

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of items that a group chooses."""

    def mean_backward(self, a: Tensor, grad: Tensor) -> Tensor:
        """Return grad · dE[h]/da, `[*batch, groups, n]`, by autograd; a neuron may override it with a kernel."""
        with torch.enable_grad():
            moving = a.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.mean(moving), moving, grad)
        return slope


class TopGates(Differentiable):
    """A unit that opens the `size` largest of n perturbed pre-activations, with their softmax as its values; the others are 0.

    a and h are `[*batch, groups, n]`. h is in a softmax of all n what a step is in a sigmoid, so that it may be substituted in
    the derivative.
    """

    event_ndim: ClassVar[int] = 2

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of items that a group opens."""

    @abstractmethod
    def perturbed(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return the perturbed pre-activations, whose largest are open, `[draws, *batch, groups, n]`."""


class Step(Neuron):
    """A neuron that outputs `low` or `high`: a step in `a`, for whose derivative a smooth function may be substituted."""

    low: ClassVar[float] = 0.0
    high: ClassVar[float] = 1.0

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return 0: between its jumps the output does not move with `a`."""
        return torch.zeros_like(grad_h, dtype=a.dtype)


class Binary(Discrete, Step):
    """A neuron that outputs `low` or `high` at random: high where the noise is below `probability`."""

    @abstractmethod
    def probability(self, a: Tensor) -> Tensor:
        """Return P(h = high)."""

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return high where noise < probability(a), else low."""
        return self.low + (self.high - self.low) * (noise < self.probability(a)).to(a.dtype)

    def mean(self, a: Tensor) -> Tensor:
        """Return low + (high - low) P(h = high)."""
        return self.low + (self.high - self.low) * self.probability(a)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = P(h = high), for a unit with low <= 0 < high."""
        return self.probability(a)

    def support(self) -> Tensor:
        """Return (low, high)."""
        return torch.tensor([self.low, self.high], device="cpu")

    def fits(self, dtype: torch.dtype) -> bool:
        """Return whether this dtype, uint8 or bool, represents both low and high."""
        return {self.low, self.high} <= set(range(2 if dtype == torch.bool else 256))

    def sample_as(self, key: Key, a: Tensor, draws: int, dtype: torch.dtype) -> Tensor | None:
        """Return `sample` in a dtype that `fits`, written by a kernel; None if there is no such kernel."""
        return None

    def antithetic(self, key: Key, a: Tensor, pairs: int) -> Tensor:
        """Return outputs at noise u, then at noise 1 - u, `[2 pairs, *a.shape]`, perhaps by a kernel."""
        noise = self.noise(key, a, pairs)
        return torch.cat([self.forward(a, noise), self.forward(a, 1 - noise)])

    def is_high(self, h: Tensor) -> Tensor:
        """Return 1 where h is high and 0 where it is low, in the dtype of h."""
        return (h - self.low) / (self.high - self.low)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return high where P(h = high) > level, else low."""
        return self.low + (self.high - self.low) * (self.probability(a) > level).to(a.dtype)


class LogisticStep(Discrete, Step):
    """A random step that is high with probability σ(a), by itself; units of a group may depend on each other."""

    def mean(self, a: Tensor) -> Tensor:
        """Return low + (high - low) σ(a)."""
        return self.low + (self.high - self.low) * sigmoid(a).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = σ(a), for a unit with low <= 0 < high."""
        return sigmoid(a).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return high where σ(a) > level, else low."""
        return self.low + (self.high - self.low) * (sigmoid(a).to(a.dtype) > level).to(a.dtype)


class LogisticBinary(Binary, LogisticStep, Relaxable):
    """A binary unit with P(h = high) = σ(a). Bernoulli and bipolar units differ only in their two values."""

    def probability(self, a: Tensor) -> Tensor:
        """Return σ(a)."""
        return sigmoid(a).to(a.dtype)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return high where noise < σ(a), compared in float32 or wider."""
        wide = widen(a)
        return (self.low + (self.high - self.low) * (noise < portable.sigmoid(wide)).to(wide.dtype)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Compute `sample` in one pass if the device has a kernel for it."""
        h = key.fused("binary", a, draws, self.event_ndim, self.low, self.high)
        return super().sample(key, a, draws) if h is None else h

    def sample_as(self, key: Key, a: Tensor, draws: int, dtype: torch.dtype) -> Tensor | None:
        """Compute `sample_as` in one pass if the device has a kernel for it."""
        return key.fused("binary", a, draws, self.event_ndim, self.low, self.high, dtype=dtype)

    def antithetic(self, key: Key, a: Tensor, pairs: int) -> Tensor:
        """Compute `antithetic` in one pass if the device has a kernel for it."""
        h = key.fused("antithetic", a, pairs, self.event_ndim, self.low, self.high)
        return super().antithetic(key, a, pairs) if h is None else h

    def weighted_score(self, h: Tensor, a: Tensor, weights: Tensor) -> Tensor:
        """Compute `weighted_score` in one pass if the device has a kernel for it."""
        scored = self._scored("logistic_score", h, a, weights)
        return super().weighted_score(h, a, weights) if scored is None else scored

    def leave_one_out_score(self, h: Tensor, a: Tensor, loss: Tensor) -> Tensor:
        """Compute `leave_one_out_score` in one pass if the device has a kernel for it.

        Losses wider than `a` are taken relative to the first, in their own precision, because the kernel has that of `a`.
        """
        if loss.dtype != a.dtype:
            loss = loss - loss[:1]
        scored = self._scored("leave_one_out_score", h, a, loss)
        return super().leave_one_out_score(h, a, loss) if scored is None else scored

    def _scored(self, kernel: str, h: Tensor, a: Tensor, of_points: Tensor) -> Tensor | None:
        if torch.is_grad_enabled() and any(x.requires_grad for x in (h, a, of_points)):
            return None  # autograd has to record the computation
        wide = widen(a)
        scored = select(kernel, a.device)(wide, cast(h, wide.dtype), cast(of_points, wide.dtype), self.high)
        return cast(scored, a.dtype)

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return -softplus(-a) where h is high and -softplus(a) where it is low."""
        return -softplus(torch.where(h == self.high, -a, a)).to(a.dtype)

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return b - σ(a), b being 1 for high and 0 for low, computed as ±σ(∓a), which does not cancel at saturation."""
        return torch.where(h == self.high, sigmoid(-a), -sigmoid(a)).to(a.dtype)

    def relax(self, a: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """Return low + (high - low) σ((a - logit u) / temperature), which is above the midpoint exactly where h is high."""
        return self._squash(a - logit(noise), temperature).to(a.dtype)

    def conditional_relax(self, a: Tensor, h: Tensor, noise: Tensor, temperature: float | Tensor) -> Tensor:
        """Return `relax` at noise drawn given h: u·p where h is high, p + u·(1 - p) where it is low.

        It is computed in logarithms, so that it is exact in both tails.
        """
        p, q = sigmoid(a), sigmoid(-a)
        log_u, log_1mu = torch.log(noise), torch.log1p(-noise)
        # with v the conditional noise, logit v = log v - log(1 - v)
        if_high = log_u - softplus(-a) - torch.log1p(-noise * p)
        if_low = torch.log1p(-(1 - noise) * q) - log_1mu + softplus(a)
        return self._squash(a - torch.where(h == self.high, if_high, if_low), temperature).to(a.dtype)

    def _squash(self, z: Tensor, temperature: float | Tensor) -> Tensor:
        return self.low + (self.high - self.low) * sigmoid(z / temperature)


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


def event_shape(neuron: Neuron, a: Tensor) -> tuple[int, ...]:
    """Return the trailing dims of `a` that make one event."""
    return tuple(a.shape[a.ndim - neuron.event_ndim :])


def keeps_event(neuron: Neuron) -> bool:
    """Return whether every output has the shape of its pre-activations, because `output_event` is the default."""
    return type(neuron).output_event is Neuron.output_event


def output_shape(neuron: Neuron, a: Tensor) -> tuple[int, ...]:
    """Return the shape of one output at `a` `[*batch, *event]`: `[*batch, *event']`."""
    if keeps_event(neuron):
        return a.shape
    split = a.ndim - neuron.event_ndim
    return *a.shape[:split], *neuron.output_event(tuple(a.shape[split:]))


def per_event(x: Tensor, neuron: Neuron) -> Tensor:
    """Return `x`, `[..., *batch]`, with singleton dims appended, so that it broadcasts over the events of pre-activations."""
    return x[(..., *[None] * neuron.event_ndim)]
