"""How fast the service is, against plain FastAPI, LitServe, itself without batching, and under load.

Each server is a process of its own; the load comes from this one, over plain sockets with bodies made beforehand, so that it
costs the cores little. Nothing is asserted but that answers are right.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import torch

import gradest
from gradest.client.wire import SAFETENSORS, pack, unpack
from gradest.contract.estimator import Feedback
from gradest.estimation.ask_tell import ask, tell
from gradest.random import Key

from .harness import Bench

pytestmark = [pytest.mark.benchmark, pytest.mark.timeout(900)]

SECONDS = 3.0


class Server(NamedTuple):
    url: str
    pid: int

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self.url.removeprefix("http://").split(":")
        return await asyncio.open_connection(host, int(port))

    def memory(self) -> tuple[int, int]:
        """Its memory now, and the most that it ever was, in MB."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        found = {
            name: int(rest.split()[0]) // 1000
            for name, _, rest in (line.partition(":") for line in lines)
            if "kB" in rest
        }
        return found["VmRSS"], found["VmHWM"]


@contextmanager
def process(*arguments: str) -> Iterator[Server]:
    """A server in a process of its own, which prints its address when it accepts."""
    with subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL
    ) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        try:
            yield Server(line.rpartition(" ")[2].strip(), server.pid)
        finally:
            server.terminate()
            server.wait(60)


def gradest_server(**settings: object) -> AbstractContextManager[Server]:
    flags = [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name.replace('_', '-')}={value}"
        for name, value in settings.items()
    ]
    return process("-m", "gradest", "serve", "--port=0", "--log-level=warning", "--drain-seconds=0", *flags)


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
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Type: {media_type}", f"Accept: {media_type}"]
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


async def load(
    server: Server, requests: list[bytes], clients: int, seconds: float = SECONDS
) -> tuple[float, list[float]]:
    """Requests a second and the latency of each; every client sends the requests in turn on a connection of its own."""
    latencies: list[float] = []
    begin = time.perf_counter() + 0.5  # connections and caches are warm by then

    async def client() -> None:
        reader, writer = await server.connect()
        while (now := time.perf_counter()) < begin + seconds:
            for request in requests:
                status, body = await exchange(reader, writer, request)
                assert status == 200, body[:300]
            if now >= begin:
                latencies.append(time.perf_counter() - now)
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return len(latencies) * len(requests) / seconds, latencies


def measure(
    server: Server, requests: list[bytes], clients: int, seconds: float = SECONDS
) -> tuple[float, float, float]:
    """Requests a second, and the median and the 99th percentile of a round, in milliseconds."""
    rate, latencies = asyncio.run(load(server, requests, clients, seconds))
    return rate, *percentiles(latencies)


