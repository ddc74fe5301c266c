"""What a process holds is bounded, and so is the time: refused early, answered on time, and stopped where nobody waits."""

import gc
import json
import socket
import threading
import time
from contextlib import suppress

import httpx
import pytest
import torch

import gradest
from gradest_service.admit.request_context import RequestContext

JSON = {"Content-Type": "application/json"}
SAMPLE = {"neuron": "bernoulli", "a": [0.0] * 10, "seed": 1}


class Gate(gradest.Objective):
    """Lets nothing through until it is opened."""

    name, summary = "gate", "waits"

    def __call__(self, points):
        if points.shape[0]:
            type(self).asked.release()
            assert type(self).open.wait(30)
        return points.mean(-1)


GATED = {"neuron": "bernoulli", "estimator": "rloo", "objective": "gate", "a": [0.0] * 3, "draws": 1, "seed": 1}


@pytest.fixture
def gate(registered):
    Gate.asked, Gate.open = threading.Semaphore(0), threading.Event()
    registered(Gate)
    yield Gate
    Gate.open.set()


def in_thread(call):
    """Runs a call in a thread; joining it gives the result."""
    results = []
    thread = threading.Thread(target=lambda: results.append(call()))
    thread.start()

    def join():
        thread.join()
        return results[0]

    return join


def eventually(true, seconds=20):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_full_service_refuses_at_once_and_says_when(start, gate, refused):
    service = start(max_requests=3, threads=1)
    held = [in_thread(lambda: service.post("/v1/estimate", json=GATED)) for _ in range(3)]
    assert gate.asked.acquire(timeout=20)
    eventually(lambda: service.get("/readyz").status_code == 503)
    began = time.perf_counter()
    answer = service.post("/v1/sample", json=SAMPLE)
    assert time.perf_counter() - began < 1
    assert "3 requests" in refused(answer, 429)["detail"]
    assert answer.headers["retry-after"] == "1"
    assert refused(service.get("/readyz"), 503)
    assert service.get("/readyz").headers["retry-after"] == "1"
    assert service.get("/livez").status_code == 200
    gate.open.set()
    assert [join().status_code for join in held] == [200] * 3
    eventually(lambda: service.get("/readyz").status_code == 200)
    assert service.post("/v1/sample", json=SAMPLE).status_code == 200


def connect(service, head):
    connection = socket.create_connection((service.base_url.host, service.base_url.port), timeout=20)
    connection.sendall(b"POST /v1/sample HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n" + head)
    return connection


def test_the_bodies_in_progress_are_bounded_together(start, refused):
    service = start(max_body_bytes=1000, max_pending_bytes=2500)
    state = lambda: service.post("/v1/sample", content=b" " * 900, headers=JSON)  # noqa: E731
    held = b"Content-Length: 1000\r\n\r\n" + b" " * 999
    with connect(service, held), connect(service, held):
        eventually(lambda: state().status_code == 429)
        answer = state()
        assert "room" in refused(answer, 429)["detail"]
        assert answer.headers["retry-after"] == "1"
        assert service.post("/v1/sample", json=SAMPLE).status_code == 200  # a small one still fits
        with connect(service, b"Transfer-Encoding: chunked\r\n\r\n190\r\n" + b" " * 400 + b"\r\n") as chunked:
            chunked.sendall(b"c8\r\n" + b" " * 200 + b"\r\n")  # 600 in all, undeclared
            assert chunked.recv(100).startswith(b"HTTP/1.1 429")
    eventually(lambda: state().status_code == 400)  # they have gone, and their room is free: blanks are no JSON


def test_the_deadline_answers_though_the_work_cannot_be_stopped(start, gate, refused):
    service = start(deadline_seconds=0.5, threads=1)
    began = time.perf_counter()
    answer = service.post("/v1/estimate", json=GATED)
    assert "0.5 seconds" in refused(answer, 504)["detail"]
    assert 0.4 < time.perf_counter() - began < 5
    waiting = service.post("/v1/sample", json=SAMPLE)  # its thread is still taken
    refused(waiting, 504)
    gate.open.set()
    eventually(lambda: service.post("/v1/sample", json=SAMPLE).status_code == 200)


def test_work_past_the_deadline_keeps_its_place_until_it_ends(start, gate):
    service = start(deadline_seconds=0.3, threads=1, max_requests=1)
    assert service.post("/v1/estimate", json=GATED).status_code == 504
    assert service.post("/v1/sample", json=SAMPLE).status_code == 429
    gate.open.set()
    eventually(lambda: service.post("/v1/sample", json=SAMPLE).status_code == 200)


