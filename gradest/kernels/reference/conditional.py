"""A linear layer that computes only the blocks of units whose gates are open, in plain torch, on any device and in any dtype.

For each block of units it gathers the examples that open the block and multiplies densely, so it suits large blocks. Each plan
waits once for the device, to learn which examples these are. `gradest.kernels.cpu.conditional` and
`gradest.kernels.cuda.conditional` have the same functions, whose results agree up to rounding.
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
    """The open gates among gates `[batch, blocks]`, listed for the functions of this module.

    pairs: the number of open gates, which are pairs of an example and a block.
    open_blocks: the blocks that some example opens, each with the numbers of these examples.
    """

    gates: Tensor
    pairs: int
    open_blocks: tuple[tuple[int, Tensor], ...]

    def parts(self, units: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield for each open block its units, its examples, and the gates `[examples, 1]` of these."""
        block = units // max(1, self.gates.shape[1])
        for g, examples in self.open_blocks:
            yield slice(g * block, (g + 1) * block), examples, self.gates[examples, g, None]


def plan(gates: Tensor) -> Plan:
    """Make the plan for gates `[batch, blocks]`. A gate is closed if it is 0; NaN is open."""
    blocks, examples = (gates != 0).T.nonzero().unbind(1)
    counts = blocks.bincount(minlength=gates.shape[1]).tolist()
    lists = enumerate(torch.split(examples, counts))
    return Plan(gates, len(blocks), tuple((g, listed) for g, listed in lists if len(listed)))


def count(gates: Tensor) -> int:
    """Count the open gates, without making a plan."""
    return int(torch.count_nonzero(gates))


def forward(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor, keep_ungated: bool) -> tuple[Tensor, Tensor | None]:
    """Return gates * (x W^T + b), `[batch, units]`, and x W^T + b where gates are open and 0 elsewhere, or None unless kept.

    x is `[batch, inputs]`, weight `[units, inputs]`, bias `[units]`.
    """
    out = x.new_zeros(len(x), len(weight))
    ungated = torch.zeros_like(out) if keep_ungated else None
    for units, examples, gates in plan.parts(len(weight)):
        y = linear(x[examples], weight[units].to(x.dtype), bias[units])
        out[examples, units] = gates * y
        if ungated is not None:
            ungated[examples, units] = y
    return out, ungated


def grad_input(plan: Plan, grad: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient `[batch, inputs]` with respect to x, from `grad` `[batch, units]` with respect to the output."""
    out = grad.new_zeros(len(grad), weight.shape[1])
    for units, examples, gates in plan.parts(len(weight)):
        out[examples] += (grad[examples, units] * gates) @ weight[units].to(grad.dtype)
    return out


def grad_weight(plan: Plan, grad: Tensor, x: Tensor, compact: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients with respect to W and b.

    compact: return only the rows of W's gradient that some example opens, and the numbers of these rows third.
    """
    out, bias = grad.new_zeros(grad.shape[1], x.shape[1]), grad.new_zeros(grad.shape[1])
    opened = torch.zeros(grad.shape[1], dtype=torch.bool, device=grad.device)
    for units, examples, gates in plan.parts(grad.shape[1]):
        scaled = grad[examples, units] * gates
        out[units], bias[units], opened[units] = scaled.T @ x[examples], scaled.sum(0), True
    if not compact:
        return out, bias, None
    index = opened.nonzero()[:, 0]
    return out[index], bias, index
