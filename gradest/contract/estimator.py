"""Estimator: an ask/tell pair. forward asks where to evaluate the loss; backward turns the losses into a gradient.

    draw = estimator.forward(neuron, a, key, state)           # draw.points: where to evaluate the loss
    feedback = Feedback(loss(draw.points), ...)               # the caller's part, perhaps on another machine
    gradient, state = estimator.backward(draw, feedback, state)

Shapes: a and the gradient `[*batch, *event]`; points and grad `[K, *batch, *event']`, where event' is
`neuron.output_event(event)`, by default the event; loss `[K, *batch]`. Both methods are pure: the state is an
argument and a result, arguments are never modified, and forward with the same key draws the same points again. The gradient of a
row depends on that row alone; only the next state may depend on the whole batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.contract.target import Target
from gradest.kernels.stable import cast, leading_sum
from gradest.random import Key

__all__ = ["Bias", "Cost", "Draw", "Estimator", "Feedback", "MonteCarlo", "State"]

State = Mapping[str, Tensor]
"""What an estimator carries from one step to the next: tensors by name. It is empty for a stateless estimator."""


@dataclass(frozen=True)
class Bias:
    """A claim about E[estimate] - gradient, which the conformance kit tests both ways.

    order: the largest degree of polynomials in h for which the estimate is exact in expectation. Infinity means unbiased for
        every loss, or for those that `continuous` names; 0 means that nothing is claimed.
    continuous: whether the claim is restricted to losses that are continuous and differentiable almost everywhere. An
        estimator whose expectation is right only because dL/dh accounts for all changes of the loss needs this: the derivative
        of sign(h) is 0 almost everywhere and says nothing of its jump.

    >>> import gradest
    >>> str(gradest.estimator("reinmax").bias(gradest.neuron("bernoulli")))
    'exact to order 2'
    """

    order: float
    continuous: bool = False

    NONE: ClassVar[Bias]
    NONE_IF_CONTINUOUS: ClassVar[Bias]
    BIASED: ClassVar[Bias]

    @classmethod
    def exact_to_order(cls, order: int) -> Bias:
        """Return the claim: unbiased for polynomials of at most this degree, biased for some other loss."""
        return cls(order)

    @property
    def unbiased(self) -> bool:
        """Whether the claim is that the estimate is unbiased for every loss, or every continuous one if `continuous` is set."""
        return math.isinf(self.order)

    @property
    def condition(self) -> str:
        """The losses for which the claim promises no bias, in words; an empty string if it promises nothing."""
        if self.unbiased:
            return (
                "losses that are continuous and differentiable almost everywhere" if self.continuous else "every loss"
            )
        return f"polynomials of degree {self.order:g} at most" if self.order else ""

    def __str__(self) -> str:
        if self.unbiased:
            return "none for continuous losses" if self.continuous else "none"
        return f"exact to order {self.order:g}" if self.order else "biased"


Bias.NONE = Bias(math.inf)
Bias.NONE_IF_CONTINUOUS = Bias(math.inf, continuous=True)
Bias.BIASED = Bias(0)


class _EqualWeights:
    """The weights of a draw that was given none, a tensor that is made where it is asked for: most steps do without it."""

    def __get__(self, draw: Draw | None, owner: type[Draw]) -> Tensor:
        if draw is None:
            raise AttributeError("weights")  # for dataclass: the field has no default
        count = draw.points.shape[0]
        with torch.inference_mode(False):  # the draw may be told where autograd records
            weights = draw.__dict__["weights"] = draw.a.new_full((count,), 1 / count)
        return weights


_EQUAL_WEIGHTS: Any = _EqualWeights()


@dataclass(frozen=True, eq=False)
class Draw:
    """The points at which the loss is to be evaluated, and what `backward` needs later.

    points: `[K, *batch, *event']`, where the loss is to be evaluated.
    weights: `[K]` or `[K, *batch]`; Σ_k weights_k loss_k estimates E[loss]. By default each is 1 / K.
    saved: tensors that backward would otherwise compute again; all of them can be computed from the key.
    """

    neuron: Neuron
    a: Tensor
    key: Key
    points: Tensor
    weights: Tensor = _EQUAL_WEIGHTS
    saved: Mapping[str, Tensor] = field(default_factory=dict)
    _asked: tuple[Estimator, int, int, bool] | None = field(default=None, init=False, repr=False)

    def __init__(
        self,
        neuron: Neuron,
        a: Tensor,
        key: Key,
        points: Tensor,
        weights: Tensor = _EQUAL_WEIGHTS,
        saved: Mapping[str, Tensor] | None = None,
    ) -> None:
        # the __init__ of a frozen dataclass, which sets one field after the other, takes twice the time
        self.__dict__.update(
            neuron=neuron,
            a=a,
            key=key,
            points=points,
            saved={} if saved is None else saved,
            _asked=None,
        )
        if weights is not _EQUAL_WEIGHTS:
            self.__dict__["weights"] = weights

    def remember(self, estimator: Estimator, masked: bool = True) -> None:
        """Remember which estimator asked, and how often torch has written into the points and into `a` so far.

        masked: whether some pre-activations may be -inf.
        """
        object.__setattr__(self, "_asked", (estimator, _writes(self.points), _writes(self.a), masked))

    @property
    def equal(self) -> bool:
        """Whether the weights are the default, which nobody has asked for, and so cannot have written to."""
        return "weights" not in self.__dict__

    @property
    def asked_by(self) -> Estimator | None:
        """The estimator that asked, if it is remembered."""
        return None if self._asked is None else self._asked[0]

    @property
    def masked(self) -> bool:
        """Whether some pre-activations may be -inf; True if it is not known."""
        return self._asked is None or self._asked[3]

    @property
    def points_written(self) -> bool:
        """Whether torch has written into the points since they were drawn, or may have: in inference mode it does not count."""
        return self._asked is not None and (self.points.is_inference() or self.points._version != self._asked[1])

    @property
    def pre_activations_written(self) -> bool:
        """Whether torch is known to have written into `a` since the points were drawn."""
        return self._asked is not None and _writes(self.a) != self._asked[2]

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy holds. The counters of writes start again in it, so it holds whether there were any."""
        asked = self._asked
        if asked is not None:
            asked = asked[0], int(self.points_written), int(self.pre_activations_written), asked[3]
        return {**self.__dict__, "_asked": asked}

    def __setstate__(self, state: dict[str, Any]) -> None:
        asked = state["_asked"]
        if asked is not None:
            estimator, *written, masked = asked
            counts = (_writes(x) - wrote for x, wrote in zip((state["points"], state["a"]), written, strict=True))
            asked = estimator, *counts, masked
        self.__dict__.update(state, _asked=asked)

    def noise(self) -> Tensor:
        """Draw the noise of the points again from the key. Valid if the points are `neuron.sample` at this key."""
        return self.neuron.noise(self.key, self.a, self.points.shape[0])