def test_a_body_that_does_not_come_is_told_so(start):
    service = start(deadline_seconds=0.5)
    with connect(service, b"Content-Length: 100\r\n\r\n{") as slow:
        answer = slow.recv(1000)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"application/problem+json" in answer
    assert service.get("/livez").status_code == 200


class Endless(gradest.Objective):
    """Counts how often it is asked: over a hundred times by these requests, for more than twenty seconds."""

    name, summary = "endless", "counts"

    def __call__(self, points):
        if points.shape[0]:
            type(self).asked += 1
            time.sleep(0.2)
        return points.mean(-1)


_WORK = {"neuron": "bernoulli", "objective": "endless", "a": [0.0] * 4000, "draws": 16000, "seed": 1}
ENDLESS = {"compare": {**_WORK, "estimators": ["rloo"]}, "estimate": {**_WORK, "estimator": "rloo"}}


@pytest.fixture
def endless(registered):
    Endless.asked = 0
    registered(Endless)
    return Endless


def stopped(endless):
    """Waits until the objective is asked no more, and gives how often it was."""
    while True:
        asked = endless.asked
        time.sleep(1)
        if endless.asked == asked:
            return asked


WAYS = [("compare", "application/json"), ("compare", "text/event-stream"), ("estimate", "application/json")]


@pytest.mark.parametrize(("path", "accept"), WAYS)
def test_the_deadline_stops_the_work(start, endless, refused, path, accept):
    service = start(deadline_seconds=1, threads=1)
    answer = service.post(f"/v1/{path}", json=ENDLESS[path], headers={"Accept": accept, "X-Request-ID": "late"})
    if accept == "text/event-stream":  # it had begun, and its last event tells
        *_, event, data = answer.text.strip().split("\n")
        assert event == "event: error"
        problem = json.loads(data.removeprefix("data: "))
    else:
        problem = refused(answer, 504)
    assert (problem["status"], problem["request_id"]) == (504, "late")
    assert "1 seconds" in problem["detail"]
    assert 0 < stopped(endless) < 30
    assert service.post("/v1/sample", json=SAMPLE).status_code == 200  # the thread is free


@pytest.mark.parametrize(("path", "accept"), WAYS)
def test_work_stops_when_its_client_goes_away(start, endless, path, accept):
    service = start(threads=1)
    impatient = httpx.Client(base_url=service.base_url, timeout=3)
    with (
        suppress(httpx.ReadTimeout),
        impatient,
        impatient.stream("POST", f"/v1/{path}", json=ENDLESS[path], headers={"Accept": accept}),
    ):
        eventually(lambda: endless.asked > 1)  # and leaves
    assert 0 < stopped(endless) < 30
    assert service.post("/v1/sample", json=SAMPLE).status_code == 200


class Slow(gradest.Neuron):
    """Computes for a minute in one method, in steps of torch, and counts them."""

    name, summary = "slow", "counts"

    def _work(self, a):
        for _ in range(6000):
            type(self).asked += 1
            time.sleep(0.01)
            a = a + 0
        return torch.zeros_like(a)

    def noise(self, key, a, draws):
        return self._work(a).expand(draws, *a.shape)

    def forward(self, a, noise):
        return a + noise

    def backward(self, a, noise, grad_h):
        return grad_h

    def mean(self, a):
        return self._work(a)

    def active_probability(self, a):
        return a

    def law(self, a):
        return self._work(a)[None], torch.ones(1, *a.shape)


class ExpectsSlowly(gradest.Objective):
    """Has the mean computed for its expectation."""

    name, summary = "expects_slowly", "counts"

    def __call__(self, points):
        return points.mean(-1)

    def expectation(self, neuron, a):
        return gradest.neuron("slow").mean(a).mean(-1)


_MANY = {"neuron": "slow", "a": [0.0] * 65536}
_ESTIMATE = {"estimator": "straight_through", "objective": "expects_slowly", "draws": 1, "neuron": "bernoulli"}
LONG = {
    "mean": _MANY,
    "sample": {**_MANY, "samples": 1, "seed": 1, "a": [0.0] * 65536},
    "estimate": {**_MANY, **_ESTIMATE, "seed": 1},
}
SAFE = {"Accept": "application/vnd.safetensors"}


