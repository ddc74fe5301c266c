"""Maps of units of several classes to the simplex that set most entries to 0."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.kernels import portable

__all__ = ["LEAST", "entmax", "top_softmax"]

LEAST = 1e-30
"""A class of less probability has none."""

_LEAST_ROOTED = 1e-300  # less than this counts as this much in a square root


def top_softmax(x: Tensor, k: int) -> Tensor:
    """Return the softmax over the k largest entries of the last dim, the first of equals, and 0 elsewhere."""
    place = torch.sort(x, dim=-1, descending=True, stable=True).indices[..., :k]
    return torch.zeros_like(x).scatter(-1, place, portable.softmax(x.gather(-1, place)))


def entmax(a: Tensor, squared: bool, logs: bool) -> Tensor:
    """Return p = α-entmax(a) over the last dim, computed in float64 and rounded to the dtype of `a`.

    squared: whether α is 1.5, with p the square of what is above the root, else 2, with p that number itself.
    logs: whether to return log p instead, which is -inf where p is 0.
    """
    wide = a.double()
    # what is 1 below the largest has no weight
    x = ((0.5 if squared else 1.0) * (wide - wide.amax(-1, keepdim=True))).clamp(min=-1)
    y = (x - _root(x, squared)).clamp(min=0)
    p = y * y if squared else y
    p = torch.where(p > LEAST, p, 0)
    p = (p / portable.last_sum(p)[..., None]).to(a.dtype)
    return torch.where(p > 0, portable.log(p.clamp(min=LEAST)), -torch.inf) if logs else p


def _root(x: Tensor, squared: bool) -> Tensor:
    """Return τ `[..., 1]` with Σ max(0, x - τ) = 1, or Σ max(0, x - τ)² = 1 if `squared`, for x with maximum 0.

    For the k largest entries with mean M and variance V it is M - 1/k, or M - √(1/k - V). The support is made up by as many
    entries as are larger than the root that would follow if each were its last.
    """
    x = x.sort(-1, descending=True).values
    count = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype, device=x.device)
    if squared:
        mean = x.cumsum(-1) / count
        spread = 1 / count - ((x * x).cumsum(-1) / count - mean * mean)
        roots = torch.where(spread >= 0, mean - portable.sqrt(spread.clamp(min=_LEAST_ROOTED)), torch.inf)
    else:
        roots = (x.cumsum(-1) - 1) / count
    last = ((roots < x) & (x > -1)).sum(-1, keepdim=True) - 1
    return roots.gather(-1, last.clamp(min=0))
