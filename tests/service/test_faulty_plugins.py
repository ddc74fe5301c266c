"""Plugins that raise, hang or break their contract: the answer names the plugin and the method, and nobody else notices."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import pytest
import torch

import gradest
from gradest.contract.estimator import Bias, Draw, Estimator, MonteCarlo
from gradest.contract.neuron import Neuron
from gradest.errors import Inexact
from tests.selection import deep

SECRET = "hunter2hunter2"


class Fair(Neuron):
    """1 or 0, each half of the time, whatever a is."""

    name, summary = "odd", "a fault in one method"

    def forward(self, a, noise):
        return (noise < 0.5).to(a.dtype)

    def backward(self, a, noise, grad_h):
        return torch.zeros_like(grad_h)

    def mean(self, a):
        return torch.full_like(a, 0.5)

    def active_probability(self, a):
        return self.mean(a)

    def law(self, a):
        return torch.stack([torch.zeros_like(a), torch.ones_like(a)]), torch.full((2, *a.shape), 0.5)


class Plain(MonteCarlo):
    """Two samples, and a gradient of their losses' mean."""

    name, summary, needs = "odd", "a fault in one method", frozenset({"loss"})
    samples: int = 2

    def bias(self, neuron):
        return Bias.BIASED

    def init(self, neuron, a):
        return {"count": torch.zeros(())}

    def backward(self, draw, feedback, state):
        return feedback.loss.mean(0)[..., None] + torch.zeros_like(draw.a), {"count": state["count"] + 1}


class Mean(gradest.Objective):
    """The mean of the outputs."""

    name, summary = "odd", "a fault in one method"

    def __call__(self, points):
        return points.mean(-1)

    def expectation(self, neuron, a):
        return a.mean(-1)


def on_result(change):
    """A method that gives what the sound one does, changed."""

    def make(sound):
        return lambda self, *inputs: change(sound(self, *inputs))

    return make


def raising(sound):
    def method(self, *inputs):
        raise RuntimeError(SECRET)

    return method


def on_points(change):
    """A fault in a draw's points."""

    def changed(draw):
        return Draw(draw.neuron, draw.a, draw.key, change(draw.points), draw.weights)

    return on_result(changed)


def on_weights(change):
    """A fault in a draw's weights."""

    def changed(draw):
        return Draw(draw.neuron, draw.a, draw.key, draw.points, change(draw.weights))

    return on_result(changed)


def on_gradient(change):
    """A fault in the first of two results."""
    return on_result(lambda told: (change(told[0]), told[1]))


def longer(x):
    return torch.cat([x, x], -1)


