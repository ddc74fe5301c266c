"""sample, expect, estimate and exact: the four things to do with E[f(h)].

In each, `a` `[*batch, *event]` are pre-activations of any float dtype, device and strides, and `f` maps points
`[K, *batch, *event]` (any K) to losses `[K, *batch]`. float16 and bfloat16 are computed on in float32: f is given points in the
dtype of `a`, and gradients come back in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradest.enumeration import MAX_POINTS, configurations, count
from gradest.errors import InvalidInput, TooManyPoints
from gradest.estimator import Estimator, Feedback, State, Target, event_shape
from gradest.exchange import ask, check_pre_activations, evaluate, losses_at, sample_checked, tell, value_of
from gradest.executors import run_in_order
from gradest.kernels import transformed
from gradest.kernels.reference import cast
from gradest.neuron import Neuron
from gradest.objective import Loss, Objective
from gradest.random import Key, check_seed, fresh_seed, fresh_seed_tensor
from gradest.registry import registry
from gradest.repetition import CHUNK, NO_DRAWS, Block, blocks_of, step_at, warm_up_state

__all__ = ["Estimate", "closed_form", "estimate", "exact", "expect", "sample"]

Spec = str | Mapping[str, Any]
NeuronSpec = Spec | Neuron
EstimatorSpec = Spec | Estimator

_BLOCK = 1 << 20  # elements of points in one block, at the most: a part of what a result is, unlike CHUNK
_AHEAD = 1 << 24  # elements of blocks that wait to be merged, at the most


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
    _check_count("samples", samples, least=0)
    return sample_checked(neuron, wide, samples, _to_key(seed), dtype).to(dtype or a.dtype)


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
        from gradest._outside import expect_outside  # noqa: PLC0415  # it imports the compiler

        outside: tuple[Tensor, State] = expect_outside(f, a, neuron, estimator, seed, state)
        return outside
    neuron, estimator = registry.neuron(neuron), registry.estimator(estimator)
    draw, state = ask(neuron, estimator, a, _to_key(seed), state)
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


@dataclass(frozen=True, eq=False)
class Estimate:
    """The average of independent draws of an estimator.

    gradient: the mean of the draws, `[*batch, *event]`; float32 or wider, like all that follows.
    variance: per coordinate, of ONE draw; NaN with a single draw.
    standard_error: of `gradient`, √(variance / draws).
    loss: the mean estimate of E[f(h)], or of the estimator's own target, `[*batch]`.
    evaluations: of the loss, in one draw.
    seconds: wall-clock time of all draws.
    state: the estimator's state at which the draws were made.
    """

    gradient: Tensor
    variance: Tensor
    standard_error: Tensor
    loss: Tensor
    draws: int
    evaluations: int
    seconds: float
    seed: int
    state: State


def estimate(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    draws: int = 1000,
    seed: int | None = None,
    state: State | None = None,
    *,
    warm_up: int = 100,
    target_standard_error: float | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """The mean and the variance of `draws` independent draws of the estimator.

    A stateful estimator with no `state` given first takes `warm_up` steps, so that its baseline stands where training would
    have it; the draws then all use that one state. Draws are made in blocks, merged by Chan, Golub and LeVeque's update in
    float64, so memory does not grow with them; the points of a single draw that are more than a chunk are held whole, once,
    and f is given some of the K at a time.

    target_standard_error: stop once the standard error of every coordinate is at most this; `draws` is then the cap. It is
        looked at after 256, 512, 768 and 1024 draws and from there on four times in each doubling, so where it stops is a matter
        of the seed alone. The variance is itself an estimate: one that an early look finds too small stops too early.
    executor: computes the blocks, several at a time: a ThreadPoolExecutor, or `gradest.RayExecutor` for a cluster. Which draws
        make a block depends on the shape of `a` and on K alone, and blocks are merged in their order, so the result has the same
        bits for any number of workers and without an executor, as long as f gives the same bits on each. The warm-up, where each
        step takes the state that the last one left, runs in this thread, as do the callbacks.
    progress: progress(done, draws) is called after each step of the warm-up, with 0 done, and after each block.
    watch: watch(estimate) is called after each block with the estimate so far.

    What f or a callback raises ends the work: blocks that have not begun are cancelled, and it is raised again once those that
    run have ended.

    Raises what `expect` raises.
    """
    neuron, estimator = registry.neuron(neuron), registry.estimator(estimator)
    _check_count("draws", draws, least=1)
    _check_target(target_standard_error)
    registry.check_fit(neuron, estimator)
    check_pre_activations(a, neuron)
    seed = fresh_seed() if seed is None else check_seed(seed)
    start = time.perf_counter()
    key = Key(seed)
    evaluations = estimator.evaluations(neuron, event_shape(neuron, a))
    if state is None:
        state = warm_up_state(f, a, neuron, estimator, key, warm_up, lambda: progress and progress(0, draws))
    dtype = _at_least_float32(a)
    gradients = losses = NO_DRAWS

    def so_far() -> Estimate:
        variance = gradients.variance()
        return Estimate(
            gradient=gradients.mean.to(dtype),
            variance=variance.to(dtype),
            standard_error=(variance / gradients.count).sqrt().to(dtype),
            loss=losses.mean.to(dtype),
            draws=gradients.count,
            evaluations=evaluations,
            seconds=time.perf_counter() - start,
            seed=seed,
            state=state,
        )

    size = max(1, a.numel())
    blocks = blocks_of(draws, most=max(1, _BLOCK // (evaluations * size)))
    run = Block(f, a.detach(), neuron, estimator, key, state)
    with closing(run_in_order(run, blocks, executor, window=max(8, min(256, _AHEAD // size)))) as results:
        for more_gradients, more_losses in results:
            gradients, losses = gradients.merge(more_gradients), losses.merge(more_losses)
            if progress:
                progress(gradients.count, draws)
            if watch:
                watch(so_far())
            if target_standard_error is not None and gradients.count % step_at(gradients.count) == 0:
                error = so_far().standard_error
                if not error.numel() or float(error.max()) <= target_standard_error:
                    break
    return so_far()


def exact(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    target: Target | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """E[f(h)] `[*batch]` and its gradient in a `[*batch, *event]`, by summing over the units' joint law, in chunks.

    Exact for units with finitely many outputs, up to 20 binary ones; for others as accurate as their `law`, which for continuous
    ones is a quadrature, up to 3 units. f is evaluated in the dtype of `a`, the sum is in float64. Raises TooManyPoints past
    2^20 points.

    target: another expectation than E[f(h)], such as `estimator.target()`; of n samples it takes the n-th power of the points.
    progress: progress(done, points) is called after each chunk; what it raises ends the work.
    """
    neuron = registry.neuron(neuron)
    wide = check_pre_activations(a, neuron).double().requires_grad_()
    event = event_shape(neuron, wide)
    with torch.enable_grad():
        values, _ = neuron.law(wide)
        moves = values.requires_grad  # the outputs move with a, so dL/dh matters as well
        total = count(neuron, event, values.shape[0])
        del values
        if target is not None and target.samples > 1:
            return _exact_of_samples(f, a, wide, neuron, total, target, progress)
        chunk = max(1, CHUNK // max(1, wide.numel()))
        loss = torch.zeros(wide.shape[: wide.ndim - neuron.event_ndim], dtype=torch.float64, device=a.device)
        gradient = torch.zeros_like(wide)
        for first in range(0, total, chunk):
            points, weights = configurations(neuron, wide, neuron.law(wide), first, min(first + chunk, total))
            at = points.to(a.dtype)
            losses = losses_at(f, at if moves else at.detach(), neuron).double()
            part = (weights * (losses if moves else losses.detach())).sum(0)
            if part.requires_grad:  # else nothing in the law moves with a
                (step,) = torch.autograd.grad(part.sum(), wide)
                gradient += step
            loss += part.detach()
            if progress:
                progress(min(first + chunk, total), total)
    dtype = _at_least_float32(a)
    return loss.to(dtype), gradient.detach().to(dtype)


def _exact_of_samples(
    f: Loss,
    a: Tensor,
    wide: Tensor,
    neuron: Neuron,
    total: int,
    target: Target,
    progress: Callable[[int, int], None] | None,
) -> tuple[Tensor, Tensor]:
    """`exact` for several samples: the losses of all configurations once, then every way to draw `samples` of these."""
    ways = total**target.samples
    if ways > MAX_POINTS:
        raise TooManyPoints(f"{target} over {total} configurations has {ways} terms; the limit is 2^20")
    points, weights = configurations(neuron, wide, neuron.law(wide), 0, total)
    losses = losses_at(f, points.to(a.dtype), neuron).double()
    given = [x.detach().requires_grad_() for x in (weights, losses)]
    value = torch.zeros_like(losses[0]).detach()
    slopes = [torch.zeros_like(x) for x in given]
    place = total ** torch.arange(target.samples, device=a.device)[:, None]
    chunk = max(1, CHUNK // max(1, value.numel()))
    for first in range(0, ways, chunk):
        way = torch.arange(first, min(first + chunk, ways), device=a.device)
        drawn = way.div(place, rounding_mode="floor") % total  # [samples, n]
        probability, loss = (x[drawn] for x in given)
        part = (probability.prod(0) * target.combine(loss)).sum(0)
        value += part.detach()
        steps = torch.autograd.grad(part.sum(), given)
        slopes = [slope + step for slope, step in zip(slopes, steps, strict=True)]
        if progress:
            progress(min(first + chunk, ways), ways)
    moving = [(x, slope) for x, slope in zip((weights, losses), slopes, strict=True) if x.requires_grad]
    gradient = torch.zeros_like(wide)
    if moving:
        (gradient,) = torch.autograd.grad([x for x, _ in moving], wide, [slope for _, slope in moving])
    dtype = _at_least_float32(a)
    return value.to(dtype), gradient.detach().to(dtype)


def closed_form(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    target: Target | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """What `exact` gives, by the objective's own closed form where it has one; None where neither is to be had."""
    try:
        if isinstance(f, Objective) and (target is None or target.samples == 1):
            wide = check_pre_activations(a, neuron).double().requires_grad_()
            with torch.enable_grad():
                loss = f.expectation(neuron, wide)
                if loss is not None:
                    still = torch.zeros_like(wide)
                    (gradient,) = torch.autograd.grad(loss.sum(), wide) if loss.requires_grad else (still,)
                    dtype = _at_least_float32(a)
                    return loss.detach().to(dtype), gradient.to(dtype)
        return exact(f, a, neuron, target, progress=progress)
    except TooManyPoints:
        return None


def _to_key(seed: int | Key | None) -> Key:
    if isinstance(seed, Key):
        return seed
    if seed is None:
        return Key(fresh_seed_tensor() if transformed() else fresh_seed())
    return Key(check_seed(seed))


def _at_least_float32(a: Tensor) -> torch.dtype:
    return torch.promote_types(a.dtype, torch.float32)


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{name} is an integer of at least {least}, not {value!r}")


def _check_target(value: float | None) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf
    ):
        raise InvalidInput(f"target_standard_error is a finite number of at least 0, not {value!r}")
