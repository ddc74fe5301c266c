"""A client whose service follows a script, for tests in which time does not really pass."""

import asyncio
import dataclasses
import inspect
import json

import httpx
import torch

import gradest
from gradest.analysis.results import ComparisonRow
from gradest.client.wire import pack

A = torch.tensor([[0.5, -1.0]])
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


def of_service(client, service):
    """What a real service answers to the last request."""
    asked = service.requests[-1]
    headers = {name: asked.headers[name] for name in ("content-type", "accept")}
    found = httpx.post(client.url + asked.url.path, content=asked.content, headers=headers, timeout=60)
    return httpx.Response(200, content=found.content, headers={"Content-Type": found.headers["content-type"]})
