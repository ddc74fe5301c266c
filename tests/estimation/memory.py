"""What computations take in memory, each in a fork of this process: `python -m tests.estimation.memory` reads one from a line."""

from __future__ import annotations

import json
import math
import os
import sys

import torch

import gradest


def kilobytes(field: str) -> int:
    """A field of the process's status. getrusage would tell of the process that started this one as well."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(field))


def of_points(neuron_name: str, estimator_name: str, *event: int) -> tuple[int, int]:
    """The bytes of the points at a batch of 64, and of what all ways to the gradient take."""
    neuron, estimator = gradest.neuron(neuron_name), gradest.estimator(estimator_name)

    def run(batch: int, event: tuple[int, ...], dtype: torch.dtype, way: str) -> None:
        a = torch.linspace(-2, 2, batch * math.prod(event)).reshape(batch, *event).to(dtype)
        weight = torch.ones(math.prod(event), dtype=dtype)

        def f(h: torch.Tensor) -> torch.Tensor:
            return h.flatten(-len(event)) @ weight

        if way == "estimate":
            gradest.estimate(f, a, neuron, estimator, draws=2, seed=1)
        elif way == "expect":
            gradest.expect(f, a.requires_grad_(), neuron, estimator, seed=1)[0].sum().backward()
        else:
            draw = estimator.forward(neuron, a, gradest.Key(1), {})
            estimator.backward(draw, gradest.Feedback(f(draw.points)), {})

    ways = [
        *((torch.float32, "tell"), (torch.float32, "expect"), (torch.float32, "estimate")),
        (torch.bfloat16, "estimate"),
    ]
    for way in ways:
        run(2, (3, *event[1:]), *way)
    before = kilobytes("VmRSS")
    for way in ways:
        run(64, event, *way)
    points = estimator.evaluations(neuron, event) * 64 * math.prod(event) * 4
    return points, (kilobytes("VmHWM") - before) * 1024


def of_a_mean() -> tuple[int, int]:
    """The bytes of pre-activations, and of what the mean of a relaxed unit takes there."""
    neuron = gradest.neuron("gumbel_softmax")
    neuron.mean(torch.zeros(2, 1, 8))
    before = kilobytes("VmRSS")
    a = torch.zeros(1024, 8, 8)
    with torch.no_grad():
        neuron.mean(a)
    return a.numel() * 4, (kilobytes("VmHWM") - before) * 1024


def of_draws(*numbers: int) -> tuple[int, ...]:
    """The most bytes of the process after an estimate of two draws, and after one of each of these numbers."""
    a, weight = torch.linspace(-2, 2, 64 * 200).reshape(64, 200), torch.linspace(-1, 1, 200)

    def run(draws: int) -> None:
        gradest.estimate(lambda h: (h @ weight - 1) ** 2, a, "bernoulli", "reinforce", draws=draws, seed=1)

    run(2)
    used = [kilobytes("VmRSS") * 1024]
    for draws in numbers:
        run(draws)
        used.append(kilobytes("VmHWM") * 1024)
    return tuple(used)


def serve() -> None:
    """For each line with the name of a function and its arguments, in JSON, write what the function returns."""
    of_draws()  # what all of them need is loaded once
    for line in sys.stdin:
        name, arguments = json.loads(line)
        child = os.fork()
        if not child:
            print(json.dumps({"points": of_points, "mean": of_a_mean, "draws": of_draws}[name](*arguments)), flush=True)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(1)


if __name__ == "__main__":
    serve()
