"""estimate: the mean and variance of many draws of one gradient.

Draws are computed in blocks. Blocks may be computed anywhere and in any order; they are merged in their own order, so that the
result has the same bits for any number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradest.contract.estimator import Estimator, Feedback, State
from gradest.contract.neuron import Neuron, event_shape, output_shape
from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import InvalidInput
from gradest.estimation.arguments import at_least_float32, check_count, check_pre_activations
from gradest.estimation.ask_tell import ask, first_state, tell, value_of
from gradest.estimation.events import EventDims, EventLayout
from gradest.estimation.executors import run_in_order
from gradest.estimation.losses.checks import checked_loss
from gradest.estimation.losses.evaluation import CHUNK, evaluate, flattened
from gradest.estimation.results import Estimate
from gradest.kernels import select
from gradest.kernels.stable import widen
from gradest.random import Key, fresh_seed
from gradest.seeds import check_seed

__all__ = ["NO_DRAWS", "DrawBlock", "Moments", "blocks_of", "estimate", "estimate_checked", "step_at", "warm_up_state"]

_STEP = 256  # draws in each of the first steps; see step_at
_WARM_UP = 1 << 31  # repetitions from this number on are used to warm up the state


def warm_up_state(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    estimator: Estimator,
    key: Key,
    steps: int,
    report: Callable[[], object],
    allow_inf: bool = False,
) -> State:
    """Return the estimator's state after `steps` steps from its initial one. report() is called after each step."""
    state = first_state(estimator, neuron, check_pre_activations(a, neuron))
    for step in range(steps if state else 0):
        for _, _, after in _draws(f, a, neuron, estimator, key, state, 1, _WARM_UP + step, allow_inf):
            state = after
        report()
    return state


def blocks_of(draws: int, most: int) -> Iterator[tuple[int, int]]:
    """Yield the first draw and the number of draws of each block."""
    first = 0
    while first < draws:
        step = step_at(first)
        n = min(most, step - first % step, draws - first)
        yield first, n
        first += n