nothing = on_result(lambda x: None)
BODIES = {
    "sample": {"neuron": "bernoulli", "a": [[0.5, -1.0, 2.0]], "seed": 1},
    "forward": {"neuron": "bernoulli", "estimator": "straight_through", "a": [[0.5, -1.0, 2.0]], "seed": 1},
    "backward": {
        "neuron": "bernoulli",
        "estimator": "odd",
        "a": [[0.5, -1.0, 2.0]],
        "seed": 1,
        "loss": [[0.1], [0.2]],
        "state": {"count": 0.0},
    },
    "estimate": {
        "neuron": "bernoulli",
        "estimator": "rloo",
        "objective": "quadratic",
        "a": [[0.5, -1.0, 2.0]],
        "seed": 1,
        "draws": 3,
    },
}
FAULTS = [
    # the plugin's method, what it does, a request that meets it, and the name that the answer has to have
    (Fair, "forward", raising, "sample", "odd.forward"),
    (Fair, "forward", nothing, "sample", "odd.sample"),
    (Fair, "forward", on_result(longer), "sample", "odd.sample"),
    (Fair, "forward", on_result(lambda h: h[0]), "sample", "odd.sample"),
    (Fair, "forward", on_result(torch.Tensor.int), "sample", "odd.sample"),
    (Fair, "forward", on_result(longer), "forward", "odd.sample"),
    (Fair, "noise", raising, "sample", "odd.noise"),
    (Fair, "noise", on_result(longer), "sample", "odd.sample"),
    (Fair, "noise", nothing, "sample", "odd.forward"),
    (Fair, "mean", raising, "forward", "odd.mean"),
    (Plain, "accepts", raising, "forward", "odd.accepts"),
    (Plain, "evaluations", raising, "forward", "odd.evaluations"),
    (Plain, "evaluations", on_result(lambda k: "2"), "forward", "odd.evaluations"),
    (Plain, "evaluations", on_result(lambda k: 0), "forward", "odd.evaluations"),
    (Plain, "evaluations", on_result(lambda k: k + 1), "forward", "odd.forward"),
    (Plain, "init", raising, "forward", "odd.init"),
    (Plain, "init", nothing, "forward", "odd.init"),
    (Plain, "init", on_result(lambda state: {"count": 0.0}), "forward", "odd.init"),
    (Plain, "forward", raising, "forward", "odd.forward"),
    (Plain, "forward", nothing, "forward", "odd.forward"),
    (Plain, "forward", on_points(longer), "forward", "odd.forward"),
    (Plain, "forward", on_points(torch.Tensor.int), "forward", "odd.forward"),
    (Plain, "forward", on_weights(longer), "forward", "odd.forward"),
    (Plain, "forward", on_weights(lambda w: None), "forward", "odd.forward"),
    (Plain, "backward", raising, "backward", "odd.backward"),
    (Plain, "backward", nothing, "backward", "odd.backward"),
    (Plain, "backward", on_gradient(longer), "backward", "odd.backward"),
    (Plain, "backward", on_gradient(lambda g: g.sum(-1)), "backward", "odd.backward"),
    (Plain, "backward", on_gradient(torch.Tensor.int), "backward", "odd.backward"),
    (Plain, "backward", on_result(lambda told: told[0]), "backward", "odd.backward"),
    (Plain, "backward", on_result(lambda told: (told[0], None)), "backward", "odd.backward"),
    (Plain, "value", raising, "backward", "odd.value"),
    (Plain, "value", nothing, "backward", "odd.value"),
    (Plain, "value", on_result(lambda v: v[0]), "backward", "odd.value"),
    (Plain, "value", on_result(lambda v: v.sum()), "estimate", "odd.value"),
    (Plain, "backward", on_gradient(longer), "estimate", "odd.backward"),
    (Mean, "__call__", raising, "estimate", "odd.__call__"),
    (Mean, "__call__", nothing, "estimate", "odd.__call__"),
    (Mean, "__call__", on_result(longer), "estimate", "odd.__call__"),
    (Mean, "expectation", raising, "estimate", "odd.expectation"),
]
KINDS = {Fair: "neuron", Plain: "estimator", Mean: "objective"}


def faulty(base, method, fault):
    changed = fault(getattr(base, method))
    changed.__code__ = changed.__code__.replace(co_name=method)  # as if it were written in the class
    return type(base.__name__, (base,), {method: changed, "__module__": __name__})


