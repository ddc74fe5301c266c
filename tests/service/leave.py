"""Sends the worst legal requests to a service of default limits and leaves; measures how long their work goes on.

    python tests/service/leave.py --seconds 300 --share 0.2

They come in random order, so that a run of a few minutes has some of every neuron and estimator. Each is sent, and its connection
is closed after a moment. It fails if a request is still in progress half a second later by the clock, and has taken half a second
of the processor since then: on a machine that is shared the clock alone says little. With GRADEST_KERNELS=reference no request
waits for a kernel to be compiled, which nothing stops.
"""

from __future__ import annotations

import argparse
import math
import random
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from gradest_service.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script it finds the other files of tests, too

from tests.service.overload import serving
from tests.service.worst_requests import WorstRequest, WorstRequests

MOST_SECONDS = 0.5
_MOMENT = 0.3  # seconds from the request to the end of its connection
_GAUGE = "gradest_requests_in_progress "


@dataclass(frozen=True)
class Left:
    """How long the work of one request went on without its client, by the clock and by the processor's time."""

    what: str
    wall: float
    cpu: float

    @property
    def too_long(self) -> bool:
        """Whether it went on for too long by both clocks."""
        return min(self.wall, self.cpu) > MOST_SECONDS

    def __str__(self) -> str:
        return f"{self.wall:.2f} s, {self.cpu:.2f} s of the processor: {self.what}"


def leave(seconds: float, share: float, seed: int) -> Iterator[Left]:
    """Send a random share of the worst requests for a time, and yield those whose work had not ended when the client left."""
    until = time.monotonic() + seconds
    with serving() as (pid, url), httpx.Client(base_url=url, timeout=60) as client:
        _wait_until_loaded(pid)
        for request in WorstRequests(Settings(), random.Random(seed), share, until):
            if (found := _leave_one(client, pid, request)) is not None:
                yield found


def _leave_one(client: httpx.Client, pid: int, request: WorstRequest) -> Left | None:
    body = request.body()
    lines = {**request.headers, "Host": "localhost", "Content-Length": str(len(body))}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(f"POST {request.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
        time.sleep(_MOMENT)
        busy = _in_progress(client)
    began, cpu = time.monotonic(), _processor_seconds(pid)
    if not busy:
        return None
    while _in_progress(client):
        time.sleep(0.01)
    return Left(f"{request.path} {request.what}", time.monotonic() - began, _processor_seconds(pid) - cpu)


def _wait_until_loaded(pid: int) -> None:
    """Wait until the service has loaded what it loads in advance, which would count as a request's work."""
    before = -math.inf
    while (now := _processor_seconds(pid)) > before + 0.02:
        before = now
        time.sleep(0.3)


def _in_progress(client: httpx.Client) -> bool:
    """Tell whether a request is in progress beside the one that asks."""
    lines = client.get("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(_GAUGE)).removeprefix(_GAUGE)) > 1


def _processor_seconds(pid: int) -> float:
    return time.clock_gettime((~pid << 3) | 2)  # Linux's clock of a process, as clock_getcpuclockid(3) names it


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--share", type=float, default=1.0, help="of the worst requests, chosen at random")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = []
    for left in leave(given.seconds, given.share, given.seed):
        found.append(left)
        if left.wall > MOST_SECONDS:
            print(left, flush=True)
    if found:
        print(f"{len(found)} requests; longest by the clock {max(found, key=lambda left: left.wall)}")
        print(f"longest by the processor {max(found, key=lambda left: left.cpu)}")
    raise SystemExit(1 if not found or any(left.too_long for left in found) else 0)


if __name__ == "__main__":
    main()
