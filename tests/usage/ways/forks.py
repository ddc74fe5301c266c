"""Other processes, in which ways of use take their steps: a fork for one step, and two that stay for DistributedDataParallel."""

from __future__ import annotations

import atexit
import multiprocessing
import pickle
import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from tests.usage.programs import BATCH, Case, Function, Gradients, gradients, seeded

PARALLEL_ROWS = torch.cat([torch.eye(BATCH), torch.full((1, BATCH), 0.5)])
"""The whole batch, of which process r has the rows r and r + 2."""

_FORK = multiprocessing.get_context("fork")
_WORLD = 2
_PATIENCE = 120  # seconds


def in_fork(function: Callable[[], Gradients]) -> Gradients:
    """Return what the function returns in a forked process, or raise what it raises there."""
    here, there = _FORK.Pipe()
    process = _FORK.Process(target=_answer, args=(there, function), daemon=True)
    process.start()
    try:
        return _checked(_receive(here))
    finally:
        process.join()


def in_parallel(case: Case, steps: int) -> list[Gradients]:
    """Return the gradients of the last of so many steps under DistributedDataParallel, as each process has them.

    They are sums over the whole batch, as without it: DistributedDataParallel takes the mean over the processes.
    """
    pipes = _processes()
    for pipe in pipes:
        pipe.send_bytes(pickle.dumps((case, steps)))
    try:
        answers = [_receive(pipe) for pipe in pipes]  # all, before one that is an error is raised
    except TimeoutError:
        _processes.cache_clear()  # their late answers would be taken for those of the next case
        raise
    return [_checked(answer) for answer in answers]


def _answer(pipe: Connection, function: Callable[[], Gradients]) -> None:
    """Send the result or the error. Tensors are sent as lists, which need no shared memory."""
    try:
        answer: object = {name: value.tolist() for name, value in function().items()}
    except BaseException as error:
        answer = error
    pipe.send_bytes(pickle.dumps(answer))


def _receive(pipe: Connection) -> object:
    if not pipe.poll(_PATIENCE):
        raise TimeoutError(f"no answer in {_PATIENCE} seconds")
    return pickle.loads(pipe.recv_bytes())


def _checked(answer: Any) -> Gradients:
    if isinstance(answer, BaseException):
        raise answer
    return {name: torch.tensor(value) for name, value in answer.items()}


@cache
def _processes() -> list[Connection]:
    """Start the two processes, which stay until this one ends, and return the pipes to them.

    A group for each cell would be made and destroyed some hundred times, and hang. This process has none, because layers behave
    differently where there is one.
    """
    folder = tempfile.TemporaryDirectory(prefix="usage-")  # it is kept until this process ends
    atexit.register(folder.cleanup)
    pipes = []
    for rank in range(_WORLD):
        here, there = _FORK.Pipe()
        _FORK.Process(target=_serve, args=(rank, f"file://{folder.name}/store", there), daemon=True).start()
        pipes.append(here)
    return pipes


def _serve(rank: int, store: str, pipe: Connection) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=_WORLD, timeout=timedelta(seconds=_PATIENCE / 2)
    )
    while True:
        case, steps = pickle.loads(pipe.recv_bytes())
        _answer(pipe, lambda: _parallel_steps(case, steps, rank))  # noqa: B023  # it is called at once


def _parallel_steps(case: Case, steps: int, rank: int) -> Gradients:
    program = case.build()
    if isinstance(program, Function):
        program.rows = torch.arange(rank, len(PARALLEL_ROWS), _WORLD)  # layers number them so by themselves
    parallel = DistributedDataParallel(program)
    for seed in range(steps):
        program.zero_grad()
        with seeded(seed):
            parallel(PARALLEL_ROWS[rank::_WORLD]).backward()
    return {name: _WORLD * value for name, value in gradients(program).items()}
