"""Which requests the client sends again, how long it waits, and its deadline. Nothing really sleeps."""

import email.utils
import time

import httpx
import pytest

import gradest
from gradest.errors import ServiceError
from tests.client.scripted import CALLS, KINDS, RESULT, SAFETENSORS, A, Scripted, busy, good, problem, stream

LOST = [
    *[httpx.ConnectError("refused"), httpx.ReadError(""), httpx.RemoteProtocolError("closed"), httpx.WriteError("")],
    *[httpx.ReadTimeout(""), httpx.ConnectTimeout("")],
]
PASSING = [503, 429, 500, 502, 504]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trouble", [*PASSING, *LOST], ids=repr)
def test_what_may_pass_is_tried_again(kind, trouble):
    trouble = busy(trouble) if isinstance(trouble, int) else trouble
    service = Scripted(kind, trouble, trouble, trouble, good())
    assert service.sample("bernoulli", A).shape == (1, 1, 2)
    assert service.waits == [0.1, 0.2, 0.4]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("trouble", [422, 404, "UnsupportedProtocol", "LocalProtocolError", "DecodingError"])
def test_what_will_not_pass_is_not(kind, trouble):
    trouble = getattr(httpx, trouble)("") if isinstance(trouble, str) else busy(trouble)
    service = Scripted(kind, trouble, good())
    with pytest.raises(ServiceError):
        service.sample("bernoulli", A)
    assert (service.waits, len(service.requests)) == ([], 1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("status", "waits"), [(500, []), (504, []), (422, []), (503, [0.1]), (429, [0.1])])
def test_of_the_service_s_own_errors_only_those_that_say_so_are_tried_again(kind, status, waits):
    """By their status and, in a stream, by that of the event."""
    for call, refused, answer in (
        ("sample", problem(status), good()),
        ("compare", stream((b"error", problem(status).json())), stream((b"result", RESULT))),
    ):
        service = Scripted(kind, refused, answer)
        if waits:
            getattr(service, call)(*CALLS[call])
        else:
            with pytest.raises(ServiceError, match=f"{status} Trouble: of mine") as caught:
                getattr(service, call)(*CALLS[call])
            assert (caught.value.status, caught.value.request_id) == (status, "r")
        assert service.waits == waits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("call", ["sample", "forward", "estimate", "compare", "recommend"])
def test_what_is_sent_again_is_the_same_request_though_no_seed_was_given(kind, call, streamed):
    given = {"progress": print} if streamed and call in ("estimate", "compare") else {}
    if call == "recommend":
        given = {"objective": "linear", "a": A}
    sent = set()
    for _ in range(2):
        service = Scripted(kind, busy(), retries=3)
        with pytest.raises(ServiceError):
            getattr(service, call)(*CALLS[call], **given)
        assert len(service.requests) == 4
        (one,) = {(str(request.url), request.content) for request in service.requests}
        sent.add(one)
    assert len(sent) == 2  # each call has a seed of its own


@pytest.mark.parametrize("kind", KINDS)
def test_tries_end(kind):
    service = Scripted(kind, busy(429), retries=2)
    with pytest.raises(ServiceError, match="429 Too Many Requests: later"):
        service.sample("bernoulli", A)
    assert (service.waits, len(service.requests)) == ([0.1, 0.2], 3)
    once = Scripted(kind, LOST[0], retries=0)
    with pytest.raises(ServiceError, match=r"http://service: refused\. Is the service running") as caught:
        once.neurons()
    assert (caught.value.status, len(once.requests)) == (0, 1)


def test_waits_grow_to_a_limit_and_are_a_random_part_of_it():
    service = Scripted(gradest.Client, busy(), retries=9, timeout=None)
    with pytest.raises(ServiceError):
        service.sample("bernoulli", A)
    assert service.waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    service = Scripted(gradest.Client, busy(), retries=50, timeout=None)
    service.client.jitter = gradest.Client.jitter
    with pytest.raises(ServiceError):
        service.sample("bernoulli", A)
    late = service.waits[6:]
    assert all(0 <= wait < 5 for wait in late)
    assert 1.5 < sum(late) / len(late) < 3.5  # their mean is 2.5, with a standard error of 0.22


