"""sample and expect: outputs of a neuron, and one estimate of E[f(h)] that autograd can differentiate.

Here, in `estimate` and in `exact`, `a` `[*batch, *event]` are pre-activations of any float dtype, device and strides, and `f`
maps points `[K, *batch, *event']`, for any K, to losses `[K, *batch]`; event' is `neuron.output_event(event)`, by default the
event. For float16 and bfloat16 the computation is in float32; f
still receives points in the dtype of `a`, and gradients have that dtype.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Loss
from gradest.contract.score_function import ScoreFunction
from gradest.discovery.pairs import pair_of
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import InvalidInput
from gradest.estimation.arguments import check_count, check_form, check_pre_activations, loss_dtype
from gradest.estimation.ask_tell import (
    ask_pair,
    check_feedback_finite,
    is_impossible,
    sample_checked,
    tell_pair,
    value_of,
)
from gradest.estimation.distributed import checked_examples
from gradest.estimation.events import EventDims, EventLayout
from gradest.estimation.losses.evaluation import evaluate, flattened, losses_at, points_of, refuse_noise_of_points
from gradest.estimation.losses.repetition import is_recomputed, remember_first_call, state_of_first_call
from gradest.estimation.second_derivative import differentiable_again, differentiable_once, forbid_second
from gradest.kernels import transformed
from gradest.kernels.stable import cast, widen
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
    """Draw independent outputs of the neuron, `[samples, *batch, *event']` in the dtype of `a`.

    event' is `neuron.output_event(event)`, which for most neurons is the event, so that an output has the shape of `a`.

    seed: 0 <= seed < 2**53. None draws one from torch's global generator. A Key is for callers that number rows themselves.
    dtype: torch.uint8 or torch.bool, for a binary neuron whose two values it can represent; this takes a quarter of the memory of
        float32.
    Raises InvalidInput, UnknownPlugin, InvalidOptions.

    >>> import torch, gradest
    >>> gradest.sample("categorical", torch.zeros(5, 2, 3), samples=4, seed=7).sum(-1).unique()
    tensor([1.])
    """
    if torch.compiler.is_compiling():
        from gradest.estimation.outside import outside  # noqa: PLC0415  # it imports the compiler

        found: Tensor = outside(sample, neuron, a, samples, seed, dtype=dtype)
        return found
    neuron = registry.neuron(neuron)
    wide = check_pre_activations(a, neuron)
    check_count("samples", samples, least=0)
    key = to_key(seed)
    refuse_noise_of_points(key)
    return cast(sample_checked(neuron, wide, samples, key, dtype), dtype or a.dtype)


def expect(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    seed: int | Key | None = None,
    state: State | None = None,
    *,
    flatten: bool = False,
    allow_inf: bool = False,
    event_dims: EventDims | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Estimate E[f(h)], `[*batch]`, differentiably: backward adds the estimator's gradient to `a.grad`.

    An estimator with another target, such as `vimco`, estimates that target instead.
    f is called once, with all K points; its own parameters receive their ordinary gradient. Differences of losses are taken in
    the precision of the loss, so return float64 losses where they have a large offset. f may write into its points, unless the
    estimator needs dL/dh (torch then refuses) or it writes through an array of `h.numpy()`: copy that first.
    seed: as for `sample`. Inside the f of another `expect` it cannot be the seed of that: the noise would be the same.
    state: the state that the previous call returned; None for the first call. If torch.utils.checkpoint runs the call again, it
        takes the state with which it ran first, and returns the one that it is given.
    flatten: whether f takes `[K·batch, *event]` and returns `[K·batch]`, as networks with convolutions or BatchNorm do. Row
        k·batch + i is point k of example i, so `labels.repeat(len(h) // len(labels))` are the labels.
    allow_inf: whether infinite losses are passed to the estimator, which must have no state. NaN never is. An infinite loss of an
        output of probability 0, as of a masked class, counts as 0, in the value and in the gradient of `a`. Parameters of f get
        NaN if its derivative in them is infinite there, unless f masks it by torch.where.
    event_dims: the number of trailing dims of `a` that are one event, with one loss; by default the neuron's own. For `a`
        `[B, T, units]` of T positions that share a loss it is 2, and f maps points `[K, B, T, units]` to losses `[K, B]`. It is
        "all" for parameters, which have no batch. An Objective receives the event in the neuron's own shape, `[K, B, T·units]`.
    rows: the numbers of the examples of `a` in a whole batch, integers `[batch]`, for a batch that is computed in parts. With the
        same seed each part then has the noise, and so the values and the gradients in `a`, that the whole batch has.
    Returns the value, and the state for the next call. Under torch.no_grad() only the value is computed, and the state is
    returned unchanged.

    Second derivatives in `a`, by create_graph=True, are exact for the estimator enumeration, and unbiased for score-function
    estimators that are unbiased for E[f(h)], such as reinforce, rloo and nvil: see `ScoreFunction.value_in`. By torch.func they
    are those of enumeration alone. Of the others, the gradient of `a` can be differentiated in what multiplies the value. The
    gradient of f's parameters can be differentiated in those. Another second derivative, such as that of f's parameters in `a`,
    or in an `a` that f itself depends on, raises RuntimeError.

    Inside torch.func.vmap, all examples share a seed or Key that is not mapped over, as in a loop; map over the seeds of a
    `Key(seeds)` to give each its own. With seed=None vmap's `randomness` decides. Pre-activations and losses are not checked
    there; a loss that is not finite leaves the state as it was. An f that reads the values of its points, as a simulator in numpy
    does, and an estimator with a network or with autograd of its own raise Incompatible inside such transforms.

    Raises Incompatible if the estimator does not fit the neuron, InvalidInput for a loss or dL/dh that is not finite and for the
    state of another estimator or size, NotDifferentiable if dL/dh is needed, by the estimator or by a layer of `gradest.nn` in f,
    but no graph leads there, and the errors of `sample`. After an error the given state is still valid.

    >>> import torch, gradest
    >>> a = torch.zeros(2, 3, requires_grad=True)
    >>> loss, state = gradest.expect(lambda h: h.sum(-1), a, "bernoulli", "rloo", seed=7)
    >>> loss.sum().backward()
    >>> a.grad.shape
    torch.Size([2, 3])
    """
    if torch.compiler.is_compiling():
        from gradest.estimation.outside import outside  # noqa: PLC0415  # it imports the compiler

        result: tuple[Tensor, State] = outside(
            expect,
            f,
            a,
            neuron,
            estimator,
            seed,
            state,
            flatten=flatten,
            allow_inf=allow_inf,
            event_dims=event_dims,
            rows=rows,
        )
        return result
    neuron, estimator = registry.neuron(neuron), registry.estimator(estimator)
    if event_dims is not None:
        layout = EventLayout.of(neuron, a, event_dims)
        f = layout.loss(flattened(f, len(layout.output_given), flatten))
        return expect(f, layout.flatten(a), neuron, estimator, seed, state, allow_inf=allow_inf, rows=rows)
    key = to_key(seed) if rows is None else _key_of_part(seed, rows, a, neuron)
    given = state
    if state and is_recomputed():
        state = state_of_first_call(key.seed, a, state)
    refuse_noise_of_points(key)
    pair = pair_of(neuron, estimator)
    draw, state = ask_pair(pair, a, key, state)
    points, f = cast(draw.points, a.dtype), flattened(f, pair.output_ndim, flatten)
    if not torch.is_grad_enabled():
        with points_of(key):
            loss = losses_at(f, points, pair.output_ndim)
        impossible = partial(is_impossible, draw) if pair.on_support else None
        check_feedback_finite(Feedback(loss), allow_inf, impossible)
        return value_of(estimator, draw, loss, allow_inf).clone(), state
    with points_of(key):
        loss, grad = evaluate(f, points, neuron, estimator, keep_graph=True)
    gradient, after = tell_pair(pair, draw, Feedback(loss, grad), state, allow_inf)
    value = _with_gradient(value_of(estimator, draw, loss, allow_inf), a, gradient, loss, estimator, draw, state)
    if state and given and is_recomputed():
        return value, given  # the state moved when the call ran first
    if state:
        remember_first_call(value, key.seed, a, state)
    return value, after


