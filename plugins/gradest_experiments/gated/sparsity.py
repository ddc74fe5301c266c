"""Penalties that keep a given share of the gates open, for binary and for rectifying gates, and the max-norm constraint."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gradest.contract.neuron import Neuron, Scored

__all__ = [
    "KLPenalty",
    "L1Penalty",
    "Penalty",
    "PenaltyKind",
    "build_penalty",
    "default_penalty",
    "limit_norm",
    "probe_points",
]

PenaltyKind = Literal["kl", "l1", "none"]


class Penalty(nn.Module):
    """The interface of penalties, and by itself no penalty. Gates and probabilities are `[*batch, units]`."""

    def of_gates(self, gates: Tensor) -> Tensor:
        """Return what is added to the loss of each example, `[*batch]`, for the outputs of its gates."""
        return gates.new_zeros(gates.shape[:-1])

    def of_probability(self, active_probability: Tensor) -> Tensor:
        """Return what is added to the mean loss, a scalar, for the gates' probabilities of being open."""
        return active_probability.new_zeros(())

    def steer(self, open_share: float) -> None:
        """Adapt the penalty to the share of gates that were open in the last minibatch."""


class KLPenalty(Penalty):
    """The penalty -λ Σ_i [s log p_i + (1-s) log(1-p_i)], with p_i the batch mean of unit i's probability of being open.

    It is λ times the cross-entropy of p_i relative to the target s, and is least if every p_i is s.
    """

    def __init__(self, target: float, weight: float) -> None:
        super().__init__()
        self.target, self.weight = target, weight

    def of_probability(self, active_probability: Tensor) -> Tensor:
        """Return the penalty. p_i is clamped to a machine epsilon from 0 and 1, so it is finite; clamped p_i have no gradient."""
        margin = torch.finfo(active_probability.dtype).eps
        p = active_probability.flatten(0, -2).mean(0).clamp(margin, 1 - margin)
        return -self.weight * (self.target * torch.log(p) + (1 - self.target) * torch.log1p(-p)).sum()


class L1Penalty(Penalty):
    """The penalty coefficient · Σ_i |h_i|, whose coefficient is steered so that a share s of the gates stays open.

    After each minibatch the coefficient is multiplied by 1 + rate if more than s + tolerance of the gates were open, and by
    1 - rate if fewer than s - tolerance were. It is a buffer, and so saved with the model. It stays between 1e-8 and 1, so
    that gates which do not react drive it neither to 0, where no multiplication changes it, nor to infinity.
    """

    coefficient: Tensor

    def __init__(self, target: float, start: float = 1e-5, rate: float = 0.1, tolerance: float = 0.01) -> None:
        super().__init__()
        self.target, self.rate, self.tolerance = target, rate, tolerance
        self.register_buffer("coefficient", torch.tensor(start, dtype=torch.float64))

    def of_gates(self, gates: Tensor) -> Tensor:
        """Return the penalty, as a part of each example's loss, so that its gradient reaches a through any estimator."""
        return self.coefficient.to(gates.dtype) * gates.abs().sum(-1)

    def steer(self, open_share: float) -> None:
        """Multiply the coefficient once."""
        if open_share > self.target + self.tolerance:
            self.coefficient *= 1 + self.rate
        elif open_share < self.target - self.tolerance:
            self.coefficient *= 1 - self.rate
        self.coefficient.clamp_(1e-8, 1.0)


def build_penalty(kind: PenaltyKind, target: float, weight: float, rate: float) -> Penalty:
    """Return the penalty of a kind. weight: λ of "kl", or the initial coefficient of "l1"; rate: that of "l1"."""
    if kind == "kl":
        return KLPenalty(target, weight)
    return L1Penalty(target, weight, rate) if kind == "l1" else Penalty()


def default_penalty(neuron: Neuron) -> PenaltyKind:
    """Return the kind of penalty that can close the neuron's gates.

    kl: the neuron makes a random choice whose probability depends on a, so the penalty acts on the probability itself.
    l1: the output can be exactly 0, so a penalty on the output closes gates.
    none: the gates are never closed, as those of a sigmoid, or their probability of being open does not depend on a.
    """
    a = probe_points(neuron)
    if isinstance(neuron, Scored) and float(neuron.active_probability(a).std()) > 0:
        return "kl"
    values, weights = neuron.law(a)
    # if an event has a dim of classes, weights lack it, and an output is 0 if all its classes are
    zero = values == 0 if neuron.event_ndim == 1 else (values == 0).all(-1)
    return "l1" if bool((weights[zero] > 1e-3).any()) else "none"


def probe_points(neuron: Neuron) -> Tensor:
    """Return pre-activations `[7, *event]` of both signs, none of them 0, to try a neuron on: of one unit, with two classes."""
    slopes = torch.linspace(1, 2, min(neuron.event_ndim, 2), dtype=torch.float64)
    levels = torch.linspace(-3.1, 2.9, 7, dtype=torch.float64).reshape(7, *[1] * neuron.event_ndim)
    return levels * slopes


@torch.no_grad()
def limit_norm(module: nn.Module, limit: float) -> None:
    """Scale the incoming weights of every unit of the linear layers, in place, to a Euclidean norm of at most `limit`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            norm = layer.weight.norm(dim=1, keepdim=True)
            layer.weight *= torch.where(norm > limit, limit / norm, 1.0)
