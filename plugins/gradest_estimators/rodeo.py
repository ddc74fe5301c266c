"""Discrete Stein control variates."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import LogisticBinary, Neuron, per_event
from gradest.contract.numerics import leading_mean, leading_sum
from gradest_estimators._binary import flip, flip_probability
from gradest_estimators._learning import ControlVariate, network, new_network, with_moments
from gradest_estimators._score import event_sum, scores

_FAR = 30.0  # standard deviations; an input is cut off there, for a flip of a rare unit may lie anywhere
_CONSTANT = 1e-12  # variance over mean square, below which an input is taken for constant


class Rodeo(ControlVariate, MonteCarlo):
    """ĝ = mean_k [(L_k - mean_{j≠k}(L_j + α (𝒜H_j)(h_j))) score_k + (𝒜(H_k score))(h_k)], 𝒜 a Stein operator: unbiased.

    (𝒜g)(h) = Σ_i P(unit i is not as in h) (g(h with unit i flipped) - g(h)) / D, for D units, is what one step of Gibbs sampling
    adds to g in expectation, so that E[(𝒜g)(h)] = 0 for every g. H_k may be any function that does not depend on h_k. Here
    H_k(y) = H(mean_{j≠k} L_j, mean_{j≠k} dL/dh_jᵀ(y - h_j)): a small network H of what the OTHER samples say about the level of
    the loss, and about the loss at y. It sees y through one inner product, so that the D flips take no evaluation of the loss
    and the memory of D numbers. Of unit i, the second control variate is score_i [(𝒜H_k)(h_k) - H_k(h_k with i flipped) / D].

    A loss linear in h has H = D/2 (mean_{j≠k} L_j + dL/dh_jᵀ(y - h_j) - E[L]) and α = 2: what is left is ½ score_i times
    L(h) - L(h with i flipped), in which no unit disturbs another. So whatever the derivative says of a flip is taken off the
    variance. Where it says nothing, as of Σ (h_i - ½)² for Bernoulli units, the level remains, which the network compares with
    its running mean: for a single row as good as knowing E[L], (K-1)/K of the variance of rloo.

    H starts as 0, where ĝ is `rloo`. H and α are learned by Adam along the gradient of ĝ², summed over units and averaged over
    the batch, after use. The source has raw inputs; here both are centred and scaled by running averages of earlier steps, and
    the output is in units of D times the running spread of the loss between samples. So a loss of any size is learned at the
    same pace. The source has a weight for each control variate, here H takes up the second, with α in place of their ratio.
    """

    name = "rodeo"
    summary = "rloo with learned Stein control variates from the derivatives at the other samples"
    reference = "Shi, Zhou, Hwang, Titsias, Mackey 2022, arXiv 2202.09497"
    formula = (
        r"\hat g = \frac1K \sum_k \Bigl[\Bigl(L_k - \frac{1}{K-1} \sum_{j \ne k} \bigl(L_j + \alpha "
        r"(\mathcal A H_j)(h_j)\bigr)\Bigr) s_k + (\mathcal A H_k s)(h_k)\Bigr]"
    )
    needs = frozenset({"loss", "grad"})
    capabilities = (LogisticBinary,)

    examples = ({"hidden": 1}, {"samples": 3, "hidden": 0})

    samples: int = Field(2, ge=2, description="K")
    hidden: int = Field(8, ge=0, le=256, description="hidden units of the network")
    learning_rate: float = Field(
        0.03, gt=0, allow_inf_nan=False, description="of the network and α, whatever the loss's size"
    )
    decay: float = Field(0.99, ge=0, lt=1, description="share of the past that the running averages keep")

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """The network and α, their moments, and the running averages, empty."""
        one = torch.ones((), dtype=torch.float64, device=a.device)
        averages = {"weight": 0 * one, "spread": 0 * one, "first": one.new_zeros(2), "second": one.new_zeros(2)}
        return {**with_moments({**new_network(2, self.hidden, a.device), "alpha": one}), **averages}

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """The mean over samples of score times what the control variates leave of the loss."""
        neuron, h, loss = draw.neuron, draw.points, feedback.get_loss()
        spread, centre, scale = self._averages(state)
        at = self._inputs(draw, feedback)
        step = self._others(feedback.get_grad()) * (flip(neuron, h) - h)
        flipped = at[..., None, :] + torch.stack([torch.zeros_like(step), step], -1)

        def surrogate(x: Tensor) -> Tensor:  # H / D
            standard = ((x.double() - centre) * scale).clamp(-_FAR, _FAR)
            return spread.to(loss) * network(parameters, standard.to(loss))

        there = surrogate(flipped)
        stein = event_sum(flip_probability(neuron, h, draw.a) * (there - per_event(surrogate(at), neuron)), neuron)
        left = loss - self._others(loss + parameters["alpha"].to(loss) * stein) + stein
        return leading_mean((per_event(left, neuron) - there) * scores(draw))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Uses the network and the averages, then moves both."""
        gradient, after = super().backward(draw, feedback, state)
        if after is state:
            return gradient, state
        at = self._inputs(draw, feedback).double().flatten(0, -2)
        now = {
            "weight": torch.ones_like(state["weight"]),
            "spread": feedback.get_loss().double().var(0).mean(),
            "first": at.mean(0),
            "second": (at * at).mean(0),
        }
        moved = {name: self.decay * state[name] + (1 - self.decay) * value for name, value in now.items()}
        return gradient, {**after, **moved}

    def _inputs(self, draw: Draw, feedback: Feedback) -> Tensor:
        """What the network sees of each sample, `[K, *batch, 2]`: of the loss at the others, and of it as seen from there."""
        neuron, h, grad = draw.neuron, draw.points, feedback.get_grad()
        seen = event_sum(self._others(grad) * h, neuron) - self._others(event_sum(grad * h, neuron))
        return torch.stack([self._others(feedback.get_loss()), seen], -1)

    def _averages(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """The spread of the loss, the centre of the inputs, and one over their spread; 0 where there is none."""
        weight = state["weight"].clamp(min=torch.finfo(torch.float64).tiny)
        centre, square = state["first"] / weight, state["second"] / weight
        variance = square - centre * centre
        scale = torch.where(variance > _CONSTANT * square, variance.abs().rsqrt(), 0)
        return (state["spread"] / weight).sqrt(), centre, scale

    def _others(self, x: Tensor) -> Tensor:
        """The mean over the other samples, for each."""
        return (leading_sum(x) - x) / (self.samples - 1)
