"""The client: what it sends, what it gives back, and what its errors say. tests/service holds its numbers to the library's."""

import asyncio
import dataclasses
import email.utils
import inspect
import json
import subprocess
import sys
import time

import httpx
import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradest
from gradest.analysis.results import ComparisonRow
from gradest.client import RemoteDraw, RemoteEstimate, RemoteGradient, RemoteMean
from gradest.client.wire import pack, unpack
from gradest.contract.objective import Objective
from gradest.errors import InvalidInput, ServiceError
from gradest_service.app import running
from tests.selection import deep

A = torch.tensor([[0.5, -1.0]])
DRAW = RemoteDraw(torch.zeros(2, 1, 2), torch.ones(2), frozenset(["loss"]), seed=1, event_dims=1)
LOSS_ALONE = {"flatten", "allow_inf", "rows"}  # f and its batch are here, and requests are finite
FIGURES = ("gradient", "variance", "standard_error", "loss")


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


@pytest.mark.parametrize(
    ("name", "here_alone"),
    [
        ("sample", {"dtype"}),
        ("estimate", {"executor", *LOSS_ALONE}),
        ("compare", {"executor", *LOSS_ALONE}),
        ("recommend", {"progress"}),
    ],
)
def test_signatures_are_the_library_s(name, here_alone):
    ours = inspect.signature(getattr(gradest.Client, name)).parameters
    theirs = inspect.signature(getattr(gradest, name)).parameters
    for parameter in set(ours) & set(theirs):
        assert ours[parameter].default == theirs[parameter].default
        assert ours[parameter].kind == theirs[parameter].kind
    wanted = [
        "objective" if parameter == "f" else parameter for parameter in theirs if parameter not in ("state", "warm_up")
    ]
    assert list(ours) == ["self", *(parameter for parameter in wanted if parameter not in here_alone)]


def test_credit_has_the_library_s_signature():
    ours, theirs = (inspect.signature(owner.credit).parameters for owner in (gradest.Client, gradest))
    assert list(ours) == ["self", *theirs]
    assert all(ours[name].default == theirs[name].default for name in theirs)


def test_credit_of_a_loss_with_a_graph_and_of_whole_lengths(client):
    loss = (torch.linspace(-1, 2, 8).reshape(4, 2).requires_grad_() * 2).bfloat16()
    lengths = torch.tensor([[300, 1], [5, 1000], [7, 257], [1, 3]])  # bfloat16 has no 257
    weights, state = client.credit("opo", loss, features=lengths)
    wanted, _ = gradest.credit("opo", loss, features=lengths)
    assert torch.equal(weights, wanted)
    assert (weights.dtype, state) == (torch.float32, {})
    with pytest.raises(InvalidInput, match=r"the loss must be a torch tensor of .*, not torch\.int64"):
        client.credit("rloo", lengths)
    with pytest.raises(ServiceError, match="cannot credit K = 1 sample"):
        client.credit("rloo", loss[:1])


def test_credit_by_the_asynchronous_client():
    async def both():
        async with gradest.AsyncClient(url) as client:
            return await asyncio.gather(*(client.credit(name, loss) for name in ("rloo", "grpo")))

    loss = torch.tensor([[0.5, 1.0], [2.0, -1.0], [0.0, 0.3]])
    with running() as url:
        found = asyncio.run(both())
    for (weights, _), name in zip(found, ("rloo", "grpo"), strict=True):
        assert torch.equal(weights, gradest.credit(name, loss)[0])


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
    step = client.backward("bernoulli", "rloo", A, draw, draw.points.sum(-1))
    found = client.estimate("quadratic", A, draws=10, seed=3)
    mean = client.mean("bernoulli", A)
    assert (type(draw), type(step), type(found), type(mean)) == (RemoteDraw, RemoteGradient, RemoteEstimate, RemoteMean)
    assert isinstance(found, gradest.Estimate)
    assert isinstance(client.compare("quadratic", A, estimators=["rloo"], draws=10), gradest.Comparison)
    for result in (draw, step, found, mean):
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
        told = client.backward("bernoulli", "reinforce_centered", a, draw, loss, state=state)
        a, state = a - told.gradient, told.state
    assert torch.equal((a > 0).float(), target[None])


