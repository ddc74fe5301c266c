"""Executors: the same bits for any number of workers, and work that ends when it should."""

import threading
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing

import pytest
import torch

import gradest
from gradest.errors import InvalidInput
from gradest.estimation.executors import run_in_order
from tests.events import event_of
from tests.losses import sine_for
from tests.selection import fitting_pairs_others_deep

FIGURES = ("gradient", "variance", "standard_error", "loss")


def pre_activations(neuron):
    return torch.randn((2, *event_of(gradest.neuron(neuron), 3, 3)), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def pools():
    pools = [ThreadPoolExecutor(workers) for workers in (1, 2, 3)]
    yield pools
    for pool in pools:
        pool.shutdown()


class Backwards(Executor):
    """Computes nothing until four calls wait, then the last first."""

    def __init__(self):
        self.waiting = []

    def submit(self, fn, /, *args):
        future = Future()
        self.waiting.append((future, fn, args))
        if len(self.waiting) == 4:
            while self.waiting:
                last, run, block = self.waiting.pop()
                last.set_result(run(*block))
        return future


@pytest.mark.parametrize(("neuron", "estimator"), fitting_pairs_others_deep())
def test_the_number_of_workers_leaves_no_trace(pools, monkeypatch, neuron, estimator):
    monkeypatch.setattr("gradest.estimation.estimate._STEP", 4)
    a, f = pre_activations(neuron), sine_for(neuron)

    def run(executor):
        at = []
        found = gradest.estimate(
            f, a, neuron, estimator, 30, 7, warm_up=3, executor=executor, progress=lambda *report: at.append(report)
        )
        assert at == sorted(at)
        assert at[-1] == (30, 30)
        return found

    alone = run(None)
    for pool in pools:
        found = run(pool)
        for name in FIGURES:
            assert torch.equal(getattr(found, name), getattr(alone, name))
        for name in alone.state:
            assert torch.equal(found.state[name], alone.state[name])


def test_the_order_in_which_blocks_end_leaves_no_trace():
    a, f = pre_activations("bernoulli"), sine_for("bernoulli")
    alone = gradest.estimate(f, a, draws=2048, seed=7)  # eight blocks
    found = gradest.estimate(f, a, draws=2048, seed=7, executor=Backwards())
    for name in FIGURES:
        assert torch.equal(getattr(found, name), getattr(alone, name))


def test_blocks_run_side_by_side():
    """Two blocks wait for each other: one worker alone would never end."""
    both = threading.Barrier(2, timeout=20)

    def f(h):
        if threading.current_thread() is not threading.main_thread():  # where f is checked
            both.wait()
        return h.sum(-1)

    with ThreadPoolExecutor(2) as pool:
        gradest.estimate(f, torch.zeros(3), draws=1024, executor=pool)


def test_compare_does_not_depend_on_an_executor(pools):
    a, f = pre_activations("bernoulli"), sine_for("bernoulli")

    def run(executor):
        table = gradest.compare(f, a, estimators=["rloo", "nvil"], draws=1000, seed=7, warm_up=5, executor=executor)
        rows = table.to_dict()["rows"]
        for row in rows:
            del row["seconds"]
        return rows

    assert run(pools[1]) == run(None)


def test_a_target_stops_at_the_same_draw(pools):
    a, f = pre_activations("bernoulli"), sine_for("bernoulli")
    alone = gradest.estimate(f, a, draws=10**6, seed=7, target_standard_error=0.005)
    assert 256 < alone.draws < 10**5
    for pool in pools:
        found = gradest.estimate(f, a, draws=10**6, seed=7, target_standard_error=0.005, executor=pool)
        assert found.draws == alone.draws
        assert torch.equal(found.gradient, alone.gradient)


def test_an_error_in_a_worker_is_the_callers_and_ends_the_work(pools):
    drawn = []

    def f(h):
        drawn.append(h.shape[0])
        if sum(drawn) > 1024:
            raise KeyError("f broke")
        return h.sum(-1)

    with pytest.raises(KeyError, match="f broke"):
        gradest.estimate(f, torch.zeros(3), estimator="reinforce", draws=10**6, executor=pools[1])
    assert sum(drawn) < 10**5
    with pytest.raises(InvalidInput, match="f must map points"):
        gradest.estimate(lambda h: h, torch.zeros(3), executor=pools[1])


@pytest.mark.parametrize("callback", ["progress", "watch"])
def test_a_callback_that_raises_leaves_nothing_running(pools, callback):
    running, drawn = [], []

    def f(h):
        running.append(h)
        drawn.append(h.shape[0])
        running.pop()
        return h.sum(-1)

    def stop(*report):
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        gradest.estimate(f, torch.zeros(3), estimator="reinforce", draws=10**6, executor=pools[2], **{callback: stop})
    made = sum(drawn)
    assert not running
    assert made < 10**5
    assert pools[2].submit(lambda: 1).result() == 1  # nothing of it is left in the queue
    assert sum(drawn) == made


def test_calls_are_handed_over_by_the_window():
    handed = []

    class Counting(ThreadPoolExecutor):
        def submit(self, fn, /, *args):
            handed.append(args)
            return super().submit(fn, *args)

    with Counting(2) as pool, closing(run_in_order(lambda x: x * x, ((n,) for n in range(100)), pool, 5)) as results:
        assert next(results) == 0
        assert len(handed) == 5
        assert list(results) == [n * n for n in range(1, 100)]


def test_no_calls(pools):
    assert list(run_in_order(int, [], pools[0], 3)) == []


def test_an_executor_that_is_shut_down_says_so():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(RuntimeError, match="shutdown"):
        gradest.estimate(lambda h: h.sum(-1), torch.zeros(3), executor=pool)
