"""Arithmetic for plugins: functions whose result for a row is the same in any batch, quadrature, and the kernels.

torch's own sigmoid, softplus and sums give a row other last bits in another batch, because they vectorise differently; those here
do not. `portable` holds functions that give the same bits on every device and in every kernel.

    leading_sum, leading_mean          over the first dim, in an order of their own
    leave_one_out                      (x_k - mean x) / (K - 1) over the first dim
    sigmoid, softplus, logit, normal_cdf
    widen                              to float32 at least
    gauss_legendre, spread             quadrature for the law of a continuous unit
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
from gradest.kernels.stable import leading_mean, leading_sum, leave_one_out, logit, normal_cdf, sigmoid, softplus, widen

__all__ = [
    "concrete_backward",
    "fused",
    "gauss_legendre",
    "leading_mean",
    "leading_sum",
    "leave_one_out",
    "logistic_backward",
    "logit",
    "normal_cdf",
    "portable",
    "select",
    "sigmoid",
    "softmax_backward",
    "softplus",
    "spread",
    "times_smooth_backward",
    "widen",
]


@functools.cache
def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights `[nodes]`, float64, on (0, 1): Σ w g(x) is the integral of g, exactly up to degree 2·nodes - 1."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def spread(x: Tensor, a: Tensor) -> Tensor:
    """`[S]` in the dtype and on the device of `a`, with singleton dims appended so that it broadcasts against `a`."""
    return x.to(a)[(..., *[None] * a.ndim)]
