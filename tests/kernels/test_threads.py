"""The threads that kernels for the CPU run in: torch's own, or some of their own where torch has none that they can use."""

from __future__ import annotations

import multiprocessing
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from gradest.kernels.cpu import tensors
from gradest.kernels.cpu.conditional import layer, units
from gradest.kernels.cpu.tensors import in_threads, run_in_team

EACH = 1 << 19  # elements of each of the three parts
WITHOUT_TEAM = pytest.mark.skipif(not tensors._team, reason="torch does not run on GNU OpenMP")


@pytest.fixture(params=[pytest.param(True, marks=WITHOUT_TEAM), False], ids=["torch's own", "new ones"])
def three_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    if request.param:
        monkeypatch.setattr(threading, "Thread", lambda **_: pytest.fail("a thread was started"))
    else:
        monkeypatch.setattr(tensors, "_team", [])


@pytest.mark.usefixtures("three_threads")
def test_each_part_is_worked_on_once() -> None:
    for _ in range(100):
        parts: list[tuple[int, int]] = []
        in_threads(lambda first, last: parts.append((first, last)), 3 * EACH, 1)  # noqa: B023
        assert sorted(parts) == [(part * EACH, (part + 1) * EACH) for part in range(3)]


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("bad", range(3))
def test_an_error_of_any_part_is_raised(kind: type[BaseException], bad: int) -> None:
    def work(first: int, last: int) -> None:
        if first == bad * EACH:
            raise kind(str(bad))

    with pytest.raises(kind, match=str(bad)):
        in_threads(work, 3 * EACH, 1)


def test_parts_run_at_the_same_time() -> None:
    """Each part waits for the others, so that one thread alone would never end."""
    meeting = threading.Barrier(2, timeout=60)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        in_threads(lambda first, last: meeting.wait() and None, 2 * EACH, 1)
    finally:
        torch.set_num_threads(before)


def _work_in_the_child() -> None:
    parts: list[int] = []
    torch.set_num_threads(2)
    in_threads(lambda first, last: parts.append(first), 2 * EACH, 1)
    assert sorted(parts) == [0, EACH]


def _fork() -> None:
    _work_in_the_child()  # torch's threads run now, and do not survive the fork
    child = multiprocessing.get_context("fork").Process(target=_work_in_the_child)
    child.start()
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.deep
def test_a_fork_has_threads_of_its_own() -> None:
    """In a process of its own, because pytest's may have threads that do not stand a fork."""
    process = multiprocessing.get_context("spawn").Process(target=_fork)
    process.start()
    process.join(120)
    assert process.exitcode == 0


@WITHOUT_TEAM
def test_a_team_of_one() -> None:
    called: list[int] = []
    assert run_in_team(tensors._CALLBACK(lambda _: called.append(1)), None, 1)
    assert called == [1]


def test_the_lists_of_open_gates_live_while_a_kernel_reads_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although another thread, which goes back through the same graph, may make them again meanwhile."""
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[bool] = []
    real = layer._function

    class ListedByOthersToo(layer.Plan):
        @property
        def words(self) -> torch.Tensor:
            words: torch.Tensor = vars(layer.Plan)["words"].func(self)
            made.append(weakref.ref(words))
            return words

    def watched(kernel: Any, *dtypes: torch.dtype) -> Callable[[Any], None]:
        def run(given: Any) -> None:
            if kernel is units.grad_weight:
                alive.append(made[-1]() is not None)
            if all(alive):
                real(kernel, *dtypes)(given)

        return run

    monkeypatch.setattr(layer, "_function", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    plan = ListedByOthersToo(torch.tensor([[1.0, 0.0, 2.0]]))
    weight, bias, _ = layer.grad_weight(plan, torch.ones(1, 3), torch.ones(1, 2), compact=False)
    assert alive == [True]
    assert weight.count_nonzero(1).tolist() == [2, 0, 2]
    assert bias.count_nonzero() == 2
