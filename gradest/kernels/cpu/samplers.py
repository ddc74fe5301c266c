"""Kernels that draw: the loop over blocks and draws that they share, and how they are called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, array, compiled, inlined, stack, stack_rows, with_functions
from gradest.kernels.cpu.halves import chosen, format_of, like, read, write
from gradest.kernels.cpu.noise import block_scratch, locate, uniforms
from gradest.kernels.cpu.tensors import as_words, check_size, empty, empty_as, flat, in_threads, row_major
from gradest.kernels.reference.noise import Word

__all__ = ["run_kernel", "run_sampler", "sampler"]


# In the code of a kernel the next functions stand for others, which `sampler` puts in their place.


def _transform(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    raise NotImplementedError


@inlined
def _prepare(x: Any, u: Any, scratch: Any, options: Any) -> None:
    pass


@inlined
def _part(address: Any, first: Any, size: Any, narrow: Any, wide: Any, like: Any) -> Any:
    return None


@inlined
def _given_part(address: Any, first: Any, size: Any, narrow: Any, wide: Any, like: Any) -> Any:
    part = array(chosen(address, first, narrow, wide), (size,), like)
    read(address, first, narrow, part)
    return part


@compiled
def _mirror(u: Any) -> None:
    for i in range(u.size):
        u[i] = u.dtype.type(1) - u[i]


def sampler(
    transform: Callable[..., None],
    prepare: Callable[..., None] = _prepare,
    *,
    scratch: int = 0,
    wide: bool = False,
    mirrored: bool = False,
    parts: int = 1,
    pullback: bool = False,
) -> Callable[..., None]:
    """Make the kernel that draws uniform noise and transforms it, block by block, from what to do in one block.

    transform(x, u, g, h, scratch, options) writes the outputs h of a block for pre-activations x and uniform numbers u, which it
        may overwrite. In a `pullback`, g is the gradient with respect to the outputs and h the one with respect to x; otherwise
        g is None. u and the rows of scratch are at least as long as x.
    prepare(x, u, scratch, options) fills scratch with what all draws of the block share; u is free.
    scratch: the number of rows of scratch, which are in the dtype of x, or in float64 if `wide`.
    mirrored: whether after the draws at u there may be as many at 1 - u. Then transform must not overwrite u.
    parts: how many pre-activations, side by side, a unit has for its one output. In a pullback h has as many as x.

    Both functions must be `inlined`, and no other sampler may have a transform of this name.
    """

    span = parts * BLOCK

    def kernel(
        words: Any,
        seed0: Any,
        seed1: Any,
        rows: Any,
        stream: Any,
        at_a: Any,
        at_grad: Any,
        at_out: Any,
        narrow_a: Any,
        narrow_grad: Any,
        narrow_out: Any,
        points: Any,
        halves: Any,
        size: Any,
        width: Any,
        like_a: Any,
        like_out: Any,
        first: Any,
        last: Any,
        *options: Any,
    ) -> None:
        a, out = array(at_a, (size,), like_a), array(at_out, (points, width), like_out)
        noise = block_scratch(a)
        u, shared = stack(BLOCK, a.dtype), stack_rows(scratch, BLOCK, np.float64 if wide else a.dtype)
        wide_a, wide_grad, wide_out = stack(span, a.dtype), stack(BLOCK, a.dtype), stack(span, out.dtype)
        halves = halves if mirrored else 1
        draws = points // halves
        written = width * parts // size  # numbers of an output, for each unit
        for at in range(first, last, BLOCK):
            end = min(at + BLOCK, last)
            place = locate(words, seed0, seed1, stream, size // (rows * parts), at, end, noise)
            x = array(chosen(at_a, parts * at, narrow_a, wide_a), (parts * (end - at),), like_a)
            read(at_a, parts * at, narrow_a, x)
            _prepare(x, u, shared, options)
            for draw in range(draws):
                uniforms(noise, place, draw, u[: end - at])
                for half in range(halves):
                    if half > 0:
                        _mirror(u[: end - at])
                    point = half * draws + draw
                    g = _part(at_grad, point * (size // parts) + at, end - at, narrow_grad, wide_grad, like_a)
                    begin = point * width + written * at
                    h = array(chosen(at_out, begin, narrow_out, wide_out), (written * (end - at),), like_out)
                    _transform(x, u, g, h, shared, options)
                    write(h, narrow_out, at_out, begin)

    given = {"_part": _given_part} if pullback else {}
    whole = with_functions(kernel, _transform=transform, _prepare=prepare, **given)
    whole.__name__ = whole.__qualname__ = transform.__name__
    return compiled(whole)


def run_sampler(
    kernel: Callable[..., None],
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    *options: Any,
    grad: Tensor | None = None,
    dtype: torch.dtype | None = None,
    parts: int = 1,
    halves: int = 1,
) -> Tensor:
    """Run a kernel that `sampler` has made, and return its outputs, or for a grad its gradients, `[draws, *a.shape]`.

    With `parts` above 1, a is `[rows, parts * units]`, and outputs are `[draws, rows, units]`. With two `halves`, the second half
    of the draws is at 1 - u, if the sampler may be mirrored.
    """
    shape = a.shape if grad is not None or parts == 1 else (*a.shape[:-1], a.shape[-1] // parts)
    out = empty_as(a, draws, *shape) if dtype is None else empty(draws, *shape, dtype=dtype)
    size, width = a.numel(), math.prod(shape)
    if grad is not None:
        check_size(grad, draws * size // parts)
    given, pulled = row_major(a), None if grad is None else row_major(grad)
    addresses = given.data_ptr(), None if pulled is None else pulled.data_ptr(), out.data_ptr()
    formats = format_of(a.dtype), 0 if grad is None else format_of(grad.dtype), format_of(out.dtype)
    given_words, likes = as_words(seed, rows, stream), (like(a.dtype), like(out.dtype))
    arguments = *given_words, *addresses, *formats, draws, halves, size, width, *likes
    in_threads(lambda first, last: kernel(*arguments, first, last, *options), size // parts, parts * draws)
    return out


def run_kernel(
    kernel: Callable[..., None],
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    *options: Any,
    size: int = 1,
    more: tuple[Any, ...] = (),
    shape: tuple[int, ...] | None = None,
) -> Tensor:
    """Run a kernel that draws `[draws, *shape]`, by default that of `a`, from the words, `a`, `more` and the options.

    size: how many numbers of `a` make one of the elements that the kernel counts.
    """
    out = empty_as(a, draws, *(a.shape if shape is None else shape))
    words, given, numbers = as_words(seed, rows, stream), flat(a), flat(out, 1)
    in_threads(
        lambda first, last: kernel(*words, given, *more, numbers, first, last, *options),
        a.numel() // max(1, size),
        size * draws,
    )
    return out
