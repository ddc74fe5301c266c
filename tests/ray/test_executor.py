"""gradest.RayExecutor: the result of the cluster is the result of this thread."""

import os
import time

import pytest
import torch

import gradest
from gradest.errors import InvalidInput

pytestmark = [pytest.mark.ray, pytest.mark.slow]

A = torch.randn(2, 3, generator=torch.Generator().manual_seed(5))
FIGURES = ("gradient", "variance", "standard_error", "loss")


def make_loss():
    """A closure over a tensor, which only a pickler of code can send."""
    weight = torch.linspace(-1, 1, 3)
    return lambda h: (weight * h).sum(-1).sin()


@pytest.fixture
def executor(cluster):
    """Of two tasks at a time, because each worker takes seconds to import torch."""
    return gradest.RayExecutor(num_cpus=2)


@pytest.mark.parametrize(
    "estimator",
    ["nvil", *(pytest.param(name, marks=pytest.mark.deep) for name in ("rloo", "straight_through", "relax"))],
)
def test_estimate_is_that_of_this_thread(executor, estimator):
    f = make_loss()
    here = gradest.estimate(f, A, estimator=estimator, draws=3000, seed=7, warm_up=5)
    at = []
    there = gradest.estimate(
        f,
        A,
        estimator=estimator,
        draws=3000,
        seed=7,
        warm_up=5,
        executor=executor,
        progress=lambda done, draws: at.append(done),
    )
    assert at == sorted(at)
    assert at[-1] == 3000
    for name in FIGURES:
        assert torch.equal(getattr(there, name), getattr(here, name))


@pytest.mark.deep
def test_compare_and_a_target(executor):
    f = make_loss()
    tables = [
        gradest.compare(f, A, estimators=["rloo", "disarm"], draws=2000, seed=7, executor=one).to_dict()["rows"]
        for one in (None, executor)
    ]
    for row in (*tables[0], *tables[1]):
        del row["seconds"]
    assert tables[1] == tables[0]
    here, there = (
        gradest.estimate(f, A, draws=10**6, seed=7, target_standard_error=0.005, executor=one)
        for one in (None, executor)
    )
    assert there.draws == here.draws < 10**5
    assert torch.equal(there.gradient, here.gradient)


def test_errors_come_as_they_were_raised(executor):
    with pytest.raises(InvalidInput, match=r"^f must map points"):
        gradest.estimate(lambda h: h, A, executor=executor)

    def broken(h):
        raise KeyError("f broke")

    with pytest.raises(KeyError) as caught:
        gradest.estimate(broken, A, executor=executor)
    assert type(caught.value) is KeyError


@pytest.mark.deep
def test_a_callback_that_raises_ends_the_tasks(executor):
    def slow(h):
        time.sleep(2)
        return h.sum(-1)

    def stop(done, draws):
        raise TimeoutError("enough")

    began = time.monotonic()
    with pytest.raises(TimeoutError, match="enough"):
        gradest.estimate(slow, A, draws=10**6, estimator="reinforce", executor=executor, progress=stop)
    # 256 blocks were submitted, more than a minute of work for two workers: those that had not begun delay nobody
    assert executor.submit(lambda: 7).result(timeout=60) == 7
    assert time.monotonic() - began < 60


def test_a_function_is_sent_once(executor, cluster, monkeypatch):
    sent = []
    put = cluster.put
    monkeypatch.setattr(cluster, "put", lambda value: sent.append(value) or put(value))
    gradest.estimate(make_loss(), A, draws=5000, executor=executor)
    assert len(sent) == 1


@pytest.mark.deep
def test_a_worker_that_dies_is_replaced(executor, tmp_path):
    died, caller = tmp_path / "died", os.getpid()

    def deadly(h):
        if os.getpid() != caller and not died.exists():  # the caller evaluates f once to check it
            died.touch()
            os._exit(1)
        return h.sum(-1)

    here = gradest.estimate(lambda h: h.sum(-1), A, draws=2000, seed=7)
    there = gradest.estimate(deadly, A, draws=2000, seed=7, executor=executor)
    assert died.exists()
    assert torch.equal(there.gradient, here.gradient)
