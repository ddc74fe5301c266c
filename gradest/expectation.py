"""sample, expect, estimate and exact: the four things to do with E[f(h)].

In each, `a` `[*batch, *event]` are pre-activations of any float dtype, device and strides, and `f` maps points
`[K, *batch, *event]` (any K) to losses `[K, *batch]`. float16 and bfloat16 are computed on in float32: f is given points in the
dtype of `a`, and gradients come back in it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradest.enumeration import MAX_POINTS, configurations, count
from gradest.errors import Incompatible, InvalidInput, PluginFault, TooManyPoints
from gradest.estimator import Draw, Estimator, Feedback, State, Target, event_shape
from gradest.executors import run_in_order
from gradest.kernels import select, transformed
from gradest.kernels.reference import all_finite, cast, widen
from gradest.neuron import Binary, Neuron
from gradest.objective import Loss, Objective
from gradest.parallel import joined_state, world_size
from gradest.plugin import Plugin
from gradest.random import Key, check_seed, fresh_seed, fresh_seed_tensor
from gradest.registry import registry

__all__ = [
    "Estimate",
    "ask",
    "check_form",
    "check_pre_activations",
    "closed_form",
    "estimate",
    "exact",
    "expect",
    "first_non_finite",
    "first_state",
    "sample",
    "sample_checked",
    "tell",
    "value_of",
]

Spec = str | Mapping[str, Any]
NeuronSpec = Spec | Neuron
EstimatorSpec = Spec | Estimator

_MANY = 1 << 16  # elements that a kernel looks at faster than torch
_CHUNK = 1 << 20  # elements of points that are held at once
_STEP = 256  # draws of the first steps; see _step
_BLOCK = 1 << 20  # elements of points in one block, at the most: a part of what a result is, unlike _CHUNK
_AHEAD = 1 << 24  # elements of blocks that wait to be merged, at the most
_WARM_UP = 1 << 31  # the repetitions from here on are those that warm a state up


def check_pre_activations(a: Tensor, neuron: Neuron) -> Tensor:
    """`a`, detached and widened to at least float32; raises InvalidInput with the reason, or the index of the first bad entry."""
    wide = check_form(a, neuron)
    index = None if transformed() else first_non_finite(wide)  # no transform allows a look at numbers
    if index is not None:
        raise InvalidInput(
            f"pre-activations must be finite, but a[{', '.join(map(str, index))}] is {a.detach()[tuple(index)]}"
        )
    return wide


def check_form(a: Tensor, neuron: Neuron) -> Tensor:
    """`check_pre_activations` without a look at the numbers, for those that are known to be finite."""
    if not isinstance(a, Tensor):
        raise InvalidInput(f"pre-activations are a torch tensor, not {type(a).__name__}; torch.tensor(a) makes one")
    if not a.is_floating_point():
        raise InvalidInput(f"pre-activations are floating point, not {a.dtype}; a.float() converts them")
    if a.ndim < neuron.event_ndim:
        raise InvalidInput(
            f"{neuron.name} takes [*batch, *event] with {neuron.event_ndim} event dim(s) last; this tensor has {a.ndim} dims"
        )
    return widen(a.detach())


def first_non_finite(x: Tensor) -> list[int] | None:
    """The index of the first entry that is infinite or not a number; None if there is none."""
    look = (
        all_finite if x.numel() < _MANY else select("all_finite", x.device)
    )  # to find a kernel takes as long as a small sum
    if look(x):
        return None
    bad = (~torch.isfinite(x)).nonzero()
    return [int(place) for place in bad[0]] if len(bad) else None


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


def sample_checked(neuron: Neuron, wide: Tensor, samples: int, key: Key, dtype: torch.dtype | None = None) -> Tensor:
    """What `sample` does once `check_pre_activations` has given it `wide`."""
    h = None
    if dtype is not None:
        if dtype not in (torch.uint8, torch.bool) or not isinstance(neuron, Binary) or not neuron.fits(dtype):
            raise InvalidInput(
                f"outputs of {neuron.name} are not had as {dtype}; leave dtype out, and convert what comes"
            )
        h = neuron.sample_as(key, wide, samples, dtype)
    if h is None:
        h = neuron.sample(key, wide, samples)
        _check_result(neuron, "sample", h, (samples, *wide.shape))
    return h


def ask(neuron: Neuron, estimator: Estimator, a: Tensor, key: Key, state: State | None = None) -> tuple[Draw, State]:
    """Checks the pair and `a`, and draws: the first half of a gradient. Returns the draw, and the state to tell it with."""
    registry.check_fit(neuron, estimator)
    wide = check_pre_activations(a, neuron)
    state = first_state(estimator, neuron, wide) if state is None else state
    with torch.set_grad_enabled(False):  # no_grad, which takes longer
        draw = estimator.forward(neuron, wide, key, state)
        _check_draw(estimator, neuron, wide, key, draw)
    return draw, state


def tell(estimator: Estimator, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
    """Checks the feedback's shapes and turns it into the gradient, `[*batch, *event]`, and the next state: the second half."""
    shape, dtype = draw.points.shape, draw.a.dtype
    loss = _heard(estimator, "loss", feedback.loss, shape[: len(shape) - draw.neuron.event_ndim], dtype)
    widened = Feedback(loss, _heard(estimator, "grad", feedback.grad, shape, dtype))
    try:
        with torch.set_grad_enabled(False):
            told = estimator.backward(draw, widened, state)
    except RuntimeError as error:
        if transformed():
            raise Incompatible(f"{estimator.label()} does not run inside a transform of torch.func: {error}") from error
        raise
    if not isinstance(told, tuple) or len(told) != 2:
        raise PluginFault(f"{estimator.name}.backward must give a gradient and a state")
    _check_result(estimator, "backward", told[0], draw.a.shape)
    _check_state(estimator, "backward", told[1])
    if draw.key.shared and state and world_size() > 1:
        with torch.set_grad_enabled(False):
            return told[0], joined_state(estimator, draw, widened, state)
    return told


