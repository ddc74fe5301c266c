"""A linear layer that computes only what its gates let through, in plain torch, on any device and in any dtype.

For each block of units it gathers the examples that open it, and multiplies densely; so it is for large blocks. Which examples
these are has to come from the device, once a plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

__all__ = ["Plan", "count", "forward", "grad_input", "grad_weight", "plan"]


@dataclass(frozen=True, eq=False)
class Plan:
    """Which gates `[batch, blocks]` are open. pairs: of an example and a block; open: the blocks, each with its examples."""

    gates: Tensor
    pairs: int
    open: tuple[tuple[int, Tensor], ...]

    def parts(self, units: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """For each open block: its units, its examples, and their gates `[examples, 1]`."""
        block = units // max(1, self.gates.shape[1])
        for g, examples in self.open:
            yield slice(g * block, (g + 1) * block), examples, self.gates[examples, g, None]


def plan(gates: Tensor) -> Plan:
    """As `gradest.kernels.conditional_cpu.plan`, and so the functions that follow."""
    blocks, examples = (gates != 0).T.nonzero().unbind(1)
    counts = blocks.bincount(minlength=gates.shape[1]).tolist()
    lists = enumerate(torch.split(examples, counts))
    return Plan(gates, len(blocks), tuple((g, listed) for g, listed in lists if len(listed)))


def count(gates: Tensor) -> int:
    """The pairs of a plan for gates."""
    return int(torch.count_nonzero(gates))


def forward(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The output, and what is gated, where the gates are open."""
    out = x.new_zeros(len(x), len(weight))
    experts = torch.zeros_like(out) if keep else None
    for units, examples, gates in plan.parts(len(weight)):
        y = linear(x[examples], weight[units].to(x.dtype), bias[units])
        out[examples, units] = gates * y
        if experts is not None:
            experts[examples, units] = y
    return out, experts


def grad_input(plan: Plan, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient with respect to x."""
    out = grad.new_zeros(len(grad), weight.shape[1])
    for units, examples, gates in plan.parts(len(weight)):
        out[examples] += (grad[examples, units] * gates) @ weight[units].to(grad.dtype)
    return out


def grad_weight(plan: Plan, grad: Tensor, x: Tensor, compact: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients with respect to W and b."""
    out, bias = grad.new_zeros(grad.shape[1], x.shape[1]), grad.new_zeros(grad.shape[1])
    opened = torch.zeros(grad.shape[1], dtype=torch.bool, device=grad.device)
    for units, examples, gates in plan.parts(grad.shape[1]):
        scaled = grad[examples, units] * gates
        out[units], bias[units], opened[units] = scaled.T @ x[examples], scaled.sum(0), True
    if not compact:
        return out, bias, None
    index = opened.nonzero()[:, 0]
    return out[index], bias, index
