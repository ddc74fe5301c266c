"""Results that come as a stream: its events, a stream that breaks, progress and estimates that are watched."""

import dataclasses
import json

import httpx
import pytest
import torch

import gradest
from gradest.client import RemoteEstimate
from gradest.contract.objective import Objective
from gradest.errors import InvalidInput, ServiceError
from tests.client.scripted import KINDS, RESULT, A, Scripted, busy, good, of_service, stream
from tests.selection import deep

FIGURES = ("gradient", "variance", "standard_error", "loss")


class Chunks(httpx.SyncByteStream, httpx.AsyncByteStream):
    """A body that comes in pieces, and then ends or fails."""

    def __init__(self, chunks, error=None):
        self.chunks, self.error = chunks, error

    def __iter__(self):
        yield from self.chunks
        if self.error:
            raise self.error

    async def __aiter__(self):
        for chunk in self:
            yield chunk


def events(chunks, error=None):
    return httpx.Response(200, stream=Chunks(chunks, error), headers={"Content-Type": "text/event-stream"})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("error", [httpx.ReadError(""), httpx.ReadTimeout(""), None], ids=repr)
def test_a_stream_that_breaks_is_asked_for_again_and_gives_what_it_would_have(client, kind, error):
    """As a replica that dies ends it: with an error, or as if it were whole."""
    seen = []
    service = Scripted(kind)
    for name, wanted in (
        ("estimate", gradest.estimate(gradest.objective("linear"), A, draws=3000, seed=5)),
        ("compare", gradest.compare(gradest.objective("linear"), A, estimators=["rloo"], draws=3000, seed=5)),
    ):
        service.script = [
            lambda: events([of_service(client, service).content[:-9]], error),
            busy(500),
            lambda: of_service(client, service),
        ]
        given = {"estimators": ["rloo"]} if name == "compare" else {}
        found = getattr(service, name)("linear", A, draws=3000, seed=5, **given, progress=lambda *at: seen.append(at))
        assert service.waits[-2:] == [0.1, 0.2]
        assert len({request.content for request in service.requests[-3:]}) == 1
        if name == "estimate":
            assert torch.equal(found.gradient, wanted.gradient)
            assert torch.equal(found.variance, wanted.variance)
        else:
            assert dataclasses.replace(found.rows[0], seconds=0) == dataclasses.replace(wanted.rows[0], seconds=0)
    assert seen[-1] == ("rloo", 3000, 3000)


def test_a_stream_that_never_ends_well():
    service = Scripted(gradest.Client, stream((b"progress", {"draws": 1})), retries=2)
    with pytest.raises(ServiceError, match="Incomplete answer: the stream ended without a result"):
        service.estimate("linear", A, progress=lambda *at: None)
    assert service.waits == [0.1, 0.2]


def test_events_in_every_form_that_the_standard_allows():
    text = (
        b': hello\r\n\r\nevent: progress\r\ndata: {"estimator": "x",\r\ndata:  "done": 1, "draws": 2}\r\nid: 7\r\n\r\n'
    )
    text += b"event:result\ndata:" + json.dumps(RESULT).encode() + b"\n\n"
    seen = []
    for size in (1, 7, len(text)):
        service = Scripted(gradest.Client, events([text[at : at + size] for at in range(0, len(text), size)]))
        found = service.compare("linear", A, progress=lambda *report: seen.append(report))
        assert seen.pop() == ("x", 1, 2)
        assert not seen
        assert found.rows[0].snr == torch.inf


@pytest.mark.parametrize("data", ["{", "[]", "{}", '{"tensors": {"gradient": {}}}'])
@pytest.mark.parametrize("event", ["progress", "result", "error"])
def test_a_malformed_event_is_a_service_error(event, data):
    service = Scripted(gradest.Client, events([f"event: {event}\ndata: {data}\n\n".encode()]))
    with pytest.raises(ServiceError, match="Not a gradest service"):
        service.estimate("linear", A, progress=lambda *at: None)
    assert service.waits == []


def test_what_goes_wrong_in_a_stream_is_the_error_that_it_is_without_one(client):
    class Late(Objective):
        name, summary = "late", "raises once it is evaluated"

        def __call__(self, points):
            if points.shape[0]:
                raise InvalidInput("so it is")
            return points.sum(-1)

    late = gradest.registry.register(Late)
    try:
        errors = []
        for progress in (None, lambda *at: None):
            with pytest.raises(ServiceError) as caught:
                client.estimate("late", A, progress=progress)
            errors.append((caught.value.status, caught.value.title, caught.value.detail))
            assert caught.value.request_id
    finally:
        gradest.registry.unregister(late)
    assert errors[0] == errors[1] == (422, "Unprocessable Content", "so it is")


