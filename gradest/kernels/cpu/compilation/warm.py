"""A call of every kernel for every type that gradest gives it, by which all of them are compiled and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradest.kernels import cpu
from gradest.kernels.cpu import conditional

__all__ = ["calls"]

Call = Callable[[], Any]


def calls() -> list[Call]:
    """Return a call for each kernel and each combination of types, which compiles it or loads what was kept."""
    found: list[Call] = []
    for dtype in (torch.float32, torch.float64):
        found += _of_whole_tensors(torch.zeros(2, 3, dtype=dtype))
        found += _that_draw(dtype)
    for of_weights, dtype in ((torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)):
        found.append(partial(_conditional, of_weights, dtype))
    return found


def _of_whole_tensors(x: Tensor) -> Iterator[Call]:
    points = x.expand(2, *x.shape).contiguous()
    yield lambda: cpu.all_finite(x)
    yield lambda: cpu.all_finite(x.half())
    yield lambda: cpu.moments([points])
    yield lambda: cpu.logistic_score(x, points, points[..., 0], 1.0)
    yield lambda: cpu.leave_one_out_score(x, points, points[..., 0], 1.0)
    yield lambda: cpu.antithetic_score(x, points, points[..., 0], 1.0)
    yield lambda: cpu.logistic_backward(x, points[0], 1.0, 1.0)
    yield lambda: cpu.surrogate_backward(x, points[0], 0, 1.0, 1.0)
    yield lambda: cpu.rectified_backward(points, points)
    yield lambda: cpu.times_smooth_backward(x, points, points)
    yield lambda: cpu.softmax_backward(points, points, 1.0)
    yield lambda: cpu.repeated(1, x, 0)
    yield lambda: cpu.top_softmax(x, 2)
    yield lambda: cpu.entmax(x, True, True)
    yield lambda: cpu.subset_marginals(x.double(), 2)
    yield lambda: cpu.subset_mean_backward(x.double(), x.double(), 2)


def _that_draw(dtype: torch.dtype) -> Iterator[Call]:
    seed = (0, 0)  # for words that differ from row to row the types are the same
    a, grad, key = torch.zeros(2, 6, dtype=dtype), torch.zeros(1, 2, 6, dtype=dtype), (seed, 2, 0, 1)
    yield lambda: cpu.uniform(*key, 6, dtype)
    yield lambda: cpu.binary(*key, a, 0.0, 1.0)
    yield lambda: cpu.binary(*key, a, 0.0, 1.0, torch.uint8)
    yield lambda: cpu.binary(*key, a, 0.0, 1.0, torch.bool)
    yield lambda: cpu.antithetic(*key, a, 0.0, 1.0)
    yield lambda: cpu.times_smooth(*key, a)
    yield lambda: cpu.rectified(*key, a)
    yield lambda: cpu.normal(*key, a, 1.0, 0)
    yield lambda: cpu.normal_pullback(*key, a, grad, grad, 1.0)
    yield lambda: cpu.concrete(*key, a, 1.0, 0.0, 1.0)
    yield lambda: cpu.concrete_pullback(*key, a, grad, 1.0, 1.0)
    yield lambda: cpu.scaled_normal(*key, a, -80.0)
    yield lambda: cpu.scaled_normal_pullback(*key, a, grad[..., :3], -80.0)
    yield lambda: cpu.scaled_concrete(*key, a, 69.0)
    yield lambda: cpu.scaled_concrete_pullback(*key, a, grad[..., :3], 69.0)
    yield lambda: cpu.correlated(*key, a, 3, 1, 0.5, 0.5)
    yield lambda: cpu.correlated_concrete(*key, a, 3, 1, 0.5, 0.5, 2.0)
    yield lambda: cpu.ordered(*key, a, 3)
    yield lambda: cpu.scaled_softmax(*key, a, 2, 69.0)
    yield lambda: cpu.scaled_softmax_pullback(*key, a, grad[..., :4], 2, 69.0)
    yield lambda: cpu.one_hot(*key, a, 3)
    yield lambda: cpu.softmax(*key, a, 3, 1.0)
    yield lambda: cpu.subset(*key, a, 3, 2, a.double())
    yield lambda: cpu.binomial(*key, a, 10)
    yield lambda: cpu.poisson(*key, a)


def _conditional(of_weights: torch.dtype, dtype: torch.dtype) -> None:
    x, weight = torch.ones(2, 3, dtype=dtype), torch.ones(4, 3, dtype=of_weights)
    bias = torch.ones(4, dtype=dtype)
    for blocks in (4, 1):  # there are other kernels for large blocks
        gates = torch.ones(2, blocks, dtype=dtype)
        plan = conditional.plan(gates)
        conditional.count(gates)
        out, _ = conditional.forward(plan, x, weight, bias, True)
        conditional.grad_input(plan, out, weight)
        conditional.grad_weight(plan, out, x, False)
