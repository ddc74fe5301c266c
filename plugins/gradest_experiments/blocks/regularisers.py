"""Regularisers that make a policy open few blocks, and different blocks for different examples."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["activity", "diversity"]


def activity(p: Tensor, target: float) -> Tensor:
    """Return L_b + L_e for probabilities `[batch, blocks]`, a scalar: Σ_j |mean_i p_ij - τ| + mean_i |mean_j p_ij - τ|.

    The first term is least if every block is open for a share τ of the examples, the second if every example opens a share τ
    of the blocks. Equations 5 and 6 of Bengio et al. (2015), whose norms are absolute values of numbers.
    """
    return (p.mean(0) - target).abs().sum() + (p.mean(1) - target).abs().mean()


def diversity(p: Tensor) -> Tensor:
    """Return -L_v for probabilities `[batch, blocks]`, a scalar: Σ_j var_i p_ij, variances over the batch (equation 7)."""
    return torch.var(p, 0, correction=0).sum()
