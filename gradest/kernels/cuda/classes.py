"""Units of several classes, one-hot and relaxed.

A tile holds several units and their classes. In these kernels a unit of several classes is called a group, because `units` is
how many numbers a row of `a` has: its groups times their classes. If there are more classes than a tile is wide, the kernel
passes over them tile by tile, several times.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gradest.kernels.cuda.compiler import compiled, float_bits, inlined, option
from gradest.kernels.cuda.functions import divide, exp, log
from gradest.kernels.cuda.noise import row_words, uniform_numbers
from gradest.kernels.cuda.tiles import TILE, launch, noise_words
from gradest.kernels.reference.noise import Word

__all__ = ["one_hot", "softmax", "softmax_backward"]


@inlined
def _arrival_times(k0, k1, row, stream, unit, draw, wait, inside):
    """Return arrival times `[GROUPS, CLASSES]`: the class that arrives first is drawn."""
    return tl.where(inside, -log(uniform_numbers(k0, k1, row, stream, unit, draw, wait.dtype)) * wait, float("inf"))


@compiled
def _one_hot(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    classes,
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """Pass over the classes for the largest `a`, for the first arrival, and to write."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    row, start = group * classes // units, group * classes % units
    real = row < row_count
    k0, k1, number = row_words(seed0, seed1, rows, row, real)
    k0, k1, number, start, real = k0[:, None], k1[:, None], number[:, None], start[:, None], real[:, None]
    at = (group * classes)[:, None]
    largest = tl.full((GROUPS,), float("-inf"), a.dtype.element_ty)
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        x = tl.load(a + at + c, mask=real & (c < classes), other=float("-inf"))
        largest = tl.maximum(largest, tl.max(x, 1))
    for draw in range(draws):
        least, index = tl.full((GROUPS,), float("inf"), a.dtype.element_ty), tl.zeros((GROUPS,), tl.int32)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            wait = exp(largest[:, None] - tl.load(a + at + c, mask=inside, other=0))
            arrivals = _arrival_times(k0, k1, number, stream, (start + c).to(tl.uint32), draw, wait, inside)
            earliest, where = tl.min(arrivals, 1, return_indices=True)
            index = tl.where(earliest < least, first + where, index)
            least = tl.minimum(least, earliest)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            h = (c == index[:, None]).to(a.dtype.element_ty)
            tl.store(out + at + c, h, mask=real & (c < classes))
        out += row_count.to(tl.int64) * units


@inlined
def _fold(x, GROUPS: tl.constexpr, LANES: tl.constexpr, FOLDS: tl.constexpr):
    """Return the sum of each group's lanes, added upper half to lower half as in `portable.last_sum`."""
    for i in tl.static_range(FOLDS):
        x = tl.sum(tl.reshape(x, (GROUPS, 2, LANES >> (i + 1))), 1)
    return x


@inlined
def _logits(k0, k1, row, stream, start, c, draw, a, at, inside, per_temperature):
    """Return (a + G) per_temperature for the classes c, G the Gumbel noise."""
    u = uniform_numbers(k0, k1, row, stream, (start + c).to(tl.uint32), draw, a.dtype.element_ty)
    return (tl.load(a + at + c, mask=inside, other=0) - log(-log(u))) * per_temperature


@compiled
def _softmax(
    seed0,
    seed1,
    rows,
    stream,
    draws,
    row_count,
    units,
    out,
    a,
    classes,
    per_temperature,
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    FOLDS: tl.constexpr,
):
    """Pass over the classes for the largest logit, for the sum, and to write."""
    per_temperature = option(per_temperature, a.dtype.element_ty)
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    row, start = group * classes // units, group * classes % units
    real = row < row_count
    k0, k1, number = row_words(seed0, seed1, rows, row, real)
    k0, k1, number, start, real = k0[:, None], k1[:, None], number[:, None], start[:, None], real[:, None]
    at = (group * classes)[:, None]
    for draw in range(draws):
        largest = tl.full((GROUPS,), float("-inf"), a.dtype.element_ty)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            x = _logits(k0, k1, number, stream, start, c, draw, a, at, inside, per_temperature)
            largest = tl.maximum(largest, tl.max(tl.where(inside, x, float("-inf")), 1))
        lanes = tl.zeros((GROUPS, CLASSES), a.dtype.element_ty)
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            x = _logits(k0, k1, number, stream, start, c, draw, a, at, inside, per_temperature)
            lanes += tl.where(inside, exp(tl.where(inside, x - largest[:, None], 0)), 0)
        total = tl.reshape(_fold(lanes, GROUPS, CLASSES, FOLDS), (GROUPS, 1))
        for first in range(0, classes, CLASSES):
            c = first + tl.arange(0, CLASSES)[None, :]
            inside = real & (c < classes)
            x = _logits(k0, k1, number, stream, start, c, draw, a, at, inside, per_temperature)
            e = exp(tl.where(inside, x - largest[:, None], 0))
            tl.store(out + at + c, divide(e, tl.where(inside, total, 1)), mask=inside)
        out += row_count.to(tl.int64) * units


