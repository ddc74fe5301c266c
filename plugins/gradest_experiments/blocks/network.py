"""The gated network, and the dense one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from gradest.discovery.registry import registry
from gradest.nn import ConditionalLinear, Expectation, Stochastic, broadcast_loss
from gradest_experiments.blocks.regularisers import activity, diversity
from gradest_experiments.blocks.settings import NEURON, BlockSettings
from gradest_experiments.gated import looks_at_closed_gates

__all__ = ["BlockNetwork", "Objective"]

_GAIN = 0.25  # the share of open blocks up to which skipping pays


@dataclass(frozen=True, eq=False)
class Objective:
    """total: the scalar to call backward on. loss: the sum over the minibatch of what is to be learned, without regularisers."""

    total: Tensor
    loss: Tensor


class BlockNetwork(nn.Module):
    """logits = V (gates * tanh(W x + b)) + c, a gate a block, and P(gate open) = σ(Z x + d); without a policy all are open.

    Weights start uniform by Glorot and Bengio 2010, from torch's global generator, and biases at 0.
    """

    def __init__(self, inputs: int, outputs: int, settings: BlockSettings) -> None:
        super().__init__()
        self.settings, estimator = settings, settings.build_estimator()
        neuron, blocks = registry.neuron(NEURON), settings.blocks
        self.hidden = ConditionalLinear(inputs, settings.units, block_size=settings.block_size, method=_GAIN)
        self.readout = nn.Linear(settings.units, outputs)
        self.policy = self.unit = None
        if estimator is not None:
            one_point = estimator.evaluations(neuron, (blocks,)) == 1
            self.hidden.closed_gate_gradient = looks_at_closed_gates(neuron, estimator)
            self.policy = nn.Linear(inputs, blocks)
            self.unit = (Stochastic if one_point else Expectation)(neuron, estimator)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def objective(self, x: Tensor, y: Tensor) -> Objective:
        """The training objective of a minibatch: images `[batch, inputs]`, classes `[batch]`."""
        if self.policy is None or self.unit is None:
            loss = cross_entropy(self(x), y, reduction="sum")
            return Objective(loss, loss.detach())
        a, settings = self.policy(x), self.settings

        def losses_at(gates: Tensor) -> Tensor:
            """One point skips what is closed; several share a dense product."""
            if gates.ndim == 2:
                return cross_entropy(self(x, gates), y, reduction="none")
            hidden = torch.tanh(linear(x, self.hidden.weight, self.hidden.bias)).reshape(len(x), settings.blocks, -1)
            logits = self.readout((gates[..., None] * hidden).flatten(-2))
            losses = cross_entropy(logits.flatten(0, 1), y.repeat(len(gates)), reduction="none")
            return losses.reshape(gates.shape[:2])

        losses = losses_at(self.unit(a)) if isinstance(self.unit, Stochastic) else self.unit(losses_at, a)
        p = torch.sigmoid(a)
        total = broadcast_loss(self, losses, "sum")
        total = total + settings.sparsity * activity(p, settings.target) - settings.variance * diversity(p)
        return Objective(total, losses.detach().sum())

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Logits `[batch, outputs]` for gates `[batch, blocks]` of 0 and 1: tanh leaves the 0 of a closed block as it is."""
        logits: Tensor = self.readout(torch.tanh(self.hidden(x, gates)))
        return logits
