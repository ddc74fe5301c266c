"""The service on two replicas: the answers of one process, also while a replica dies."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

import gradest
from gradest_service.app import running
from gradest_service.settings import Settings
from tests.selection import deep

pytestmark = [pytest.mark.ray, pytest.mark.slow]

A = [[0.3, -1.0, 2.0], [0.1, 0.0, -0.2]]
BASE = {"neuron": "bernoulli", "a": A, "seed": 7}
DRAWN = {**BASE, "objective": "quadratic", "draws": 500}
RLOO = {"name": "rloo", "samples": 3}
REQUESTS = [
    ("GET", "/v1/neurons", None),
    ("POST", "/v1/sample", {**BASE, "samples": 9}),
    ("POST", "/v1/compare", {**DRAWN, "estimators": ["rloo", "straight_through"]}),
    ("POST", "/v1/sample", {**BASE, "a": "no numbers"}),
    *deep(
        ("GET", "/v1/estimators/relax", None),
        ("GET", "/v1/recommend?neuron=bernoulli&bring=loss", None),
        ("GET", "/version", None),
        ("POST", "/v1/sample", {**BASE, "neuron": "noisy_rectifier", "samples": 9}),
        ("POST", "/v1/forward", {**BASE, "estimator": "rebar"}),
        ("POST", "/v1/backward", {**BASE, "estimator": RLOO, "loss": [[0.5, 1.0], [2.0, 0.1], [0.0, 0.3]]}),
        ("POST", "/v1/estimate", {**DRAWN, "estimator": "nvil"}),
        ("POST", "/v1/estimate", {**DRAWN, "estimator": "nothing"}),
        ("GET", "/v1/neurons/nothing", None),
    ),
]


@pytest.fixture(scope="module")
def alone():
    with running(Settings(port=0, deadline_seconds=200)) as url:
        yield url


def strip(value):
    """Without what tells one answer from another to the same request."""
    if isinstance(value, dict):
        return {name: strip(part) for name, part in value.items() if name not in ("seconds", "request_id")}
    return [strip(part) for part in value] if isinstance(value, list) else value


def ask(url, method, path, body):
    answer = httpx.request(method, url + path, json=body, headers={"Accept": "application/json"}, timeout=240)
    return answer.status_code, answer.headers["content-type"], strip(answer.json())


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS)
def test_answers_are_those_of_one_process(on_ray, alone, replicas, method, path, body):
    assert len(replicas()) == 2
    wanted = ask(alone, method, path, body)
    with ThreadPoolExecutor(8) as pool:  # so many at a time that both replicas get some
        for answer in pool.map(lambda _: ask(on_ray, method, path, body), range(8)):
            assert answer == wanted


def test_events_are_streamed(on_ray, alone):
    body = {**DRAWN, "estimators": ["rloo", "straight_through"]}
    names = []
    for url in (on_ray, alone):
        with httpx.stream("POST", url + "/v1/compare", json=body, timeout=240) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            names.append([line for line in answer.iter_lines() if line.startswith("event:")])
    assert names[0] == names[1]
    assert names[0][-1] == "event: result"


def test_request_ids_are_kept(on_ray):
    answer = httpx.get(on_ray + "/v1/neurons/nothing", headers={"X-Request-ID": "run-1"})
    assert answer.json()["request_id"] == "run-1"


class Recording(httpx.HTTPTransport):
    """Notes the status and the type of every answer that is no success, and every connection that breaks before one."""

    def __init__(self, failed):
        super().__init__()
        self.failed = failed

    def handle_request(self, request):
        try:
            answer = super().handle_request(request)
        except httpx.TransportError as error:
            self.failed.append((0, type(error).__name__))
            raise
        if not answer.is_success:
            self.failed.append((answer.status_code, answer.headers["content-type"].partition(";")[0]))
        return answer


def test_clients_lose_no_request_while_a_replica_dies(on_ray, cluster, replicas):
    """Twelve clients ask without a pause, some of them for streams; what a dying replica does not answer they send again."""
    objective, failed = gradest.objective("quadratic"), []
    wanted = [gradest.estimate(objective, torch.tensor(A), draws=20_000, seed=seed) for seed in range(12)]
    stop, answered = threading.Event(), [0] * 12

    def ask_on(seed):
        progress = (lambda *at: None) if seed % 2 else None
        with gradest.Client(on_ray, timeout=200, retries=20, http_transport=Recording(failed)) as client:
            while not stop.is_set():
                found = client.estimate("quadratic", torch.tensor(A), draws=20_000, seed=seed, progress=progress)
                assert torch.equal(found.gradient, wanted[seed].gradient)
                assert torch.equal(found.variance, wanted[seed].variance)
                answered[seed] += 1

    before = replicas()
    with ThreadPoolExecutor(12) as pool:
        try:
            clients = [pool.submit(ask_on, seed) for seed in range(12)]
            deadline = time.monotonic() + 60
            while not any(answered) and time.monotonic() < deadline:
                time.sleep(0.2)
            killed = sorted(before)[0]
            at_kill = sum(answered)
            cluster.kill(cluster.get_actor(killed, namespace="serve"))
            deadline = time.monotonic() + 60
            while len(replicas() - before) == 0:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            time.sleep(3)
        finally:
            stop.set()
        for done in clients:
            done.result()
    assert killed not in replicas()
    assert all(answered)
    assert sum(answered) > at_kill > 0
    assert (500, "text/plain") in failed, "nothing was lost, so nothing was shown"
    assert "application/problem+json" not in [kind for _, kind in failed]


@pytest.mark.deep
def test_a_full_queue_is_429_with_a_time(on_ray):
    """One replica that holds one request, and a queue of one: of eight at a time most are turned away at once."""
    from ray import serve

    from gradest_service.ray import Scale, build

    scale = Scale(max_replicas=1, cpus=0.1, max_ongoing_requests=1, max_queued_requests=1, retry_after=3)
    serve.run(build(scale=scale), name="small", route_prefix="/small")
    body = {**DRAWN, "estimator": "rloo", "draws": 100_000}
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: httpx.post(on_ray + "/small/v1/estimate", json=body, timeout=240), range(8)))
    serve.delete("small")
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.headers["retry-after"] for answer in refused} == {"3"}
    assert max(answer.elapsed.total_seconds() for answer in refused) < 1


def test_scale_comes_from_the_environment(cluster, monkeypatch):
    from pydantic import ValidationError

    from gradest_service.ray import Scale

    assert Scale.from_environment().options()["num_replicas"] == 1
    monkeypatch.setenv("GRADEST_RAY_REPLICAS", "2")
    monkeypatch.setenv("GRADEST_RAY_MAX_REPLICAS", "5")
    monkeypatch.setenv("GRADEST_RAY_GPUS", "0.25")
    monkeypatch.setenv("GRADEST_LOAD_PLUGINS", "gradest")
    options = Scale.from_environment().options()
    assert "num_replicas" not in options
    assert options["autoscaling_config"] == {"min_replicas": 2, "max_replicas": 5, "target_ongoing_requests": 2}
    assert options["ray_actor_options"]["num_gpus"] == 0.25
    assert options["ray_actor_options"]["runtime_env"] == {"env_vars": {"GRADEST_LOAD_PLUGINS": "gradest"}}
    monkeypatch.setenv("GRADEST_RAY_MAX_REPLICAS", "1")
    with pytest.raises(ValidationError, match="max_replicas must be at least replicas"):
        Scale.from_environment()
    monkeypatch.setenv("GRADEST_RAY_REPLICA", "2")
    with pytest.raises(ValidationError, match="replica"):
        Scale.from_environment()