def _heard(
    estimator: Estimator, name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """What was given as the loss or the grad, checked, in the dtype of the draw."""
    if given is None:
        if name in estimator.needs:
            raise InvalidInput(f"{estimator.label()} needs the {name} at its points, of shape {list(shape)}")
        return None
    if given.shape != shape:
        raise InvalidInput(f"{name} must have shape {list(shape)}, not {list(given.shape)}")
    return cast(given.detach(), dtype)


def first_state(estimator: Estimator, neuron: Neuron, a: Tensor) -> State:
    """`estimator.init`, checked."""
    state = estimator.init(neuron, a)
    _check_state(estimator, "init", state)
    return state


def value_of(estimator: Estimator, draw: Draw, loss: Tensor) -> Tensor:
    """`estimator.value`, checked."""
    value = estimator.value(draw, loss)
    _check_result(estimator, "value", value, loss.shape[1:])
    return value


def _check_draw(estimator: Estimator, neuron: Neuron, a: Tensor, key: Key, draw: Draw) -> None:
    evaluations = estimator.evaluations(neuron, event_shape(neuron, a))
    points = draw.points if isinstance(draw, Draw) else draw
    try:
        _check_result(estimator, "forward", points, (evaluations, *a.shape))
    except PluginFault:
        _check_result(neuron, "sample", neuron.sample(key, a, 1), (1, *a.shape))  # then it was not the estimator
        raise
    batch = a.shape[: a.ndim - neuron.event_ndim]
    _check_result(estimator, "forward", draw.weights, (evaluations,), (evaluations, *batch))


def _check_result(plugin: Plugin, method: str, found: object, *shapes: tuple[int, ...]) -> None:
    if isinstance(found, Tensor) and found.is_floating_point() and found.shape in shapes:
        return
    got = f"{list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    raise PluginFault(f"{plugin.name}.{method} must give floats of shape {wanted}, not {got}")


def _check_state(estimator: Estimator, method: str, state: object) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise PluginFault(f"{estimator.name}.{method} must give a state: tensors by name")


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
        return value_of(estimator, draw, _losses(f, points, neuron)), state
    loss, grad = _evaluate(f, points, neuron, estimator, keep_graph=True)
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
        state = _warm(f, a, neuron, estimator, key, warm_up, lambda: progress and progress(0, draws))
    dtype = _at_least_float32(a)
    gradients = losses = _NO_DRAWS

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
    blocks = _blocks(draws, most=max(1, _BLOCK // (evaluations * size)))
    run = _Block(f, a.detach(), neuron, estimator, key, state)
    with closing(run_in_order(run, blocks, executor, window=max(8, min(256, _AHEAD // size)))) as results:
        for more_gradients, more_losses in results:
            gradients, losses = gradients.merge(more_gradients), losses.merge(more_losses)
            if progress:
                progress(gradients.count, draws)
            if watch:
                watch(so_far())
            if target_standard_error is not None and gradients.count % _step(gradients.count) == 0:
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
        chunk = max(1, _CHUNK // max(1, wide.numel()))
        loss = torch.zeros(wide.shape[: wide.ndim - neuron.event_ndim], dtype=torch.float64, device=a.device)
        gradient = torch.zeros_like(wide)
        for first in range(0, total, chunk):
            points, weights = configurations(neuron, wide, neuron.law(wide), first, min(first + chunk, total))
            at = points.to(a.dtype)
            losses = _losses(f, at if moves else at.detach(), neuron).double()
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
    losses = _losses(f, points.to(a.dtype), neuron).double()
    given = [x.detach().requires_grad_() for x in (weights, losses)]
    value = torch.zeros_like(losses[0]).detach()
    slopes = [torch.zeros_like(x) for x in given]
    place = total ** torch.arange(target.samples, device=a.device)[:, None]
    chunk = max(1, _CHUNK // max(1, value.numel()))
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


def _losses(f: Loss, points: Tensor, neuron: Neuron) -> Tensor:
    """f(points), checked."""
    loss = f(points)
    wanted = points.shape[: points.ndim - neuron.event_ndim]
    if not isinstance(loss, Tensor) or loss.shape != wanted:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        name = f"{f.name}.__call__" if isinstance(f, Objective) else "f"
        raise InvalidInput(
            f"{name} must map points {list(points.shape)} to losses {list(wanted)} [K, *batch], but it gave {got}"
        )
    return loss


def _evaluate(
    f: Loss, points: Tensor, neuron: Neuron, estimator: Estimator, keep_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """The losses at the points and, where the estimator needs it, their gradient in the points."""
    if "grad" not in estimator.needs:
        return _losses(f, points.detach(), neuron), None
    if transformed():
        loss, pull, *_ = torch.func.vjp(lambda points: _losses(f, points, neuron), points.detach())
        return loss, pull(torch.ones_like(loss))[0].detach()
    points = points.detach().requires_grad_()
    with torch.set_grad_enabled(True):
        loss = _losses(f, points, neuron)
        if not loss.requires_grad:
            raise InvalidInput(f"{estimator.label()} needs dL/dh, but f is not differentiable in its points")
        (grad,) = torch.autograd.grad(loss, points, torch.ones_like(loss), retain_graph=keep_graph, allow_unused=True)
    if not (keep_graph and _depends_on_more(loss, points)):
        loss = loss.detach()  # else backward would go through f once more, for nothing
    return loss, torch.zeros_like(points) if grad is None else grad


def _depends_on_more(loss: Tensor, points: Tensor) -> bool:
    """Whether `loss` is, or its graph leads to, another leaf than `points`, such as a parameter of f.

    A function of its own in the graph may lead to parameters unseen, as a checkpoint's does.
    """
    if loss.is_leaf:
        return True
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            before = node.next_functions
            if not before and getattr(node, "variable", points) is not points:
                return True
            if isinstance(node, BackwardCFunction):
                return True
            nodes += [node for node, _ in before]
    return False


def _draws(
    f: Loss, a: Tensor, neuron: Neuron, estimator: Estimator, key: Key, state: State, draws: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor, State]]:
    """Draws `first` to `first + draws` in chunks of n: gradients `[n, *batch, *event]`, values `[n, *batch]`, next state."""
    split = a.ndim - neuron.event_ndim
    # a repetition has the rows of `a` itself and a seed of its own, so no draw depends on how draws are cut into chunks
    key = replace(key, rows=torch.arange(a.shape[:split].numel()).reshape(a.shape[:split]))
    points_per_draw = estimator.evaluations(neuron, event_shape(neuron, a)) * max(1, a.numel())
    chunk = max(1, min(draws, _CHUNK // points_per_draw))
    for begin in range(first, first + draws, chunk):
        n = min(chunk, first + draws - begin)
        repetition = torch.arange(begin, begin + n, device=a.device)[(..., *[None] * split)]
        yield _one_chunk(f, a.detach().expand(n, *a.shape), neuron, estimator, key.fold_in(repetition), state)


def _one_chunk(
    f: Loss, a: Tensor, neuron: Neuron, estimator: Estimator, key: Key, state: State
) -> tuple[Tensor, Tensor, State]:
    """One chunk of `_draws`, for `a` `[n, *batch, *event]`: holds the points once, and gives f some of the K at a time."""
    draw, _ = ask(neuron, estimator, a, key, state)
    evaluations, n = draw.points.shape[0], a.shape[0]
    at_once = max(1, _CHUNK * evaluations // max(1, draw.points.numel()))
    loss = grad = None
    with torch.no_grad():
        for first, part in zip(range(0, evaluations, at_once), torch.split(draw.points, at_once), strict=True):
            # f is promised points [K, *batch, *event], so the repetitions join the leading dim
            found, slope = _evaluate(f, part.flatten(0, 1).to(a.dtype), neuron, estimator, keep_graph=False)
            loss = _put(loss, found, first * n, evaluations * n)
            grad = None if slope is None else _put(grad, slope, first * n, evaluations * n)
    assert loss is not None
    loss = loss.reshape(evaluations, n, *loss.shape[1:])
    grad = None if grad is None else grad.reshape(draw.points.shape)
    gradient, after = tell(estimator, draw, Feedback(loss, grad), state)
    return gradient, value_of(estimator, draw, widen(loss)), after


def _put(whole: Tensor | None, part: Tensor, first: int, total: int) -> Tensor:
    """`part` written into `whole`, `[total, ...]`, which the first part makes.

    Parts kept for a later torch.cat would lie between the points freed, and an allocator could not use their room again.
    """
    if whole is None:
        whole = part.new_empty(total, *part.shape[1:])
    whole[first : first + part.shape[0]] = part
    return whole


def _step(draw: int) -> int:
    """The length of the step that this draw is in: 256 at first, then a quarter of the last power of two.

    Steps are where the standard error is looked at, and no block reaches over the end of one. They grow so that few calls make
    many draws, and slowly enough that there are blocks for several workers at any number of draws.
    """
    return _STEP << max(0, (draw // (4 * _STEP)).bit_length() - 1)


def _blocks(draws: int, most: int) -> Iterator[tuple[int, int]]:
    """The first draw and the number of draws of each block."""
    first = 0
    while first < draws:
        step = _step(first)
        n = min(most, step - first % step, draws - first)
        yield first, n
        first += n


@dataclass(frozen=True, eq=False)
class _Block:
    """What a worker is sent: block(first, n) is the moments of n draws' gradients and of their values."""

    f: Loss
    a: Tensor
    neuron: Neuron
    estimator: Estimator
    key: Key
    state: State

    def __call__(self, first: int, n: int) -> tuple[_Moments, _Moments]:
        chunks = list(_draws(self.f, self.a, self.neuron, self.estimator, self.key, self.state, n, first))
        return _Moments.of([gradient for gradient, _, _ in chunks]), _Moments.of([value for _, value, _ in chunks])


def _warm(
    f: Loss, a: Tensor, neuron: Neuron, estimator: Estimator, key: Key, steps: int, report: Callable[[], object]
) -> State:
    state = first_state(estimator, neuron, check_pre_activations(a, neuron))
    for step in range(steps if state else 0):
        for _, _, after in _draws(f, a, neuron, estimator, key, state, 1, first=_WARM_UP + step):
            state = after
        report()
    return state


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


@dataclass(frozen=True, eq=False)
class _Moments:
    """The mean of `count` values, and the sum of their squared distances from it."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, chunks: list[Tensor]) -> _Moments:
        """Of values `[n, ...]`, in chunks: how they are cut leaves no trace in the result."""
        return cls(sum(map(len, chunks)), *select("moments", chunks[0].device)(chunks))

    def merge(self, other: _Moments) -> _Moments:
        """The moments of both."""
        if self.count == 0:
            return other
        total = self.count + other.count
        gap = other.mean - self.mean
        return _Moments(
            total,
            self.mean + gap * (other.count / total),
            self.squares + other.squares + gap**2 * (self.count * other.count / total),
        )

    def variance(self) -> Tensor:
        """Of one value, NaN if there is one only."""
        return self.squares / (self.count - 1) if self.count > 1 else torch.full_like(self.mean, torch.nan)


_NO_DRAWS = _Moments(0, torch.zeros(()), torch.zeros(()))
