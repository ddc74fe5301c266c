"""The inputs of the conformance kit's checks: pre-activations, points, feedback, states, and the methods to call with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gradest.analysis.bias import CLASSES, UNITS, linear_loss, quadratic_loss
from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Binary, Discrete, Neuron, Relaxable, Scored
from gradest.contract.objective import Objective
from gradest.errors import InvalidInput
from gradest.random import Key

__all__ = [
    "BATCH_SHAPES",
    "DTYPES",
    "OF_DRAWS",
    "OF_PRE_ACTIVATIONS",
    "all_of_unit",
    "all_pre_activations",
    "broadcast_weights",
    "make_feedback",
    "number_per_row",
    "random_normal",
    "random_points",
    "random_pre_activations",
    "saturated_pre_activations",
    "state_after_steps",
    "tensor_methods",
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
"""The dtypes of pre-activations that every plugin takes."""
BATCH_SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (0,))
"""The batch shapes with which shapes are checked; the last has no rows."""


def random_pre_activations(
    neuron: Neuron, batch: Sequence[int], dtype: torch.dtype = torch.float32, event: Sequence[int] | None = None
) -> Tensor:
    """Return random pre-activations `[*batch, *event]`, the same ones at every call; by default for the first example event."""
    return random_normal((*batch, *(neuron.example_events[0] if event is None else event)), dtype)


def random_points(objective: Objective, leading: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return random points `[*leading, *event]`; an objective without an attribute `event_ndim` takes events of one dim."""
    return random_normal((*leading, *(UNITS, CLASSES, CLASSES)[: getattr(objective, "event_ndim", 1)]), dtype)


def random_normal(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return normal numbers, the same ones at every call with this shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def all_pre_activations(neuron: Neuron) -> Iterator[Tensor]:
    """Yield pre-activations of every dtype, batch shape and example event, and non-contiguous ones."""
    for event in neuron.example_events:
        for dtype in DTYPES:
            for batch in BATCH_SHAPES:
                yield random_pre_activations(neuron, batch, dtype, event)
            yield random_pre_activations(neuron, (3, 2), dtype, event).transpose(0, 1)


def saturated_pre_activations(neuron: Neuron) -> Iterator[Tensor]:
    """Yield pre-activations of ±40 and ±10,000, in float32 and bfloat16; ±10 for a neuron whose `check` refuses those."""
    for dtype in (torch.float32, torch.bfloat16):
        for size in (40.0, 1e4):
            sign = torch.sign(random_pre_activations(neuron, (6,)))
            a = (size * sign).to(dtype)
            try:
                neuron.check(a.float())
            except InvalidInput:
                a = (10 * sign).to(dtype)
            yield a


def make_feedback(estimator: Estimator, draw: Draw, f: Callable[[Tensor], Tensor]) -> Feedback:
    """Evaluate f at the points of the draw, and its gradient there if the estimator needs it."""
    points = draw.points.detach().clone().requires_grad_()
    loss = f(points)
    grad = torch.autograd.grad(loss.sum(), points)[0] if "grad" in estimator.needs else None
    return Feedback(loss.detach(), grad)


def state_after_steps(estimator: Estimator, neuron: Neuron, dtype: torch.dtype = torch.float32) -> State:
    """Return the state after three steps, so that a running baseline is not zero."""
    a = random_pre_activations(neuron, (8,), dtype)
    state = estimator.init(neuron, a)
    for seed in range(3):
        draw = estimator.forward(neuron, a, Key(seed), state)
        _, state = estimator.backward(draw, make_feedback(estimator, draw, quadratic_loss(neuron)), state)
    return state


OF_DRAWS = {
    *("sample", "forward", "backward", "pullback", "score", "log_prob", "relax", "conditional_relax"),
    "antithetic",
}
"""The methods whose results begin with a dim of draws."""
OF_PRE_ACTIVATIONS = {"backward", "pullback", "score", "weighted_score", "leave_one_out_score"}
"""The methods whose results have the event of the pre-activations; those of the others have that of the outputs."""


def tensor_methods(
    neuron: Neuron, key: Key, a: Tensor, noise: Tensor, h: Tensor, grad: Tensor, weights: Tensor
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """Yield the methods that the neuron's capabilities state that return a tensor, by name, as calls with these arguments.

    h, grad: `[draws, *batch, *event']`. weights: `[draws, *batch]`. Not `law`, whose number of outputs may depend on the batch.
    """
    draws = len(h)
    yield "sample", lambda: neuron.sample(key, a, draws)
    yield "forward", lambda: neuron.forward(a, noise)
    yield "backward", lambda: neuron.backward(a, noise, grad)
    yield "pullback", lambda: neuron.pullback(key, a, h, grad)
    yield "mean", lambda: neuron.mean(a)
    yield "threshold", lambda: neuron.threshold(a, 0.5)
    yield "active_probability", lambda: neuron.active_probability(a)
    if isinstance(neuron, Scored):
        yield "score", lambda: neuron.score(h, a)
        yield "weighted_score", lambda: neuron.weighted_score(h, a, weights)
        yield "leave_one_out_score", lambda: neuron.leave_one_out_score(h, a, weights)
    if isinstance(neuron, Discrete):
        yield "log_prob", lambda: neuron.log_prob(h, a)
    if isinstance(neuron, Relaxable):
        yield "relax", lambda: neuron.relax(a, noise, 0.7)
        yield "conditional_relax", lambda: neuron.conditional_relax(a, h, noise, 0.7)
    if isinstance(neuron, Binary):
        yield "probability", lambda: neuron.probability(a)
        yield "antithetic", lambda: neuron.antithetic(key, a, draws // 2)


def number_per_row(neuron: Neuron, h: Tensor) -> Tensor:
    """Return a number `[draws, *batch]` for each sample of each row, which depends on no other."""
    return linear_loss(neuron)(h)


def broadcast_weights(neuron: Neuron, weights: Tensor) -> Tensor:
    """Return the weights `[S, *batch, units]` of a law, with singleton dims so that they broadcast against its values."""
    return weights[(..., *[None] * (neuron.output_ndim - 1))]


def all_of_unit(neuron: Neuron, same: Tensor) -> Tensor:
    """Return `[..., *batch, units]`, whether all entries of a unit are true, for `[..., *batch, *event']`."""
    return same if neuron.output_ndim == 1 else same.flatten(1 - neuron.output_ndim).all(-1)
