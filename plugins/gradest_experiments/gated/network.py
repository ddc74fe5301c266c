"""The gated network, in which a gater decides for each example which of many linear experts are used."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from gradest.contract.estimator import Estimator, Feedback
from gradest.contract.neuron import Neuron, keeps_event
from gradest.errors import InvalidOptions
from gradest.estimation.ask_tell import ask, tell
from gradest.nn import ConditionalLinear, Evaluation, Expectation, Stochastic, broadcast_loss
from gradest.random import Key
from gradest_experiments.engine.distributed import joined_mean
from gradest_experiments.gated.sparsity import Penalty, probe_points

__all__ = [
    "SKIP_UP_TO",
    "GatedLoss",
    "GatedNetwork",
    "build_unit",
    "needs_closed_gate_gradient",
    "threshold_for_share",
]

SKIP_UP_TO = 0.25
"""The share of open gates up to which it is faster to skip what closed gates would multiply by 0."""


@dataclass(frozen=True, eq=False)
class GatedLoss:
    """The training objective on a minibatch.

    total: the scalar to call backward on. loss: the estimate of the mean loss, without what a penalty adds for probabilities.
    open_share: the mean of P(h > 0) over gates and examples.
    """

    total: Tensor
    loss: Tensor
    open_share: Tensor


class GatedNetwork(nn.Module):
    """A network of gated experts: logits = W (gates(x) * experts(x)) + c, with gates = unit(gater(x)).

    gater: inputs -> hidden tanh units -> one pre-activation per gate. experts: inputs -> gates, linear. unit: the layer of
    `build_unit`; if it is an Expectation, its f is the whole network from the gates on. Sparse experts skip the closed gates of
    one point if few gates are open; several points share one dense product. A neuron whose units have several classes has
    units times classes gates: a one-hot unit of C classes has 1 / C of its gates open.

    Initial weights are uniform on ±√(6 / (in + out)), those of the gater's second layer on four times that; biases are 0.

    event: the shape of an event, `(gates,)` or `(units, classes)`.
    penalty: what is added for sparsity; a submodule, because a steered coefficient is training state.
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
        if not keeps_event(neuron):
            raise InvalidOptions(
                f"{neuron.name} has several pre-activations or outputs for a unit, so its outputs cannot be gates; choose another"
            )
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
            method=SKIP_UP_TO if sparse_experts else "dense",
            closed_gate_gradient=needs_closed_gate_gradient(neuron, estimator, event),
        )
        self.readout = nn.Linear(gates, outputs)
        self.unit = build_unit(neuron, estimator, event, evaluation)
        self.penalty = penalty
        for module in self.modules():
            if isinstance(module, nn.Linear):
                bound = math.sqrt(6 / (module.in_features + module.out_features))
                nn.init.uniform_(module.weight, -bound, bound)
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            proposal.weight *= 4

    def pre_activations(self, x: Tensor) -> Tensor:
        """Return a, `[batch, *event]`, for inputs `[batch, inputs]`."""
        a: Tensor = self.gater(x)
        return a.reshape(-1, *self.event)

    def objective(self, x: Tensor, y: Tensor, of: int | None = None) -> GatedLoss:
        """Return the training objective on a minibatch of inputs `[batch, inputs]` and classes `[batch]`.

        of: the number of examples in the whole minibatch, if each process of torch.distributed has a part of it. The sums of
        total and loss over the processes are those of the minibatch; open_share is that of the minibatch in every process.
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
        return GatedLoss(total, losses.detach().sum() / of, probability.detach().mean())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return, in evaluation, logits `[batch, outputs]` and the gates `[batch, gates]` that `unit.evaluation` prescribes."""
        if self.training:
            raise RuntimeError("a gated network is trained on its objective(x, y); call eval() before forward")
        a = self.pre_activations(x)
        gates = self._flat(self.unit.emit(a))
        return self.readout(self.experts(x, gates)), gates

    @torch.no_grad()
    def calibrate(self, x: Tensor, share: float) -> None:
        """Set the unit's threshold so that a share `share` of the gates is open on these inputs."""
        probability = self.neuron.active_probability(self.pre_activations(x))
        self.unit.threshold.copy_(threshold_for_share(probability.flatten(), share))

    def _flat(self, units: Tensor) -> Tensor:
        return units.flatten(units.ndim - len(self.event))


def build_unit(
    neuron: Neuron, estimator: Estimator, event: tuple[int, ...], evaluation: Evaluation = "mean"
) -> Stochastic | Expectation:
    """Return the layer that trains through the estimator: Stochastic if that takes it, else Expectation.

    An event of which there is one configuration, as of 2 of 2 items, says little: enumeration asks for one point there too, so
    one unit of one item more is looked at as well. Raises TooManyPoints for an event that the estimator cannot enumerate.
    """
    wider = (*[1] * (len(event) - 1), event[-1] + 1)
    one_point = all(estimator.evaluations(neuron, one) == 1 for one in (event, wider))
    return (Stochastic if one_point and estimator.linear else Expectation)(neuron, estimator, evaluation)


def needs_closed_gate_gradient(neuron: Neuron, estimator: Estimator, event: tuple[int, ...] | None = None) -> bool:
    """Return whether the estimator's gradient depends on dL/dh where h is 0, as straight-through does, by trying both.

    event: that of the network, so that units of two dims, such as a router, are tried on as many classes as they will have, of
        which some are closed. By default units of two classes are tried.
    """
    if "grad" not in estimator.needs:
        return False
    a = probe_points(neuron)
    if event is not None and neuron.event_ndim == 2:
        a = a[..., :1] * torch.linspace(-0.5, 0.5, event[-1], dtype=a.dtype)
    a = a.repeat(32, *[1] * (a.ndim - 1))
    draw, state = ask(neuron, estimator, a, Key(0))
    loss = draw.points.new_zeros(draw.points.shape[: draw.points.ndim - neuron.event_ndim])
    closed = (draw.points == 0).to(a.dtype)
    with_it, without = (tell(estimator, draw, Feedback(loss, grad), state)[0] for grad in (closed, closed * 0))
    return not torch.equal(with_it, without)


def threshold_for_share(probability: Tensor, share: float) -> Tensor:
    """Return the level, a scalar tensor, for which the share of `probability > level` is nearest to `share`.

    It is the (1 - share) quantile, or the float below the quantile if ties make that one nearer: if more than `share` of the
    probabilities are 1, the level is just below 1, because a level of 1 would close every gate.
    """
    wanted = round(share * probability.numel())
    if not probability.numel() or wanted == 0:
        return probability.new_ones(())
    level = probability.flatten().kthvalue(max(probability.numel() - wanted, 1)).values
    above, reached = int((probability > level).sum()), int((probability >= level).sum())
    if abs(reached - wanted) < abs(above - wanted):
        return torch.nextafter(level, level.new_tensor(-1.0))
    return level
