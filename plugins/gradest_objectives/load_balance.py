"""The load-balancing loss of a mixture of experts."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.objective import Objective


class LoadBalance(Objective):
    """The squared coefficient of variation of the experts' importance, the penalty of Shazeer et al. (2017).

    With the importance I_i = Σ_g h_gi of expert i, summed over the groups of an event, L(h) = var(I)/mean(I)² over the n
    experts, which is n Σ_i I_i²/(Σ_i I_i)² - 1. It is 0 if all have the same, and n - 1 if one has all. Where all I sum to 0,
    so does the loss.

    The groups of one event share the loss: the tokens of a batch are groups, `[tokens, n]`. They may be any units of two dims,
    such as those of `noisy_top_k`, `categorical` and `k_subset`; units without classes raise InvalidInput. The expectation has
    no closed form here.

    Introduced by Shazeer, Mirhoseini, Maziarz, Davis, Le, Hinton and Dean (2017), Outrageously Large Neural Networks: The
    Sparsely-Gated Mixture-of-Experts Layer, arXiv 1701.06538.
    """

    name = "load_balance"
    summary = "squared coefficient of variation of the experts' importance, over the groups of an event"
    reference = "Shazeer et al. 2017, arXiv 1701.06538"
    formula = r"L(h) = \frac{\mathrm{var}_i I_i}{(\mathrm{mean}_i I_i)^2}, \quad I_i = \sum_g h_{gi}"

    event_ndim: ClassVar[int] = 2

    def __call__(self, points: Tensor) -> Tensor:
        """Return the loss at each point, `[K, *batch]`."""
        importance = points.transpose(-1, -2).contiguous().sum(-1)
        mean = importance.mean(-1, keepdim=True)
        defined = mean[..., 0] != 0
        share = importance / torch.where(defined[..., None], mean, 1)
        return torch.where(defined, (share - 1).square().mean(-1), 0)