@pytest.fixture(scope="module")
def service():
    """Without batching too: see below."""
    import httpx

    from gradest_service.app import running
    from gradest_service.settings import Settings

    with running(Settings(port=0, threads=2)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(("base", "method", "fault", "path", "named"), FAULTS)
def test_a_fault_is_named(service, refused, registered, caplog, base, method, fault, path, named):
    registered(faulty(base, method, fault))
    body = BODIES[path] | {KINDS[base]: "odd"}
    if base is Fair and path == "forward":
        body |= {"estimator": "odd"}
        registered(MeanField)
    answer = service.post(f"/v1/{path}", json=body)
    assert named in refused(answer, 500)["detail"]
    assert SECRET not in answer.text
    assert answer.json()["request_id"] in caplog.text
    assert service.post("/v1/sample", json=BODIES["sample"]).status_code == 200


class MeanField(Plain):
    """Asks for the neuron's mean as well."""

    def forward(self, neuron, a, key, state):
        neuron.mean(a)
        return super().forward(neuron, a, key, state)


@pytest.mark.parametrize("base", [Fair, Plain, Mean])
def test_a_sound_one_is_served(service, registered, base):
    """So the faults above are what is refused."""
    registered(base)
    paths = {Fair: ["sample"], Plain: ["forward", "backward", "estimate"], Mean: ["estimate"]}[base]
    for path in paths:
        assert service.post(f"/v1/{path}", json=BODIES[path] | {KINDS[base]: "odd"}).status_code == 200


def nan(x):
    return torch.full_like(x, torch.nan)


@pytest.mark.parametrize(
    ("base", "method", "fault", "path", "field"),
    [
        (Fair, "forward", on_result(nan), "sample", "h"),
        (Fair, "noise", on_result(nan), "sample", None),
        (Plain, "init", on_result(lambda state: {"count": nan(state["count"])}), "forward", None),
        (Plain, "forward", on_points(nan), "forward", "points"),
        (Plain, "forward", on_weights(nan), "forward", "weights"),
        (Plain, "backward", on_gradient(nan), "backward", "gradient"),
        (Plain, "value", on_result(lambda v: v * torch.nan), "backward", "value"),
    ],
)
def test_not_a_number_is_told_as_it_is(service, registered, base, method, fault, path, field):
    registered(faulty(base, method, fault))
    answer = service.post(f"/v1/{path}", json=BODIES[path] | {KINDS[base]: "odd"})
    assert answer.status_code == 200
    assert ('"NaN"' in answer.text) == (field is not None)
    if field:
        assert "NaN" in str(answer.json()[field])


def test_losses_that_are_not_numbers_are_refused_with_their_index(service, registered):
    registered(faulty(Mean, "__call__", on_result(nan)))
    answer = service.post("/v1/estimate", json=BODIES["estimate"] | {"objective": "odd"})
    assert answer.status_code == 422
    assert "is nan" in answer.json()["detail"]


def inexact(sound):
    def method(self, *inputs):
        raise Inexact("the quadrature is not accurate")

    return method


def at_a_row(sound):
    return lambda self, neuron, a: sound(self, neuron, a) + 0 * a.max()


@pytest.mark.parametrize(("fault", "exact"), [(inexact, False), (at_a_row, True)])
def test_a_closed_form_that_fails_without_rows_refuses_no_estimate(service, registered, fault, exact):
    registered(faulty(Mean, "expectation", fault))
    answer = service.post("/v1/estimate", json=BODIES["estimate"] | {"objective": "odd"})
    assert answer.status_code == 200
    assert ("exact.loss" in answer.json()["tensors"]) == exact


def test_a_fault_stays_with_its_own_request(service, registered):
    """Among concurrent requests of one kind, which are computed on together, those that meet the fault alone fail."""

    class Picky(Plain):
        def init(self, neuron, a):
            return {}

        def forward(self, neuron, a, key, state):
            if (a > 50).any():
                raise RuntimeError(SECRET)
            return super().forward(neuron, a, key, state)

    registered(Picky)
    body = {"neuron": "bernoulli", "estimator": "odd", "seed": 3}
    bodies = [{**body, "a": [[99.0 if row % 5 == 0 else row / 10]]} for row in range(40)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda body: service.post("/v1/forward", json=body), bodies))
    assert [answer.status_code for answer in answers] == [500 if row % 5 == 0 else 200 for row in range(40)]
    assert all("odd.forward" in answer.json()["detail"] for answer in answers[::5])
    alone = service.post("/v1/forward", json=bodies[1]).json()
    assert answers[1].json() == alone


class Hanging(Estimator):
    """Never ends in the method that it is told to hang in."""

    name, summary, needs = "hanging", "hangs", frozenset({"loss"})
    where: ClassVar[str] = "accepts"
    entered: ClassVar[threading.Semaphore]
    release: ClassVar[threading.Event]

    def _hang(self, method):
        if type(self).where == method:
            type(self).entered.release()
            assert type(self).release.wait(60)

    def accepts(self, neuron):
        self._hang("accepts")
        return True

    def bias(self, neuron):
        return Bias.BIASED

    def evaluations(self, neuron, event_shape):
        self._hang("evaluations")
        return 1

    def init(self, neuron, a):
        self._hang("init")
        return {}

    def forward(self, neuron, a, key, state):
        self._hang("forward")
        return Draw(neuron, a, key, neuron.sample(key, a, 1), torch.ones(1))

    def backward(self, draw, feedback, state):
        self._hang("backward")
        return torch.zeros_like(draw.a), {}


@pytest.fixture
def hanging(registered):
    Hanging.entered, Hanging.release = threading.Semaphore(0), threading.Event()
    registered(Hanging)
    yield Hanging
    Hanging.release.set()


HANG = {"neuron": "bernoulli", "estimator": "hanging", "a": [[0.5]], "seed": 1}