def _with_gradient(
    value: Tensor, a: Tensor, gradient: Tensor, loss: Tensor, estimator: Estimator, draw: Draw, state: State
) -> Tensor:
    """Return the value with a graph whose backward adds the estimator's gradient to `a.grad`. state: that before the step."""
    if transformed():
        # a transform does not tell whether it will differentiate twice, for which a score function would compute more
        whole = None if isinstance(estimator, ScoreFunction) else estimator.value_in(widen(a), draw, loss, state)
        if whole is not None:
            return cast(whole, value.dtype)
        carrier: Tensor = _Carrier.apply(a, gradient, loss, draw.neuron.event_ndim)  # type: ignore[no-untyped-call]
        return value + cast(carrier, value.dtype)
    if not a.requires_grad:
        return value.clone()
    if value.grad_fn is not None:
        value.grad_fn.register_prehook(
            partial(forbid_second, (a,))
        )  # the points at which f's parameters move depend on a
    return _carry(value, a, gradient, loss, estimator, draw, state)


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


def _carry(
    value: Tensor, a: Tensor, gradient: Tensor, loss: Tensor, estimator: Estimator, draw: Draw, state: State
) -> Tensor:
    """Return the value, unchanged to the bit, with a graph whose backward adds the estimator's gradient to `a.grad`.

    The graph is that of Σ a · gradient, whose derivative is the gradient; its numbers are overwritten by the value. torch's own
    operations take less time than a torch.autograd.Function.
    """
    product = a * gradient
    assert product.grad_fn is not None
    told = loss
    if type(estimator).value_in is not Estimator.value_in:
        # a copy, because f may use the memory of its losses again before second derivatives are asked for
        told = loss.clone() if loss.dtype == draw.a.dtype else loss.to(loss_dtype(loss.dtype, draw.a.dtype), copy=True)
    again = partial(differentiable_again, estimator, draw.neuron, draw.key, state, told, a, a._version)
    product.grad_fn.register_hook(again)
    ndim = draw.neuron.event_ndim
    carrier = cast(product.sum(-1 if ndim == 1 else tuple(range(-ndim, 0))), value.dtype)
    if value.requires_grad:
        carrier.detach().fill_(-0.0)  # the neutral element of addition, also for -0.0
        return value + carrier
    carrier.detach().copy_(value)
    return carrier


class _Carrier(torch.autograd.Function):
    """Does what `_carry` does, in a form that torch.func accepts: zeros `[*batch]` whose derivative is the estimate."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, gradient: Tensor, loss: Tensor, event_ndim: int) -> Tensor:
        return a.new_zeros(a.shape[: a.ndim - event_ndim])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
        *tensors, ctx.event_ndim = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None]:
        a, gradient, loss = ctx.saved_tensors
        guarded = differentiable_once(upstream, a, loss)[(..., *[None] * ctx.event_ndim)]
        return (guarded * gradient).to(a.dtype), None, None, None

    @staticmethod
    def jvp(ctx: Any, step: Tensor, *_: Any) -> Tensor:
        a, gradient, loss = ctx.saved_tensors
        moved: Tensor = (differentiable_once(step, a, loss) * gradient).to(a.dtype)
        return moved.sum(tuple(range(-ctx.event_ndim, 0)))
