"""The network whose hidden layer is gated block by block, and the dense one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from gradest.nn import ConditionalLinear, Stochastic, broadcast_loss
from gradest_experiments.blocks.regularisers import activity, diversity
from gradest_experiments.blocks.settings import BlockSettings
from gradest_experiments.gated.network import SKIP_UP_TO, build_unit, needs_closed_gate_gradient

__all__ = ["BlockLoss", "BlockNetwork"]


@dataclass(frozen=True, eq=False)
class BlockLoss:
    """The training objective on a minibatch.

    total: the scalar to call backward on. loss: the sum of the losses over the minibatch, without regularisers.
    """

    total: Tensor
    loss: Tensor


class BlockNetwork(nn.Module):
    """A network of gated blocks: logits = V (gates * tanh(W x + b)) + c, with one gate per block and pre-activations Z x + d.

    Bernoulli gates are open with probability σ(Z x + d), each for itself; categorical and subset units choose among the blocks.

    Without an estimator there is no policy Z, and every block is open. Initial weights are uniform as in Glorot and Bengio
    (2010), drawn from torch's global generator; biases are 0.
    """

    def __init__(self, inputs: int, outputs: int, settings: BlockSettings) -> None:
        super().__init__()
        self.settings, estimator = settings, settings.build_estimator()
        self.neuron, blocks = settings.build_gates(), settings.blocks
        event = (blocks,) if self.neuron.event_ndim == 1 else (1, blocks)
        self.hidden = ConditionalLinear(inputs, settings.units, block_size=settings.block_size, method=SKIP_UP_TO)
        self.readout = nn.Linear(settings.units, outputs)
        self.policy = self.unit = None
        if estimator is not None:
            self.hidden.closed_gate_gradient = needs_closed_gate_gradient(self.neuron, estimator, event)
            self.policy = nn.Linear(inputs, blocks)
            self.unit = build_unit(self.neuron, estimator, event)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def objective(self, x: Tensor, y: Tensor) -> BlockLoss:
        """Return the training objective on a minibatch of images `[batch, inputs]` and classes `[batch]`."""
        if self.policy is None or self.unit is None:
            loss = cross_entropy(self(x), y, reduction="sum")
            return BlockLoss(loss, loss.detach())
        a, settings = self.pre_activations(x), self.settings

        def losses_at(units: Tensor) -> Tensor:
            """One point skips closed blocks; several points share a dense product."""
            gates = self.flat(units)
            if gates.ndim == 2:
                return cross_entropy(self(x, gates), y, reduction="none")
            hidden = torch.tanh(linear(x, self.hidden.weight, self.hidden.bias)).reshape(len(x), settings.blocks, -1)
            logits = self.readout((gates[..., None] * hidden).flatten(-2))
            losses = cross_entropy(logits.flatten(0, 1), y.repeat(len(gates)), reduction="none")
            return losses.reshape(gates.shape[:2])

        losses = losses_at(self.unit(a)) if isinstance(self.unit, Stochastic) else self.unit(losses_at, a)
        p = self.flat(self.neuron.active_probability(a))
        total = broadcast_loss(self, losses, "sum")
        total = total + settings.sparsity * activity(p, settings.wanted()) - settings.variance * diversity(p)
        return BlockLoss(total, losses.detach().sum())

    def pre_activations(self, x: Tensor) -> Tensor:
        """Return the pre-activations `[batch, *event]` of the gates for images `[batch, inputs]`."""
        assert self.policy is not None
        a: Tensor = self.policy(x)
        return a if self.neuron.event_ndim == 1 else a[..., None, :]

    def flat(self, units: Tensor) -> Tensor:
        """Return the outputs of the gates, `[..., *event]`, as `[..., blocks]`."""
        return units if self.neuron.event_ndim == 1 else units.squeeze(-2)

    def forward(self, x: Tensor, gates: Tensor | None = None) -> Tensor:
        """Return logits `[batch, outputs]` for gates `[batch, blocks]` of 0 and 1; all blocks are open without gates."""
        # tanh(0) is 0, so the outputs of closed blocks stay 0
        logits: Tensor = self.readout(torch.tanh(self.hidden(x, gates)))
        return logits
