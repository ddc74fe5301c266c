"""Units that add noise to their pre-activation, logistic or normal: their outputs, and the pullbacks of gradients.

Scaled ones have two pre-activations each, a place and the logarithm of a scale: `a` is `[rows, 2 * units]`, the two of a unit
side by side, and outputs are `[draws, rows, units]`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import BLOCK, array, compiled, inlined, stack
from gradest.kernels.cpu.functions import both_sigmoids, exp, log, ndtris, sigmoids
from gradest.kernels.cpu.halves import computed_in, takes_halves
from gradest.kernels.cpu.noise import block_scratch, locate, uniforms
from gradest.kernels.cpu.samplers import run_sampler, sampler
from gradest.kernels.cpu.tensors import LIKE, as_words, check_size, empty_as, in_threads, row_major
from gradest.kernels.portable import NEARLY_ONE
from gradest.kernels.reference.noise import Word

__all__ = [
    "concrete",
    "concrete_pullback",
    "normal",
    "normal_pullback",
    "rectified",
    "scaled_concrete",
    "scaled_concrete_pullback",
    "scaled_normal",
    "scaled_normal_pullback",
]

_STEEPEST = 200.0  # of |x|, as for `tempered_binary_concrete`


@inlined
def _rectified(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        z = x[i] + log(u[i] / (one - u[i]))
        h[i] = zero if z < zero else z


@inlined
def _normal(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    std, activation = options
    zero = x.dtype.type(0)
    ndtris(u[: x.size], scratch[0], scratch[1].view(np.int32))
    for i in range(x.size):
        u[i] = x[i] + std * u[i]
    if activation == 2:
        sigmoids(u[: x.size], h, scratch[0])
    else:
        for i in range(x.size):
            h[i] = zero if activation == 1 and u[i] < zero else u[i]


@compiled
def _normal_pullback(
    words: Any,
    seed0: Any,
    seed1: Any,
    rows: Any,
    stream: Any,
    at_a: Any,
    at_grad: Any,
    at_h: Any,
    at_out: Any,
    draws: Any,
    size: Any,
    like: Any,
    first: Any,
    last: Any,
    std: Any,
    kept_up_to: Any,
    nearly_one: Any,
) -> None:
    """Compute the derivative from h where all outputs of a block are at most `kept_up_to`, and else from the noise."""
    a = array(at_a, (size,), like)
    one = a.dtype.type(1)
    grad, kept, out = (
        array(at_grad, (draws, size), like),
        array(at_h, (draws, size), like),
        array(at_out, (draws, size), like),
    )
    noise, u = block_scratch(a), stack(BLOCK, a.dtype)
    p, q, power = stack(BLOCK, a.dtype), stack(BLOCK, a.dtype), stack(BLOCK, a.dtype)
    for at in range(first, last, BLOCK):
        end = min(at + BLOCK, last)
        x, z = a[at:end], u[: end - at]
        for draw in range(draws):
            h, g, y = kept[draw, at:end], grad[draw, at:end], out[draw, at:end]
            beyond = 0
            for i in range(h.size):
                beyond += not h[i] <= kept_up_to
            if beyond == 0:
                for i in range(h.size):
                    y[i] = g[i] * (h[i] * (one - h[i]))
            else:
                place = locate(words, seed0, seed1, stream, size // rows, at, end, noise)
                uniforms(noise, place, draw, z)
                ndtris(z, p, q.view(np.int32))
                for i in range(z.size):
                    z[i] = x[i] + std * z[i]
                both_sigmoids(z, p, q, power)
                for i in range(z.size):
                    y[i] = g[i] * (p[i] * (one - p[i] if p[i] <= nearly_one else q[i]))


@inlined
def _concrete(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    per_temperature, lower, width = options
    zero, one = x.dtype.type(0), x.dtype.type(1)
    p, power = scratch[0], scratch[1]
    for i in range(x.size):
        u[i] = (x[i] + log(u[i] / (one - u[i]))) * per_temperature
    sigmoids(u[: x.size], p, power)
    for i in range(x.size):
        h[i] = min(max(lower + width * p[i], zero), one)


@inlined
def _concrete_pullback(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    per_temperature, height, lower, width = options
    zero, one = x.dtype.type(0), x.dtype.type(1)
    p, q, power = scratch[0], scratch[1], scratch[2]
    for i in range(x.size):
        u[i] = (x[i] + log(u[i] / (one - u[i]))) * per_temperature
    both_sigmoids(u[: x.size], p, q, power)
    for i in range(x.size):
        h[i] = g[i] * (height * (p[i] * q[i]))
    if width > zero:
        for i in range(x.size):
            y = lower + width * p[i]
            h[i] = zero if y <= zero or y >= one else h[i]


@inlined
def _prepare_scaled_normal(x: Any, u: Any, scratch: Any, options: Any) -> None:
    (least,) = options
    place, scale, pairs = scratch[0], scratch[1], x.reshape(x.size // 2, 2)
    for i in range(len(pairs)):
        place[i], scale[i] = pairs[i, 0], pairs[i, 1]
    for i in range(len(pairs)):
        scale[i] = exp(max(scale[i], least))


@inlined
def _scaled_normal(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    place, scale = scratch[0], scratch[1]
    ndtris(u[: h.size], scratch[2], scratch[3].view(np.int32))
    for i in range(h.size):
        h[i] = place[i] + scale[i] * u[i]


@inlined
def _scaled_normal_pullback(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    scale, pairs = scratch[1], h.reshape(h.size // 2, 2)
    ndtris(u[: g.size], scratch[2], scratch[3].view(np.int32))
    for i in range(g.size):
        u[i] = g[i] * scale[i] * u[i]
    for i in range(g.size):
        pairs[i, 0], pairs[i, 1] = g[i], u[i]


@inlined
def _prepare_scaled_concrete(x: Any, u: Any, scratch: Any, options: Any) -> None:
    (most,) = options
    place, steep, pairs = scratch[0], scratch[1], x.reshape(x.size // 2, 2)
    for i in range(len(pairs)):
        place[i], steep[i] = pairs[i, 0], pairs[i, 1]
    for i in range(len(pairs)):
        steep[i] = exp(-min(max(steep[i], -most), most))


@inlined
def _scaled_concrete(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    place, steep, power = scratch[0], scratch[1], scratch[2]
    one = x.dtype.type(1)
    for i in range(h.size):
        u[i] = (place[i] + log(u[i] / (one - u[i]))) * steep[i]
    sigmoids(u[: h.size], h, power)


@inlined
def _scaled_concrete_pullback(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    place, steep, power, p, q = scratch[0], scratch[1], scratch[2], scratch[3], scratch[4]
    one, steepest = x.dtype.type(1), x.dtype.type(_STEEPEST)
    pairs = h.reshape(h.size // 2, 2)
    for i in range(g.size):
        z = (place[i] + log(u[i] / (one - u[i]))) * steep[i]
        u[i] = min(max(z, -steepest), steepest)
    both_sigmoids(u[: g.size], p, q, power)
    for i in range(g.size):
        p[i] = g[i] * (p[i] * q[i])
    for i in range(g.size):
        pairs[i, 0], pairs[i, 1] = steep[i] * p[i], -u[i] * p[i]


_draw_rectified = sampler(_rectified)
_draw_normal = sampler(_normal, scratch=2)
_draw_concrete = sampler(_concrete, scratch=2)
_pull_concrete = sampler(_concrete_pullback, scratch=3, pullback=True)
_draw_scaled_normal = sampler(_scaled_normal, _prepare_scaled_normal, scratch=4, parts=2)
_pull_scaled_normal = sampler(_scaled_normal_pullback, _prepare_scaled_normal, scratch=4, parts=2, pullback=True)
_draw_scaled_concrete = sampler(_scaled_concrete, _prepare_scaled_concrete, scratch=3, parts=2)
_pull_scaled_concrete = sampler(_scaled_concrete_pullback, _prepare_scaled_concrete, scratch=5, parts=2, pullback=True)


@takes_halves
def rectified(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor) -> Tensor:
    """Draw max(0, a + log(u / (1 - u))); arguments as for `binary`."""
    return run_sampler(_draw_rectified, seed, rows, stream, draws, a)


@takes_halves
def normal(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, std: float, activation: int
) -> Tensor:
    """Draw f(a + std Φ⁻¹(u)); arguments as for `binary`.

    activation: 0 for f the identity, 1 for max(0, ·), 2 for σ.
    """
    return run_sampler(_draw_normal, seed, rows, stream, draws, a, computed_in(a.dtype)(std), activation)


def normal_pullback(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    grad: Tensor,
    h: Tensor | None,
    std: float,
) -> Tensor:
    """Return grad · `portable.sigmoid_slope` at x = a + std Φ⁻¹(u); arguments as for `concrete_pullback`.

    h: the outputs σ(x), with which most of the noise need not be drawn again.
    """
    out, size, kind = empty_as(a, draws, *a.shape), a.numel(), computed_in(a.dtype)
    check_size(grad, draws * size)
    given, pulled = row_major(a), row_major(grad)
    kept = pulled if h is None else row_major(h)
    check_size(kept, draws * size)
    addresses = given.data_ptr(), pulled.data_ptr(), kept.data_ptr(), out.data_ptr()
    arguments = *as_words(seed, rows, stream), *addresses, draws, size, LIKE[a.dtype]
    options = kind(std), kind(np.nan if h is None else NEARLY_ONE), kind(NEARLY_ONE)
    in_threads(lambda first, last: _normal_pullback(*arguments, first, last, *options), size, draws)
    return out


@takes_halves
def concrete(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    per_temperature: float,
    lower: float,
    width: float,
) -> Tensor:
    """Draw min(1, max(0, lower + width σ((a + log(u / (1 - u))) per_temperature))); arguments as for `binary`."""
    options = map(computed_in(a.dtype), (per_temperature, lower, width))
    return run_sampler(_draw_concrete, seed, rows, stream, draws, a, *options)


@takes_halves
def concrete_pullback(
    seed: tuple[Word, Word],
    rows: Word,
    stream: int,
    draws: int,
    a: Tensor,
    grad: Tensor,
    per_temperature: float,
    height: float,
    lower: float = 0.0,
    width: float = 0.0,
) -> Tensor:
    """Return `reference.concrete_backward` at x = (a + log(u / (1 - u))) per_temperature, or without clipping if width is 0.

    grad has `draws` times as many numbers as `a`; the other arguments are as for `binary`.
    """
    options = map(computed_in(a.dtype), (per_temperature, height, lower, width))
    return run_sampler(_pull_concrete, seed, rows, stream, draws, a, *options, grad=grad)


@takes_halves
def scaled_normal(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, least: float) -> Tensor:
    """Draw m + e^s Φ⁻¹(u), with s at least `least`; m and s are the numbers of a unit. Other arguments are as for `binary`."""
    return run_sampler(_draw_scaled_normal, seed, rows, stream, draws, a, computed_in(a.dtype)(least), parts=2)


@takes_halves
def scaled_normal_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, least: float
) -> Tensor:
    """Return grad (1, e^s Φ⁻¹(u)), `[draws, rows, 2 * units]`; arguments as for `scaled_normal` and `concrete_pullback`."""
    return run_sampler(
        _pull_scaled_normal, seed, rows, stream, draws, a, computed_in(a.dtype)(least), grad=grad, parts=2
    )


@takes_halves
def scaled_concrete(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, most: float) -> Tensor:
    """Draw σ((m + log(u / (1 - u))) e^-s), with s between ±`most`; arguments as for `scaled_normal`."""
    return run_sampler(_draw_scaled_concrete, seed, rows, stream, draws, a, computed_in(a.dtype)(most), parts=2)


@takes_halves
def scaled_concrete_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, most: float
) -> Tensor:
    """Return grad σ(x) σ(-x) (e^-s, -x), with x = (m + log(u / (1 - u))) e^-s between ±200; as `scaled_normal_pullback`."""
    return run_sampler(
        _pull_scaled_concrete, seed, rows, stream, draws, a, computed_in(a.dtype)(most), grad=grad, parts=2
    )