@compiled
def _softmax_backward(
    groups,
    out,
    h,
    grad,
    classes,
    per_temperature,
    GROUPS: tl.constexpr,
    CLASSES: tl.constexpr,
    FOLDS: tl.constexpr,
):
    """Pass over the classes for the largest one, for the sum, and to write."""
    per_temperature = option(per_temperature, h.dtype.element_ty)
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    real, at = (group < groups)[:, None], (group * classes)[:, None]
    largest, index = tl.full((GROUPS,), float("-inf"), h.dtype.element_ty), tl.zeros((GROUPS,), tl.int32)
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        x = tl.load(h + at + c, mask=real & (c < classes), other=float("-inf"))
        here, where = tl.max(x, 1, return_indices=True)
        index = tl.where(here > largest, first + where, index)
        largest = tl.maximum(largest, here)
    grad_of_largest = tl.load(grad + at + index[:, None], mask=real, other=0)
    lanes = tl.zeros((GROUPS, CLASSES), h.dtype.element_ty)
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        inside = real & (c < classes)
        x, g = tl.load(h + at + c, mask=inside, other=0), tl.load(grad + at + c, mask=inside, other=0)
        lanes += tl.where(inside, x * (g - grad_of_largest), 0)
    total = tl.reshape(_fold(lanes, GROUPS, CLASSES, FOLDS), (GROUPS, 1))
    for first in range(0, classes, CLASSES):
        c = first + tl.arange(0, CLASSES)[None, :]
        inside = real & (c < classes)
        x, g = tl.load(h + at + c, mask=inside, other=0), tl.load(grad + at + c, mask=inside, other=0)
        tl.store(out + at + c, x * (g - grad_of_largest - total) * per_temperature, mask=inside)


def one_hot(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, classes: int) -> Tensor:
    """Compute the same as `cpu.one_hot`."""
    return _launch_sampler(_one_hot, seed, rows, stream, draws, a, classes)


def softmax(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    classes: int,
    per_temperature: float,
) -> Tensor:
    """Compute the same as `cpu.softmax`."""
    more = classes, float_bits(per_temperature)
    return _launch_sampler(_softmax, seed, rows, stream, draws, a, *more, FOLDS=_folds(classes))


def softmax_backward(h: Tensor, grad: Tensor, per_temperature: float) -> Tensor:
    """Compute the same as `reference.softmax_backward`."""
    out, classes = torch.empty(h.shape, dtype=h.dtype, device=h.device), h.shape[-1]
    groups = h.numel() // max(1, classes)
    given = groups, out, h, grad, classes, float_bits(per_temperature)
    return _launch_groups(_softmax_backward, out, groups, classes, given, FOLDS=_folds(classes))


def _launch_sampler(
    kernel: Any,
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    classes: int,
    *more: int,
    **options: float,
) -> Tensor:
    out = torch.empty(draws, *a.shape, dtype=a.dtype, device=a.device)
    given = (*noise_words(seed, rows, stream), *out.shape, out, a, classes, *more)
    return _launch_groups(kernel, out, a.numel() // max(1, classes), classes, given, **options)


def _launch_groups(
    kernel: Any, out: Tensor, groups: int, classes: int, given: tuple[Tensor | int, ...], **options: float
) -> Tensor:
    """Launch a kernel whose tiles are groups and their classes."""
    width = _lanes(classes)
    height = TILE // width
    return launch(kernel, triton.cdiv(groups, height), out, given, **options, GROUPS=height, CLASSES=width)


def _lanes(classes: int) -> int:
    lanes: int = min(triton.next_power_of_2(max(1, classes)), TILE)
    return lanes


def _folds(classes: int) -> int:
    return _lanes(classes).bit_length() - 1
