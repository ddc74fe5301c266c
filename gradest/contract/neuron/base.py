"""The base class of neurons, and the capabilities that estimators ask for. The package says which shapes tensors have."""

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
from gradest.kernels.stable import leading_sum, leave_one_out
from gradest.random import Key

__all__ = [
    "Continuous",
    "Density",
    "Differentiable",
    "Discrete",
    "Neuron",
    "PoissonCount",
    "Relaxable",
    "Reparameterised",
    "Scored",
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

    def relax_backward(
        self, a: Tensor, noise: Tensor, temperature: float, grad: Tensor, relaxed: Tensor | None = None
    ) -> Tensor:
        """Return grad times the derivative of `relax` in a at fixed noise, one gradient for each draw, in the shape of grad.

        relaxed: what `relax` returned for these arguments, if it is known. By default the derivative is taken by autograd. A
        neuron may override it with that of its own relaxation.
        """
        with torch.enable_grad():
            each = a.expand_as(grad).clone().requires_grad_()
            (slope,) = torch.autograd.grad(self.relax(each, noise, temperature), each, grad)
        return slope

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