@pytest.mark.parametrize("dtype", [torch.float32, *deep(torch.float64, torch.bfloat16)])
@pytest.mark.parametrize("kind", KINDS)
def test_an_estimate_is_watched_as_the_library_s_is(client, monkeypatch, kind, dtype):
    """Each of the estimates so far has the bits of that of this side."""
    monkeypatch.setattr("gradest_service.run.streaming._REPORT_SECONDS", 0)
    a = torch.linspace(-2, 2, 200).reshape(50, 4).to(dtype)
    here, there, at_here, at_there = [], [], [], []
    case = {"estimator": "nvil", "draws": 5000, "seed": 3}
    gradest.estimate(
        gradest.objective("quadratic"), a, **case, progress=lambda *at: at_here.append(at), watch=here.append
    )
    service = Scripted(kind)
    service.script = [lambda: of_service(client, service)]
    found = service.estimate("quadratic", a, **case, progress=lambda *at: at_there.append(at), watch=there.append)
    assert isinstance(found, RemoteEstimate)
    assert at_there == [at for at in [*at_here, (5000, 5000)] if at[0]]  # the steps of the warm-up are not reported
    for watched, wanted in zip([*there, found], [*here, here[-1], here[-1]], strict=True):
        assert (watched.draws, watched.evaluations, watched.seed) == (wanted.draws, wanted.evaluations, 3)
        assert watched.seconds > 0
        assert watched.state.keys() == wanted.state.keys() != set()
        pairs = [(watched.state[name], wanted.state[name]) for name in wanted.state]
        pairs += [(getattr(watched, name), getattr(wanted, name)) for name in FIGURES]
        for x, y in pairs:
            assert x.dtype == y.dtype
            assert torch.equal(x, y)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_estimate_stops_at_the_target(client, streamed):
    case = {"draws": 50_000, "seed": 3, "target_standard_error": 0.01}
    found = client.estimate("linear", A, **case, progress=(lambda *at: None) if streamed else None)
    wanted = gradest.estimate(gradest.objective("linear"), A, **case)
    assert found.draws == wanted.draws < 50_000
    assert torch.equal(found.gradient, wanted.gradient)
    with pytest.raises(ServiceError, match="target_standard_error"):
        client.estimate("linear", A, target_standard_error=-1.0)


def test_an_estimate_that_nobody_watches_is_no_stream():
    service = Scripted(gradest.Client, busy(404))
    for given, accept in (({}, "application/vnd.safetensors"), ({"watch": print}, "text/event-stream")):
        with pytest.raises(ServiceError):
            service.estimate("linear", A, **given)
        assert service.requests[-1].headers["accept"] == accept


@pytest.mark.parametrize("error", [KeyError("mine"), ServiceError(503, "of another service")])
def test_what_a_callback_raises_ends_the_call(error):
    def stop(*at):
        raise error

    service = Scripted(gradest.Client, stream((b"progress", {"draws": 1})), good())
    with pytest.raises(type(error)) as caught:
        service.estimate("linear", A, progress=stop)
    assert caught.value is error
    assert len(service.requests) == 1


def test_a_stream_may_take_longer_than_the_timeout_while_something_comes():
    """And when it then breaks, there is time for another try."""
    service = Scripted(gradest.Client, good(), timeout=10)

    class Slow(httpx.SyncByteStream):
        def __iter__(self):
            for _ in range(5):
                service.now += 8
                yield b": still running\n\n"
            raise httpx.ReadError("")

    slow = httpx.Response(200, stream=Slow(), headers={"Content-Type": "text/event-stream"})
    service.script = [slow, stream((b"result", RESULT))]
    assert service.compare("linear", A).draws == 2
    assert service.now == 40.1


def test_a_stream_in_which_nothing_came_leaves_the_deadline():
    """Even though its headers did."""
    service = Scripted(gradest.Client, good(), timeout=10)
    service.script = [*[lambda: slow_to_break(service)] * 3, stream((b"result", RESULT))]
    with pytest.raises(ServiceError, match="No response: "):
        service.compare("linear", A)
    assert len(service.requests) == 3


def slow_to_break(service):
    service.now += 4
    return events([], httpx.ReadError(""))


@pytest.mark.parametrize("silent", [3, 12])
def test_a_stream_of_comments_that_falls_silent_counts_from_the_last(silent):
    """So with a read timeout below the timeout there is time for another attempt, and else there is not."""
    service = Scripted(gradest.Client, good(), timeout=10, read_timeout=silent)

    class Silent(httpx.SyncByteStream):
        def __iter__(self):
            for _ in range(5):
                service.now += 2
                yield b": still running\n\n"
            service.now += min(silent, 10)
            raise httpx.ReadTimeout("")

    service.script = [
        httpx.Response(200, stream=Silent(), headers={"Content-Type": "text/event-stream"}),
        stream((b"result", RESULT)),
    ]
    if silent == 3:
        assert service.compare("linear", A).draws == 2
    else:
        with pytest.raises(ServiceError, match="No response: "):
            service.compare("linear", A)
