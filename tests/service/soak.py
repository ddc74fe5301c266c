"""Trains and samples through many clients while workers are killed, and checks every answer against the local bits.

    python tests/service/soak.py --seconds 600 --clients 32

Only workers of the service that the script itself has started are killed. It fails if an answer is wrong, if a request is lost
although its client sends it again, or if the memory of the service grows.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import gradest

sys.path.insert(0, str(Path(__file__).parents[2]))  # as a script it finds the other files of tests, too

from tests.service.overload import megabytes, serving

_LEAST_SHARE = 0.3  # of the run, after which memory counts: before it, plugins are loaded and kernels compiled
MOST_GROWTH = 1.2


@dataclass
class Soaked:
    """What a run has shown."""

    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    killed: int = 0
    megabytes: list[int] = field(default_factory=list)

    @property
    def growth(self) -> float:
        """The memory of the last quarter of the run over that of the quarter before the middle; medians, as workers restart."""
        n = len(self.megabytes)
        early = self.megabytes[int(_LEAST_SHARE * n) : int((_LEAST_SHARE + 0.25) * n)]
        return statistics.median(self.megabytes[3 * n // 4 :]) / statistics.median(early)

    def __str__(self) -> str:
        return (
            f"{sum(self.answers.values())} answers, all with the local bits unless listed: {dict(self.answers)}; "
            f"{self.killed} workers killed; {len(self.faults)} faults; memory {max(self.megabytes)} MB at most, "
            f"grown by the factor {self.growth:.2f}; load {os.getloadavg()[0]:.1f}"
            + "".join(f"\n{x}" for x in self.faults[:20])
        )


@dataclass(frozen=True)
class _Question:
    """A request by the client, and what the library answers to it."""

    what: str
    ask: Callable[[Any], Mapping[str, torch.Tensor]]
    expected: Mapping[str, torch.Tensor]


def soak(seconds: float, clients: int = 32, kill_every: float = 20.0, workers: int = 2) -> Soaked:
    """Send requests from so many clients for a time, and kill a worker now and then."""
    soaked, stop, questions = Soaked(), threading.Event(), _questions()
    began = time.monotonic()
    with serving("--workers", str(workers)) as (pid, url):
        # a replacement must have started before the next worker is killed, or there may be none
        kill_every = max(kill_every, 1.5 * (time.monotonic() - began))
        threads = [threading.Thread(target=_ask, args=(url, questions, soaked, stop, n)) for n in range(clients)]
        threads += [threading.Thread(target=_kill, args=(pid, kill_every, soaked, stop))]
        threads += [threading.Thread(target=_watch, args=(pid, soaked, stop))]
        for thread in threads:
            thread.start()
        stop.wait(seconds)
        stop.set()
        for thread in threads:
            thread.join()
    return soaked


def _questions() -> list[_Question]:
    """Return requests of every route whose answer is the same every time, with the answers of the library."""
    found = []
    for seed, (neuron, estimator) in enumerate(
        [
            ("bernoulli", "rloo"),
            ("bernoulli", "arm"),
            ("gaussian", "pathwise"),
            ("categorical", "rloo"),
            ("poisson", "rloo"),
        ]
    ):
        event = gradest.registry.neurons[neuron].example_events[0]
        a = torch.linspace(-1, 1, 3 * torch.Size(event).numel()).reshape(3, *event)
        f = gradest.objective("linear", event_ndim=len(event))
        found += [_of_sample(neuron, a, seed), _of_mean(neuron, a), _of_estimate(f, neuron, estimator, a, seed)]
        found.append(_of_gradient(neuron, estimator, a, seed))
    return found


def _of_sample(neuron: str, a: torch.Tensor, seed: int) -> _Question:
    wanted = gradest.sample(neuron, a, samples=5, seed=seed)
    return _Question(
        f"sample {neuron}",
        lambda client: {"h": client.sample(neuron, a, samples=5, seed=seed).to(a.dtype)},
        {"h": wanted},
    )


def _of_mean(neuron: str, a: torch.Tensor) -> _Question:
    wanted = gradest.neuron(neuron).mean(a)
    return _Question(f"mean {neuron}", lambda client: {"mean": client.mean(neuron, a).mean}, {"mean": wanted})


def _of_estimate(f: Any, neuron: str, estimator: str, a: torch.Tensor, seed: int) -> _Question:
    wanted = gradest.estimate(f, a, neuron, estimator, draws=50, seed=seed)
    return _Question(
        f"estimate {neuron}",
        lambda client: {"gradient": client.estimate(f, a, neuron, estimator, draws=50, seed=seed).gradient},
        {"gradient": wanted.gradient},
    )


def _of_gradient(neuron: str, estimator: str, a: torch.Tensor, seed: int) -> _Question:
    """The gradient through the service: two requests, between which the worker of the first may be killed."""

    def loss(h: torch.Tensor) -> torch.Tensor:
        return h.sum(tuple(range(2, h.ndim)))

    def through(expect: Callable[..., Any]) -> Mapping[str, torch.Tensor]:
        leaf = a.clone().requires_grad_()
        value, _ = expect(loss, leaf, neuron, estimator, seed=seed)
        value.sum().backward()
        assert leaf.grad is not None
        return {"value": value.detach(), "gradient": leaf.grad}

    return _Question(f"gradient {estimator}", lambda client: through(client.expect), through(gradest.expect))


def _ask(url: str, questions: Sequence[_Question], soaked: Soaked, stop: threading.Event, number: int) -> None:
    turns = random.Random(number)
    with gradest.Client(url, timeout=120) as client:
        while not stop.is_set():
            question = turns.choice(questions)
            try:
                found = question.ask(client)
            except Exception as error:
                soaked.faults.append(f"{question.what}: {error!r}")
                continue
            wrong = [name for name, wanted in question.expected.items() if not torch.equal(found[name], wanted)]
            soaked.answers[question.what] += 1
            if wrong:
                soaked.faults.append(f"{question.what}: other bits in {', '.join(wrong)}")


def _kill(supervisor: int, every: float, soaked: Soaked, stop: threading.Event) -> None:
    while not stop.wait(every):
        workers = _workers(supervisor)
        if len(workers) > 1:  # else one is being replaced
            os.kill(random.Random(soaked.killed).choice(workers), signal.SIGKILL)
            soaked.killed += 1


def _workers(supervisor: int) -> list[int]:
    """Return the children of the service that serve, and not what multiprocessing keeps beside them."""
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _watch(pid: int, soaked: Soaked, stop: threading.Event) -> None:
    while not stop.wait(0.2):
        soaked.megabytes.append(megabytes(pid))


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--kill-every", type=float, default=20)
    given = parser.parse_args()
    soaked = soak(given.seconds, given.clients, given.kill_every)
    print(soaked)
    raise SystemExit(1 if soaked.faults or soaked.growth > MOST_GROWTH else 0)


if __name__ == "__main__":
    main()