@pytest.mark.parametrize(("path", "leaves"), [("mean", True), ("sample", True), ("sample", False), ("estimate", False)])
def test_one_call_of_a_plugin_is_stopped_within_it(start, registered, path, leaves):
    """By the deadline, or when the client leaves: at its next operation of torch."""
    registered(Slow)
    registered(ExpectsSlowly)
    Slow.asked = 0
    service = start(deadline_seconds=60 if leaves else 3, threads=1, max_json_elements=1 << 17)
    with suppress(httpx.ReadTimeout):
        body = {**LONG[path], "a": [0.0] * 70000}
        answer = httpx.post(f"{service.base_url}/v1/{path}", json=body, timeout=3 if leaves else 30, headers=SAFE)
        assert answer.status_code == 504
    asked = Slow.asked
    eventually(lambda: service.post("/v1/sample", json=SAMPLE).status_code == 200)
    assert Slow.asked >= asked > 0
    assert stopped(Slow) < 1000


def test_heavy_work_leaves_a_thread_to_light_work(start, gate):
    service = start(threads=3, heavy_work=100)
    heavy = {**GATED, "draws": 60}
    held = [in_thread(lambda: service.post("/v1/estimate", json=heavy)) for _ in range(5)]
    for _ in range(2):
        assert gate.asked.acquire(timeout=20)
    assert not gate.asked.acquire(timeout=0.5)  # the other three wait, though a thread is free
    for _ in range(3):
        assert service.post("/v1/sample", json=SAMPLE).status_code == 200
        assert service.post("/v1/mean", json={"neuron": "bernoulli", "a": [0.0]}).status_code == 200
    gate.open.set()
    assert [join().status_code for join in held] == [200] * 5


def test_one_key_does_not_take_all_places(start, gate, refused, tmp_path):
    from gradest_service.admit.auth import new_key

    keys = [new_key(name) for name in ("alice", "bob")]
    (tmp_path / "keys").write_text("\n".join(line for _, line in keys))
    alice, bob = ({"Authorization": f"Bearer {key}"} for key, _ in keys)
    service = start(api_keys=tmp_path / "keys", max_requests=4, threads=4)
    held = [in_thread(lambda: service.post("/v1/estimate", json=GATED, headers=alice)) for _ in range(2)]
    for _ in held:
        assert gate.asked.acquire(timeout=20)
    answer = service.post("/v1/sample", json=SAMPLE, headers=alice)
    assert "This key has 2 requests" in refused(answer, 429)["detail"]
    assert answer.headers["retry-after"] == "1"
    assert service.post("/v1/sample", json=SAMPLE, headers=bob).status_code == 200
    gate.open.set()
    assert [join().status_code for join in held] == [200] * 2
    eventually(lambda: service.post("/v1/sample", json=SAMPLE, headers=alice).status_code == 200)


def test_a_body_that_drips_gives_its_place_back(start, monkeypatch):
    """One byte now and then would hold it until the deadline, and a few hundred such requests the whole service."""
    monkeypatch.setattr("gradest_service.middleware._BODY_GRACE_SECONDS", 0.3)
    service = start(deadline_seconds=60, max_requests=2, min_body_rate=1000)
    with (
        connect(service, b"Content-Length: 1000\r\n\r\n") as first,
        connect(service, b"Content-Length: 1000\r\n\r\n") as second,
    ):
        eventually(lambda: service.post("/v1/sample", json=SAMPLE).status_code == 429)
        for slow in (first, second):
            with suppress(OSError):
                slow.sendall(b"{")
            assert slow.recv(1000).startswith(b"HTTP/1.1 408")
    eventually(lambda: service.post("/v1/sample", json=SAMPLE).status_code == 200)
    body = json.dumps(SAMPLE).encode()
    with connect(service, b"Content-Length: %d\r\n\r\n" % (2000 + len(body))) as steady:
        for _ in range(10):
            steady.sendall(b" " * 200)
            time.sleep(0.1)
        steady.sendall(body)
        assert steady.recv(1000).startswith(b"HTTP/1.1 200")


def test_a_request_leaves_nothing_to_the_garbage_collector(http):
    """The collector would walk through all that is in progress at each request."""

    def send(requests):
        for _ in range(requests):
            assert http.post("/v1/sample", json={"neuron": "bernoulli", "a": [[0.5]], "seed": 3}).status_code == 200

    send(3)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        send(20)
        gc.collect()
        left = [x for x in gc.garbage if isinstance(x, RequestContext)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert len(left) < 3, left
