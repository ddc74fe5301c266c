"""Kernels for CUDA devices, in Triton, of a linear layer that computes only what its gates let through.

A plan lists, for every block of units, the examples that open it. Programs of the forward pass and of the gradient with respect
to W do a tile of one block's list; those of the gradient with respect to x do one example, over a list of the blocks that it
opens. How long a list is stays on the device: there are programs for lists as long as they can be, and those that find nothing
to do end. So nothing waits for the device but a count that is asked for, and the rows of a sparse gradient.

Sums are in float32, and W may be of bfloat16; blocks of 16 units and more are multiplied by `tl.dot`, which is told not to round
its factors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["Plan", "count", "forward", "grad_input", "grad_weight", "plan"]

_LISTED = 1024  # gates that are listed at a time
_EXAMPLES = 32  # examples that are a tile
_UNITS = 64  # units that are one at most
_DOT = 16  # the least of each side that `tl.dot` takes
_INPUTS = 32  # inputs that are summed over at a time
_COLUMNS = 64  # inputs that a gradient's tile is wide
_ROWS = 16  # rows of W that are added up at a time

_compiled: Any = triton.jit


@_compiled
def _list(gates, members, counts, size, row_stride, stride, LISTED: tl.constexpr):
    """The numbers of the open gates of this program's row, in their order, and how many there are."""
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


@_compiled
def _products(x, y, DOT: tl.constexpr):
    """x `[m, k]` times y `[k, n]`."""
    if DOT:
        return tl.dot(x, y, input_precision="ieee")
    return tl.sum(x[:, :, None] * y[None, :, :], 1)


@_compiled
def _forward(
    out,
    experts,
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
    KEEP: tl.constexpr,
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
        if KEEP:
            tl.store(experts + at, y, mask=mask)


@_compiled
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


@_compiled
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
    """`out` has the rows of the blocks that `which` names, `bias` those of all."""
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
    """Which gates `[batch, blocks]` are open: for each block how many examples open it, and a list of them `[blocks, batch]`."""

    gates: Tensor
    members: Tensor
    counts: Tensor

    @functools.cached_property
    def pairs(self) -> Tensor:
        """How many gates are open, a number on the device."""
        return self.counts.sum()

    @functools.cached_property
    def of_examples(self) -> tuple[Tensor, Tensor]:
        """The blocks that each example opens `[batch, blocks]`, and how many."""
        return _lists(self.gates)


def plan(gates: Tensor) -> Plan:
    """As `gradest.kernels.conditional_cpu.plan`, and so the functions that follow; all tensors but W are of float32."""
    gates = gates.contiguous()
    return Plan(gates, *_lists(gates.T))


def count(gates: Tensor) -> int:
    """The pairs of a plan for gates."""
    return int(torch.count_nonzero(gates))


def forward(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor | None]:
    """The output, and what is gated, where the gates are open."""
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = x.new_zeros(len(x), len(weight))
    experts = torch.zeros_like(out) if keep else None
    (batch, blocks), block = plan.gates.shape, _block(plan, len(weight))
    units = _tile(block)
    _launch(
        _forward,
        blocks * triton.cdiv(batch, _EXAMPLES) * triton.cdiv(block, units),
        *(out, out if experts is None else experts, x, weight, bias, plan.gates, plan.members, plan.counts),
        *(batch, x.shape[1], blocks, block),
        KEEP=keep,
        EXAMPLES=_EXAMPLES,
        UNITS=units,
        INPUTS=_INPUTS,
        DOT=units >= _DOT,
    )
    return out, experts


def grad_input(plan: Plan, grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient with respect to x."""
    grad, weight = grad.contiguous(), weight.contiguous()
    out = grad.new_empty(len(grad), weight.shape[1])
    _launch(
        _grad_input,
        len(grad) * triton.cdiv(weight.shape[1], _COLUMNS),
        *(out, grad, weight, plan.gates, *plan.of_examples),
        *(weight.shape[1], plan.gates.shape[1], _block(plan, len(weight))),
        ROWS=_ROWS,
        COLUMNS=_COLUMNS,
    )
    return out


def grad_weight(plan: Plan, grad: Tensor, x: Tensor, compact: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients with respect to W and b."""
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
        DOT=units >= _DOT,
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
    """How many units of a block are a tile."""
    units: int = min(triton.next_power_of_2(max(1, block)), _UNITS)
    return units


def _launch(kernel: Any, programs: int, *given: Tensor | int, **options: int) -> None:
    if programs:
        with torch.cuda.device_of(given[0]):
            kernel[(programs,)](*given, **options, enable_fp_fusion=True)
