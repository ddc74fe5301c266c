"""Derivatives of the outputs of units, each multiplied by the gradient `grad` with respect to the output."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradest.kernels import portable

__all__ = [
    "concrete_backward",
    "logistic_backward",
    "rectified_backward",
    "softmax_backward",
    "surrogate_backward",
    "times_smooth_backward",
]


def logistic_backward(a: Tensor, grad: Tensor, slope: float | Tensor, height: float | Tensor) -> Tensor:
    """Return grad · height σ(x) σ(-x) with x = slope · a, elementwise."""
    p, q = portable.both_sigmoids(slope * a)
    return grad * (height * (p * q))


def surrogate_backward(a: Tensor, grad: Tensor, derivative: int, slope: float, height: float) -> Tensor:
    """Return grad · height d(x) with x = slope · a, elementwise.

    derivative: 0 for d(x) = ½ / (1 + |x|)², 1 for ½ / (1 + (πx/2)²), 2 for max(0, 1 - |x|), 3 for ½ · 1[|x| <= 1].
    """
    x = slope * a
    if derivative == 0:
        y = 1 + x.abs()
        d = 0.5 / (y * y)
    elif derivative == 1:
        y = 0.5 * math.pi * x
        d = 0.5 / (1 + y * y)
    elif derivative == 2:
        d = (1 - x.abs()).clamp(min=0)
    else:
        d = 0.5 * (x.abs() <= 1).to(x.dtype)
    return grad * (height * d)


def concrete_backward(x: Tensor, grad: Tensor, height: float, lower: float, width: float) -> Tensor:
    """Return grad · height σ(x) σ(-x) where lower + width σ(x) is between 0 and 1, and 0 where it is clipped."""
    p, q = portable.both_sigmoids(x)
    h = lower + width * p
    return torch.where((h <= 0) | (h >= 1), 0, grad * (height * (p * q)))


def times_smooth_backward(a: Tensor, h: Tensor, grad: Tensor) -> Tensor:
    """Return grad · h σ(-a) / 2 where h > 0, else 0; h and grad are `[draws, *a.shape]`."""
    _, q = portable.both_sigmoids(a)
    return torch.where(h > 0, grad * (0.5 * h * q), 0)


def rectified_backward(h: Tensor, grad: Tensor) -> Tensor:
    """Return grad where h > 0, else 0."""
    return torch.where(h > 0, grad, 0)


def softmax_backward(h: Tensor, grad: Tensor, per_temperature: float) -> Tensor:
    """Return h (grad - hᵀ grad) per_temperature over the last dim; per_temperature is 1/τ."""
    # relative to the gradient of the largest class, so that for a saturated unit small numbers are subtracted
    grad = grad - grad.gather(-1, h.argmax(-1, keepdim=True))
    return h * (grad - portable.last_sum(h * grad)[..., None]) * per_temperature
