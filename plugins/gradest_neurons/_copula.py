"""The Gaussian copula of equal correlations that joins the units of a group, and the two scales of its variables."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradest.contract.numerics import portable, sigmoid
from gradest.random import Key

FACTOR_STREAM = 1
"""The stream of the noise that the units of a group share."""

_LARGEST = 700.0  # |logit| from which on probabilities would underflow in float64


def correlated_normals(key: Key, a: Tensor, draws: int, correlation: float) -> Tensor:
    """Return standard normal variables `[draws, *a.shape]`, correlated in the last dim: √ρ f + √(1-ρ) z, with a common f."""
    factor = key.with_stream(FACTOR_STREAM).normal_like(a[..., :1], draws, 2)
    own = key.normal_like(a, draws, 2)
    return math.sqrt(correlation) * factor + math.sqrt(1 - correlation) * own


def logit_of_normal(z: Tensor) -> Tensor:
    """Return logit Φ(z), accurate in both tails: a logistic variable of a normal one."""
    if z.dtype == torch.float32:
        return portable.logit_of_normal(z)
    x: Tensor = torch.special.log_ndtr(z) - torch.special.log_ndtr(-z)
    return x


def normal_of_logit(x: Tensor) -> Tensor:
    """Return Φ⁻¹(σ(x)), accurate in both tails, for float64 x; that of ±700 beyond."""
    x = x.clamp(-_LARGEST, _LARGEST)
    lower = torch.special.ndtri(sigmoid(-x.abs()))
    return torch.where(x < 0, lower, -lower)
