"""One tensor pass for several jobs: their rows are joined, computed together, and split again.

A row's noise depends on its own request's seed and on its place in that request, and a row's result does not depend on the rows
around it. So each request gets the bits that it would have got alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback
from gradest.contract.numerics import widen
from gradest.estimation.ask_tell import ask, sample_checked, tell, value_of
from gradest.random import Key
from gradest_service.admit.digest import digest_of
from gradest_service.admit.jobs import BackwardJob, ForwardJob, SampleJob
from gradest_service.admit.limits import are_brief
from gradest_service.bodies.schemas import BackwardAnswer, ForwardAnswer, SampleAnswer
from gradest_service.run.cancellation import interruptible
from gradest_service.run.device import CPU, Device

__all__ = ["backward", "forward", "sample"]

AnyJob = SampleJob | ForwardJob | BackwardJob


def sample(jobs: Sequence[SampleJob], device: Device = CPU) -> list[SampleAnswer]:
    """Compute `gradest.sample` for each of several jobs of one kind."""
    first, joined = jobs[0], _JoinedRows(jobs)
    with interruptible(are_brief(jobs)), device.computing():
        h = sample_checked(first.neuron, widen(device.put(joined.a)), first.samples, joined.key, first.dtype)
        h = device.fetch(h.to(first.dtype or joined.a.dtype))
    parts = joined.split_points(h)
    return [SampleAnswer(h=part, seed=job.seed) for job, part in zip(jobs, parts, strict=True)]


def forward(jobs: Sequence[ForwardJob], device: Device = CPU) -> list[ForwardAnswer]:
    """Compute the first half of a gradient for each of several jobs of one kind. A job with a state is given alone."""
    first, joined = jobs[0], _JoinedRows(jobs)
    with interruptible(are_brief(jobs)), device.computing():
        a, state = device.put(joined.a), device.put_all(first.state)
        draw, _ = ask(first.neuron, first.estimator, a, joined.key, state)
        points = joined.split_points(device.fetch(draw.points.to(a.dtype)))
        weights = device.fetch(draw.weights)
    needs = sorted(first.estimator.needs, reverse=True)
    return [
        ForwardAnswer(
            points=part,
            weights=weights,
            needs=needs,
            seed=job.seed,
            event_dims=len(job.given_event),
            digest=digest_of(job),
        )
        for job, part, weights in zip(jobs, points, joined.split_weights(weights), strict=True)
    ]


def backward(jobs: Sequence[BackwardJob], device: Device = CPU) -> list[BackwardAnswer]:
    """Compute the second half of a gradient for each of several jobs of one kind. A job with a state is given alone.

    The draw that forward made is made again, with the same noise.
    """
    first, joined = jobs[0], _JoinedRows(jobs)
    values: Sequence[Tensor | None] = [None] * len(jobs)
    weights: Sequence[Tensor | None] = values
    with interruptible(are_brief(jobs)), device.computing():
        a, given = device.put(joined.a), device.put_all(first.state)
        loss, grad = (
            None if x is None else device.put(x)
            for x in (
                joined.join([job.loss for job in jobs], ()),
                joined.join([job.grad for job in jobs], joined.output_event),
            )
        )
        draw, state = ask(first.neuron, first.estimator, a, joined.key, given)
        gradient, next_state = tell(first.estimator, draw, Feedback(loss, grad), state)
        gradients = joined.split_gradient(device.fetch(gradient.to(a.dtype)))
        next_state = device.fetch_all(next_state)
        if loss is not None:
            value, weight = _value_and_weights(first.estimator, draw, loss)
            values, weights = joined.split_values(device.fetch(value)), joined.split_weights(device.fetch(weight))
    return [
        BackwardAnswer(gradient=gradient, value=value, weights=weight, state=dict(next_state))
        for gradient, value, weight in zip(gradients, values, weights, strict=True)
    ]


def _value_and_weights(estimator: Estimator, draw: Draw, loss: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimate of the target, `[rows]`, and its derivative in the losses: `[K]` or `[K, rows]`.

    The derivative is the draw's weights if the value is linear in the losses.
    """
    with torch.enable_grad():
        loss = loss.detach().requires_grad_()
        value = value_of(estimator, draw, loss)
    if type(estimator).value is Estimator.value:
        return value.detach(), draw.weights
    (derivative,) = torch.autograd.grad(value.sum(), loss)
    return value.detach(), derivative


class _JoinedRows:
    """The rows of several jobs one below the other, and how to split what has an entry for each row."""

    def __init__(self, jobs: Sequence[AnyJob]) -> None:
        self.event, self.output_event = jobs[0].event, jobs[0].output_event
        self._jobs, self._batches = jobs, [job.batch for job in jobs]
        self._sizes = [torch.Size(batch).numel() for batch in self._batches]
        flat = [job.a.reshape(size, *self.event) for job, size in zip(jobs, self._sizes, strict=True)]
        if len(jobs) == 1:  # nothing to join, and nothing to copy
            self.a, self.key = flat[0], Key(jobs[0].seed)
            return
        self.a = torch.cat(flat)
        seeds = torch.tensor([job.seed for job in jobs]).repeat_interleave(torch.tensor(self._sizes))
        self.key = Key(seeds, torch.cat([torch.arange(size) for size in self._sizes]))

    def join(self, tensors: Sequence[Tensor | None], event: tuple[int, ...]) -> Tensor | None:
        """Join one tensor `[K, *batch, *given_event]` for each job to `[K, rows, *event]`; None if no job has one."""
        parts = [
            tensor.reshape(tensor.shape[0], size, *event)
            for tensor, size in zip(tensors, self._sizes, strict=True)
            if tensor is not None
        ]
        return torch.cat(parts, 1) if parts else None

    def split_points(self, points: Tensor) -> list[Tensor]:
        """Split outputs `[K, rows, *output_event]` into one `[K, *batch, *given_output]` for each job."""
        parts = self._split(points, 1, self.output_event)
        return [job.restore_output(part) for job, part in zip(self._jobs, parts, strict=True)]

    def split_gradient(self, gradient: Tensor) -> list[Tensor]:
        """Split `[rows, *event]` into one `[*batch, *given_event]` for each job."""
        parts = self._split(gradient, 0, self.event)
        return [job.restore(part) for job, part in zip(self._jobs, parts, strict=True)]

    def split_values(self, values: Tensor) -> list[Tensor]:
        """Split `[rows]` into one `[*batch]` for each job."""
        return self._split(values, 0, ())

    def split_weights(self, weights: Tensor) -> list[Tensor]:
        """Split `[K, rows]` into one `[K, *batch]` for each job; weights `[K]` are the same for all."""
        return [weights] * len(self._sizes) if weights.ndim == 1 else self._split(weights, 1, ())

    def _split(self, x: Tensor, leading: int, event: tuple[int, ...]) -> list[Tensor]:
        parts = torch.split(x, self._sizes, leading)
        return [
            part.reshape((*part.shape[:leading], *batch, *event))
            for part, batch in zip(parts, self._batches, strict=True)
        ]
