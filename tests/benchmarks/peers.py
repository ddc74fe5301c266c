"""The problem on which gradients are compared, and how other libraries solve it, each in a process of its own.

storchastic replaces methods of torch.Tensor when it is imported, and Pyro some of torch.distributions: timed beside them in one
process, everybody would pay for that. This file is what such a process runs, and what talks to it.

The problem: 64 x 200 Bernoulli units with logits `a`; the mean over the batch of Σ_i (h_i - 0.2)²; K = 2 points.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

BATCH, UNITS, TARGET = 64, 200, 0.2
Gradient = Callable[[], Tensor]


def logits() -> Tensor:
    """`a`, [64, 200]; the same in every process."""
    return torch.randn(BATCH, UNITS, generator=torch.Generator().manual_seed(0))


def loss(h: Tensor) -> Tensor:
    """Of points [..., 64, 200]: [..., 64]."""
    return ((h - TARGET) ** 2).sum(-1)


def exact() -> Tensor:
    """The gradient g of the expected loss, [64, 200]."""
    p = torch.sigmoid(logits())
    return p * (1 - p) * (1 - 2 * TARGET) / BATCH


def slopes(gradient: Gradient, truth: Tensor, calls: int) -> list[float]:
    """⟨ĝ, g⟩ / ⟨g, g⟩ of each call, with g the true gradient: 1 on average for an unbiased ĝ."""
    return [float((gradient() * truth).sum() / truth.square().sum()) for _ in range(calls)]


def storchastic_rloo() -> Gradient:
    """The score function with the mean of the other sample as its baseline."""
    import storch
    from storch.method import ScoreFunction

    return _storchastic(storch, ScoreFunction("z", n_samples=2, baseline_factory="batch_average"))


def storchastic_arm() -> Gradient:
    """ARM, one antithetic pair. storchastic has a DisARM too, which raises an error when it is used."""
    import storch
    from storch.method import ARM

    return _storchastic(storch, ARM("z", n_samples=1))


def _storchastic(storch, method) -> Gradient:
    given = logits()

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        rows = storch.denote_independent(a, 0, "batch")  # whose costs it averages
        h = method(torch.distributions.Bernoulli(logits=rows))
        storch.add_cost(loss(h), "loss")
        storch.backward()
        return a.grad

    return gradient


def pyro_reinforce() -> Gradient:
    """TraceGraph_ELBO with two particles at once.

    The model draws from the guide's law, with its parameters held: then the bound is -E[f], and so is each sample's cost.
    """
    import pyro
    from pyro.distributions import Bernoulli
    from pyro.infer import TraceGraph_ELBO

    given = logits()
    objective = TraceGraph_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)

    def guide(a: Tensor) -> None:
        with pyro.plate("batch", BATCH):
            pyro.sample("h", Bernoulli(logits=a).to_event(1))

    def model(a: Tensor) -> None:
        with pyro.plate("batch", BATCH):
            h = pyro.sample("h", Bernoulli(logits=a.detach()).to_event(1))
            pyro.factor("loss", -loss(h) / BATCH)

    def gradient() -> Tensor:
        a = given.detach().requires_grad_()
        objective.loss_and_grads(model, guide, a)
        return a.grad

    return gradient


class Peer:
    """One of the functions above, in a process with as many torch threads as this one."""

    def __init__(self, name: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, name, str(torch.get_num_threads())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def seconds(self, repeat: int) -> float:
        """What `repeat` gradients take there."""
        return self._ask("seconds", repeat)

    def slopes(self, calls: int) -> list[float]:
        """What the function of that name gives there."""
        return self._ask("slopes", calls)

    def _ask(self, what: str, count: int):
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{what} {count}\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def main(name: str, threads: str) -> None:
    """Answers lines `seconds COUNT` and `slopes COUNT` with JSON, a line each."""
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    gradient = globals()[name]()
    for line in sys.stdin:
        what, count = line.split()
        if what == "slopes":
            answer: object = slopes(gradient, exact(), int(count))
        else:
            start = time.perf_counter()
            for _ in range(int(count)):
                gradient()
            answer = time.perf_counter() - start
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
