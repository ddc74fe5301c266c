"""RELAX: the score function with a learned network of a relaxed sample as its control variate, alone or on top of REBAR's."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, Relaxable, per_event
from gradest.contract.numerics import leading_mean
from gradest_estimators._learning import ControlVariate, with_moments
from gradest_estimators._relaxed import control, fresh_noise, new_control
from gradest_estimators._score import scores
from gradest_estimators.rebar import Rebar


class Relax(ControlVariate, MonteCarlo):
    """ĝ = (L(h) - c(s̃)) score + dc(s)/da - dc(s̃)/da: unbiased for every differentiable c.

    s and s̃ are the relaxed outputs of `rebar`, which is the case c = η L. Here c is a small network of its own, so the loss
    is needed at h alone and may be a black box. c starts as 0, where ĝ is `reinforce`, and is learned by Adam along the
    gradient of ĝ², summed over units and averaged over the batch, after use: as E[ĝ] does not depend on c, this lowers the
    variance. The network sees relaxed outputs scaled to (-1, 1), whatever the values of the unit are. It learns about
    `learning_rate` in units of the loss per step, which should be scaled to a loss of large or small range.
    """

    name = "relax"
    summary = "score function with a learned network of a relaxed sample as control variate"
    reference = "Grathwohl, Choi, Wu, Roeder, Duvenaud 2018, arXiv 1711.00123"
    formula = r"\hat g = \bigl(L(h) - c(\tilde s)\bigr)\nabla_a \log P(h) + \nabla_a c(s) - \nabla_a c(\tilde s)"
    needs = frozenset({"loss"})
    capabilities = (Relaxable,)

    examples = ({}, {"samples": 3, "temperature": 0.5, "hidden": 2, "learning_rate": 0.1})

    temperature: float = Field(1.0, gt=0, allow_inf_nan=False, description="of the relaxation")
    hidden: int = Field(8, ge=0, le=256, description="hidden units of the network")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """The network's parameters and their moments."""
        return with_moments(new_control(neuron, a, self.hidden))

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """The mean over samples of L score, plus what the network adds."""
        neuron, a = draw.neuron, draw.a
        fresh = fresh_noise(neuron, draw.key, a, self.samples)
        added = control(parameters, neuron, a, draw.points, draw.noise(), fresh, self.temperature)
        return leading_mean(per_event(feedback.get_loss(), neuron) * scores(draw) + added)


class RelaxRebar(Rebar):
    """ĝ of `rebar`, with c = η L + r, r a small network of the relaxed sample: unbiased for every η and r.

    So it asks for what `rebar` asks for, and adds dr(s)/da - dr(s̃)/da - r(s̃) score, of mean 0. r starts as 0, where ĝ is
    `rebar`; η and r are learned together by Adam along the gradient of ĝ², summed over units and averaged over the batch,
    after use. η moves by about `learning_rate` per step and r by as much in units of the loss, which should therefore be
    scaled to a loss of large or small range.
    """

    name = "relax_rebar"
    summary = "rebar, with a learned network of the relaxed sample added to its control variate"
    reference = Relax.reference
    formula = (
        r"\hat g = \bigl(L(h) - c(\tilde s)\bigr)\nabla_a \log P(h) + \nabla_a c(s) - \nabla_a c(\tilde s), "
        r"\quad c = \eta L + r"
    )

    examples = ({"hidden": 2}, {"temperature": 1.0, "hidden": 0, "learn": False})

    hidden: int = Field(8, ge=0, le=256, description="hidden units of the network")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """η and the network's parameters, and their moments."""
        return {**super().init(neuron, a), **with_moments(new_control(neuron, a, self.hidden))}

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """What `rebar` says, plus what the network adds."""
        noise, fresh = draw.saved["noise"], draw.saved["fresh"]
        added = control(parameters, draw.neuron, draw.a, draw.points[:1], noise, fresh, self.temperature)
        return super().gradient(draw, feedback, state, parameters) + added[0]
