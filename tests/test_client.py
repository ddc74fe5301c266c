"""The client: what it sends, what it gives back, and what its errors say. tests/service holds its numbers to the library's."""

import dataclasses
import inspect
import subprocess
import sys

import httpx
import pytest
import torch

import gradest
from gradest.client import RemoteDraw, RemoteEstimate, RemoteGradient
from gradest.errors import InvalidInput, ServiceError
from gradest_service.app import running

A = torch.tensor([[0.5, -1.0]])


@pytest.fixture(scope="module")
def client():
    with running() as url, gradest.Client(url) as found:
        yield found


def answering(status, body=b"", content_type="text/plain", seen=None, **headers):
    """A client of a service that always answers this."""

    def answer(request):
        if seen is not None:
            seen.append(request)
        return httpx.Response(status, content=body, headers={"Content-Type": content_type, **headers})

    return gradest.Client("http://service", http_transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("name", ["sample", "estimate", "compare"])
def test_signatures_are_the_library_s(name):
    ours = inspect.signature(getattr(gradest.Client, name)).parameters
    theirs = inspect.signature(getattr(gradest, name)).parameters
    for parameter in set(ours) & set(theirs):
        assert ours[parameter].default == theirs[parameter].default
    wanted = [parameter for parameter in theirs if parameter not in ("f", "state", "warm_up")]
    found = [parameter for parameter in ours if parameter not in ("self", "objective")]
    assert found == [parameter for parameter in wanted if parameter in found]
    assert set(wanted) - set(found) <= {"progress", "executor", "target_standard_error", "watch"}


def test_registry(client):
    assert list(client.neurons()) == list(gradest.registry.neurons)
    assert list(client.estimators()) == list(gradest.registry.estimators)
    assert list(client.objectives()) == list(gradest.registry.objectives)
    assert client.neuron("bernoulli") == client.neurons()["bernoulli"]
    assert client.estimator("rloo")["needs"] == ["loss"]
    assert client.objective("quadratic")["name"] == "quadratic"
    assert client.plugins()["plugins"][0]["distribution"] == "gradest"
    assert client.version()["plugin_api"] == gradest.PLUGIN_API


def test_results_are_frozen_and_typed(client):
    draw = client.forward("bernoulli", "rloo", A, seed=3)
    step = client.backward("bernoulli", "rloo", A, draw.seed, draw.points.sum(-1))
    found = client.estimate("quadratic", A, draws=10, seed=3)
    assert (type(draw), type(step), type(found)) == (RemoteDraw, RemoteGradient, RemoteEstimate)
    assert isinstance(found, gradest.Estimate)
    assert isinstance(client.compare("quadratic", A, estimators=["rloo"], draws=10), gradest.Comparison)
    for result in (draw, step, found):
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.seed = 1


@pytest.mark.parametrize(
    "neuron",
    [
        {"name": "noisy_rectifier", "distribution": "gaussian", "std": 2.0},
        gradest.neuron("noisy_rectifier", distribution="gaussian", std=2.0),
    ],
)
def test_options_and_instances_are_sent(client, neuron):
    assert torch.equal(client.sample(neuron, A, 3, seed=1), gradest.sample(neuron, A, 3, seed=1))


def test_an_objective_with_tensors_is_sent_by_its_spec(client):
    options = {"weight": torch.tensor([[0.1, 0.2], [0.3, 0.4]]), "labels": torch.tensor([1])}
    instance = gradest.objective("cross_entropy", **options)
    here = gradest.estimate(instance, A, draws=5, seed=2)
    for objective in (instance, {"name": "cross_entropy", **options}):
        assert torch.equal(client.estimate(objective, A, draws=5, seed=2).gradient, here.gradient)


def test_without_a_seed_torch_s_generator_rules_as_in_the_library(client):
    torch.manual_seed(0)
    here = gradest.sample("noisy_rectifier", A, 4)
    torch.manual_seed(0)
    assert torch.equal(client.sample("noisy_rectifier", A, 4), here)
    assert not torch.equal(client.sample("noisy_rectifier", A, 4), here)


def test_a_loss_that_stays_here_trains(client):
    """Gradient descent with the loss on this side and a stateful estimator on the other."""
    a, state, target = torch.zeros(1, 4), None, torch.tensor([1.0, 0.0, 1.0, 0.0])
    for step in range(60):
        draw = client.forward("bernoulli", "reinforce_centered", a, seed=step, state=state)
        loss = ((draw.points - target) ** 2).sum(-1)
        told = client.backward("bernoulli", "reinforce_centered", a, step, loss, state=state)
        a, state = a - told.gradient, told.state
    assert torch.equal((a > 0).float(), target[None])


def test_not_a_number_and_infinity_come_back(client):
    assert client.estimate("linear", A, draws=1, seed=0).variance.isnan().all()
    (row,) = client.compare("linear", A, estimators=["enumeration"], draws=5, seed=0).rows
    assert (row.snr, row.efficiency) == (torch.inf, torch.inf)


def test_requires_grad_and_strides_do_not_matter(client):
    a = torch.linspace(-1, 1, 6).reshape(2, 3).T.requires_grad_()
    assert torch.equal(client.sample("bernoulli", a, 2, seed=1), gradest.sample("bernoulli", a.detach(), 2, seed=1))


@pytest.mark.parametrize("a", [[0.5], 1.0, None, torch.tensor([1, 2]), torch.tensor([True]), torch.tensor([1j])])
def test_what_is_no_float_tensor_is_refused_here(a):
    seen = []
    with answering(200, seen=seen) as client, pytest.raises(InvalidInput, match="torch tensor"):
        client.sample("bernoulli", a)
    assert not seen


@pytest.mark.parametrize("seed", [-1, 2**53, 1.0, True])
def test_a_bad_seed_is_refused_here(client, seed):
    with pytest.raises(InvalidInput, match="seed"):
        client.sample("bernoulli", A, seed=seed)


@pytest.mark.parametrize(
    ("call", "status", "match"),
    [
        (lambda client: client.sample("bernouli", A), 404, "bernoulli"),
        (lambda client: client.neuron("../version"), 404, "route|neuron"),
        (lambda client: client.sample("bernoulli", A, samples=-1), 422, "samples"),
        (lambda client: client.sample("bernoulli", A, samples=10**9), 413, "samples"),
        (lambda client: client.sample("bernoulli", torch.tensor([0.0, torch.nan])), 422, r"a\[1\]"),
        (lambda client: client.forward("noisy_rectifier", "rloo", A), 422, "pathwise"),
        (lambda client: client.backward("bernoulli", "rloo", A, 1, torch.zeros(3, 1)), 422, r"\[2, 1\]"),
        (lambda client: client.backward("bernoulli", "rloo", A, 1, None), 422, "needs the loss"),
        (lambda client: client.estimate({"name": "quadratic", "target": "x"}, A), 422, "target"),
        (lambda client: client.compare("quadratic", A, estimators=["nothing"]), 404, "estimator"),
    ],
)
def test_errors_of_the_service(client, call, status, match):
    with pytest.raises(ServiceError, match=match) as caught:
        call(client)
    assert caught.value.status == status
    assert caught.value.title
    assert len(caught.value.request_id) == 32


def test_an_error_in_the_stream():
    problem = b'{"status": 500, "title": "Internal Server Error", "detail": "it failed", "request_id": "r"}'
    stream = b': hello\r\n\r\nevent: progress\r\ndata: {"estimator": "x",\r\ndata:  "done": 1, "draws": 2}\r\n\r\n'
    seen = []
    with answering(200, stream + b"event: error\ndata: " + problem + b"\n\n", "text/event-stream") as client:
        with pytest.raises(ServiceError, match="it failed") as caught:
            client.compare("linear", A, progress=lambda *report: seen.append(report))
        assert (caught.value.status, caught.value.request_id) == (500, "r")
    assert seen == [("x", 1, 2)]
    with answering(200, stream, "text/event-stream") as client, pytest.raises(ServiceError, match="without a result"):
        client.compare("linear", A)


@pytest.mark.parametrize("call", [lambda client: client.neurons(), lambda client: client.compare("linear", A)])
def test_errors_in_plain_text(call):
    """As a proxy in front of the service makes them."""
    text, headers = "503 Service Unavailable: no replica is ready", {"X-Request-ID": "r"}
    with answering(503, text[25:].encode(), **headers) as client, pytest.raises(ServiceError, match=text) as caught:
        call(client)
    assert (caught.value.status, caught.value.request_id) == (503, "r")
    with answering(502) as client, pytest.raises(ServiceError, match="502 Bad Gateway"):
        call(client)


@pytest.mark.parametrize("body", [b"<html>", b""])
def test_an_answer_that_is_not_a_service_s(body):
    with answering(200, body, "text/html") as client, pytest.raises(ServiceError, match="text/html, not JSON"):
        client.neurons()


def test_no_service_there():
    with running() as url:
        pass
    with gradest.Client(url) as client, pytest.raises(ServiceError, match="Is the service running") as caught:
        client.neurons()
    assert caught.value.status == 0


def test_a_timeout_is_a_service_error():
    def stall(request):
        raise httpx.ReadTimeout("", request=request)

    client = gradest.Client("http://service", http_transport=httpx.MockTransport(stall))
    with client, pytest.raises(ServiceError, match="ReadTimeout"):
        client.sample("bernoulli", A)


def test_importing_gradest_imports_neither_torch_nor_httpx():
    code = "import gradest, sys; assert not {'torch', 'httpx'} & set(sys.modules); gradest.Client; assert 'httpx' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
