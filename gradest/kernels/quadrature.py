"""Gauss-Legendre nodes, for the laws of continuous units."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

__all__ = ["gauss_legendre", "spread"]


@functools.cache
def gauss_legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights `[nodes]`, float64, on (0, 1): Σ w g(x) is the integral of g, exactly up to degree 2·nodes - 1."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def spread(x: Tensor, a: Tensor) -> Tensor:
    """`[S]` in the dtype and on the device of `a`, with singleton dims appended so that it broadcasts against `a`."""
    return x.to(a)[(..., *[None] * a.ndim)]
