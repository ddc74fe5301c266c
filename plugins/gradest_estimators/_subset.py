"""Shared parts of the estimators for units that choose k of n items; a one-hot unit chooses one."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import Neuron, SoftmaxOneHot, Subset


def subset_size(neuron: Neuron) -> int:
    """Return k, the number of items that a group of the neuron chooses."""
    if isinstance(neuron, SoftmaxOneHot):
        return 1
    assert isinstance(neuron, Subset)
    return neuron.size


def largest(x: Tensor, k: int) -> Tensor:
    """Return 1 at the k largest entries of the last dimension and 0 elsewhere, in the shape and dtype of x."""
    return torch.zeros_like(x).scatter(-1, torch.topk(x, k, -1).indices, 1)
