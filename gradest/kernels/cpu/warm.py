"""A call of every kernel for every type that gradest gives it, by which all of them are compiled and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gradest.kernels import cpu
from gradest.kernels.cpu import conditional
from gradest.kernels.reference.noise import Word

__all__ = ["calls"]

Call = tuple[str, Callable[[], Any]]


def calls() -> list[Call]:
    """Return the name of each kernel with its types, and the call that compiles it, or loads what was kept."""
    found = []
    for dtype in (torch.float32, torch.float64):
        kind = f"{dtype}".removeprefix("torch.")
        found += [(f"{name} {kind}", call) for name, call in _of_whole_tensors(torch.zeros(2, 3, dtype=dtype))]
        for words, of_rows in (
            ((0, 0), 2),
            ((torch.zeros(2, dtype=torch.int32),) * 2, torch.arange(2, dtype=torch.int32)),
        ):
            form = "" if isinstance(of_rows, int) else " by row"
            found += [(f"{name} {kind}{form}", call) for name, call in _that_draw(words, of_rows, dtype)]
    for of_weights, dtype in ((torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)):
        found.append((f"conditional {of_weights}".replace("torch.", ""), _conditional(of_weights, dtype)))
    return found


def _of_whole_tensors(x: Tensor) -> Iterator[Call]:
    points = x.expand(2, *x.shape).contiguous()
    yield "all_finite", lambda: cpu.all_finite(x)
    yield "moments", lambda: cpu.moments([points])
    yield "logistic_score", lambda: cpu.logistic_score(x, points, points[..., 0], 1.0)
    yield "leave_one_out_score", lambda: cpu.leave_one_out_score(x, points, points[..., 0], 1.0)
    yield "antithetic_score", lambda: cpu.antithetic_score(x, points, points[..., 0], 1.0)
    yield "logistic_backward", lambda: cpu.logistic_backward(x, points[0], 1.0, 1.0)
    yield "surrogate_backward", lambda: cpu.surrogate_backward(x, points[0], 0, 1.0, 1.0)
    yield "rectified_backward", lambda: cpu.rectified_backward(points, points)
    yield "times_smooth_backward", lambda: cpu.times_smooth_backward(x, points, points)
    yield "softmax_backward", lambda: cpu.softmax_backward(points, points, 1.0)
    yield "repeated", lambda: cpu.repeated(1, x, 0)
    yield "subset_marginals", lambda: cpu.subset_marginals(x.double(), 2)
    yield "subset_mean_backward", lambda: cpu.subset_mean_backward(x.double(), x.double(), 2)


def _that_draw(seed: tuple[Word, Word], rows: Word, dtype: torch.dtype) -> Iterator[Call]:
    a, grad, key = torch.zeros(2, 6, dtype=dtype), torch.zeros(1, 2, 6, dtype=dtype), (seed, rows, 0, 1)
    yield "uniform", lambda: cpu.uniform(*key, 6, dtype)
    yield "binary", lambda: cpu.binary(*key, a, 0.0, 1.0)
    yield "binary to uint8", lambda: cpu.binary(*key, a, 0.0, 1.0, torch.uint8)
    yield "binary to bool", lambda: cpu.binary(*key, a, 0.0, 1.0, torch.bool)
    yield "antithetic", lambda: cpu.antithetic(*key, a, 0.0, 1.0)
    yield "times_smooth", lambda: cpu.times_smooth(*key, a)
    yield "rectified", lambda: cpu.rectified(*key, a)
    yield "normal", lambda: cpu.normal(*key, a, 1.0, 0)
    yield "normal_pullback", lambda: cpu.normal_pullback(*key, a, grad, 1.0)
    yield "concrete", lambda: cpu.concrete(*key, a, 1.0, 0.0, 1.0)
    yield "concrete_pullback", lambda: cpu.concrete_pullback(*key, a, grad, 1.0, 1.0)
    yield "one_hot", lambda: cpu.one_hot(*key, a, 3)
    yield "softmax", lambda: cpu.softmax(*key, a, 3, 1.0)
    yield "subset", lambda: cpu.subset(*key, a, 3, 2, a.double())
    yield "binomial", lambda: cpu.binomial(*key, a, 10)
    yield "poisson", lambda: cpu.poisson(*key, a)


def _conditional(of_weights: torch.dtype, dtype: torch.dtype) -> Callable[[], Any]:
    def call() -> None:
        x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=of_weights)
        gates, bias = torch.ones(2, 4, dtype=dtype), torch.ones(4, dtype=dtype)
        plan = conditional.plan(gates)
        conditional.count(gates)
        out, _ = conditional.forward(plan, x, weight, bias, True)
        conditional.grad_input(plan, out, weight)
        conditional.grad_weight(plan, out, x, False)

    return call