def step_at(draw: int) -> int:
    """Return the length of the step that contains this draw: 256 at first, then a quarter of the last power of two.

    The standard error is checked at the end of each step, and no block extends beyond it. Steps grow, so that many draws take few
    calls, but slowly, so that there are blocks for several workers at any number of draws.
    """
    return _STEP << max(0, (draw // (4 * _STEP)).bit_length() - 1)


@dataclass(frozen=True, eq=False)
class DrawBlock:
    """A picklable task: block(first, n) computes the draws first, ..., first + n - 1."""

    f: Loss
    a: Tensor
    neuron: Neuron
    estimator: Estimator
    key: Key
    state: State
    allow_inf: bool = False

    def __call__(self, first: int, n: int) -> tuple[Moments, Moments]:
        """Return the moments of the gradients and of the values."""
        made = _draws(self.f, self.a, self.neuron, self.estimator, self.key, self.state, n, first, self.allow_inf)
        chunks = list(made)
        return Moments.of([gradient for gradient, _, _ in chunks]), Moments.of([value for _, value, _ in chunks])


def _draws(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    estimator: Estimator,
    key: Key,
    state: State,
    draws: int,
    first: int = 0,
    allow_inf: bool = False,
) -> Iterator[tuple[Tensor, Tensor, State]]:
    """Yield draws from `first` on, in chunks of n: gradients `[n, *batch, *event]`, values `[n, *batch]`, the next state."""
    split = a.ndim - neuron.event_ndim
    # each repetition uses the rows of `a` and a seed of its own, so no draw depends on how draws are divided into chunks
    key = replace(key, rows=torch.arange(a.shape[:split].numel(), device="cpu").reshape(a.shape[:split]))
    event = event_shape(neuron, a)
    points_per_draw = estimator.evaluations(neuron, event) * _size(neuron, a)
    held = max(points_per_draw, estimator.cost(neuron, event, tuple(a.shape[:split])).held)
    chunk = max(1, min(draws, CHUNK // held))
    for begin in range(first, first + draws, chunk):
        n = min(chunk, first + draws - begin)
        repetition = torch.arange(begin, begin + n, device=a.device)[(..., *[None] * split)]
        yield _one_chunk(
            f, a.detach().expand(n, *a.shape), neuron, estimator, key.fold_in(repetition), state, allow_inf
        )


def _one_chunk(
    f: Loss, a: Tensor, neuron: Neuron, estimator: Estimator, key: Key, state: State, allow_inf: bool
) -> tuple[Tensor, Tensor, State]:
    """Compute one chunk of `_draws` for `a` `[n, *batch, *event]`. The points are held once; f sees some of the K at a time."""
    draw, _ = ask(neuron, estimator, a, key, state)
    evaluations, n = draw.points.shape[0], a.shape[0]
    at_once = max(1, CHUNK * evaluations // max(1, draw.points.numel()))
    loss = grad = None
    with torch.no_grad():
        for first, part in zip(range(0, evaluations, at_once), torch.split(draw.points, at_once), strict=True):
            # f takes points [K, *batch, *event], so the repetitions are flattened into the leading dim
            found, slope = evaluate(f, part.flatten(0, 1).to(a.dtype), neuron, estimator, keep_graph=False)
            loss = _put(loss, found, first * n, evaluations * n)
            grad = None if slope is None else _put(grad, slope, first * n, evaluations * n)
    assert loss is not None
    loss = loss.reshape(evaluations, n, *loss.shape[1:])
    grad = None if grad is None else grad.reshape(draw.points.shape)
    gradient, after = tell(estimator, draw, Feedback(loss, grad), state, allow_inf=allow_inf)
    return gradient, value_of(estimator, draw, widen(loss), allow_inf).clone(), after


def _size(neuron: Neuron, a: Tensor) -> int:
    """Return the elements of one output, or of the gradient if those are more; at least 1."""
    return max(1, a.numel(), math.prod(output_shape(neuron, a)))


def _put(whole: Tensor | None, part: Tensor, first: int, total: int) -> Tensor:
    """Write `part` into `whole`, `[total, ...]`, which is allocated at the first part, and return it.

    Parts kept for a later torch.cat would lie between the freed points and keep an allocator from reusing their memory.
    """
    if whole is None:
        whole = part.new_empty(total, *part.shape[1:])
    whole[first : first + part.shape[0]] = part
    return whole


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean of `count` values, and the sum of their squared deviations from it."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, chunks: list[Tensor]) -> Moments:
        """Compute the moments of values `[n, ...]` given in chunks. The result does not depend on how they are divided."""
        return cls(sum(map(len, chunks)), *select("moments", chunks[0].device)(chunks))

    def merge(self, other: Moments) -> Moments:
        """Return the moments of the values of both."""
        if self.count == 0:
            return other
        total = self.count + other.count
        gap = other.mean - self.mean
        return Moments(
            total,
            self.mean + gap * (other.count / total),
            self.squares + other.squares + gap**2 * (self.count * other.count / total),
        )

    def variance(self) -> Tensor:
        """Return the variance of one value, NaN if count is 1."""
        return self.squares / (self.count - 1) if self.count > 1 else torch.full_like(self.mean, torch.nan)


NO_DRAWS = Moments(0, *torch.zeros(2, device="cpu"))


_BLOCK = 1 << 20  # at most this many elements of points in a block. Unlike CHUNK, it affects the bits of a result


_AHEAD = 1 << 24  # at most this many elements of results that wait to be merged


def estimate(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    estimator: EstimatorSpec = "rloo",
    draws: int = 1000,
    seed: int | None = None,
    state: State | None = None,
    *,
    flatten: bool = False,
    allow_inf: bool = False,
    warm_up: int = 100,
    target_standard_error: float | None = None,
    event_dims: EventDims | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Estimate], None] | None = None,
) -> Estimate:
    """Compute the mean and the variance of `draws` independent draws of the estimator.

    If no `state` is given, a stateful estimator first takes `warm_up` steps, so that its baseline is where training would have
    it. All draws then use that one state. Draws are computed in blocks, which are merged in float64 by the update of Chan, Golub
    and LeVeque (1983), so memory does not grow with `draws`. The points of a single draw are held once, and f sees some of the K
    at a time.

    flatten, allow_inf: as for `expect`. The first dim of the points that f takes counts the K points of some of the draws, and so
        does that of the index in an error about a loss that is not finite.
    target_standard_error: stop as soon as the standard error of every coordinate is at most this; `draws` is then the maximum. It
        is checked after 256, 512, 768 and 1024 draws and then four times in each doubling, so the number of draws depends on the
        seed alone. The variance is itself an estimate; if an early check underestimates it, the run stops too early.
    event_dims: as for `expect`. Gradients have the shape of `a`.
    executor: computes several blocks at a time: a ThreadPoolExecutor, or `gradest.RayExecutor` for a cluster. The division into
        blocks depends on the shape of `a` and on K alone, and blocks are merged in order, so the result has the same bits for any
        number of workers and without an executor, provided that f gives the same bits on each. The warm-up, in which each step
        needs the state of the one before, runs in this thread, as do the callbacks.
    progress: progress(done, draws) is called after each step of the warm-up, with 0 done, and after each block.
    watch: watch(estimate) is called after each block with the estimate so far.

    f must give each point a loss of its own. A GradestWarning says so if f is random, as with dropout, or depends on the other
    points of a call, as with BatchNorm in training mode; that is then part of the loss. It is checked once, at a few points.
    Buffers of the modules that f refers to are left as they were. Raises InvalidInput if rows of the batch share a loss, which
    `event_dims` is for.

    If f or a callback raises, blocks that have not begun are cancelled, and the exception is raised again once running ones have
    ended. Otherwise the errors are those of `expect`.

    >>> import torch, gradest
    >>> found = gradest.estimate(lambda h: h.sum(-1), torch.zeros(3), "bernoulli", "rloo", draws=1000, seed=7)
    >>> bool(((found.gradient - 0.25).abs() < 5 * found.standard_error).all())  # p(1 - p) is the exact gradient
    True
    """
    neuron, estimator = registry.neuron(neuron), registry.estimator(estimator)
    check_count("draws", draws, least=1)
    check_count("warm_up", warm_up, least=0)
    _check_target(target_standard_error)
    registry.check_fit(neuron, estimator)
    layout = None if event_dims is None else EventLayout.of(neuron, a, event_dims)
    if layout is not None:
        f, a = layout.loss(flattened(f, len(layout.output_given), flatten)), layout.flatten(a)
    else:
        f = flattened(f, neuron.output_ndim, flatten)
    with checked_loss(f, check_pre_activations(a, neuron), neuron, a.dtype):
        return estimate_checked(
            f,
            a,
            neuron,
            estimator,
            draws,
            seed,
            state,
            allow_inf,
            warm_up,
            target_standard_error,
            executor,
            progress,
            watch,
            layout,
        )


def estimate_checked(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    estimator: Estimator,
    draws: int,
    seed: int | None,
    state: State | None = None,
    allow_inf: bool = False,
    warm_up: int = 100,
    target_standard_error: float | None = None,
    executor: Executor | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Callable[[Estimate], None] | None = None,
    layout: EventLayout | None = None,
) -> Estimate:
    """Do what `estimate` does, for arguments that have been checked. layout: that of the caller's events."""
    seed = fresh_seed() if seed is None else check_seed(seed)
    start = time.perf_counter()
    key = Key(seed)
    evaluations = estimator.evaluations(neuron, event_shape(neuron, a))
    report = (lambda: progress(0, draws)) if progress else lambda: None
    if state is None:
        state = warm_up_state(f, a, neuron, estimator, key, warm_up, report, allow_inf)
    dtype = at_least_float32(a)
    gradients = losses = NO_DRAWS

    def so_far() -> Estimate:
        mean, variance = gradients.mean, gradients.variance()
        if layout is not None:
            mean, variance = layout.restore(mean), layout.restore(variance)
        return Estimate(
            gradient=mean.to(dtype),
            variance=variance.to(dtype),
            standard_error=(variance / gradients.count).sqrt().to(dtype),
            loss=losses.mean.to(dtype),
            draws=gradients.count,
            evaluations=evaluations,
            seconds=time.perf_counter() - start,
            seed=seed,
            state=state,
        )

    size = _size(neuron, a)
    blocks = blocks_of(draws, most=max(1, _BLOCK // (evaluations * size)))
    run = DrawBlock(f, a.detach(), neuron, estimator, key, state, allow_inf)
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


def _check_target(value: float | None) -> None:
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf
    ):
        raise InvalidInput(f"target_standard_error must be a finite number of at least 0, not {value!r}")