def _writes(x: Tensor) -> int:
    """Return how often torch has written into a tensor; 0 where it does not count."""
    return 0 if x.is_inference() else x._version


@dataclass(frozen=True, eq=False)
class Feedback:
    """What the caller evaluated at the points: loss `[K, *batch]` and grad = dloss/dh `[K, *batch, *event']`.

    An estimator receives the loss in its own precision, at least that of `a`, so that differences of float64 losses are exact
    beside float32 pre-activations. The grad has the dtype of `a`. Both are finite, unless the caller allowed infinite ones.
    One of them may be None if the estimator's `needs` does not contain it.

    >>> import torch, gradest
    >>> feedback = gradest.Feedback(torch.tensor([0.5, 1.5]))
    >>> feedback.get_loss()
    tensor([0.5000, 1.5000])
    """

    loss: Tensor | None
    grad: Tensor | None = None

    def get_loss(self) -> Tensor:
        """Return the loss. Raises ValueError if it is None."""
        if self.loss is None:
            raise ValueError("this estimator needs the loss at its points, but the feedback contains none")
        return self.loss

    def get_grad(self) -> Tensor:
        """Return dloss/dh. Raises ValueError if it is None."""
        if self.grad is None:
            raise ValueError("this estimator needs dloss/dh at its points, but the feedback contains none")
        return self.grad


