"""Sums of scores of binary units, weighted by losses. Pre-activations `a` are `[*batch, units]`."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.kernels import portable
from gradest.kernels.stable import leading_sum, leave_one_out

__all__ = ["antithetic_score", "leave_one_out_score", "logistic_score"]


def logistic_score(a: Tensor, h: Tensor, weights: Tensor, high: float) -> Tensor:
    """Return Σ_k weights_k d log P(h_k)/da for units with P(h = high) = σ(a).

    h is `[K, *a.shape]`, weights `[K, *batch]`. The score of a unit is σ(-a) where h is high, and -σ(a) elsewhere.
    """
    p, q = portable.both_sigmoids(a)
    return leading_sum(weights[..., None] * torch.where(h == high, q, -p))


def leave_one_out_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """Return `logistic_score` with the weights that `leave_one_out` makes from losses `[K, *batch]`, K > 1."""
    return logistic_score(a, h, leave_one_out(loss), high)


def antithetic_score(a: Tensor, h: Tensor, loss: Tensor, high: float) -> Tensor:
    """Return (1/2n) Σ_k (L_k - L~_k)(b_k - b~_k) σ(|a|), for h `[2n, *a.shape]` and losses `[2n, *batch]`.

    b is 1 where h is high. L and b belong to the first n points, L~ and b~ to the second n, their mirror images.
    """
    at, at_mirror = loss.chunk(2)
    weights = (at - at_mirror) / len(h)
    first, second = (h == high).to(a.dtype).chunk(2)
    return leading_sum(weights[..., None] * (first - second)) * portable.sigmoid(a.abs())
