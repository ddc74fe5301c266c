"""Units with two pre-activations each, a place and the logarithm of a scale: their outputs, and the pullbacks of gradients.

`a` is `[rows, 2 * units]`, the two of a unit side by side, and outputs are `[draws, rows, units]`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gradest.kernels.cpu.compilation.compiler import inlined_by_name
from gradest.kernels.cpu.functions import both_sigmoids, exp, log, ndtri, sigmoids
from gradest.kernels.cpu.samplers import run_sampler, sampler
from gradest.kernels.cpu.tensors import NUMPY
from gradest.kernels.reference.noise import Word

__all__ = ["scaled_concrete", "scaled_concrete_pullback", "scaled_normal", "scaled_normal_pullback"]

_STEEPEST = 200.0  # of |x|, as for `tempered_binary_concrete`


@inlined_by_name
def _prepare_normal(x: Any, u: Any, scratch: Any, options: Any) -> None:
    (least,) = options
    place, scale, pairs = scratch[0], scratch[1], x.reshape(x.size // 2, 2)
    for i in range(len(pairs)):
        place[i], scale[i] = pairs[i, 0], pairs[i, 1]
    for i in range(len(pairs)):
        scale[i] = exp(max(scale[i], least))


@inlined_by_name
def _normal(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    place, scale = scratch[0], scratch[1]
    for i in range(h.size):
        h[i] = place[i] + scale[i] * ndtri(u[i])


@inlined_by_name
def _normal_pullback(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    scale, pairs = scratch[1], h.reshape(h.size // 2, 2)
    for i in range(g.size):
        u[i] = g[i] * scale[i] * ndtri(u[i])
    for i in range(g.size):
        pairs[i, 0], pairs[i, 1] = g[i], u[i]


@inlined_by_name
def _prepare_concrete(x: Any, u: Any, scratch: Any, options: Any) -> None:
    (most,) = options
    place, steep, pairs = scratch[0], scratch[1], x.reshape(x.size // 2, 2)
    for i in range(len(pairs)):
        place[i], steep[i] = pairs[i, 0], pairs[i, 1]
    for i in range(len(pairs)):
        steep[i] = exp(-min(max(steep[i], -most), most))


@inlined_by_name
def _concrete(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
    place, steep, power = scratch[0], scratch[1], scratch[2]
    one = x.dtype.type(1)
    for i in range(h.size):
        u[i] = (place[i] + log(u[i] / (one - u[i]))) * steep[i]
    sigmoids(u[: h.size], h, power)


@inlined_by_name
def _concrete_pullback(x: Any, u: Any, g: Any, h: Any, scratch: Any, options: Any) -> None:
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


_draw_normal = sampler(_normal, _prepare_normal, scratch=2, parts=2)
_pull_normal = sampler(_normal_pullback, _prepare_normal, scratch=2, parts=2)
_draw_concrete = sampler(_concrete, _prepare_concrete, scratch=3, parts=2)
_pull_concrete = sampler(_concrete_pullback, _prepare_concrete, scratch=5, parts=2)


def scaled_normal(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, least: float) -> Tensor:
    """Draw m + e^s Φ⁻¹(u), with s at least `least`; m and s are the numbers of a unit. Other arguments are as for `binary`."""
    return run_sampler(_draw_normal, seed, rows, stream, draws, a, NUMPY[a.dtype](least), parts=2)


def scaled_normal_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, least: float
) -> Tensor:
    """Return grad (1, e^s Φ⁻¹(u)), `[draws, rows, 2 * units]`; arguments as for `scaled_normal` and `concrete_pullback`."""
    return run_sampler(_pull_normal, seed, rows, stream, draws, a, NUMPY[a.dtype](least), grad=grad, parts=2)


def scaled_concrete(seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, most: float) -> Tensor:
    """Draw σ((m + log(u / (1 - u))) e^-s), with s between ±`most`; arguments as for `scaled_normal`."""
    return run_sampler(_draw_concrete, seed, rows, stream, draws, a, NUMPY[a.dtype](most), parts=2)


def scaled_concrete_pullback(
    seed: tuple[Word, Word], rows: Word, stream: int, draws: int, a: Tensor, grad: Tensor, most: float
) -> Tensor:
    """Return grad σ(x) σ(-x) (e^-s, -x), with x = (m + log(u / (1 - u))) e^-s between ±200; as `scaled_normal_pullback`."""
    return run_sampler(_pull_concrete, seed, rows, stream, draws, a, NUMPY[a.dtype](most), grad=grad, parts=2)