class Estimator(Plugin):
    """An estimator of d E[loss(h)] / da, or of the gradient of another `target`."""

    __slots__ = ("_gradest_pairs",)  # what follows from it and a neuron; copies, pickles and comparisons leave it out

    needs: ClassVar[frozenset[str]]
    """What the caller must evaluate at the points: {"loss"}, {"grad"} or both."""

    capabilities: ClassVar[tuple[type[Neuron], ...]] = (Neuron,)
    """Classes of which a neuron must be an instance, all of them, to be accepted."""

    off_support: ClassVar[bool] = False
    """Whether points may lie outside the outputs of the neuron, such as at a relaxed output or at the mean."""

    linear: ClassVar[bool] = True
    """Whether `backward` is linear in dL/dh. `gradest.nn.Stochastic` needs that, because what autograd hands to a layer is
    scaled, by the mean over a batch or a gradient scaler, and summed over all costs. `gradest.expect` and
    `gradest.nn.Expectation` give an estimator that is not linear dL/dh of each loss alone."""

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the estimator can be used with the neuron."""
        return all(isinstance(neuron, capability) for capability in self.capabilities)

    @abstractmethod
    def bias(self, neuron: Neuron) -> Bias:
        """Return the claimed bias of the estimator, with these options, on this neuron."""

    @abstractmethod
    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return K, the number of points at which forward asks for the loss."""

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return what a draw takes for pre-activations `[*batch, *event]`, without computing anything of that size.

        By default K · rows · `neuron.draw_size(event)`. An estimator that takes more, as for inner samples, overrides it.
        """
        elements = self.evaluations(neuron, event) * math.prod(batch) * neuron.draw_size(event)
        return Cost(elements, elements)

    def target(self) -> Target:
        """Return what `value` and the gradient of `backward` estimate, by default E[L(h)]."""
        return Target()

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return the state before the first step. It depends on the dtype, device and event shape of `a` alone."""
        return {}

    @abstractmethod
    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Return the points at which to evaluate the loss."""

    def value(self, draw: Draw, loss: Tensor) -> Tensor:
        """Return the estimate of the target, `[*batch]`, differentiable in the loss; that of one point may be a view of it."""
        count = loss.shape[0]
        if draw.equal and loss.is_floating_point() and not count & (count - 1):
            # with the bits of the weighted sum; a sum that is divided afterwards could overflow
            return loss[0] if count == 1 else leading_sum(loss / count)
        weights = draw.weights
        if weights.ndim < loss.ndim and weights.shape[0] > 1:
            weights = weights[(..., *[None] * (loss.ndim - weights.ndim))]
        return leading_sum((cast(weights, loss.dtype) if loss.is_floating_point() else weights) * loss)

    def value_in(self, a: Tensor, draw: Draw, loss: Tensor, state: State) -> Tensor | None:
        """Return `value` as a function of `a` and the loss, whose derivatives of every order estimate those of the target.

        Its first derivative in `a` is the gradient that `backward` returns. It is called for second derivatives alone, and None,
        the default, has them raise, because the points do not give them. a: `draw.a`, in a graph. state: that of `backward`.
        """
        return None

    @abstractmethod
    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the estimated gradient, `[*batch, *event]`, and the state for the next step."""


class MonteCarlo(Estimator):
    """An estimator that evaluates the loss at independent samples of the neuron, and only there.

    A subclass implements `bias` and `backward`. The draw stores the points alone; `draw.noise()` draws their noise again.
    """

    samples: int = Field(1, ge=1, description="number of independent samples that a draw averages over")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """Return the number of samples."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at `samples` independent outputs of the neuron."""
        return self.draw_of(neuron, a, key, neuron.sample(key, a, self.samples))

    def draw_of(self, neuron: Neuron, a: Tensor, key: Key, points: Tensor) -> Draw:
        """Return the draw that has these points, which are `neuron.sample(key, a, samples)`."""
        return Draw(neuron, a, key, points)
