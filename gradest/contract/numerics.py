"""Arithmetic for plugins: functions whose result for a row is the same in any batch, quadrature, and the kernels.

torch's own sigmoid, softplus, sinh and sums give a row other last bits in another batch, because they vectorise differently;
those here do not. `portable` holds functions that give the same bits on every device and in every kernel.

    leading_sum, leading_mean          over the first dim, in an order of their own
    leave_one_out                      (x_k - mean x) / (K - 1) over the first dim
    drop_impossible                    losses with 0 in place of those of probability 0, before they meet their probabilities
    sigmoid, softplus, logit, sinh_cosh, normal_cdf
    widen                              to float32 at least
    computable                         a gradient in a dtype that kernels take
    gauss_legendre, spread, panels     quadrature for the law of a continuous unit
    select, fused                      the kernel of a name for tensors on a device; see `gradest.kernels`
    logistic_backward, concrete_backward, softmax_backward, times_smooth_backward     the kernels' reference implementations
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

from gradest.kernels import fused, portable, select
from gradest.kernels.reference import concrete_backward, logistic_backward, softmax_backward, times_smooth_backward
from gradest.kernels.stable import (
    computable,
    drop_impossible,
    leading_mean,
    leading_sum,
    leave_one_out,
    logit,
    normal_cdf,
    sigmoid,
    sinh_cosh,
    softplus,
    widen,
)

__all__ = [
    "computable",
    "concrete_backward",
    "drop_impossible",
    "fused",
    "gauss_legendre",
    "leading_mean",
    "leading_sum",
    "leave_one_out",
    "logistic_backward",
    "logit",
    "normal_cdf",
    "panels",
    "portable",
    "select",
    "sigmoid",
    "sinh_cosh",
    "softmax_backward",
    "softplus",
    "spread",
    "times_smooth_backward",
    "widen",
]


_NODES_PER_RULE = 64


@functools.cache
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights `[nodes]`, float64, on (0, 1): Σ w g(x) is the integral of g, exactly up to degree 2·nodes - 1.

    More than 64 nodes are rounded up to a multiple of 64 and divided among equal intervals with 64 each, because a single rule of
    n nodes takes a time of n³ to compute.
    """
    parts = -(-nodes // _NODES_PER_RULE)
    x, w = np.polynomial.legendre.leggauss(min(nodes, _NODES_PER_RULE))
    starts = np.arange(parts)[:, None]
    return torch.from_numpy(((x + 1) / 2 + starts).ravel() / parts), torch.from_numpy(np.tile(w / 2 / parts, parts))


def spread(x: Tensor, a: Tensor) -> Tensor:
    """`[S]` in the dtype and on the device of `a`, with singleton dims appended so that it broadcasts against `a`."""
    return x.to(a)[(..., *[None] * a.ndim)]


def panels(
    a: Tensor, lower: Tensor, upper: Tensor, kink: tuple[float, float | Tensor], scale: float, nodes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return nodes for integrals over x between `lower` and `upper`, of functions that vary near two places only.

    One place is `a`, where the density of x = a + z lies, on a given `scale`. The other is `kink`, a place and a scale: that of
    the function of x, which may also jump there. Its scale may be a tensor, one for each unit. The range is divided at both
    places and half-way between them. In each of the four parts, Gauss-Legendre nodes of t are mapped to x = place ± scale sinh t:
    dense at the place, and sparse far from it. So the scales may differ by any factor.

    Returns x, z = x - a and the weights dx, each `[4 nodes, *a.shape]`, with parts of length 0 where a place is out of range. The
    nodes are fixed at the present value of `a`; only z is differentiable in it.
    """
    here, place = a.detach(), kink[0]
    given = kink[1] if isinstance(kink[1], Tensor) else torch.full_like(here, kink[1])
    size_of_bend = given.clamp(1e-5 * scale, scale)  # below 1e-5, the function might as well jump
    centre, bend = here.clamp(lower, upper), torch.full_like(here, place).clamp(lower, upper)
    # what varies quickly near the kink is seen from the centre at this distance
    width = ((here - place).square() + size_of_bend.square()).sqrt().clamp(max=scale)
    first_is_bend = bend <= centre
    starts = torch.where(first_is_bend, bend, centre), torch.where(first_is_bend, centre, bend)
    sizes = torch.where(first_is_bend, size_of_bend, width), torch.where(first_is_bend, width, size_of_bend)
    middle = starts[0] + (starts[1] - starts[0]) / 2
    t, w = (spread(x, a) for x in gauss_legendre(nodes))
    x, z, dx = [], [], []
    for side, sign, end in ((0, -1, lower), (0, 1, middle), (1, -1, middle), (1, 1, upper)):
        start, unit = starts[side], sizes[side]
        reach = torch.asinh((end - start).abs() / unit)
        sinh, cosh = sinh_cosh(reach * t)
        step = sign * unit * sinh
        x.append(start + step)
        z.append((start - here) + step)  # exact where the part starts at a
        dx.append(w * reach * unit * cosh)
    return torch.cat(x), torch.cat(z) + (here - a), torch.cat(dx)
