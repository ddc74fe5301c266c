"""The gated network: a gater decides for each example which of many linear experts count."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from gradest.contract.estimator import Estimator, Feedback
from gradest.contract.neuron import Neuron
from gradest.errors import InvalidOptions
from gradest.estimation.ask_tell import ask, tell
from gradest.nn import ConditionalLinear, Evaluation, Expectation, Stochastic, broadcast_loss
from gradest.random import Key
from gradest_experiments.engine.distributed import joined_mean
from gradest_experiments.sparsity import Penalty, probe

__all__ = ["GatedNetwork", "Objective", "level_for_share", "looks_at_closed_gates"]

_GAIN = 0.25  # the share of open gates up to which skipping pays


@dataclass(frozen=True, eq=False)
class Objective:
    """What one minibatch of training gives.

    total: the scalar to call backward on. loss: the estimate of the mean loss, without what a penalty adds for
    probabilities. open_share: the mean over gates and examples of P(h > 0).
    """

    total: Tensor
    loss: Tensor
    open_share: Tensor


class GatedNetwork(nn.Module):
    """logits = W (gates(x) * experts(x)) + c, with gates = unit(gater(x)).

    gater: inputs -> hidden tanh units -> one pre-activation a gate. experts: inputs -> gates, linear. The unit is
    gradest.nn.Stochastic where the estimator asks for one point, and gradest.nn.Expectation otherwise, with all of the network
    from the gates on as its f. Sparse experts compute what the gates let through, where these are few; several points share
    one dense product instead. For a neuron of several classes a unit, the gates are units times classes: a one-hot unit of
    C classes has 1 / C of its gates open.

    Weights start uniform on ±√(6 / (in + out)), those of the gater's second layer on four times that; biases start at 0.

    penalty: what is added for sparsity; it is a submodule, since a steered coefficient is training state.
    event: the shape of an event, `(gates,)` or `(units, classes)`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        neuron: Neuron,
        estimator: Estimator,
        *,
        hidden: int,
        event: tuple[int, ...],
        penalty: Penalty,
        evaluation: Evaluation = "mean",
        sparse_experts: bool = False,
    ) -> None:
        super().__init__()
        if len(event) != neuron.event_ndim:
            raise InvalidOptions(
                f"{neuron.name} has events of {neuron.event_ndim} dim(s), so the gates cannot be {event}"
            )
        gates = math.prod(event)
        self.neuron = neuron
        self.event = event
        proposal = nn.Linear(hidden, gates)
        self.gater = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), proposal)
        self.experts = ConditionalLinear(
            inputs,
            gates,
            method=_GAIN if sparse_experts else "dense",
            closed_gate_gradient=looks_at_closed_gates(neuron, estimator),
        )
        self.readout = nn.Linear(gates, outputs)
        one_point = estimator.evaluations(neuron, event) == 1
        self.unit = (Stochastic if one_point else Expectation)(neuron, estimator, evaluation)
        self.penalty = penalty
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = math.sqrt(6 / (module.in_features + module.out_features))
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            proposal.weight *= 4

    def pre_activations(self, x: Tensor) -> Tensor:
        """a, `[batch, *event]`, from inputs `[batch, inputs]`."""
        a: Tensor = self.gater(x)
        return a.reshape(-1, *self.event)

    def objective(self, x: Tensor, y: Tensor, of: int | None = None) -> Objective:
        """The training objective of a minibatch: inputs `[batch, inputs]`, classes `[batch]`.

        of: the examples in the minibatch, if each process of torch.distributed has a part of it. Then total and loss are the
        part's share, whose sum over the processes is the objective; open_share is of all.
        """
        of = len(y) if of is None else of
        a = self.pre_activations(x)

        def loss(gates: Tensor, gated: Tensor) -> Tensor:
            logits = self.readout(gated)
            labels = y.expand(logits.shape[:-1])
            loss = cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").reshape(labels.shape)
            return loss + self.penalty.of_gates(gates)

        if isinstance(self.unit, Stochastic):
            gates = self._flat(self.unit(a))
            losses = loss(gates, self.experts(x, gates))
        else:
            experts = linear(x, self.experts.weight, self.experts.bias)
            losses = self.unit(lambda points: loss(self._flat(points), self._flat(points) * experts), a)
        probability = joined_mean(self._flat(self.neuron.active_probability(a)), of)
        total = broadcast_loss(self, losses) * (len(y) / of) + self.penalty.of_probability(probability)
        return Objective(total, losses.detach().sum() / of, probability.detach().mean())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """For evaluation: logits `[batch, outputs]`, and the gates `[batch, gates]` as `unit.evaluation` has them."""
        if self.training:
            raise RuntimeError("a gated network is trained on its objective(x, y); call eval() before forward")
        a = self.pre_activations(x)
        gates = self._flat(self.unit(a) if isinstance(self.unit, Stochastic) else self.unit(lambda h: h, a))
        return self.readout(self.experts(x, gates)), gates

    @torch.no_grad()
    def calibrate(self, x: Tensor, share: float) -> None:
        """Set the unit's threshold so that `share` of the gates of these inputs is open."""
        probability = self.neuron.active_probability(self.pre_activations(x))
        self.unit.threshold.copy_(level_for_share(probability.flatten(), share))

    def _flat(self, units: Tensor) -> Tensor:
        return units.flatten(units.ndim - len(self.event))


def looks_at_closed_gates(neuron: Neuron, estimator: Estimator) -> bool:
    """Whether the estimator's gradient depends on dL/dh where h is 0, as a straight-through estimator's does. It is tried out."""
    if "grad" not in estimator.needs:
        return False
    a = probe(neuron)
    a = a.repeat(32, *[1] * (a.ndim - 1))
    draw, state = ask(neuron, estimator, a, Key(0))
    loss = draw.points.new_zeros(draw.points.shape[: draw.points.ndim - neuron.event_ndim])
    closed = (draw.points == 0).to(a.dtype)
    with_it, without = (tell(estimator, draw, Feedback(loss, grad), state)[0] for grad in (closed, closed * 0))
    return not torch.equal(with_it, without)


def level_for_share(probability: Tensor, share: float) -> Tensor:
    """The level for which the share of `probability > level` comes nearest to `share`, a scalar tensor.

    It is the (1 - share) quantile, or the float below it where ties at the quantile make that the nearer one: with more than
    `share` of the probabilities at 1, the level is just under 1 and not 1, which would close every gate.
    """
    wanted = round(share * probability.numel())
    if not probability.numel() or wanted == 0:
        return probability.new_ones(())
    descending = probability.sort(descending=True).values
    level = descending[min(wanted, probability.numel() - 1)]
    above, reached = int((probability > level).sum()), int((probability >= level).sum())
    if abs(reached - wanted) < abs(above - wanted):
        return torch.nextafter(level, level.new_tensor(-1.0))
    return level