@pytest.mark.parametrize("estimator", ["rloo", "straight_through"])
def test_a_second_derivative_that_samples_do_not_give_raises(client, estimator):
    a, weight = A.clone().requires_grad_(), torch.tensor(2.0, requires_grad=True)
    value, _ = client.expect(lambda h: (weight * h).sum(-1) ** 2, a, "bernoulli", estimator, 3)
    of_a, of_weight = torch.autograd.grad(value.sum(), (a, weight), create_graph=True)
    for first, second in ((of_a, a), (of_a, weight), (of_weight, a)):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            torch.autograd.grad(first.sum(), second, retain_graph=True)


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
        (lambda client: client.backward("bernoulli", "rloo", A, DRAW, torch.zeros(3, 1)), 422, r"\[2, 1\]"),
        (lambda client: client.backward("bernoulli", "rloo", A, DRAW, None), 422, "needs the loss"),
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

    client = gradest.Client("http://service", retries=0, http_transport=httpx.MockTransport(stall))
    with client, pytest.raises(ServiceError, match="ReadTimeout"):
        client.sample("bernoulli", A)


def test_importing_gradest_imports_neither_torch_nor_httpx():
    code = "import gradest, sys; assert not {'torch', 'httpx'} & set(sys.modules); gradest.Client; assert 'httpx' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- sending: tries, waits and deadlines; nothing really sleeps ---

SAFETENSORS = {"Content-Type": "application/vnd.safetensors"}
PROBLEM = {"Content-Type": "application/problem+json"}
KINDS = [gradest.Client, gradest.AsyncClient]


def good(seed=1):
    body = pack({"h": torch.ones(1, 1, 2)}, {"response": f'{{"seed": {seed}}}'})
    return lambda: httpx.Response(200, content=body, headers=SAFETENSORS)


def busy(status=503, **headers):
    """An answer that a proxy may give."""
    return lambda: httpx.Response(status, content=b"later", headers=headers)


def problem(status, **headers):
    """An answer of the service itself."""
    fields = {"status": status, "title": "Trouble", "detail": "of mine", "request_id": "r"}
    return httpx.Response(status, content=json.dumps(fields).encode(), headers={**PROBLEM, **headers})


def stream(*events, end=b""):
    text = b"".join(b"event: %s\ndata: %s\n\n" % (name, json.dumps(data).encode()) for name, data in events)
    return httpx.Response(200, content=text + end, headers={"Content-Type": "text/event-stream"})


ROW = dict.fromkeys([field.name for field in dataclasses.fields(ComparisonRow)], 1.0)
RESULT = {"neuron": "bernoulli", "draws": 2, "seed": 1, "rows": [{**ROW, "snr": "Infinity"}], "exact": None}
CALLS = {
    "sample": ("bernoulli", A),
    "forward": ("bernoulli", "rloo", A),
    "estimate": ("linear", A),
    "compare": ("linear", A),
    "recommend": (),
}


class Scripted:
    """A client whose service gives these answers in turn, or raises them, the last for ever; time passes only as it waits."""

    def __init__(self, kind, *script, **options):
        self.now, self.waits, self.requests, self.script = 0.0, [], [], list(script)
        self.client = kind("http://service", http_transport=httpx.MockTransport(self.answer), **options)
        self.client.clock, self.client.jitter = lambda: self.now, lambda: 1.0
        self.client._sleep = self.sleep if kind is gradest.Client else self.sleep_async

    def answer(self, request):
        self.requests.append(request)
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if callable(step):
            step = step()
        if isinstance(step, Exception):
            raise step
        return step

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds

    async def sleep_async(self, seconds):
        self.sleep(seconds)

    def __getattr__(self, name):
        def call(*args, **kwargs):
            found = getattr(self.client, name)(*args, **kwargs)
            return asyncio.run(found) if inspect.iscoroutine(found) else found

        return call


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


