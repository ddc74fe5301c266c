"""Estimator: an ask/tell pair. Forward asks where to evaluate the loss; backward turns the answers into a gradient.

    draw = estimator.forward(neuron, a, key, state)           # draw.points: where the loss is wanted
    feedback = Feedback(loss(draw.points), ...)               # the caller's part; the loss may live on another machine
    gradient, state = estimator.backward(draw, feedback, state)

Shapes: a `[*batch, *event]`; points and grad `[K, *batch, *event]`; loss `[K, *batch]`. Both methods are pure: state goes in
and comes out, arguments are never changed, and forward with the same key draws the same points again. A row's gradient
depends on that row alone; only the next state may gather over the batch.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.kernels.stable import cast, leading_mean, leading_sum
from gradest.random import Key

__all__ = ["Bias", "Draw", "Estimator", "Feedback", "MonteCarlo", "State", "Target"]

State = Mapping[str, Tensor]
"""What an estimator carries from one step to the next, by name; empty for a stateless one."""


@dataclass(frozen=True)
class Bias:
    """A claim about E[estimate] - gradient, which the conformance kit tests both ways.

    order: the estimate is exact in expectation for losses that are polynomials of at most this degree in h; infinity is
    "unbiased for every loss", 0 is "no promise".
    """

    order: float

    NONE: ClassVar[Bias]
    BIASED: ClassVar[Bias]

    @classmethod
    def exact_to_order(cls, order: int) -> Bias:
        """Unbiased for polynomials of at most this degree, biased for some loss beyond it."""
        return cls(order)

    @property
    def unbiased(self) -> bool:
        """Whether the estimate is unbiased for every loss."""
        return math.isinf(self.order)

    def __str__(self) -> str:
        if self.unbiased:
            return "none"
        return f"exact to order {self.order:g}" if self.order else "biased"


Bias.NONE = Bias(math.inf)
Bias.BIASED = Bias(0)


@dataclass(frozen=True)
class Target:
    """What an estimator estimates, and the gradient of: of independent outputs h_1 to h_n, E[-log (1/n) Σ_k exp(-L(h_k))].

    samples: n. With 1 this is E[L(h)]. With more, and with L = -log of an importance weight, it is the negative of the
    multi-sample bound (Burda, Grosse, Salakhutdinov 2016, arXiv 1509.00519).
    """

    samples: int = 1

    def combine(self, loss: Tensor) -> Tensor:
        """What the mean is taken of: losses `[n, ...]` to `[...]`."""
        least = loss.detach().amin(0)  # the largest weight, relative to which the others are
        return least - torch.log(leading_mean(torch.exp(least - loss)))

    def __str__(self) -> str:
        return "E[L]" if self.samples == 1 else f"E[-log mean exp(-L)] of {self.samples} samples"


@dataclass(frozen=True, eq=False)
class Draw:
    """What forward hands out.

    points: `[K, *batch, *event]`, where the loss is to be evaluated.
    weights: `[K]` or `[K, *batch]`; Σ_k weights_k loss_k is the estimate of E[loss].
    saved: tensors that backward would otherwise compute again; nothing in it that the key does not give.
    """

    neuron: Neuron
    a: Tensor
    key: Key
    points: Tensor
    weights: Tensor
    saved: Mapping[str, Tensor] = field(default_factory=dict)

    def noise(self) -> Tensor:
        """The noise of the points, drawn anew from the key; for a draw whose points are `neuron.sample` at it."""
        return self.neuron.noise(self.key, self.a, self.points.shape[0])


@dataclass(frozen=True, eq=False)
class Feedback:
    """What the caller brings back: loss `[K, *batch]` and, where the estimator needs it, grad = dloss/dh `[K, *batch, *event]`.

    Either is None exactly when `needs` does not name it and the caller did not have it.
    """

    loss: Tensor | None
    grad: Tensor | None = None

    def get_loss(self) -> Tensor:
        """The loss, for an estimator that needs it."""
        if self.loss is None:
            raise ValueError("this estimator needs the loss at the points, and the feedback has none")
        return self.loss

    def get_grad(self) -> Tensor:
        """dloss/dh, for an estimator that needs it."""
        if self.grad is None:
            raise ValueError("this estimator needs dloss/dh at the points, and the feedback has none")
        return self.grad


class Estimator(Plugin):
    """An estimator of d E[loss(h)] / da, or of the gradient of another `target`."""

    needs: ClassVar[frozenset[str]]
    """What the caller must bring back, of {"loss", "grad"}."""

    capabilities: ClassVar[tuple[type[Neuron], ...]] = (Neuron,)
    """The capabilities, all of them, that a neuron must have to fit."""

    off_support: ClassVar[bool] = False
    """Whether it asks for the loss elsewhere than at outputs of the neuron, such as at a relaxed output or at the mean."""

    def accepts(self, neuron: Neuron) -> bool:
        """Whether the estimator fits the neuron."""
        return all(isinstance(neuron, capability) for capability in self.capabilities)

    @abstractmethod
    def bias(self, neuron: Neuron) -> Bias:
        """The bias of these options on this neuron."""

    @abstractmethod
    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """K, the number of points at which forward asks for the loss."""

    def target(self) -> Target:
        """What it is that `value` and `backward` estimate; E[L(h)] unless it says otherwise."""
        return Target()

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """The state before the first step; reads only the dtype, device and event shape of `a`."""
        return {}

    @abstractmethod
    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Where to evaluate the loss."""

    def value(self, draw: Draw, loss: Tensor) -> Tensor:
        """The estimate of the target, `[*batch]`, differentiable in the loss."""
        weights = draw.weights
        if weights.ndim < loss.ndim:
            weights = weights[(..., *[None] * (loss.ndim - weights.ndim))]
        return leading_sum((cast(weights, loss.dtype) if loss.is_floating_point() else weights) * loss)

    @abstractmethod
    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """The gradient, `[*batch, *event]`, and the state for the next step."""


class MonteCarlo(Estimator):
    """An estimator that evaluates the loss at independent samples of the neuron, and only there.

    A subclass writes `bias` and `backward`. Nothing but the points is kept: `draw.noise()` gives their noise again.
    """

    samples: int = Field(1, ge=1, description="how many independent samples a draw averages over")

    def evaluations(self, neuron: Neuron, event_shape: tuple[int, ...]) -> int:
        """The number of samples."""
        return self.samples

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Asks for the loss at `samples` independent outputs of the neuron."""
        points = neuron.sample(key, a, self.samples)
        return Draw(neuron, a, key, points, a.new_full((self.samples,), 1 / self.samples))
