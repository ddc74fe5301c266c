"""Joined passes give each request the bits that it gets alone; the batcher joins, splits, and lets no error spread."""

import asyncio
import threading
import time

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import gradest
from gradest.contract.estimator import Feedback
from gradest.contract.numerics import widen
from gradest.estimation.ask_tell import ask, tell
from gradest.random import Key
from gradest.testing import checks as testing
from gradest_service.admit.jobs import BackwardJob, ForwardJob, SampleJob
from gradest_service.admit.pool import Pool
from gradest_service.run import joint_pass
from gradest_service.run.batching import Batcher
from gradest_service.run.cancellation import raise_if_cancelled
from tests.events import event_of
from tests.losses import cubes, with_gradient
from tests.selection import others_deep

STATELESS = [
    (estimator, neuron)
    for estimator, neuron in testing.example_pairs(gradest.registry)
    if not estimator.init(neuron, torch.zeros((1, *event_of(neuron, 2, 3))))
]
BATCHES = st.lists(st.sampled_from([(), (1,), (3,), (2, 2), (0,), (17,)]), min_size=1, max_size=6)


def jobs_of(kind, neuron, batches, seed, dtype=torch.float32, **more):
    generator = torch.Generator().manual_seed(seed)
    event = event_of(neuron, 3, 4)
    jobs = []
    for place, batch in enumerate(batches):
        a = 2 * torch.randn((*batch, *event), generator=generator, dtype=torch.float64).to(dtype)
        jobs.append(kind(neuron=neuron, a=a, wide=widen(a), seed=seed + place % 3, **more))
    return jobs


@pytest.mark.parametrize("neuron", testing.example_neurons(gradest.registry), ids=lambda n: n.label())
@settings(max_examples=5, deadline=None, derandomize=True)
@given(batches=BATCHES, seed=st.integers(0, 2**53 - 4), samples=st.integers(0, 4))
def test_samples_are_those_of_each_request_alone(neuron, batches, seed, samples):
    jobs = jobs_of(SampleJob, neuron, batches, seed % 1000, samples=samples)
    for job, found in zip(jobs, joint_pass.sample(jobs), strict=True):
        wanted = gradest.sample(neuron, job.a, samples, job.seed)
        assert found.h.shape == wanted.shape
        assert torch.equal(found.h, wanted)


@pytest.mark.filterwarnings("ignore:pre-activations of stochastic_rounding are exactly on the grid")
@pytest.mark.parametrize(("estimator", "neuron"), others_deep(STATELESS), ids=lambda plugin: plugin.label())
@settings(max_examples=3, deadline=None, derandomize=True)
@given(
    batches=BATCHES, seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
)
def test_gradients_are_those_of_each_request_alone(estimator, neuron, batches, seed, dtype):
    jobs = jobs_of(ForwardJob, neuron, batches, seed, dtype, estimator=estimator)
    back, wanted = [], []
    for job, found in zip(jobs, joint_pass.forward(jobs), strict=True):
        draw, state = ask(neuron, estimator, job.a, Key(job.seed))
        assert torch.equal(found.points, draw.points.to(dtype))
        assert torch.equal(found.weights, draw.weights)
        loss, grad = with_gradient(cubes, draw.points, neuron.output_ndim)
        grad = grad if "grad" in estimator.needs else None
        back.append(BackwardJob(**vars(job), loss=loss, grad=grad))
        gradient, _ = tell(estimator, draw, Feedback(loss, grad), state)
        wanted.append((gradient.to(dtype), estimator.value(draw, loss)))
    for found, (gradient, value) in zip(joint_pass.backward(back), wanted, strict=True):
        assert torch.equal(found.gradient, gradient)
        assert torch.equal(found.value, value)


def test_a_state_goes_with_a_request_of_its_own():
    neuron, estimator = gradest.neuron("bernoulli"), gradest.estimator("reinforce_average")
    state = {"total": torch.tensor(2.0), "weight": torch.tensor(0.5)}
    a, loss = torch.tensor([[0.5, -1.0]]), torch.tensor([[1.5]])
    job = BackwardJob(neuron=neuron, a=a, wide=a, estimator=estimator, seed=3, loss=loss, state=state)
    (answer,) = joint_pass.backward([job])
    draw, _ = ask(neuron, estimator, a, Key(3), state)
    gradient, after = tell(estimator, draw, Feedback(loss), state)
    assert torch.equal(answer.gradient, gradient)
    assert {name: float(x) for name, x in answer.state.items()} == {name: float(x) for name, x in after.items()}


def run(main):
    return asyncio.run(asyncio.wait_for(main, 20))


class Recorder:
    """Work that notes what ran together, and may be held."""

    def __init__(self):
        self.passes = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, items):
        self.gate.wait(10)
        self.passes.append(list(items))
        if "bad" in items:
            raise ValueError("bad")
        return [item * 2 for item in items]