def of_service(client, service):
    """What a real service answers to the last request."""
    asked = service.requests[-1]
    headers = {name: asked.headers[name] for name in ("content-type", "accept")}
    found = httpx.post(client.url + asked.url.path, content=asked.content, headers=headers, timeout=60)
    return httpx.Response(200, content=found.content, headers={"Content-Type": found.headers["content-type"]})


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


def test_what_a_loss_raises_is_no_matter_of_the_service(client):
    """Though it may be an error of a connection, of its own."""

    def loss(points):
        raise httpx.ConnectError("mine")

    service = Scripted(gradest.Client)
    service.script = [lambda: of_service(client, service)]
    with pytest.raises(httpx.ConnectError, match="mine"):
        service.expect(loss, A)
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


@pytest.mark.parametrize("estimators", ["rloo", {"name": "rloo"}], ids=["name", "spec"])
def test_an_estimator_in_place_of_a_list_is_refused_here(estimators):
    seen = []
    with answering(200, seen=seen) as client, pytest.raises(InvalidInput, match="must be a list of estimators"):
        client.compare("linear", A, estimators=estimators)
    assert not seen


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


def test_importing_and_listing_need_no_torch(client):
    """torch takes seconds, and a client that only asks what there is has no use for it."""
    script = f"""
import sys
import gradest.cli
from gradest.client import AsyncClient, Client, RemoteDraw, RemoteEstimate
with Client({client.url!r}) as client:
    client.neurons(), client.estimator("rloo"), client.recommend(evaluations=4).to_markdown(), client.version()
sys.argv = ["gradest", "list", "--url", {client.url!r}]
try:
    gradest.cli.main()
finally:
    print({{"torch", "numba"}} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert "bernoulli" in ran.stdout
    assert ran.stdout.endswith("set()\n")


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
def test_recommend_is_the_library_s(client, kind):
    service = Scripted(kind)

    def answer():
        sent = service.requests[-1]
        headers = {name: sent.headers[name] for name in ("accept", "content-type") if name in sent.headers}
        url = f"{client.url}/v1/recommend"
        found = httpx.request(
            sent.method, url, params=sent.url.params, content=sent.read(), headers=headers, timeout=60
        )
        return httpx.Response(found.status_code, content=found.content, headers={"Content-Type": "application/json"})

    service.script = [answer]
    case = {"neuron": gradest.neuron("bernoulli"), "bring": ["loss", "grad"], "evaluations": 4, "unbiased": True}
    for more in ({}, {"units": 3, "saturated": True, "neuron": {"name": "categorical"}, "evaluations": None}):
        assert service.recommend(**{**case, **more}) == gradest.recommend(**{**case, **more})
    measured = {"a": torch.tensor([[0.3, -1e-8]]), "draws": 20, "seed": 7, "bring": ["grad"], "evaluations": 4}
    loss = {"name": "polynomial", "power": 3.0, "target": 0.1}
    wanted = gradest.recommend(f=gradest.objective(loss), **measured)
    for sent in (loss, gradest.objective(loss)):
        assert service.recommend(objective=sent, **measured) == wanted
    with pytest.raises(InvalidInput, match="float32"):
        service.recommend(objective="quadratic", a=A.double())
    with pytest.raises(ServiceError, match="bring"):
        client.recommend(bring="loss")


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


def test_both_clients_have_the_same_methods():
    names = {name for name, value in inspect.getmembers(gradest.Client, inspect.isfunction) if name[0] != "_"}
    calls = {"expect", "forward", "backward", *CALLS, "plugins", "version", "neuron", "neurons"}
    assert names >= calls | {"close"}
    for name in names:
        ours, theirs = getattr(gradest.Client, name), getattr(gradest.AsyncClient, name)
        assert inspect.signature(ours) == inspect.signature(theirs)
        assert ours.__doc__ == theirs.__doc__
        assert ours.__doc__
        assert ours.__name__ == name


def test_expect_has_the_library_s_signature():
    ours = inspect.signature(gradest.Client.expect).parameters
    theirs = inspect.signature(gradest.expect).parameters
    here_alone = LOSS_ALONE - {"flatten"}
    assert list(ours) == ["self", *(name for name in theirs if name not in here_alone)]
    assert {name: ours[name].default for name in ours if name != "self"} == {
        name: theirs[name].default for name in theirs if name not in here_alone
    }


def test_async_calls_run_side_by_side_and_are_the_library_s(client):
    async def main():
        async with gradest.AsyncClient(client.url) as remote:
            drawn = remote.forward("bernoulli", "disarm", A, seed=3)
            samples = [remote.sample("noisy_rectifier", A, 3, seed=seed) for seed in range(20)]
            a = A.clone().requires_grad_()
            value = remote.expect(lambda h: (h**2).sum(-1), a, estimator="disarm", seed=3)
            table = remote.compare("quadratic", A, estimators=["rloo"], draws=10, seed=1)
            mean = remote.mean("noisy_rectifier", A)
            estimated = remote.estimate("linear", A, draws=5, seed=1)
            found = await asyncio.gather(drawn, value, estimated, table, mean, *samples)
            found[1][0].sum().backward()
            return a.grad, *found

    grad, draw, (value, state), estimate, table, mean, *samples = asyncio.run(main())
    assert torch.equal(mean.mean, gradest.neuron("noisy_rectifier").mean(A))
    a = A.clone().requires_grad_()
    wanted, _ = gradest.expect(lambda h: (h**2).sum(-1), a, estimator="disarm", seed=3)
    wanted.sum().backward()
    assert torch.equal(value, wanted)
    assert torch.equal(grad, a.grad)
    assert state == {}
    assert draw.points.shape == (2, 1, 2)
    assert torch.equal(estimate.gradient, gradest.estimate(gradest.objective("linear"), A, draws=5, seed=1).gradient)
    assert [row.estimator for row in table.rows] == ["rloo"]
    for seed, h in enumerate(samples):
        assert torch.equal(h, gradest.sample("noisy_rectifier", A, 3, seed=seed))


def test_connections_are_kept(client):
    for seed in range(5):
        client.sample("bernoulli", A, seed=seed)
    assert len(client._connected()._transport._pool.connections) == 1


@pytest.mark.parametrize(
    ("f", "match"),
    [(lambda h: h.sum(), "to losses"), (lambda h: 1.0, "float"), (lambda h: h.sum(-1).repeat(2, 1), "losses")],
)
def test_a_loss_of_another_shape_is_refused_here(client, f, match):
    with pytest.raises((InvalidInput, ServiceError), match=match):
        client.expect(f, A, seed=1)


def test_a_checkpoint_has_the_gradient_of_no_checkpoint(client):
    """The state that the caller keeps has moved when the checkpoint runs the call again; the gradient was 0."""
    a, state = torch.tensor([[0.3, -1.0, 2.0]], requires_grad=True), None

    def f(h):
        return h.sum(-1).sub(0.7).square() + 2

    def step(a):
        nonlocal state
        value, state = client.expect(f, a * 1, estimator="reinforce_average", seed=3, state=state)
        return value

    checkpoint(step, a, use_reentrant=False).sum().backward()
    found, moved = a.grad, dict(state)
    a.grad = None
    value, right = gradest.expect(f, a, estimator="reinforce_average", seed=3)
    value.sum().backward()
    torch.testing.assert_close(found, a.grad)
    for name, x in right.items():
        torch.testing.assert_close(moved[name], x)


def test_the_seed_of_f_s_points_is_refused_in_f(client):
    a = torch.zeros(1, 2)

    def nested(seed):
        return client.expect(lambda h: client.expect(lambda g: g.sum(-1), h, seed=seed)[0], a, seed=5)

    with pytest.raises(InvalidInput, match="f draws from the seed 5"):
        nested(5)
    nested(6)
