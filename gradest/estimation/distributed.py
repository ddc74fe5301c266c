"""A batch that several processes of torch.distributed share: which rows each process holds, and the state of the joined batch.

Process r of W holds the examples r, r + W, r + 2W, ... of the batch, as DistributedSampler assigns them. Without
torch.distributed there is one process, which holds all of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.score_function import ScoreFunction
from gradest.errors import InvalidInput
from gradest.kernels import transformed
from gradest.random import Key, check_words, fresh_seed, plain_key

__all__ = [
    "checked_examples",
    "fresh_key",
    "fresh_path_key",
    "is_parallel",
    "joined_credit_state",
    "joined_state",
    "joined_state_of_paths",
    "rank",
    "row_numbers",
    "with_path_dim",
    "world_size",
]


_AVAILABLE = torch.distributed.is_available()  # whether torch was built with it


def is_parallel() -> bool:
    """Return whether torch.distributed is initialised, even with a single process."""
    return _AVAILABLE and torch.distributed.is_initialized()


def rank() -> int:
    """Return the rank of this process, from 0."""
    return torch.distributed.get_rank() if is_parallel() else 0


def world_size() -> int:
    """Return the number of processes."""
    return torch.distributed.get_world_size() if is_parallel() else 1


def row_numbers(batch: torch.Size, examples: Tensor | None = None) -> Tensor:
    """Return the row numbers, in the joined batch, of the rows `[*batch]` of this process. The first dim counts examples.

    examples: their numbers in the batch of this process, if it is computed in parts; see `checked_examples`.
    """
    if not batch:
        return torch.tensor(0, device="cpu") if examples is None else checked_examples(examples, batch)
    numbers = torch.arange(batch[0], device="cpu") if examples is None else checked_examples(examples, batch)
    within = batch[1:].numel()
    return ((rank() + world_size() * numbers)[:, None] * within + torch.arange(within, device="cpu")).reshape(batch)


def checked_examples(rows: Tensor, batch: torch.Size) -> Tensor:
    """Return the numbers of the examples of a part of a batch, an int64 tensor on the CPU, one for each index of its first dim.

    Raises InvalidInput unless they are integers with 0 <= n < 2**32, and as many as there are examples.
    """
    whole = isinstance(rows, Tensor) and not (rows.is_floating_point() or rows.is_complex() or rows.dtype == torch.bool)
    if not whole or rows.shape != batch[:1] or transformed():
        found = f"{list(rows.shape)} of {rows.dtype}" if isinstance(rows, Tensor) else type(rows).__name__
        raise InvalidInput(
            f"rows must be a tensor of integers {list(batch[:1])}, the numbers of the examples in the whole batch, as in "
            f"rows=torch.arange(first, last), not {found}. Inside a transform of torch.func use Key(seed, rows=...) with "
            "gradest.expect"
        )
    check_words("a row", rows)  # products of larger ones could overflow, to the numbers of others
    return rows.to("cpu", torch.int64)


def joined_state(estimator: Estimator, draw: Draw, feedback: Feedback, state: State) -> State:
    """Return the state that the estimator computes from the joined batch. Each process has the draw and feedback of its part.

    A state need not be a mean over examples. So each process gathers the rows of all processes, draws the joined batch again, and
    runs the estimator on it as a single process would. f is not evaluated again. Without a batch dim nothing is joined.
    """
    batch = draw.points.shape[1 : draw.points.ndim - draw.neuron.output_ndim]
    if not batch:
        return estimator.backward(draw, feedback, state)[1]
    key = draw.key
    rows = torch.arange(batch.numel(), device="cpu").reshape(batch) if key.rows is None else key.rows.expand(batch)
    seeds = torch.as_tensor(key.seed).expand(batch)
    seeds, rows = _join(torch.stack([seeds, rows.to(seeds.device)]).to(draw.a.device), 1)
    joined = estimator.forward(draw.neuron, _join(draw.a, 0), replace(key, seed=seeds, rows=rows), state)
    loss, grad = (None if x is None else _join(x, 1) for x in (feedback.loss, feedback.grad))
    return estimator.backward(joined, Feedback(loss, grad), state)[1]


def joined_state_of_paths(
    estimator: Estimator, draw: Draw, feedback: Feedback, state: State, paths: int, flat: bool
) -> State:
    """Return `joined_state` for a draw whose batch begins with K paths, or with K·examples if it is flat.

    The examples must lead where parts are joined, so the draw is repeated with the paths behind them.
    """

    def examples_first(x: Tensor, dim: int) -> Tensor:
        return (with_path_dim(x, dim, paths) if flat else x).transpose(dim, dim + 1)

    assert draw.key.rows is not None
    if draw.key.rows.ndim < 2 and not flat:  # there are no examples to join
        return estimator.backward(draw, feedback, state)[1]
    key = replace(draw.key, rows=examples_first(draw.key.rows, 0))
    given = [None if x is None else examples_first(x, 1) for x in (feedback.loss, feedback.grad)]
    again = estimator.forward(draw.neuron, examples_first(draw.a, 0), key, state)
    return joined_state(estimator, again, Feedback(*given), state)


def with_path_dim(x: Tensor, dim: int, paths: int) -> Tensor:
    """Split the dim of K·examples into K paths and their examples."""
    return x.reshape(*x.shape[:dim], paths, x.shape[dim] // paths, *x.shape[dim + 1 :])


def joined_credit_state(estimator: ScoreFunction, loss: Tensor, state: State, features: Tensor | None) -> State:
    """Return the state that `credit` computes from the losses `[K, *batch]` and the features of the joined batch."""
    if loss.ndim < 2:
        return estimator.credit(loss, state, features)[1]
    return estimator.credit(_join(loss, 1), state, None if features is None else _join(features, 1))[1]


def _join(x: Tensor, dim: int) -> Tensor:
    """Gather the joined batch from the parts of all processes, whose examples are in dim `dim`. Parts may differ in size."""
    own = x.movedim(dim, 0)
    lengths = [torch.tensor(0, device=x.device) for _ in range(world_size())]
    torch.distributed.all_gather(lengths, torch.tensor(len(own), device=x.device))
    padded = own.new_zeros(max(map(int, lengths)), *own.shape[1:])
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in lengths]
    torch.distributed.all_gather(parts, padded)
    present = torch.arange(len(padded), device=x.device)[:, None] < torch.stack(lengths)
    joined = torch.stack(parts, 1)[present]  # example by example, so that parts of any sizes interleave
    return joined.movedim(0, dim).contiguous()


def fresh_key(a: Tensor, event_ndim: int, seed: int | Tensor | None = None, examples: Tensor | None = None) -> Key:
    """Return a key for `a`, of a new seed if none is given. Under torch.distributed its rows are numbered in the joined batch.

    examples: as for `row_numbers`.
    """
    seed = fresh_seed() if seed is None else seed
    key = Key(seed) if isinstance(seed, Tensor) else plain_key(seed)  # a number here is the seed of an earlier key
    if examples is None and world_size() == 1:
        return key
    rows = row_numbers(a.shape[: max(0, a.ndim - event_ndim)], examples)
    return replace(key, rows=rows, shared=world_size() > 1)


def fresh_path_key(
    a: Tensor,
    event_ndim: int,
    paths: int,
    flat: bool,
    seed: int | Tensor | None = None,
    examples: Tensor | None = None,
) -> Key:
    """Return a key for `a` whose batch begins with K paths, or K·examples: each path of an example has its own noise.

    Row (path k, example e, place w of W within it) is number (e·K + k)·W + w of the joined batch. examples: as for `row_numbers`.
    """
    batch = a.shape[: a.ndim - event_ndim]
    rest = batch[1:] if flat else batch[2:]
    count = batch[0] // paths if flat else (batch[1] if len(batch) > 1 else 1)
    numbers = (
        torch.arange(count, device="cpu") if examples is None else checked_examples(examples, torch.Size((count,)))
    )
    joined, within = rank() + world_size() * numbers, rest.numel()
    rows = (joined * paths + torch.arange(paths, device="cpu")[:, None])[..., None] * within + torch.arange(
        within, device="cpu"
    )
    return Key(fresh_seed() if seed is None else seed, rows=rows.reshape(batch))