def test_what_comes_while_the_pool_is_busy_runs_together():
    async def main():
        work = Recorder()
        batcher = Batcher(Pool(1), 0, 100)
        work.gate.clear()
        first = asyncio.create_task(batcher.run("k", work, 1, 1))
        await asyncio.sleep(0.05)
        others = [asyncio.create_task(batcher.run("k", work, item, 1)) for item in range(2, 6)]
        other_kind = asyncio.create_task(batcher.run("else", work, 9, 1))
        await asyncio.sleep(0.05)
        work.gate.set()
        assert await asyncio.gather(first, *others, other_kind) == [2, 4, 6, 8, 10, 18]
        assert work.passes == [[1], [2, 3, 4, 5], [9]]

    run(main())


def test_an_idle_service_does_not_wait():
    async def main():
        work, began = Recorder(), time.perf_counter()
        assert await Batcher(Pool(1), 0, 100).run("k", work, 1, 1) == 2
        assert time.perf_counter() - began < 0.5

    run(main())


def test_a_request_runs_where_it_was_prepared_unless_others_wait_for_a_thread():
    async def main():
        work, passes = Recorder(), []
        batcher = Batcher(Pool(1), 0, 100, passes.append)
        assert batcher.run_alone("k", work, 7) == 14
        assert passes == [1]
        work.gate.clear()
        tasks = [asyncio.create_task(batcher.run("k", work, item, 1)) for item in range(2)]
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(batcher.run("k", work, 2, 1)))
        await asyncio.sleep(0.05)
        assert batcher.run_alone("k", work, 7) is None
        assert passes == [1, 2], "none was counted"
        work.gate.set()
        assert await asyncio.gather(*tasks) == [0, 2, 4]
        assert Batcher(Pool(1), 1.0, 100).run_alone("k", work, 7) is None, "a wait is asked for"

    run(main())


@pytest.mark.parametrize(("kind", "enabled"), [(None, True), ("k", False)])
def test_work_that_must_stay_alone_is_never_joined(kind, enabled):
    async def main():
        work, passes = Recorder(), []
        batcher = Batcher(Pool(1), 1.0, 100, passes.append, enabled)
        work.gate.clear()
        tasks = [asyncio.create_task(batcher.run(kind, work, item, 1)) for item in range(3)]
        await asyncio.sleep(0.05)
        work.gate.set()
        assert batcher.run_alone(kind, Recorder(), 7) == 14
        assert await asyncio.gather(*tasks) == [0, 2, 4]
        assert work.passes == [[0], [1], [2]]
        assert passes == []

    run(main())


def test_a_wait_gathers_and_a_full_batch_ends_it():
    async def main():
        work = Recorder()
        batcher = Batcher(Pool(4), 5.0, 6)
        began = time.perf_counter()
        answers = await asyncio.gather(*(batcher.run("k", work, item, 2) for item in range(3)))
        assert answers == [0, 2, 4]
        assert work.passes == [[0, 1, 2]]
        assert time.perf_counter() - began < 2

    run(main())


def test_no_batch_is_larger_than_the_cap_but_for_one_large_request():
    async def main():
        work = Recorder()
        batcher = Batcher(Pool(1), 0.05, 4)
        await asyncio.gather(*(batcher.run("k", work, item, size) for item, size in enumerate([3, 3, 1, 9, 1])))
        assert sorted(map(sorted, work.passes)) == [[0], [1, 2], [3], [4]]

    run(main())


def test_an_error_reaches_its_own_request_alone():
    async def main():
        work = Recorder()
        batcher = Batcher(Pool(1), 0.05, 100)
        outcomes = await asyncio.gather(
            *(batcher.run("k", work, item, 1) for item in ("a", "bad", "b")), return_exceptions=True
        )
        assert outcomes[0::2] == ["aa", "bb"]
        assert isinstance(outcomes[1], ValueError)

    run(main())


SPECS = [
    ("bernoulli", "disarm"),
    ("bernoulli", {"name": "rloo", "samples": 3}),
    ("noisy_rectifier", "pathwise"),
    ("categorical", "reinforce_centered"),
    ("stochastic_times_smooth", "held_noise"),
]


