"""sample, expect, estimate and exact: the four things to do with E[f(h)].

In each, `a` `[*batch, *event]` are pre-activations of any float dtype, device and strides, and `f` maps points
`[K, *batch, *event]` (any K) to losses `[K, *batch]`. float16 and bfloat16 are computed on in float32: f is given points in the
dtype of `a`, and gradients come back in it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.estimator import Feedback, State
from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.estimation.ask_tell import (
    ask,
    check_count,
    check_pre_activations,
    evaluate,
    losses_at,
    sample_checked,
    tell,
    value_of,
)
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
    """Independent outputs of the neuron, `[samples, *a.shape]` in the dtype of `a`.

    seed: 0 <= seed < 2**53; None takes one from torch's global generator; a Key is for callers that number
    rows themselves. dtype: torch.uint8 or torch.bool, for a binary neuron whose two values it holds; takes a quarter of the
    memory. Raises InvalidInput, UnknownPlugin, InvalidOptions.
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
) -> tuple[Tensor, State]:
    """An estimate of E[f(h)], `[*batch]`, that is differentiable: backward puts the estimator's gradient on `a`.

    (Of the estimator's own target, where that is another one: `vimco`.)

    seed: as for `sample`. f is given all K points at once, and its own parameters get their ordinary gradient. Returns the
    value and the next state, to be passed to the next call.
    Under torch.no_grad() the value alone is computed, and the state comes back as it was.
    Inside torch.func.vmap a seed or Key that is not itself mapped over is one for all, as in a loop; give each its own by
    mapping over a `Key(seeds)`'s seeds. seed=None goes by vmap's `randomness`. Pre-activations are not checked there.

    Raises Incompatible if the estimator does not fit the neuron, and what `sample` raises.
    """
    if torch.compiler.is_compiling():
        from gradest.estimation.outside import outside  # noqa: PLC0415  # it imports the compiler

        result: tuple[Tensor, State] = outside(expect, f, a, neuron, estimator, seed, state)
        return result
    neuron, estimator = registry.neuron(neuron), registry.estimator(estimator)
    draw, state = ask(neuron, estimator, a, to_key(seed), state)
    points = cast(draw.points, a.dtype)
    if not torch.is_grad_enabled():
        return value_of(estimator, draw, losses_at(f, points, neuron)), state
    loss, grad = evaluate(f, points, neuron, estimator, keep_graph=True)
    gradient, state = tell(estimator, draw, Feedback(loss, grad), state)
    value = value_of(estimator, draw, loss)
    if transformed():
        carrier = (a - a.detach()) * gradient.to(a.dtype)  # zero in value, and the estimate in gradient
        return value + carrier.flatten(a.ndim - neuron.event_ndim).sum(-1), state
    return (_carry(value, a, gradient, neuron.event_ndim) if a.requires_grad else value), state


def _carry(value: Tensor, a: Tensor, gradient: Tensor, event_ndim: int) -> Tensor:
    """The bits of the value; backward puts the estimator's gradient on `a`.

    It is Σ a · gradient, whose derivative is the gradient, with other numbers written over it: torch's own operations take less
    time than a torch.autograd.Function.
    """
    carrier = cast((a * gradient).sum(tuple(range(-event_ndim, 0))), value.dtype)
    if value.requires_grad:
        carrier.detach().fill_(-0.0)  # what adds nothing, not even to -0.0
        return value + carrier
    carrier.detach().copy_(value)
    return carrier
