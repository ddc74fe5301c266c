"""The network whose hidden layer is divided among experts, and the dense one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from gradest.discovery.registry import registry
from gradest.nn import ConditionalLinear, Stochastic
from gradest_experiments.experts.settings import PENALTY, ExpertSettings
from gradest_experiments.gated.network import SKIP_UP_TO, needs_closed_gate_gradient

__all__ = ["ExpertNetwork"]


class ExpertNetwork(nn.Module):
    """A mixture of experts: logits = V Σ_i h_i relu(W_i x + b_i) + c, with the gates h of a router R x + d.

    An expert is a block of units of a ConditionalLinear layer. Gates are not negative, so they pass through the relu. Without a
    router all experts are open, and their gates are 1. The router starts at 0, so that all experts are equally likely; other
    weights are those of torch.nn.Linear, drawn from torch's global generator.
    """

    def __init__(self, inputs: int, outputs: int, settings: ExpertSettings) -> None:
        super().__init__()
        self.settings, gates = settings, settings.gates()
        self.hidden = ConditionalLinear(inputs, settings.units, block_size=settings.expert_units, method=SKIP_UP_TO)
        self.readout = nn.Linear(settings.units, outputs)
        self.router = self.gate = None
        if gates is not None:
            self.hidden.closed_gate_gradient = needs_closed_gate_gradient(*gates, (1, settings.experts))
            self.router = nn.Linear(inputs, settings.experts)
            nn.init.zeros_(self.router.weight)
            nn.init.zeros_(self.router.bias)
            self.gate = Stochastic(*gates, event=(1, settings.experts), evaluation="threshold")
        self.load_balance = registry.objective(PENALTY)

    def gates(self, x: Tensor) -> Tensor | None:
        """Return the gates `[batch, experts]` of images `[batch, inputs]`, in training at random; None without a router."""
        if self.router is None or self.gate is None:
            return None
        h: Tensor = self.gate(self.router(x)[:, None])
        return h[:, 0]

    def objective(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is to be minimised on a minibatch, and the mean loss without the penalty on unequal loads."""
        gates = self.gates(x)
        loss = cross_entropy(self(x, gates), y)
        if gates is None:
            return loss, loss.detach()
        return loss + self.settings.balance * self.load_balance(gates[None])[0], loss.detach()

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Return logits `[batch, outputs]` for gates `[batch, experts]`; all experts are open without gates."""
        logits: Tensor = self.readout(torch.relu(self.hidden(x, gates)))
        return logits
