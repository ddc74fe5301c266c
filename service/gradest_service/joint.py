"""One tensor pass for several requests: their rows are joined, computed on together, and parted again.

A row's noise comes from its own request's seed and its place there, and a row's result does not depend on the rows around it.
So each request gets the bits that it would have got alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron, event_shape
from gradest.estimation.ask_tell import ask, sample_checked, tell, value_of
from gradest.kernels.stable import widen
from gradest.random import Key

__all__ = ["Asked", "Rows", "Told", "backward", "forward", "sample_rows"]


@dataclass(frozen=True, eq=False)
class Rows:
    """The pre-activations of one request, `[*batch, *event]`, and the seed of its noise."""

    a: Tensor
    seed: int
    loss: Tensor | None = None
    """`[K, *batch]`, for backward."""
    grad: Tensor | None = None
    """`[K, *batch, *event]`, for backward."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What forward answers: points `[K, *batch, *event]`, weights `[K]` or `[K, *batch]`."""

    points: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Told:
    """What backward answers: the gradient `[*batch, *event]`, the next state and, if there was a loss, the value `[*batch]` and
    its derivative in the losses, `[K]` or `[K, *batch]`: forward's weights, where the value is linear in the losses.
    """

    gradient: Tensor
    state: State
    value: Tensor | None
    weights: Tensor | None


def sample_rows(
    neuron: Neuron, samples: int, requests: Sequence[Rows], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """`gradest.sample` for each: `[samples, *batch, *event]`."""
    joined = _Joined(neuron, requests)
    h = sample_checked(neuron, widen(joined.a), samples, joined.key, dtype)
    return joined.part(h.to(dtype or joined.a.dtype), leading=1)


def forward(neuron: Neuron, estimator: Estimator, requests: Sequence[Rows], state: State | None = None) -> list[Asked]:
    """The estimator's forward for each. A state, which belongs to one request, is given with one request alone."""
    joined = _Joined(neuron, requests)
    draw, _ = ask(neuron, estimator, joined.a, joined.key, state)
    points = joined.part(draw.points.to(joined.a.dtype), leading=1)
    return [Asked(*asked) for asked in zip(points, joined.part_weights(draw.weights), strict=True)]


def backward(neuron: Neuron, estimator: Estimator, requests: Sequence[Rows], state: State | None = None) -> list[Told]:
    """The estimator's backward for each, from the draw that forward made, which is made again."""
    joined = _Joined(neuron, requests)
    draw, state = ask(neuron, estimator, joined.a, joined.key, state)
    loss, grad = joined.join_losses(), joined.join_grads()
    gradient, after = tell(estimator, draw, Feedback(loss, grad), state)
    gradients = joined.part(gradient.to(joined.a.dtype), leading=0)
    return [
        Told(one, after, *value) for one, value in zip(gradients, joined.values(estimator, draw, loss), strict=True)
    ]


class _Joined:
    """The rows of several requests one below the other, and how to part what has a row for each."""

    def __init__(self, neuron: Neuron, requests: Sequence[Rows]) -> None:
        self._requests = requests
        self._event = event_shape(neuron, requests[0].a)
        self._batches = [tuple(request.a.shape[: request.a.ndim - neuron.event_ndim]) for request in requests]
        self._sizes = [torch.Size(batch).numel() for batch in self._batches]
        flat = [request.a.reshape(size, *self._event) for request, size in self._with_sizes()]
        if len(requests) == 1:  # nothing to join, and nothing to copy
            self.a, self.key = flat[0], Key(requests[0].seed)
            return
        self.a = torch.cat(flat)
        seeds = torch.tensor([request.seed for request in requests]).repeat_interleave(torch.tensor(self._sizes))
        self.key = Key(seeds, torch.cat([torch.arange(size) for size in self._sizes]))

    def _with_sizes(self) -> zip[tuple[Rows, int]]:
        return zip(self._requests, self._sizes, strict=True)

    def join_losses(self) -> Tensor | None:
        """The losses, `[K, rows]`; None where no request has any."""
        return self._join([request.loss for request in self._requests], ())

    def join_grads(self) -> Tensor | None:
        """The derivatives, `[K, rows, *event]`; None where no request has any."""
        return self._join([request.grad for request in self._requests], self._event)

    def _join(self, tensors: Sequence[Tensor | None], event: tuple[int, ...]) -> Tensor | None:
        parts = [
            tensor.reshape(tensor.shape[0], size, *event)
            for tensor, size in zip(tensors, self._sizes, strict=True)
            if tensor is not None
        ]
        return torch.cat(parts, 1) if parts else None

    def part(self, x: Tensor, leading: int) -> list[Tensor]:
        """`[*leading, rows, *event]` to one `[*leading, *batch, *event]` a request."""
        parts = torch.split(x, self._sizes, leading)
        return [
            part.reshape(*part.shape[:leading], *batch, *self._event)
            for part, batch in zip(parts, self._batches, strict=True)
        ]

    def part_losses(self, x: Tensor) -> list[Tensor]:
        """`[K, rows]` to one `[K, *batch]` a request."""
        parts = torch.split(x, self._sizes, 1)
        return [part.reshape(len(part), *batch) for part, batch in zip(parts, self._batches, strict=True)]

    def values(
        self, estimator: Estimator, draw: Draw, loss: Tensor | None
    ) -> Sequence[tuple[Tensor, Tensor] | tuple[None, None]]:
        """The estimate of the target for each request, and its derivative in the losses; None and None without a loss."""
        if loss is None:
            return [(None, None)] * len(self._sizes)
        with torch.enable_grad():
            loss = loss.to(draw.a.dtype).detach().requires_grad_()
            value = value_of(estimator, draw, loss)
        weights = draw.weights
        if type(estimator).value is not Estimator.value:
            (weights,) = torch.autograd.grad(value.sum(), loss)
        values = [
            part.reshape(batch)
            for part, batch in zip(torch.split(value.detach(), self._sizes), self._batches, strict=True)
        ]
        return list(zip(values, self.part_weights(weights), strict=True))

    def part_weights(self, weights: Tensor) -> list[Tensor]:
        """`[K]`, or `[K, rows]` to one `[K, *batch]` a request."""
        return [weights] * len(self._sizes) if weights.ndim == 1 else self.part_losses(weights)
