"""Many draws of one gradient: in blocks, which may be computed anywhere and in any order, and merged in theirs."""

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
from gradest.contract.neuron import Neuron, event_shape
from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import InvalidInput
from gradest.estimation.ask_tell import (
    CHUNK,
    ask,
    at_least_float32,
    check_count,
    check_pre_activations,
    evaluate,
    first_state,
    tell,
    value_of,
)
from gradest.estimation.executors import run_in_order
from gradest.estimation.results import Estimate
from gradest.kernels import select
from gradest.kernels.stable import widen
from gradest.random import Key, check_seed, fresh_seed

__all__ = ["NO_DRAWS", "DrawBlock", "Moments", "blocks_of", "estimate", "step_at", "warm_up_state"]

_STEP = 256  # draws of the first steps; see step_at
_WARM_UP = 1 << 31  # the repetitions from here on are those that warm a state up


def warm_up_state(
    f: Loss, a: Tensor, neuron: Neuron, estimator: Estimator, key: Key, steps: int, report: Callable[[], object]
) -> State:
    """The estimator's state after so many steps from its first one; report() is called after each."""
    state = first_state(estimator, neuron, check_pre_activations(a, neuron))
    for step in range(steps if state else 0):
        for _, _, after in _draws(f, a, neuron, estimator, key, state, 1, first=_WARM_UP + step):
            state = after
        report()
    return state


def blocks_of(draws: int, most: int) -> Iterator[tuple[int, int]]:
    """The first draw and the number of draws of each block."""
    first = 0
    while first < draws:
        step = step_at(first)
        n = min(most, step - first % step, draws - first)
        yield first, n
        first += n


def step_at(draw: int) -> int:
    """The length of the step that this draw is in: 256 at first, then a quarter of the last power of two.

    Steps are where the standard error is looked at, and no block reaches over the end of one. They grow so that few calls make
    many draws, and slowly enough that there are blocks for several workers at any number of draws.
    """
    return _STEP << max(0, (draw // (4 * _STEP)).bit_length() - 1)


@dataclass(frozen=True, eq=False)
class DrawBlock:
    """What a worker is sent: block(first, n) makes the draws `first` to `first + n`."""

    f: Loss
    a: Tensor
    neuron: Neuron
    estimator: Estimator
    key: Key
    state: State

    def __call__(self, first: int, n: int) -> tuple[Moments, Moments]:
        """The moments of the gradients, and of the values."""
        chunks = list(_draws(self.f, self.a, self.neuron, self.estimator, self.key, self.state, n, first))
        return Moments.of([gradient for gradient, _, _ in chunks]), Moments.of([value for _, value, _ in chunks])


def _draws(
    f: Loss, a: Tensor, neuron: Neuron, estimator: Estimator, key: Key, state: State, draws: int, first: int = 0
) -> Iterator[tuple[Tensor, Tensor, State]]:
    """Draws `first` to `first + draws` in chunks of n: gradients `[n, *batch, *event]`, values `[n, *batch]`, next state."""
    split = a.ndim - neuron.event_ndim
    # a repetition has the rows of `a` itself and a seed of its own, so no draw depends on how draws are cut into chunks
    key = replace(key, rows=torch.arange(a.shape[:split].numel()).reshape(a.shape[:split]))
    points_per_draw = estimator.evaluations(neuron, event_shape(neuron, a)) * max(1, a.numel())
    chunk = max(1, min(draws, CHUNK // points_per_draw))
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
    at_once = max(1, CHUNK * evaluations // max(1, draw.points.numel()))
    loss = grad = None
    with torch.no_grad():
        for first, part in zip(range(0, evaluations, at_once), torch.split(draw.points, at_once), strict=True):
            # f is promised points [K, *batch, *event], so the repetitions join the leading dim
            found, slope = evaluate(f, part.flatten(0, 1).to(a.dtype), neuron, estimator, keep_graph=False)
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


@dataclass(frozen=True, eq=False)
class Moments:
    """The mean of `count` values, and the sum of their squared distances from it."""

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, chunks: list[Tensor]) -> Moments:
        """Of values `[n, ...]`, in chunks: how they are cut leaves no trace in the result."""
        return cls(sum(map(len, chunks)), *select("moments", chunks[0].device)(chunks))

    def merge(self, other: Moments) -> Moments:
        """The moments of both."""
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
        """Of one value, NaN if there is one only."""
        return self.squares / (self.count - 1) if self.count > 1 else torch.full_like(self.mean, torch.nan)


NO_DRAWS = Moments(0, torch.zeros(()), torch.zeros(()))


_BLOCK = 1 << 20  # elements of points in one block, at the most: a part of what a result is, unlike CHUNK


_AHEAD = 1 << 24  # elements of blocks that wait to be merged, at the most


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
    check_count("draws", draws, least=1)
    _check_target(target_standard_error)
    registry.check_fit(neuron, estimator)
    check_pre_activations(a, neuron)
    seed = fresh_seed() if seed is None else check_seed(seed)
    start = time.perf_counter()
    key = Key(seed)
    evaluations = estimator.evaluations(neuron, event_shape(neuron, a))
    if state is None:
        state = warm_up_state(f, a, neuron, estimator, key, warm_up, lambda: progress and progress(0, draws))
    dtype = at_least_float32(a)
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
    run = DrawBlock(f, a.detach(), neuron, estimator, key, state)
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
        raise InvalidInput(f"target_standard_error is a finite number of at least 0, not {value!r}")
