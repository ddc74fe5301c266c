"""Services that drip, restart, are absent, or answer as no gradest service does: how the client ends, and what it says."""

import asyncio
import gzip
import json
import math
import socket
import threading
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
import torch

import gradest
from gradest.errors import ServiceError
from gradest_service.app import running
from gradest_service.settings import Settings

A = torch.tensor([[0.5, -1.0]])


# --- the timeout is for the whole ---


@contextmanager
def dripping():
    """A server that sends a header every twentieth of a second, and never an end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        stop = threading.Event()

        def drip(connection):
            with connection, suppress(OSError):  # the client goes
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\n")
                while not stop.wait(0.05):
                    connection.sendall(b"X-Drip: 1\r\n")

        def accept():
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            stop.set()
            listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("kind", [gradest.Client, gradest.AsyncClient])
def test_headers_that_drip_end_at_the_timeout(kind):
    with dripping() as url:
        client, began = kind(url, timeout=0.4), time.monotonic()
        with pytest.raises(ServiceError, match=r"No response: http://127\.0\.0\.1.*(timed out|timeout)"):
            client.version() if kind is gradest.Client else asyncio.run(client.version())
        assert 0.3 < time.monotonic() - began < 3


# --- answers of another kind than a service's ---

CALLS = {
    "neurons": (),
    "neuron": ("bernoulli",),
    "version": (),
    "sample": ("bernoulli", A),
    "mean": ("bernoulli", A),
    "forward": ("bernoulli", "rloo", A),
    "credit": ("rloo", A),
    "estimate": ("linear", A),
    "compare": ("linear", A),
    "recommend": (),
}
BODIES = [b"[]", b"[1]", b'[{"x": 1}]', b"1", b"null", b'"text"', b"{}", b'{"tensors": []}', b"[[]]"]
BODIES += [
    json.dumps(
        dict.fromkeys(["h", "mean", "active_probability", "points", "weights", "state", "needs", "seed"], found)
    ).encode()
    for found in ([1], "text")
]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.decode()[:15])
def test_an_answer_of_another_kind_is_no_service_s(body):
    def answer(request):
        return httpx.Response(200, content=body, headers={"Content-Type": "application/json"})

    client = gradest.Client("http://service", http_transport=httpx.MockTransport(answer))
    for name, args in CALLS.items():
        whole = (name == "neurons" and body == b"[]") or (name in ("neuron", "version") and body[:1] == b"{")
        if whole and body != b'{"tensors": []}':
            getattr(client, name)(*args)
        else:
            with pytest.raises(ServiceError, match="Not a gradest service"):
                getattr(client, name)(*args)


@pytest.mark.parametrize("kind", [gradest.Client, gradest.AsyncClient])
def test_a_service_that_restarts_is_waited_for(kind):
    """Between forward and backward, say: as long as start_timeout says, whatever the number of retries."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    service = []

    def start():
        time.sleep(2)
        service.append(running(Settings(port=port)))
        service[0].__enter__()

    starting = threading.Thread(target=start)
    starting.start()
    try:
        client = kind(f"http://127.0.0.1:{port}", retries=1)
        if kind is gradest.Client:
            with client:
                assert client.version()["gradest"]
        else:

            async def ask():
                async with client:
                    return await client.version()

            assert asyncio.run(ask())["gradest"]
    finally:
        starting.join()
        service[0].__exit__(None, None, None)


@pytest.mark.parametrize(
    ("options", "least", "most"), [({"start_timeout": 1}, 1, 8), ({"retries": 0}, 0, 1), ({"start_timeout": 0}, 0, 1)]
)
def test_a_service_that_is_not_there_is_given_up(options, least, most):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    slept = []
    client = gradest.Client(f"http://127.0.0.1:{port}", **options)
    client._sleep = lambda seconds: slept.append(seconds) or time.sleep(seconds)
    awaited = r"Is the service running there\? Its start is awaited for start_timeout=\d+ seconds"
    with pytest.raises(ServiceError, match=awaited):
        client.version()
    assert least <= math.ceil(sum(slept)) <= most


def test_a_compressed_answer_is_not_inflated():
    """A few kilobytes could become gigabytes."""
    bomb = gzip.compress(bytes(1 << 24))
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    asked = []

    def answer(request):
        asked.append(request.headers["accept-encoding"])
        return httpx.Response(200, headers=headers, stream=httpx.ByteStream(bomb))

    client = gradest.Client("http://service", http_transport=httpx.MockTransport(answer))
    with pytest.raises(ServiceError, match="compressed"):
        client.version()
    assert asked == ["identity"]
