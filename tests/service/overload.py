"""Sends the worst legal requests to a service of default limits, and measures what it holds and how late it answers.

    python tests/service/overload.py --seconds 300
    python tests/service/overload.py --all

The requests are shuffled, so that a short run has some of all kinds; with `--all` each is sent once, which takes half an hour.
It fails if the memory of the service and its children passes 2 GB, or if an answer is more than half a second past its deadline.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import queue
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from gradest_service.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script it finds the other files of tests, too

from tests.service.worst_requests import WorstRequest, WorstRequests

MOST_MEGABYTES = 2048
MOST_SECONDS_LATE = 0.5
_STREAM = "text/event-stream"


@dataclass
class Measured:
    """What a run has shown."""

    megabytes: int = 0
    """The most memory that the service and its children had at once."""
    in_progress: dict[int, str] = field(default_factory=dict)
    """The request of each client."""
    at_most: list[str] = field(default_factory=list)
    """The requests in progress when the memory was the most."""
    late: float = 0.0
    latest: str = ""
    """The request that was answered the most seconds past its deadline."""
    statuses: Counter[str] = field(default_factory=Counter)
    routes: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"peak {self.megabytes} MB ({'; '.join(self.at_most)}); "
            f"latest answer {self.late:+.2f} s from its deadline ({self.latest}); "
            f"{sum(self.statuses.values())} requests: {dict(self.statuses)}; {dict(self.routes)}; load {os.getloadavg()[0]:.1f}"
            + "".join(f"\n{fault}" for fault in self.faults[:20])
        )


@contextmanager
def serving(*flags: str) -> Iterator[tuple[int, str]]:
    """Run `gradest serve`; yields its process id and its URL."""
    command = [sys.executable, "-m", "gradest", "serve", "--port", "0", "--log-level", "error", *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().rpartition(" ")[2].strip()
            assert url
            yield process.pid, url
        finally:
            process.kill()


def megabytes(pid: int, of_parent: bytes = b"") -> int:
    """Return the memory of a process and its children, in MB.

    A child with the command line of its parent has not begun its own program yet, and so shares the memory of its parent.
    """
    total = 0
    with suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        if command == of_parent:
            return 0
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) // 1024 if found else 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(megabytes(int(child), command) for child in (task / "children").read_text().split())
    return total


def overload(
    seconds: float = math.inf, clients: int = 8, flags: Sequence[str] = (), deadline: float = 60.0, seed: int = 0
) -> Measured:
    """Send the worst requests from several clients for a time, but each once at most."""
    measured, stop = Measured(), threading.Event()
    requests: queue.Queue[WorstRequest] = queue.Queue(2)
    with serving(*flags, "--deadline-seconds", str(deadline)) as (pid, url):
        threads = [threading.Thread(target=_produce, args=(requests, stop, seed))]
        threads += [threading.Thread(target=_watch, args=(pid, measured, stop))]
        threads += [
            threading.Thread(target=_ask, args=(url, requests, measured, stop, deadline)) for _ in range(clients)
        ]
        for thread in threads:
            thread.start()
        stop.wait(min(seconds, threading.TIMEOUT_MAX))
        stop.set()
        for thread in threads:
            thread.join()
        assert httpx.get(f"{url}/livez", timeout=10).status_code == 200
    return measured


def _produce(requests: queue.Queue[WorstRequest], stop: threading.Event, seed: int) -> None:
    """Hand out the requests; the run is over when all have been taken."""
    for request in WorstRequests(Settings(), order=random.Random(seed)):
        while not stop.is_set():
            with suppress(queue.Full):
                requests.put(request, timeout=0.2)
                break
        if stop.is_set():
            return
    while not requests.empty() and not stop.wait(0.2):
        pass
    stop.set()


def _watch(pid: int, measured: Measured, stop: threading.Event) -> None:
    while not stop.wait(0.02):
        found = megabytes(pid)
        if found > measured.megabytes:
            measured.megabytes, measured.at_most = found, list(measured.in_progress.values())


def _ask(
    url: str, requests: queue.Queue[WorstRequest], measured: Measured, stop: threading.Event, deadline: float
) -> None:
    with httpx.Client(base_url=url, timeout=deadline + 30) as client:
        for turn in itertools.count():
            request = None
            while request is None and not stop.is_set():
                with suppress(queue.Empty):
                    request = requests.get(timeout=0.2)
            if request is None:
                return
            body, headers = request.body(), request.headers
            if turn % 3 == 2 and request.path in ("/v1/estimate", "/v1/compare"):
                headers = {**headers, "Accept": _STREAM}
            _note(client, request, body, headers, measured, deadline)


def _note(
    client: httpx.Client,
    request: WorstRequest,
    body: bytes,
    headers: dict[str, str],
    measured: Measured,
    deadline: float,
) -> None:
    began = time.monotonic()
    measured.in_progress[threading.get_ident()] = f"{request.path} {request.what}"
    try:
        status = str(client.post(request.path, content=body, headers=headers).status_code)
    except httpx.RemoteProtocolError:
        status = "cut"  # as an answer is that is not complete at the deadline
    late = time.monotonic() - began - deadline
    if status == "cut" and late < -MOST_SECONDS_LATE:
        measured.faults.append(f"{request.path} {request.what}: cut {-late:.1f} s before its deadline")
    measured.statuses[status] += 1
    measured.routes[request.path] += 1
    if status.startswith("5") and status not in ("503", "504"):
        measured.faults.append(f"{request.path} {request.what}: {status}")
    if not measured.latest or late > measured.late:
        measured.late, measured.latest = late, f"{request.path} {request.what}, {status}"


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--all", action="store_const", dest="seconds", const=math.inf)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--deadline", type=float, default=60)
    given = parser.parse_args()
    measured = overload(given.seconds, given.clients, deadline=given.deadline, seed=given.seed)
    print(measured)
    failed = measured.megabytes > MOST_MEGABYTES or measured.late > MOST_SECONDS_LATE or measured.faults
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
