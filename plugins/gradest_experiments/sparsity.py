"""What keeps a given share of the gates open: a penalty for gates that choose, one for gates that rectify, and max-norm."""

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
    "fitting_penalty",
    "limit_norm",
    "probe",
]

PenaltyKind = Literal["kl", "l1", "none"]


class Penalty(nn.Module):
    """No penalty, and the interface of those there are. Gates and probabilities are `[*batch, units]`."""

    def of_gates(self, gates: Tensor) -> Tensor:
        """What is added to the loss of each example, `[*batch]`, for the outputs of its gates."""
        return gates.new_zeros(gates.shape[:-1])

    def of_probability(self, active_probability: Tensor) -> Tensor:
        """What is added to the mean loss, a scalar, for the gates' probabilities of being open."""
        return active_probability.new_zeros(())

    def steer(self, open_share: float) -> None:
        """Adjust to the share of gates that the last minibatch had open."""


class KLPenalty(Penalty):
    """-λ Σ_i [s log p_i + (1-s) log(1-p_i)], p_i the batch mean of unit i's probability of being open.

    It is λ times the cross-entropy of p_i to the target s, least where each p_i is s.
    """

    def __init__(self, target: float, weight: float) -> None:
        super().__init__()
        self.target, self.weight = target, weight

    def of_probability(self, active_probability: Tensor) -> Tensor:
        """p_i is kept a machine epsilon away from 0 and 1: the penalty stays finite, and beyond that no gradient flows."""
        margin = torch.finfo(active_probability.dtype).eps
        p = active_probability.flatten(0, -2).mean(0).clamp(margin, 1 - margin)
        return -self.weight * (self.target * torch.log(p) + (1 - self.target) * torch.log1p(-p)).sum()


class L1Penalty(Penalty):
    """coefficient · Σ_i |h_i|, the coefficient steered so that a share s of the gates stays open.

    After each minibatch the coefficient is multiplied by 1 + rate if more than s + tolerance of the gates were open, by
    1 - rate if fewer than s - tolerance were. It is a buffer, and so saved with the model. It stays between 1e-8 and 1, so
    that gates which cannot follow drive it neither to 0, from where no multiplication leads back, nor to infinity.
    """

    coefficient: Tensor

    def __init__(self, target: float, start: float = 1e-5, rate: float = 0.1, tolerance: float = 0.01) -> None:
        super().__init__()
        self.target, self.rate, self.tolerance = target, rate, tolerance
        self.register_buffer("coefficient", torch.tensor(start, dtype=torch.float64))

    def of_gates(self, gates: Tensor) -> Tensor:
        """The penalty is part of each example's loss, so that it reaches a through any estimator."""
        return self.coefficient.to(gates.dtype) * gates.abs().sum(-1)

    def steer(self, open_share: float) -> None:
        """One step of the coefficient."""
        if open_share > self.target + self.tolerance:
            self.coefficient *= 1 + self.rate
        elif open_share < self.target - self.tolerance:
            self.coefficient *= 1 - self.rate
        self.coefficient.clamp_(1e-8, 1.0)


def build_penalty(kind: PenaltyKind, target: float, weight: float, rate: float) -> Penalty:
    """The penalty of that kind. weight: λ of "kl", or the coefficient that "l1" starts from; rate: of "l1"."""
    if kind == "kl":
        return KLPenalty(target, weight)
    return L1Penalty(target, weight, rate) if kind == "l1" else Penalty()


def fitting_penalty(neuron: Neuron) -> PenaltyKind:
    """The penalty that can close the neuron's gates.

    kl: the neuron makes a choice whose probability moves with a, so that the probability itself can be pulled.
    l1: its output can be exactly 0, so that shrinking the output closes gates.
    none: its gates are never closed (a sigmoid), or it leaves no probability to pull.
    """
    a = probe(neuron)
    if isinstance(neuron, Scored) and float(neuron.active_probability(a).std()) > 0:
        return "kl"
    values, weights = neuron.law(a)
    # weights lack the dim of the classes where an event has one: then an output is 0 if all its classes are
    zero = values == 0 if neuron.event_ndim == 1 else (values == 0).all(-1)
    return "l1" if bool((weights[zero] > 1e-3).any()) else "none"


def probe(neuron: Neuron) -> Tensor:
    """Pre-activations `[7, *event]` of both signs, none of them 0, to look at how a neuron behaves: one unit, of two classes."""
    slopes = torch.linspace(1, 2, min(neuron.event_ndim, 2), dtype=torch.float64)
    levels = torch.linspace(-3.1, 2.9, 7, dtype=torch.float64).reshape(7, *[1] * neuron.event_ndim)
    return levels * slopes


@torch.no_grad()
def limit_norm(module: nn.Module, limit: float) -> None:
    """Scale the weights that come into each unit of the linear layers, in place, to a Euclidean norm of at most `limit`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            norm = layer.weight.norm(dim=1, keepdim=True)
            layer.weight *= torch.where(norm > limit, limit / norm, 1.0)
