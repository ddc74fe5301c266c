"""The conditional layer of `gradest.kernels.reference.conditional` on CUDA devices, compiled by Triton.

A plan lists, for every block of units, the examples that open it. A program of the forward pass, or of the gradient with
respect to W, computes a tile of one block's list; a program of the gradient with respect to x computes one example, over a list
of the blocks that it opens. The lengths of the lists stay on the device: enough programs are started for lists as long as they
can be, and those that find nothing to do end at once. So only two things wait for the device: reading a count, and the rows of
a sparse gradient.

Sums are in float32, and W may be in bfloat16. Blocks of 16 units or more are multiplied by `tl.dot`, with options that forbid
it to round its factors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import inlined

__all__ = ["Plan", "count", "forward", "grad_input", "grad_weight", "plan"]

_LISTED = 1024  # gates listed at a time
_EXAMPLES = 32  # examples in a tile
_MOST_UNITS = 64  # units in a tile, if a block has that many
_LEAST_DOT = 16  # the least size of each side that `tl.dot` takes
_INPUTS = 32  # inputs summed over at a time
_COLUMNS = 64  # inputs in a gradient's tile
_ROWS = 16  # rows of W added up at a time


@inlined
def _list(gates, members, counts, size, row_stride, stride, LISTED: tl.constexpr):
    """Write the numbers of the open gates of this program's row, in order, and how many there are."""
    row = tl.program_id(0).to(tl.int64)
    count = tl.sum(tl.zeros((2,), tl.int32), 0)
    for first in range(0, size, LISTED):
        i = first + tl.arange(0, LISTED)
        gate = tl.load(gates + row * row_stride + i.to(tl.int64) * stride, mask=i < size, other=0)
        opened = (gate != 0).to(tl.int32)
        place = count + tl.cumsum(opened, 0) - opened
        tl.store(members + row * size + place, i, mask=opened != 0)
        count += tl.sum(opened, 0)
    tl.store(counts + row, count)


@inlined
def _products(x, y, DOT: tl.constexpr):
    """Return x `[m, k]` times y `[k, n]`."""
    if DOT:
        return tl.dot(x, y, input_precision="ieee")
    return tl.sum(x[:, :, None] * y[None, :, :], 1)


@inlined
def _forward(
    out,
    ungated,
    x,
    weight,
    bias,
    gates,
    members,
    counts,
    batch,
    inputs,
    blocks,
    block,
    KEEP_UNGATED: tl.constexpr,
    EXAMPLES: tl.constexpr,
    UNITS: tl.constexpr,
    INPUTS: tl.constexpr,
    DOT: tl.constexpr,
):
    tiles, across = tl.cdiv(batch, EXAMPLES), tl.cdiv(block, UNITS)
    program = tl.program_id(0).to(tl.int64)
    g, first = program // across // tiles, program // across % tiles * EXAMPLES
    count = tl.load(counts + g)
    if first < count:
        k, within = first + tl.arange(0, EXAMPLES), program % across * UNITS + tl.arange(0, UNITS)
        example = tl.load(members + g * batch + k, mask=k < count, other=0).to(tl.int64)
        unit, listed, inside = g * block + within, (k < count)[:, None], within < block
        y = tl.zeros((EXAMPLES, UNITS), tl.float32)
        for begin in range(0, inputs, INPUTS):
            i = begin + tl.arange(0, INPUTS)
            left = tl.load(x + example[:, None] * inputs + i[None, :], mask=listed & (i < inputs)[None, :], other=0)
            mask = (i < inputs)[:, None] & inside[None, :]
            right = tl.load(weight + unit[None, :] * inputs + i[:, None], mask=mask, other=0).to(tl.float32)
            y += _products(left, right, DOT)
        y += tl.load(bias + unit, mask=inside, other=0)[None, :]
        gate = tl.load(gates + example * blocks + g, mask=k < count, other=0)[:, None]
        at, mask = example[:, None] * blocks * block + unit[None, :], listed & inside[None, :]
        tl.store(out + at, gate * y, mask=mask)
        if KEEP_UNGATED:
            tl.store(ungated + at, y, mask=mask)


