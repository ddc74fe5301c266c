"""RELAX: the score function with a learned network of a relaxed sample as its control variate, alone or on top of REBAR's."""

from __future__ import annotations

import math
from functools import partial

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, Relaxable, event_shape, per_event
from gradest.contract.numerics import leading_mean
from gradest_estimators._learning import NetworkControlVariate
from gradest_estimators._relaxed import control_term, fresh_noise
from gradest_estimators._score import scores
from gradest_estimators.rebar import Rebar


class Relax(NetworkControlVariate, MonteCarlo):
    """The score function with a learned network c of a relaxed sample as its control variate.

    ĝ = (L(h) - c(s̃)) score + dc(s)/da - dc(s̃)/da, where s and s̃ are the relaxed outputs of `rebar`, which is the
    case c = η L. Here c is a small network of its own, so the loss is needed only at h and may be a black box.

    Unbiased for every loss and every differentiable c, because E[c(s̃) score + dc(s̃)/da] = E[dc(s)/da].

    c starts as 0, where ĝ is `reinforce`. It is learned by Adam along the gradient of ĝ², summed over the event and
    averaged over the batch, and moved only after its use. E[ĝ] does not depend on c, so this lowers the variance. The
    network sees relaxed outputs scaled to (-1, 1) whatever the unit's values are. Its output moves by about
    `learning_rate` per step in units of the loss, so choose the rate by the range of the loss. `network` puts a
    torch.nn.Module in its place, in Python alone; it sees the same numbers.

    Introduced by Grathwohl, Choi, Wu, Roeder and Duvenaud (2018), Backpropagation through the Void: Optimizing Control
    Variates for Black-Box Gradient Estimation, arXiv 1711.00123.
    """

    name = "relax"
    summary = "score function with a learned network of a relaxed sample as control variate"
    reference = "Grathwohl, Choi, Wu, Roeder, Duvenaud 2018, arXiv 1711.00123"
    formula = r"\hat g = \bigl(L(h) - c(\tilde s)\bigr)\nabla_a \log P(h) + \nabla_a c(s) - \nabla_a c(\tilde s)"
    needs = frozenset({"loss"})
    capabilities = (Relaxable,)

    examples = ({}, {"samples": 3, "temperature": 0.5, "hidden": 2, "learning_rate": 0.1})

    temperature: float = Field(1.0, ge=1e-30, le=1e30, description="temperature of the relaxation")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return the network's parameters with Adam's averages of them."""
        return self.learned_network(math.prod(event_shape(neuron, a)), a.device)

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """Return the mean over samples of the loss times the score, plus the control variate of the network."""
        neuron, a = draw.neuron, draw.a
        fresh = fresh_noise(neuron, draw.key, a, self.samples)
        network = partial(self.apply_network, {**state, **parameters})
        added = control_term(network, neuron, a, draw.points, draw.noise(), fresh, self.temperature)
        return leading_mean(per_event(feedback.get_loss(), neuron) * scores(draw) + added)


class RelaxRebar(NetworkControlVariate, Rebar):
    """The `rebar` estimator with a learned network r of the relaxed sample added to its control variate.

    ĝ is that of `rebar` with c = η L + r in place of η L: dr(s)/da - dr(s̃)/da - r(s̃) score is added, and the loss is
    evaluated where `rebar` evaluates it.

    Unbiased for every η and r, and for the losses for which `rebar` is, because what is added has mean 0.

    r starts as 0, where ĝ is `rebar`. η and r are learned together by Adam along the gradient of ĝ², summed over the
    event and averaged over the batch, and moved only after their use. η moves by about `learning_rate` per step, and r
    by as much in units of the loss, so choose the rate by the range of the loss.

    Introduced by Grathwohl, Choi, Wu, Roeder and Duvenaud (2018), Backpropagation through the Void: Optimizing Control
    Variates for Black-Box Gradient Estimation, arXiv 1711.00123.
    """

    name = "relax_rebar"
    summary = "rebar with a learned network of the relaxed sample added to its control variate"
    reference = Relax.reference
    formula = (
        r"\hat g = \bigl(L(h) - c(\tilde s)\bigr)\nabla_a \log P(h) + \nabla_a c(s) - \nabla_a c(\tilde s), "
        r"\quad c = \eta L + r"
    )

    examples = ({"hidden": 2}, {"temperature": 1.0, "hidden": 0, "learn": False})

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return η and the network's parameters, with Adam's averages of both."""
        return {**super().init(neuron, a), **self.learned_network(math.prod(event_shape(neuron, a)), a.device)}

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """Return the gradient of `rebar`, plus the control variate of the network."""
        noise, fresh = draw.saved["noise"], draw.saved["fresh"]
        network = partial(self.apply_network, {**state, **parameters})
        added = control_term(network, draw.neuron, draw.a, draw.points[:1], noise, fresh, self.temperature)
        return super().gradient(draw, feedback, state, parameters) + added[0]