@pytest.mark.parametrize("method", [*deep("accepts", "init", "forward"), "evaluations", "backward"])
def test_what_hangs_holds_up_nobody_else(start, hanging, refused, monkeypatch, method):
    monkeypatch.setattr(Hanging, "where", method)
    service = start(deadline_seconds=3, threads=2)
    path, body = ("backward", {**HANG, "loss": [[1.0]]}) if method == "backward" else ("forward", HANG)
    answers = []
    thread = threading.Thread(target=lambda: answers.append(service.post(f"/v1/{path}", json=body)))
    thread.start()
    assert hanging.entered.acquire(timeout=20)
    assert service.get("/livez").status_code == 200
    assert service.post("/v1/sample", json=BODIES["sample"]).status_code == 200
    thread.join()
    assert "3 seconds" in refused(answers[0], 504)["detail"]


def test_an_error_that_lists_what_fits_holds_up_nobody_else(start, hanging, refused):
    """It asks every estimator that there is, those too that the request does not name."""
    service = start(deadline_seconds=1, threads=2)
    refused(service.post("/v1/forward", json={**HANG, "neuron": "noisy_rectifier", "estimator": "rloo"}), 504)
    assert hanging.entered.acquire(timeout=1)
    assert service.post("/v1/sample", json=BODIES["sample"]).status_code == 200


@pytest.mark.parametrize("batching", [True, *deep(False)])
def test_readyz_says_so_when_every_thread_hangs(start, hanging, refused, monkeypatch, batching):
    monkeypatch.setattr(Hanging, "where", "forward")
    service = start(deadline_seconds=0.5, threads=2, batching=batching)
    bodies = [HANG, {**HANG, "a": [[0.5, 0.5]]}]  # of two kinds
    assert service.post("/v1/forward", json=bodies[0]).status_code == 504
    time.sleep(0.7)
    assert service.get("/readyz").status_code == 200  # one thread is left
    assert service.post("/v1/forward", json=bodies[1]).status_code == 504
    until = time.monotonic() + 10
    while (answer := service.get("/readyz")).status_code == 200:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert "hanging.forward" in refused(answer, 503)["detail"]
    assert answer.headers["retry-after"]
    assert service.get("/livez").status_code == 200
    hanging.release.set()
    while service.get("/readyz").status_code != 200:
        assert time.monotonic() < until
        time.sleep(0.02)
    assert service.post("/v1/sample", json=BODIES["sample"]).status_code == 200


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, asyncio.CancelledError, GeneratorExit])
@pytest.mark.parametrize(
    ("base", "method", "path"),
    [
        (Fair, "forward", "sample"),
        (Plain, "init", "forward"),
        (Plain, "forward", "forward"),
        (Mean, "__call__", "estimate"),
    ],
)
def test_what_would_end_a_process_is_the_fault_of_its_plugin(service, refused, registered, base, method, path, kind):
    """The service goes on, and does not say that it is stopping; other requests of the same pass get their answers."""

    def raising_it(sound):
        def changed(self, *inputs):
            raise kind(SECRET)

        return changed

    registered(faulty(base, method, raising_it))
    answer = service.post(f"/v1/{path}", json=BODIES[path] | {KINDS[base]: "odd"})
    assert f"odd.{method}" in refused(answer, 500)["detail"]
    assert SECRET not in answer.text
    assert service.get("/readyz").status_code == 200
    assert service.post("/v1/sample", json=BODIES["sample"]).status_code == 200


def test_a_plugin_that_loses_threads_is_set_aside(start, hanging, refused, monkeypatch):
    """Others are served, and everything says why."""
    monkeypatch.setattr(Hanging, "where", "forward")
    service = start(deadline_seconds=0.5, threads=3)
    ready = lambda: service.get("/readyz").json()  # noqa: E731
    assert (ready()["lost_threads"], ready()["set_aside"]) == (0, [])
    for lost in (1, 2):
        assert service.post("/v1/forward", json={**HANG, "a": [0.5] * lost}).status_code == 504
        until = time.monotonic() + 10
        while ready()["lost_threads"] < lost:
            assert time.monotonic() < until
            time.sleep(0.02)
    assert ready()["set_aside"] == ["hanging"]
    answer = service.post("/v1/forward", json=HANG)
    assert "hanging is set aside" in refused(answer, 503)["detail"]
    assert answer.headers["retry-after"]
    assert service.post("/v1/sample", json=BODIES["sample"]).status_code == 200
    assert 'gradest_lost_threads_total{plugin="hanging"} 2.0' in service.get("/metrics").text
    hanging.release.set()
    while ready()["lost_threads"]:
        assert time.monotonic() < until + 10
        time.sleep(0.02)
    refused(service.post("/v1/forward", json=HANG), 503)