async def ask_over_http(client, seed):
    """One client's request, made of its seed alone, and whether each answer has the bits of the library's own."""
    random = torch.Generator().manual_seed(seed)
    neuron, estimator = SPECS[seed % len(SPECS)]
    neuron, estimator = gradest.neuron(neuron), gradest.estimator(estimator)
    batch = [(), (1,), (3,), (2, 2), (0,)][int(torch.randint(5, (), generator=random))]
    dtype = [torch.float32, torch.float64, torch.bfloat16][int(torch.randint(3, (), generator=random))]
    a = torch.randn((*batch, *event_of(neuron, 3, 4)), generator=random, dtype=torch.float64).to(dtype)
    same = [torch.equal(await client.sample(neuron, a, 2, seed), gradest.sample(neuron, a, 2, seed))]
    asked = await client.forward(neuron, estimator, a, seed)
    draw, state = ask(neuron, estimator, a, Key(seed))
    same.append(torch.equal(asked.points, draw.points.to(dtype)))
    loss, grad = with_gradient(cubes, draw.points, neuron.output_ndim)
    grad = grad if "grad" in estimator.needs else None
    told = await client.backward(neuron, estimator, a, asked, loss, grad, state=state or None)
    same.append(torch.equal(told.gradient, tell(estimator, draw, Feedback(loss, grad), state)[0].to(dtype)))
    return same


def test_64_clients_at_once_get_the_answers_of_the_library(start):
    service = start(threads=1, batch_wait_seconds=0.01)

    @settings(max_examples=1, deadline=None, derandomize=True, phases=[Phase.generate])  # shrinking would take minutes
    @given(seeds=st.lists(st.integers(0, 10_000), min_size=64, max_size=64))
    def check(seeds):
        async def main():
            async with gradest.AsyncClient(str(service.base_url)) as client:
                return await asyncio.gather(*(ask_over_http(client, seed) for seed in seeds))

        assert run(main()) == [[True] * 3] * 64

    check()
    lines = dict(line.rsplit(" ", 1) for line in service.get("/metrics").text.splitlines() if line[0] != "#")
    passes, requests = (float(lines[f"gradest_batch_requests_{of}"]) for of in ("count", "sum"))
    assert requests >= 64 * 3
    assert requests > 2 * passes, "they ran together"


def test_a_system_without_threads_is_an_error_of_the_request_and_closes_the_group():
    """Where the number of a container's threads is limited, none can be started."""

    class NoThread(Pool):
        fails = True

        async def run_now(self, work):
            if self.fails:
                raise RuntimeError("can't start new thread")
            return await super().run_now(work)

    async def scenario():
        pool = NoThread(1)
        batcher = Batcher(pool, 0.05, 100)
        asked = [asyncio.create_task(batcher.run("k", list, n, 1)) for n in range(2)]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(answer, RuntimeError)
        pool.fails = False
        assert await batcher.run("k", list, 3, 1) == 3

    asyncio.run(scenario())


def test_a_failed_pass_is_not_repeated_for_whoever_gave_up():
    async def main():
        passes, gate = [], threading.Event()

        def work(items):
            passes.append(list(items))
            if len(items) > 1:
                gate.wait(10)
                raise ValueError("together")
            return items

        batcher = Batcher(Pool(1), 0.05, 100)
        gone, stays = (asyncio.create_task(batcher.run("k", work, item, 1)) for item in (1, 2))
        await asyncio.sleep(0.2)
        gone.cancel()
        await asyncio.sleep(0.01)
        gate.set()
        assert await stays == 2
        assert passes == [[1, 2], [2]]

    run(main())


def test_whoever_gives_up_is_left_out():
    async def main():
        work = Recorder()
        batcher = Batcher(Pool(1), 0, 100)
        work.gate.clear()
        first = asyncio.create_task(batcher.run("k", work, 1, 1))
        await asyncio.sleep(0.05)
        gone, stays = (asyncio.create_task(batcher.run("k", work, item, 1)) for item in (2, 3))
        await asyncio.sleep(0.05)
        gone.cancel()
        work.gate.set()
        assert await asyncio.gather(first, stays) == [2, 6]
        assert work.passes == [[1], [3]]
        assert gone.cancelled()

    run(main())


def test_a_joined_pass_ends_once_all_of_its_clients_have_left_and_not_before():
    async def main():
        passes, ended = [], threading.Event()

        def work(items):
            passes.append(list(items))
            try:
                until = time.monotonic() + 20
                while time.monotonic() < until:
                    time.sleep(0.01)
                    raise_if_cancelled()
            finally:
                ended.set()
            return items

        batcher = Batcher(Pool(1), 0.05, 100)
        clients = [asyncio.create_task(batcher.run("k", work, item, 1)) for item in (1, 2)]
        await asyncio.sleep(0.3)
        clients[0].cancel()
        await asyncio.sleep(0.3)
        assert passes == [[1, 2]]
        assert not ended.is_set(), "one of them still waits"
        clients[1].cancel()
        assert await asyncio.to_thread(ended.wait, 5)
        assert await batcher.run("other", lambda items: items, 3, 1) == 3, "the thread is free"
        assert passes == [[1, 2]]

    run(main())
