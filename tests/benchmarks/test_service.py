"""How fast the service is, as ratios within one run: `make bench`, or `pytest -m benchmark -s tests/benchmarks/test_service.py`.

Each server is a process of its own; the load comes from this one, over plain sockets with bodies made beforehand, so that it
costs the cores little. Nothing is asserted but that answers are right.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
import torch

import gradest
from gradest.wire import SAFETENSORS, pack, unpack

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

SECONDS = 3.0


@contextmanager
def process(*arguments: str) -> Iterator[str]:
    """A server in a process of its own, which prints its address when it accepts."""
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        try:
            yield line.rpartition(" ")[2].strip()
        finally:
            server.terminate()
            server.wait(60)


@contextmanager
def gradest_server(**settings: object) -> Iterator[str]:
    flags = [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name.replace('_', '-')}={value}"
        for name, value in settings.items()
    ]
    with process("-m", "gradest", "serve", "--port=0", "--log-level=warning", "--drain-seconds=0", *flags) as url:
        yield url


PLAIN = """
    import socket, sys
    import uvicorn, torch
    from fastapi import FastAPI, Request, Response
    app = FastAPI()

    @app.post("/echo")
    async def echo(request: Request):
        body = await request.body()
        return Response(ANSWER, media_type="application/octet-stream")

    @app.post("/lists")
    def lists(a: list[list[float]]) -> list[list[float]]:
        return torch.bernoulli(torch.sigmoid(torch.tensor(a))).tolist()

    ANSWER = bytes(int(sys.argv[1]))
    listener = socket.socket(); listener.bind(("127.0.0.1", 0)); listener.listen(512)
    print("listening on", f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="critical")).run([listener])
"""


def message(path: str, body: bytes, media_type: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {media_type}", f"Accept: {media_type}"]
    head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
    return head.encode() + body


def safetensors(path: str, tensors: dict[str, torch.Tensor], **fields: object) -> bytes:
    return message(path, pack(tensors, {"request": json.dumps(fields)}), SAFETENSORS)


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])
    return int(head.split(b" ", 2)[1]), await reader.readexactly(length)


async def load(url: str, requests: list[bytes], clients: int, seconds: float = SECONDS) -> tuple[float, list[float]]:
    """Requests a second and the latency of each; every client sends the requests in turn on a connection of its own."""
    host, port = url.removeprefix("http://").split(":")
    latencies: list[float] = []
    begin = time.perf_counter() + 0.5  # connections and caches are warm by then

    async def client() -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        while (now := time.perf_counter()) < begin + seconds:
            for request in requests:
                status, body = await exchange(reader, writer, request)
                assert status == 200, body[:300]
            if now >= begin:
                latencies.append(time.perf_counter() - now)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(latencies) * len(requests) / seconds, latencies


def measure(url: str, requests: list[bytes], clients: int) -> tuple[float, float, float]:
    """Requests a second, and the median and the 99th percentile of a round, in milliseconds."""
    rate, latencies = asyncio.run(load(url, requests, clients))
    ordered = sorted(latencies)
    return rate, 1e3 * statistics.median(ordered), 1e3 * ordered[int(0.99 * (len(ordered) - 1))]


def show(title: str, rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{title}")
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def test_transport() -> None:
    """256 x 1024 samples: safetensors against the bare transport, the call in process, and plain FastAPI over lists."""
    a = torch.randn(256, 1024)
    gradest.sample("bernoulli", a, seed=0)  # kernels are compiled at their first use
    began, calls = time.perf_counter(), 0
    while time.perf_counter() < began + SECONDS:
        gradest.sample("bernoulli", a, seed=calls)
        calls += 1
    call = 1e3 * SECONDS / calls
    request = safetensors("/v1/sample", {"a": a}, neuron="bernoulli", seed=1)
    rows = [("what", "requests/s", "median ms", "p99 ms")]

    def row(name: str, figures: tuple[float, float, float]) -> tuple[float, float, float]:
        rows.append((name, *(f"{figure:.1f}" for figure in figures)))
        return figures

    with gradest_server(max_body_bytes=1 << 24) as url:
        ours = row("gradest, safetensors", measure(url, [request], 1))
        answer = httpx.post(
            f"{url}/v1/sample",
            content=request.partition(b"\r\n\r\n")[2],
            headers={"Content-Type": SAFETENSORS, "Accept": SAFETENSORS},
        ).content
        assert torch.equal(unpack(answer)[0]["h"].float(), gradest.sample("bernoulli", a, seed=1))
    with process("-c", textwrap.dedent(PLAIN), str(len(answer))) as url:
        floor = row(
            "bare route, same bodies",
            measure(url, [message("/echo", request.partition(b"\r\n\r\n")[2], SAFETENSORS)], 1),
        )
        lists = row(
            "FastAPI, list[list[float]]",
            measure(url, [message("/lists", json.dumps(a.tolist()).encode(), "application/json")], 1),
        )
    show("sample of 256 x 1024", rows)
    print(f"  in process: {call:.1f} ms; ours / (in process + bare route) = {ours[1] / (call + floor[1]):.2f}")
    print(f"  requests/s over plain FastAPI: {ours[0] / lists[0]:.1f}")


def forward_and_backward() -> list[bytes]:
    a, fields = torch.randn(1, 200), {"neuron": "bernoulli", "estimator": "disarm", "seed": 5}
    return [
        safetensors("/v1/forward", {"a": a}, **fields),
        safetensors("/v1/backward", {"a": a, "loss": torch.tensor([[1.0], [2.0]])}, **fields),
    ]


def test_batching() -> None:
    """64 clients, 1 x 200 pre-activations, disarm forward and backward: with batching and without."""
    requests = forward_and_backward()
    rows, rates = [("batching", "requests/s", "median ms", "p99 ms")], {}
    for batching in (True, False, True, False):
        with gradest_server(batching=batching) as url:
            figures = measure(url, requests, 64)
        rates.setdefault(batching, []).append(figures[0])
        rows.append((str(batching), *(f"{figure:.1f}" for figure in figures)))
    show("disarm, 64 clients", rows)
    print(f"  with batching over without: {max(rates[True]) / max(rates[False]):.2f}")


def test_load() -> None:
    """Requests a second against the number of clients, and with two worker processes."""
    requests = forward_and_backward()
    rows = [("workers", "clients", "requests/s", "median ms", "p99 ms")]
    for workers in (1, 2):
        with gradest_server(workers=workers, max_requests=1024) as url:
            for clients in (1, 8, 64, 256):
                rows.append((str(workers), str(clients), *(f"{x:.1f}" for x in measure(url, requests, clients))))
    show("disarm, by load", rows)


def test_ping_under_a_flood() -> None:
    """/livez while eight clients send bodies of 1 MiB, and the peak memory of the process."""
    flood = safetensors("/v1/sample", {"a": torch.randn(256, 1024)}, neuron="bernoulli", seed=1)
    ping = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"

    async def both(url: str) -> list[float]:
        _, (_, latencies) = await asyncio.gather(load(url, [flood], 8), load(url, [ping], 1))
        return sorted(latencies)

    with gradest_server(max_body_bytes=1 << 24) as url:
        calm = sorted(asyncio.run(load(url, [ping], 1))[1])
        busy = asyncio.run(both(url))
    rows = [("", "median ms", "p99 ms")]
    for name, found in (("calm", calm), ("under the flood", busy)):
        rows.append((name, f"{1e3 * statistics.median(found):.2f}", f"{1e3 * found[int(0.99 * (len(found) - 1))]:.2f}"))
    show("/livez", rows)
