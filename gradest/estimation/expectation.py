"""sample and expect: outputs of a neuron, and one estimate of E[f(h)] that autograd can differentiate.

Here, in `estimate` and in `exact`, `a` `[*batch, *event]` are pre-activations of any float dtype, device and strides, and `f`
maps points `[K, *batch, *event]`, for any K, to losses `[K, *batch]`. For float16 and bfloat16 the computation is in float32; f
still receives points in the dtype of `a`, and gradients have that dtype.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradest.contract.estimator import Feedback, State
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import InvalidInput
from gradest.estimation.ask_tell import (
    ask,
    check_count,
    check_form,
    check_pre_activations,
    evaluate,
    losses_at,
    sample_checked,
    tell,
    value_of,
)
from gradest.estimation.distributed import checked_examples
from gradest.estimation.events import EventDims, EventLayout
from gradest.kernels import transformed
from gradest.kernels.stable import cast
from gradest.random import Key, to_key

__all__ = ["expect", "sample"]


def sample(
    neuron: NeuronSpec,
    a: Tensor,
    samples: int = 1,
    seed: int | Key | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Draw independent outputs of the neuron, `[samples, *a.shape]` in the dtype of `a`.

    seed: 0 <= seed < 2**53. None draws one from torch's global generator. A Key is for callers that number rows themselves.
    dtype: torch.uint8 or torch.bool, for a binary neuron whose two values it can represent; this takes a quarter of the memory of
        float32.
    Raises InvalidInput, UnknownPlugin, InvalidOptions.
    """
    neuron = registry.neuron(neuron)
    wide = check_pre_activations(a, neuron)
    check_count("samples", samples, least=0)
    return sample_checked(neuron, wide, samples, to_key(seed), dtype).to(dtype or a.dtype)


def expect(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    seed: int | Key | None = None,
    state: State | None = None,
    *,
    event_dims: EventDims | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Estimate E[f(h)], `[*batch]`, differentiably: backward adds the estimator's gradient to `a.grad`.

    An estimator with another target, such as `vimco`, estimates that target instead.
    f is called once, with all K points; its own parameters receive their ordinary gradient.
    seed: as for `sample`. state: the state that the previous call returned; None for the first call.
    event_dims: the number of trailing dims of `a` that are one event, with one loss; by default the neuron's own. For `a`
        `[B, T, units]` of T positions that share a loss it is 2, and f maps points `[K, B, T, units]` to losses `[K, B]`. It is
        "all" for parameters, which have no batch. An Objective receives the event in the neuron's own shape, `[K, B, T·units]`.
    rows: the numbers of the examples of `a` in a whole batch, integers `[batch]`, for a batch that is computed in parts. With the
        same seed each part then has the noise, and so the values and the gradients in `a`, that the whole batch has.
    Returns the value, and the state for the next call. Under torch.no_grad() only the value is computed, and the state is
    returned unchanged.

    Inside torch.func.vmap, all examples share a seed or Key that is not mapped over, as in a loop; map over the seeds of a
    `Key(seeds)` to give each its own. With seed=None vmap's `randomness` decides. Pre-activations are not checked there.

    Raises Incompatible if the estimator does not fit the neuron, and the errors of `sample`.
    """
    if torch.compiler.is_compiling():
        from gradest.estimation.outside import outside  # noqa: PLC0415  # it imports the compiler

        result: tuple[Tensor, State] = outside(
            expect, f, a, neuron, estimator, seed, state, event_dims=event_dims, rows=rows
        )
        return result
    neuron, estimator = registry.neuron(neuron), registry.estimator(estimator)
    if event_dims is not None:
        layout = EventLayout.of(neuron, a, event_dims)
        return expect(layout.loss(f), layout.flatten(a), neuron, estimator, seed, state, rows=rows)
    key = to_key(seed) if rows is None else _key_of_part(seed, rows, a, neuron)
    draw, state = ask(neuron, estimator, a, key, state)
    points = cast(draw.points, a.dtype)
    if not torch.is_grad_enabled():
        return value_of(estimator, draw, losses_at(f, points, neuron.event_ndim)), state
    loss, grad = evaluate(f, points, neuron, estimator, keep_graph=True)
    gradient, state = tell(estimator, draw, Feedback(loss, grad), state)
    value = value_of(estimator, draw, loss)
    if transformed():
        carrier = (a - a.detach()) * gradient.to(a.dtype)  # its value is 0 and its gradient is the estimate
        return value + carrier.flatten(a.ndim - neuron.event_ndim).sum(-1), state
    return (_carry(value, a, gradient, neuron.event_ndim) if a.requires_grad else value), state


def _key_of_part(seed: int | Key | None, rows: Tensor, a: Tensor, neuron: Neuron) -> Key:
    """Return the key of examples with these numbers."""
    key = to_key(seed)
    if key.rows is not None:
        raise InvalidInput("rows were given twice: leave out `rows`, or give a seed or a Key without rows")
    check_form(a, neuron)
    batch = a.shape[: a.ndim - neuron.event_ndim]
    within = batch[1:].numel()
    numbers = checked_examples(rows, batch)[..., None] * within + torch.arange(within)
    return replace(key, rows=numbers.reshape(batch))


def _carry(value: Tensor, a: Tensor, gradient: Tensor, event_ndim: int) -> Tensor:
    """Return the value, unchanged to the bit, with a graph whose backward adds the estimator's gradient to `a.grad`.

    The graph is that of Σ a · gradient, whose derivative is the gradient; its numbers are overwritten by the value. torch's own
    operations take less time than a torch.autograd.Function.
    """
    carrier = cast((a * gradient).sum(tuple(range(-event_ndim, 0))), value.dtype)
    if value.requires_grad:
        carrier.detach().fill_(-0.0)  # the neutral element of addition, also for -0.0
        return value + carrier
    carrier.detach().copy_(value)
    return carrier