@pytest.mark.parametrize("kind", KINDS)
def test_retry_after_is_the_least_wait(kind):
    later = email.utils.formatdate(time.time() + 20, usegmt=True)
    answers = [busy(**{"Retry-After": value}) for value in ("3", later, "soon", "-1", "Wed, 99 Foo 2020 00:00:00 GMT")]
    service = Scripted(kind, *answers, good(), retries=5)
    service.sample("bernoulli", A)
    assert service.waits[0] == 3.1
    assert 18 < service.waits[1] < 20.3
    assert service.waits[2:] == [0.4, 0.8, 1.6]


@pytest.mark.parametrize("form", ["%a %b %d %H:%M:%S %Y", "%A, %d-%b-%y %H:%M:%S GMT", "%a, %d %b %Y %H:%M:%S GMT"])
def test_every_form_of_a_date_in_retry_after_is_of_greenwich(monkeypatch, form):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        later = time.strftime(form, time.gmtime(time.time() + 20))
        service = Scripted(gradest.Client, busy(**{"Retry-After": later}), good())
        service.sample("bernoulli", A)
    finally:
        monkeypatch.undo()
        time.tzset()
    assert 18 < service.waits[0] < 20.2


@pytest.mark.parametrize("value", ["1e400", "inf", "86400"])
def test_a_wait_that_would_end_after_the_deadline_is_not_begun(value):
    for timeout in (60, None) if value != "86400" else (60,):
        service = Scripted(gradest.Client, problem(429, **{"Retry-After": value}), good(), timeout=timeout)
        with pytest.raises(ServiceError, match="429 Trouble"):
            service.sample("bernoulli", A)
        assert service.waits == []


def test_a_connection_lost_after_retry_after_does_not_wait_for_it():
    service = Scripted(gradest.Client, busy(**{"Retry-After": "3"}), LOST[0], good())
    service.sample("bernoulli", A)
    assert service.waits == [3.1, 0.2]


@pytest.mark.parametrize("kind", KINDS)
def test_no_wait_goes_past_the_deadline(kind):
    service = Scripted(kind, busy(**{"Retry-After": "30"}), timeout=60)
    with pytest.raises(ServiceError, match="503"):
        service.sample("bernoulli", A)
    assert len(service.waits) == 1  # a second one would end at 60.3
    given = [request.extensions["timeout"]["read"] for request in service.requests]
    assert given == [60.0, pytest.approx(29.9)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_silent_try_is_given_up_for_another(kind):
    for options, wanted in (
        ({}, {"connect": 10, "read": 60}),
        ({"read_timeout": 20}, {"connect": 10, "read": 20}),
        ({"read_timeout": 5, "timeout": None}, {"connect": 5, "read": 5}),
        ({"timeout": None}, {"connect": 10, "read": None}),
    ):
        service = Scripted(kind, httpx.ReadTimeout(""), good(), **options)
        service.sample("bernoulli", A)
        first, _ = (request.extensions["timeout"] for request in service.requests)
        assert {name: first[name] for name in wanted} == wanted


def test_a_sleep_that_lasts_longer_leaves_the_last_try_no_negative_time():
    service = Scripted(gradest.Client, busy(), good(), timeout=1)
    service.client._sleep = lambda seconds: service.sleep(5)
    with pytest.raises(ServiceError, match="no complete response within 1 seconds"):
        service.sample("bernoulli", A)
    assert 0 < service.requests[1].extensions["timeout"]["read"] < 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_tries_without_end(kind):
    service = Scripted(kind, *[busy()] * 1500, good(), retries=float("inf"), timeout=None)
    assert service.sample("bernoulli", A).shape == (1, 1, 2)
    assert service.waits[-1] == 5.0


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_drips_past_the_deadline(kind):
    service = Scripted(kind, good())

    class Drip(httpx.SyncByteStream, httpx.AsyncByteStream):
        def __iter__(self):
            for _ in range(100):
                service.now += 1
                yield b"x"

        async def __aiter__(self):
            for chunk in self:
                yield chunk

    service.script = [lambda: httpx.Response(200, stream=Drip(), headers=SAFETENSORS)]
    service.client.timeout = 10
    with pytest.raises(ServiceError, match="no complete response within 10 seconds"):
        service.sample("bernoulli", A)
    assert service.now == 11
    assert len(service.requests) == 1