def percentiles(seconds: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    ordered = sorted(seconds)
    return 1e3 * statistics.median(ordered), 1e3 * ordered[int(0.99 * (len(ordered) - 1))]


Figures = dict[str, list[tuple[float, float, float]]]
"""What `measure` found, round by round, of each contender."""


def keep(bench: Bench, title: str, found: Figures, at_least: dict[str, float]) -> None:
    """The rates, compared; and the latencies."""
    rates = {name: [rate for rate, _, _ in figures] for name, figures in found.items()}
    bench.compare(title, rates, unit="requests/s", more_is_better=True, at_least=at_least)
    for place, what in ((1, "median"), (2, "p99")):
        for name, figures in found.items():
            bench.bound(f"{title}: {what} latency", name, "ms", [figure[place] for figure in figures])


def test_transport(bench: Bench) -> None:
    """256 x 1024 samples: safetensors against the bare transport, the call in process, and plain FastAPI over lists."""
    a, rounds, seconds = torch.randn(256, 1024), 3, 0.5 if bench.short else 2.0
    request = safetensors("/v1/sample", {"a": a}, neuron="bernoulli", seed=1)
    body = request.partition(b"\r\n\r\n")[2]
    call = bench.measure({"in process": lambda: gradest.sample("bernoulli", a, seed=1)}, rounds=9)["in process"]
    found: Figures = {"gradest, safetensors": [], "FastAPI, list[list[float]]": [], "a bare route, the same bodies": []}
    with gradest_server(max_body_bytes=1 << 24) as server:
        headers = {"Content-Type": SAFETENSORS, "Accept": SAFETENSORS}
        answer = httpx.post(f"{server.url}/v1/sample", content=body, headers=headers).content
        assert torch.equal(unpack(answer)[0]["h"].float(), gradest.sample("bernoulli", a, seed=1))
        with process("-c", textwrap.dedent(PLAIN), str(len(answer))) as plain:
            lists = message("/lists", json.dumps(a.tolist()).encode(), "application/json")
            for _ in range(rounds):
                for name, address, sent in (
                    ("gradest, safetensors", server, request),
                    ("FastAPI, list[list[float]]", plain, lists),
                    ("a bare route, the same bodies", plain, message("/echo", body, SAFETENSORS)),
                ):
                    found[name].append(measure(address, [sent], 1, seconds))
    title = "sample of 256 x 1024 over HTTP"
    keep(bench, title, found, {"FastAPI, list[list[float]]": 15})
    ours, floor = (found[name] for name in ("gradest, safetensors", "a bare route, the same bodies"))
    times = [mine[1] / (statistics.median(call) + bare[1]) for mine, bare in zip(ours, floor, strict=True)]
    bench.bound(f"{title}: latency", "relative to (in process + bare route)", "x", times, at_most=2)


def forward_and_backward() -> list[bytes]:
    a, fields = torch.randn(1, 200), {"neuron": "bernoulli", "estimator": "disarm", "seed": 5}
    return [
        safetensors("/v1/forward", {"a": a}, **fields),
        safetensors("/v1/backward", {"a": a, "loss": torch.tensor([[1.0], [2.0]])}, **fields),
    ]


def test_batching(bench: Bench) -> None:
    """64 clients, 1 x 200 pre-activations, disarm forward and backward: with batching and without."""
    found: Figures = {"batching": [], "no batching": []}
    with gradest_server(batching=True) as on, gradest_server(batching=False) as off:
        for _ in range(3):
            for name, server in (("batching", on), ("no batching", off)):
                found[name].append(measure(server, forward_and_backward(), 64, 1.0 if bench.short else SECONDS))
    keep(bench, "disarm, 1 x 200, 64 clients", found, {"no batching": 3})


LITSERVE = """
    import socket, sys
    import litserve, torch
    import gradest
    from gradest.contract.estimator import Feedback
    from gradest.estimation.ask_tell import ask, tell
    from gradest.random import Key

    NEURON, ESTIMATOR = gradest.neuron("bernoulli"), gradest.estimator("disarm")

    class Rows(litserve.LitAPI):
        def setup(self, device):
            torch.set_num_threads(1)

        def decode_request(self, request):
            return request

        def batch(self, requests):
            a = torch.tensor([request["a"] for request in requests])
            key = Key(torch.tensor([request["seed"] for request in requests]), torch.zeros(len(a), dtype=torch.int64))
            draw, state = ask(NEURON, ESTIMATOR, a, key)
            return draw, state, [request.get("loss") for request in requests]

        def unbatch(self, output):
            return output

        def encode_response(self, output):
            return output

    class Forward(Rows):
        def predict(self, batch):
            draw, _, _ = batch
            return [{"points": points.tolist()} for points in draw.points.unbind(1)]

    class Backward(Rows):
        def predict(self, batch):
            draw, state, losses = batch
            gradient, _ = tell(ESTIMATOR, draw, Feedback(torch.tensor(losses).T), state)
            return [{"gradient": row.tolist()} for row in gradient]

    if __name__ == "__main__":
        batching = {"max_batch_size": 64, "batch_timeout": 0.002}
        apis = [Forward(api_path="/forward", **batching), Backward(api_path="/backward", **batching)]
        server = litserve.LitServer(apis, accelerator="cpu", fast_queue=True)
        server.run(host="127.0.0.1", port=int(sys.argv[1]), num_api_servers=1, log_level="error", generate_client_file=False)
"""


@contextmanager
def litserve_server(folder: Path) -> Iterator[Server]:
    """LitServe with the same function and its own batching; its workers import the script, so it is a file."""
    (folder / "lit.py").write_text(textwrap.dedent(LITSERVE))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(
        [sys.executable, "lit.py", str(port)], cwd=folder, start_new_session=True, **silent
    ) as server:
        url = f"http://127.0.0.1:{port}"
        try:
            until = time.monotonic() + 60
            while True:
                try:
                    if httpx.get(f"{url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    assert time.monotonic() < until
                time.sleep(0.2)
            yield Server(url, server.pid)
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # with its workers


def test_litserve(bench: Bench, tmp_path: Path) -> None:
    """The same with LitServe, which takes JSON, beside this service with safetensors and with JSON."""
    pytest.importorskip("litserve", reason="make bench installs it")
    a = torch.randn(1, 200)
    key = Key(5)
    draw, state = ask(gradest.neuron("bernoulli"), gradest.estimator("disarm"), a, key)
    wanted, _ = tell(gradest.estimator("disarm"), draw, Feedback(torch.tensor([[1.0], [2.0]])), state)
    fields = {"neuron": "bernoulli", "estimator": "disarm", "seed": 5, "a": a.tolist()}
    ours = [
        message("/v1/forward", json.dumps(fields).encode(), "application/json"),
        message("/v1/backward", json.dumps({**fields, "loss": [[1.0], [2.0]]}).encode(), "application/json"),
    ]
    theirs = [
        message("/forward", json.dumps({"a": a[0].tolist(), "seed": 5}).encode(), "application/json"),
        message("/backward", json.dumps({"a": a[0].tolist(), "seed": 5, "loss": [1, 2]}).encode(), "application/json"),
    ]
    found: Figures = {name: [] for name in ("gradest, safetensors", "gradest, JSON", "LitServe, JSON")}
    with gradest_server() as server, litserve_server(tmp_path) as lit:
        answer = httpx.post(f"{lit.url}/backward", content=theirs[1].partition(b"\r\n\r\n")[2]).json()
        assert torch.equal(torch.tensor([answer["gradient"]]), wanted)
        for _ in range(3):
            for name, address, requests in (
                ("gradest, safetensors", server, forward_and_backward()),
                ("gradest, JSON", server, ours),
                ("LitServe, JSON", lit, theirs),
            ):
                found[name].append(measure(address, requests, 64, 1.0 if bench.short else SECONDS))
    keep(bench, "disarm, 1 x 200, 64 clients, LitServe", found, {"LitServe, JSON": 2})


def test_load(bench: Bench) -> None:
    """Requests a second against the number of clients, and with two worker processes."""
    skip_if_short(bench)
    requests = forward_and_backward()
    with gradest_server(max_requests=1024) as one, gradest_server(max_requests=1024, workers=2) as two:
        for clients in (1, 8, 64, 256):
            found: Figures = {"2 workers": [], "1 worker": []}
            for _ in range(2):
                for name, server in (("2 workers", two), ("1 worker", one)):
                    found[name].append(measure(server, requests, clients))
            keep(bench, f"disarm, 1 x 200, {clients} clients, workers", found, {})


def test_ping_under_a_flood(bench: Bench) -> None:
    """/livez while eight clients send bodies of 1 MiB."""
    skip_if_short(bench)
    flood = safetensors("/v1/sample", {"a": torch.randn(256, 1024)}, neuron="bernoulli", seed=1)
    ping = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

    async def both(server: Server) -> list[float]:
        _, (_, latencies) = await asyncio.gather(load(server, [flood], 8), load(server, [ping], 1))
        return latencies

    with gradest_server() as server:
        calm = asyncio.run(load(server, [ping], 1))[1]
        busy = asyncio.run(both(server))
    for name, found in (("idle", calm), ("under a flood of 1 MiB bodies", busy)):
        bench.bound("/livez, p99", name, "ms", [percentiles(found)[1]])


def skip_if_short(bench: Bench) -> None:
    if bench.short:
        pytest.skip("the short form has less of the service")


def test_overload(bench: Bench) -> None:
    """56 clients with bodies of 16 MiB, as many elements as a tensor may have by default, at a service that holds 8 requests, or
    256 MiB of bodies: how soon a small request on a connection that is kept is refused meanwhile, and the memory.
    """
    skip_if_short(bench)
    request = safetensors("/v1/sample", {"a": torch.randn(1024, 4096)}, neuron="bernoulli", seed=1)
    head, _, body = request.partition(b"\r\n\r\n")
    head += b"\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    seconds = 2 * SECONDS

    async def status_of(reader: asyncio.StreamReader) -> int:
        return int((await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1])

    async def flood(server: Server) -> list[int]:
        statuses, end = [], time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                reader, writer = await server.connect()
                writer.write(head)
                status = await status_of(reader)
                if status == 100:  # it is let in
                    writer.write(body)
                    status = await status_of(reader)
                statuses.append(status)
                writer.close()
                if status == 429:
                    await asyncio.sleep(0.1)

        await asyncio.gather(*(client() for _ in range(56)))
        return statuses

    async def probe(server: Server) -> list[float]:
        reader, writer = await server.connect()
        found, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            status, _ = await exchange(reader, writer, forward_and_backward()[0])
            if status == 429:
                found.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)
        writer.close()
        return found

    for name, settings in (("8 requests", {"max_requests": 8}), ("256 MiB of bodies", {"max_requests": 1024})):
        with gradest_server(**settings) as server, ThreadPoolExecutor(1) as thread:
            measure(server, forward_and_backward(), 1, 1.0)
            before, _ = server.memory()
            refusals = thread.submit(asyncio.run, probe(server))
            statuses = asyncio.run(flood(server))
            _, peak = server.memory()
        assert set(statuses) == {200, 429}
        title = f"a flood of 16 MiB bodies, limit of {name}"
        bench.bound(title, "answered", "", [statuses.count(200)])
        bench.bound(title, "refused", "", [statuses.count(429)])
        bench.bound(title, "memory before", "MB", [before])
        bench.bound(title, "peak memory", "MB", [peak])
        if refusals.result():
            for what, figure in zip(("median", "p99"), percentiles(refusals.result()), strict=True):
                bench.bound(title, f"refusal of a small request, {what}", "ms", [figure], at_most=50)
