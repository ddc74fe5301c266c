"""Many draws of one gradient: in blocks, which may be computed anywhere and in any order, and merged in theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradest.estimator import Estimator, Feedback, State, event_shape
from gradest.exchange import ask, check_pre_activations, evaluate, first_state, tell, value_of
from gradest.kernels import select
from gradest.kernels.reference import widen
from gradest.neuron import Neuron
from gradest.objective import Loss
from gradest.random import Key

__all__ = ["CHUNK", "NO_DRAWS", "Block", "Moments", "blocks_of", "step_at", "warm_up_state"]

CHUNK = 1 << 20  # elements of points that are held at once
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
class Block:
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