@inlined
def _grad_input(
    out,
    grad,
    weight,
    gates,
    members,
    counts,
    inputs,
    blocks,
    block,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    across = tl.cdiv(inputs, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    example, i = program // across, program % across * COLUMNS + tl.arange(0, COLUMNS)
    units = tl.load(counts + example) * block
    total = tl.zeros((COLUMNS,), tl.float32)
    for first in range(0, units, ROWS):
        k = first + tl.arange(0, ROWS)
        g = tl.load(members + example * blocks + k // block, mask=k < units, other=0).to(tl.int64)
        unit = g * block + k % block
        scale = tl.load(grad + example * blocks * block + unit, mask=k < units, other=0)
        scale *= tl.load(gates + example * blocks + g, mask=k < units, other=0)
        mask = (k < units)[:, None] & (i < inputs)[None, :]
        rows = tl.load(weight + unit[:, None] * inputs + i[None, :], mask=mask, other=0).to(tl.float32)
        total += tl.sum(scale[:, None] * rows, 0)
    tl.store(out + example * inputs + i, total, mask=i < inputs)


@inlined
def _grad_weight(
    out,
    bias,
    grad,
    x,
    gates,
    members,
    counts,
    which,
    batch,
    inputs,
    blocks,
    block,
    EXAMPLES: tl.constexpr,
    UNITS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DOT: tl.constexpr,
):
    """Compute the gradients with respect to W and b; `out` has only the rows of the blocks listed in `which`, `bias` has all."""
    across, wide = tl.cdiv(block, UNITS), tl.maximum(tl.cdiv(inputs, COLUMNS), 1)
    program = tl.program_id(0).to(tl.int64)
    number, within = program // wide // across, program // wide % across * UNITS + tl.arange(0, UNITS)
    column, g = program % wide, tl.load(which + number)
    i, inside, count = column * COLUMNS + tl.arange(0, COLUMNS), within < block, tl.load(counts + g)
    total, sums = tl.zeros((UNITS, COLUMNS), tl.float32), tl.zeros((UNITS,), tl.float32)
    for first in range(0, count, EXAMPLES):
        k = first + tl.arange(0, EXAMPLES)
        example = tl.load(members + g * batch + k, mask=k < count, other=0).to(tl.int64)
        gate = tl.load(gates + example * blocks + g, mask=k < count, other=0)
        at = example[None, :] * blocks * block + g * block + within[:, None]
        scale = tl.load(grad + at, mask=inside[:, None] & (k < count)[None, :], other=0) * gate[None, :]
        mask = (k < count)[:, None] & (i < inputs)[None, :]
        total += _products(scale, tl.load(x + example[:, None] * inputs + i[None, :], mask=mask, other=0), DOT)
        sums += tl.sum(scale, 1)
    row, mask = number * block + within, inside[:, None] & (i < inputs)[None, :]
    tl.store(out + row[:, None] * inputs + i[None, :], total, mask=mask)
    if column == 0:
        tl.store(bias + g * block + within, sums, mask=inside)


@dataclass(eq=False)
class Plan:
    """The open gates among gates `[batch, blocks]`, listed for the functions of this module.

    members: for each block the examples that open it, `[blocks, batch]`. counts: how many of them there are, `[blocks]`.
    """

    gates: Tensor
    members: Tensor
    counts: Tensor

    @functools.cached_property
    def pairs(self) -> Tensor:
        """Return the number of open gates, as a tensor on the device."""
        return self.counts.sum()

    @functools.cached_property
    def blocks_of_examples(self) -> tuple[Tensor, Tensor]:
        """Return the blocks that each example opens, `[batch, blocks]`, and how many it opens, `[batch]`."""
        return _lists(self.gates)


def plan(gates: Tensor) -> Plan:
    """Make the plan for gates `[batch, blocks]`, in float32. A gate is closed if it is 0; NaN is open."""
    gates = gates.contiguous()
    return Plan(gates, *_lists(gates.T))


def count(gates: Tensor) -> int:
    """Count the open gates, without making a plan."""
    return int(torch.count_nonzero(gates))


def forward(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor, keep_ungated: bool) -> tuple[Tensor, Tensor | None]:
    """Compute the same as `reference.conditional.forward`. All tensors but W are in float32."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = x.new_zeros(len(x), len(weight))
    ungated = torch.zeros_like(out) if keep_ungated else None
    (batch, blocks), block = plan.gates.shape, _block(plan, len(weight))
    units = _tile(block)
    _launch(
        _forward,
        blocks * triton.cdiv(batch, _EXAMPLES) * triton.cdiv(block, units),
        *(out, out if ungated is None else ungated, x, weight, bias, plan.gates, plan.members, plan.counts),
        *(batch, x.shape[1], blocks, block),
        KEEP_UNGATED=keep_ungated,
        EXAMPLES=_EXAMPLES,
        UNITS=units,
        INPUTS=_INPUTS,
        DOT=units >= _LEAST_DOT,
    )
    return out, ungated


def grad_input(plan: Plan, grad: Tensor, weight: Tensor) -> Tensor:
    """Compute the same as `reference.conditional.grad_input`."""
    grad, weight = grad.contiguous(), weight.contiguous()
    out = grad.new_empty(len(grad), weight.shape[1])
    _launch(
        _grad_input,
        len(grad) * triton.cdiv(weight.shape[1], _COLUMNS),
        *(out, grad, weight, plan.gates, *plan.blocks_of_examples),
        *(weight.shape[1], plan.gates.shape[1], _block(plan, len(weight))),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
    )
    return out


def grad_weight(plan: Plan, grad: Tensor, x: Tensor, compact: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compute the same as `reference.conditional.grad_weight`."""
    grad, x = grad.contiguous(), x.contiguous()
    (batch, blocks), inputs, block = plan.gates.shape, x.shape[1], _block(plan, grad.shape[1])
    which = plan.counts.nonzero().flatten() if compact else torch.arange(blocks, device=x.device)
    units, out, bias = _tile(block), x.new_empty(len(which) * block, inputs), grad.new_zeros(grad.shape[1])
    _launch(
        _grad_weight,
        len(which) * triton.cdiv(block, units) * max(1, triton.cdiv(inputs, _COLUMNS)),
        *(out, bias, grad, x, plan.gates, plan.members, plan.counts, which, batch, inputs, blocks, block),
        EXAMPLES=_EXAMPLES,
        UNITS=units,
        COLUMNS=_COLUMNS,
        DOT=units >= _LEAST_DOT,
    )
    return out, bias, (which[:, None] * block + torch.arange(block, device=x.device)).flatten() if compact else None


def _lists(gates: Tensor) -> tuple[Tensor, Tensor]:
    members = torch.empty(gates.shape, dtype=torch.int32, device=gates.device)
    counts = torch.empty(len(gates), dtype=torch.int32, device=gates.device)
    _launch(_list, len(gates), gates, members, counts, gates.shape[1], *gates.stride(), LISTED=_LISTED)
    return members, counts


def _block(plan: Plan, units: int) -> int:
    return units // max(1, plan.gates.shape[1])


def _tile(block: int) -> int:
    """Return how many units of a block make a tile."""
    units: int = min(triton.next_power_of_2(max(1, block)), _MOST_UNITS)
    return units


def _launch(kernel: Any, programs: int, *given: Tensor | int, **options: int) -> None:
    if programs:
        with torch.cuda.device_of(given[0]):
            kernel[(programs,)](*given, **options, enable_fp_fusion=True)
