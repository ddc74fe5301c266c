"""One service on loopback for the session, sharing this process's registry, and ways to call it."""

import threading
from types import SimpleNamespace

import httpx
import pytest

import gradest
from gradest_service.app import running
from gradest_service.settings import Settings


@pytest.fixture(scope="session")
def url():
    with running() as found:
        yield found


@pytest.fixture(scope="session")
def http(url):
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def client(url):
    with gradest.Client(url) as found:
        yield found


@pytest.fixture(scope="session")
def json_client(url):
    with gradest.Client(url, transport="json") as found:
        yield found


@pytest.fixture
def start(request):
    """Starts a service with settings of the test's own: start(max_draws=3) gives an httpx client of it."""

    def start_one(**settings):
        service = running(Settings(port=0, **settings))
        address = service.__enter__()
        request.addfinalizer(lambda: service.__exit__(None, None, None))
        client = httpx.Client(base_url=address, timeout=60)
        request.addfinalizer(client.close)
        return client

    return start_one


@pytest.fixture
def registered():
    """Registers plugins for the length of a test."""
    added = []

    def register(plugin):
        added.append(gradest.registry.register(plugin))
        return plugin

    yield register
    for plugin in added:
        gradest.registry.unregister(plugin)


@pytest.fixture
def poisson_waits(monkeypatch):
    """Has a request for three samples of poisson hold its thread: `held` is set once it does, until the test sets `may_go`."""
    events = SimpleNamespace(held=threading.Event(), may_go=threading.Event())
    poisson = type(gradest.neuron("poisson"))
    sample = poisson.sample

    def hold(neuron, key, a, draws):
        if draws == 3:  # the service tries each neuron itself when it starts
            events.held.set()
            events.may_go.wait(20)
        return sample(neuron, key, a, draws)

    monkeypatch.setattr(poisson, "sample", hold)
    return events


@pytest.fixture(scope="session")
def refused():
    """Checks that an answer is a problem of this status, and gives its fields."""

    def check(answer, status):
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert problem["type"] == "about:blank"
        assert problem["title"]
        assert problem["detail"]
        assert problem["request_id"] == answer.headers["x-request-id"]
        assert "Traceback" not in answer.text
        assert len(answer.content) < 2000
        return problem

    return check
