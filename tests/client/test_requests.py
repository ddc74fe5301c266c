"""What the client sends, what it refuses to send, and what it makes of an answer that is not a result."""

import json

import httpx
import pytest
import torch

import gradest
from gradest.client.wire import pack, unpack
from gradest.errors import InvalidInput, ServiceError
from tests.client.scripted import CALLS, KINDS, PROBLEM, SAFETENSORS, A, Scripted, busy, good


def answering(status, body=b"", content_type="text/plain", seen=None, **headers):
    """A client of a service that always answers this."""

    def answer(request):
        if seen is not None:
            seen.append(request)
        return httpx.Response(status, content=body, headers={"Content-Type": content_type, **headers})

    return gradest.Client("http://service", http_transport=httpx.MockTransport(answer))


@pytest.mark.parametrize("a", [[0.5], 1.0, None, torch.tensor([1, 2]), torch.tensor([True]), torch.tensor([1j])])
def test_what_is_no_float_tensor_is_refused_here(a):
    seen = []
    with answering(200, seen=seen) as client, pytest.raises(InvalidInput, match="torch tensor"):
        client.sample("bernoulli", a)
    assert not seen


@pytest.mark.parametrize("body", [b"<html>", b""])
def test_an_answer_that_is_not_a_service_s(body):
    with answering(200, body, "text/html") as client, pytest.raises(ServiceError, match="text/html, not JSON"):
        client.neurons()


def test_a_timeout_is_a_service_error():
    def stall(request):
        raise httpx.ReadTimeout("", request=request)

    client = gradest.Client("http://service", retries=0, http_transport=httpx.MockTransport(stall))
    with client, pytest.raises(ServiceError, match="ReadTimeout"):
        client.sample("bernoulli", A)


@pytest.mark.parametrize("call", ["version", "compare"])
def test_errors_in_plain_text(call):
    """As a proxy in front of the service makes them."""
    for answer, text in (
        (httpx.Response(503, text="no replica is ready", headers={"X-Request-ID": "r"}), "503 Service Unavailable: no"),
        (httpx.Response(502, headers={"X-Request-ID": "r"}), "502 Bad Gateway: the response has no text"),
    ):
        with pytest.raises(ServiceError, match=text) as caught:
            Scripted(gradest.Client, answer).__getattr__(call)(*CALLS.get(call, ()))
        assert caught.value.request_id == "r"


@pytest.mark.parametrize("estimators", ["rloo", {"name": "rloo"}], ids=["name", "spec"])
def test_an_estimator_in_place_of_a_list_is_refused_here(estimators):
    seen = []
    with answering(200, seen=seen) as client, pytest.raises(InvalidInput, match="must be a list of estimators"):
        client.compare("linear", A, estimators=estimators)
    assert not seen


@pytest.mark.parametrize("kind", KINDS)
def test_an_api_key_is_sent_and_never_shown(kind):
    service = Scripted(kind, busy(401), api_key="hunter2")
    with pytest.raises(ServiceError) as caught:
        service.sample("bernoulli", A)
    assert service.requests[0].headers["authorization"] == "Bearer hunter2"
    assert "hunter2" not in f"{caught.value!r} {service.client!r}"
    keyless = Scripted(kind, good())
    keyless.sample("bernoulli", A)
    assert "authorization" not in keyless.requests[0].headers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transport", ["safetensors", "json"])
def test_what_is_sent_and_asked_for(kind, transport):
    service = Scripted(kind, good(), transport=transport)
    service.sample({"name": "noisy_rectifier", "std": 2.0}, A.double().T, 3, seed=5)
    (request,) = service.requests
    media = {"json": "application/json", "safetensors": "application/vnd.safetensors"}[transport]
    assert (request.headers["content-type"], request.headers["accept"]) == (media, media)
    wanted = {"samples": 3, "seed": 5, "dtype": "float64", "shape": [2, 1]}
    wanted["neuron"] = {"name": "noisy_rectifier", "std": 2.0}
    if transport == "json":
        assert json.loads(request.content) == {**wanted, "a": [[0.5], [-1.0]]}
    else:
        found, metadata = unpack(request.content)
        assert json.loads(metadata["request"]) == wanted
        assert torch.equal(found["a"], A.double().T)


def test_a_transport_that_is_none():
    with pytest.raises(InvalidInput, match="safetensors, json"):
        gradest.Client("http://service", transport="pickle")


def test_a_url_that_is_none():
    with pytest.raises(InvalidInput, match="not the URL of a service"):
        gradest.Client("http://service:port")


@pytest.mark.parametrize("key", ["hunter2\n", "hunter2\x00", "hünter2"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key):
    with pytest.raises(InvalidInput, match="API key") as caught:
        gradest.Client("http://service", api_key=key)
    assert key[-4:] not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_problem_details_and_plain_text_are_one_kind_of_error(kind):
    problem = {"status": 422, "title": "Unprocessable", "detail": "a is wrong", "request_id": "r"}
    for answer in (
        httpx.Response(422, json=problem, headers=PROBLEM),
        httpx.Response(422, text="a is wrong", headers={"X-Request-ID": "r"}),
        httpx.Response(422, text="a is wrong", headers={**SAFETENSORS, "X-Request-ID": "r"}),
    ):
        service = Scripted(kind, answer)
        with pytest.raises(ServiceError, match="a is wrong") as caught:
            service.sample("bernoulli", A)
        assert (caught.value.status, caught.value.request_id) == (422, "r")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, content=good()().content[:-1], headers=SAFETENSORS),
        httpx.Response(200, content=pack({"h": torch.ones(1)}, {}), headers=SAFETENSORS),
        httpx.Response(200, content=pack({"seed.h": torch.ones(1)}, {"response": '{"seed": 1}'}), headers=SAFETENSORS),
        httpx.Response(200, json={"tensors": {"h": {"shape": [1], "dtype": "hunter2"}}, "h": [1]}),
        httpx.Response(200, json={"tensors": {"h": {"shape": [1], "dtype": "float32"}}}),
        httpx.Response(200, json={"tensors": {"h": {"shape": [3], "dtype": "float32"}}, "h": [1]}),
        httpx.Response(200, json={"tensors": []}),
        httpx.Response(200, json={}),
    ],
)
def test_a_malformed_answer_is_a_service_error(answer):
    with pytest.raises(ServiceError, match="Not a gradest service"):
        Scripted(gradest.Client, answer).sample("bernoulli", A)
