"""RODEO: discrete Stein control variates."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Cost, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, SoftmaxOneHot, per_event
from gradest.contract.numerics import leading_mean, leading_sum
from gradest_estimators._binary import flip, flip_probability
from gradest_estimators._learning import ControlVariate, network, network_cost, new_network, with_moments
from gradest_estimators._score import LogitEstimator, event_sum, scores

_INPUT_LIMIT = 30.0  # standard deviations at which inputs are clipped, because a flip of a rare unit may lie anywhere
_CONSTANT_BELOW = 1e-12  # ratio of variance to mean square below which an input counts as constant


class Rodeo(LogitEstimator, ControlVariate, MonteCarlo):
    """Leave-one-out REINFORCE with learned Stein control variates, made from the derivatives at the other samples.

    ĝ = mean_k [(L_k - mean_{j≠k}(L_j + α (𝒜H_j)(h_j))) score_k + (𝒜(H_k score))(h_k)], with a Stein operator 𝒜:
    (𝒜g)(h) = Σ_i P(unit i differs from h) (g(h with unit i flipped) - g(h)) / D for D binary units, and Σ_i Σ_c p_ic
    (g(h with unit i in class c) - g(h)) / D for one-hot units. It is what one step of Gibbs sampling adds to g in
    expectation, so E[(𝒜g)(h)] = 0 for every g.

    Unbiased for every loss and every parameter: both control variates have mean zero as long as H_k does not depend on
    h_k.

    H_k(y) = H(mean_{j≠k} L_j, mean_{j≠k} dL/dh_jᵀ(y - h_j)) is a small network H of what the OTHER samples say about
    the level of the loss, and about the loss at y. It sees y through one inner product, so the D flips need no
    evaluation of the loss and only the memory of D numbers, or D · C with C classes. For binary unit i the second control
    variate is score_i [(𝒜H_k)(h_k) - H_k(h_k with i flipped) / D]. For one-hot unit i, with δ_c = (H_k(h_k with i in class
    c) - H_k(h_k)) / D and δ̄ = Σ_c p_ic δ_c, it is score_i [(𝒜H_k)(h_k) - δ̄ - H_k(h_k) / D] + p_i (δ - δ̄); for two
    classes that is the same.

    For a loss linear in h, H = D/2 (mean_{j≠k} (L_j + dL/dh_jᵀ(y - h_j)) - E[L]) and α = 2 leave ½ score_i times
    L(h) - L(h with i flipped), in which no unit disturbs another. So the part of a flip's effect that the derivative
    predicts is removed from the variance. Where the derivative predicts nothing, as for Σ (h_i - ½)² of Bernoulli
    units, the level remains, which the network compares with its running mean: for a single row this is as good as
    knowing E[L], (K-1)/K of the variance of `rloo`.

    H starts as 0, where ĝ is `rloo`. H and α are learned by Adam along the gradient of ĝ², summed over units and
    averaged over the batch, and moved only after their use.

    Introduced by Shi, Zhou, Hwang, Titsias and Mackey (2022), Gradient Estimation with Discrete Stein Operators,
    arXiv 2202.09497. Two things differ here. Their inputs are raw; here both are centred and scaled by running averages
    of earlier steps, and the output is in units of D times the running spread of the loss between samples, so that
    losses of any size are learned at the same pace. They weight each control variate; here H absorbs the weight of the
    second, and α is the ratio of the two.
    """

    name = "rodeo"
    summary = "rloo with learned Stein control variates from the derivatives at the other samples"
    reference = "Shi, Zhou, Hwang, Titsias, Mackey 2022, arXiv 2202.09497"
    formula = (
        r"\hat g = \frac1K \sum_k \Bigl[\Bigl(L_k - \frac{1}{K-1} \sum_{j \ne k} \bigl(L_j + \alpha "
        r"(\mathcal A H_j)(h_j)\bigr)\Bigr) s_k + (\mathcal A H_k s)(h_k)\Bigr]"
    )
    needs = frozenset({"loss", "grad"})

    examples = ({"hidden": 1}, {"samples": 3, "hidden": 0})

    samples: int = Field(2, ge=2, description="number K of samples")
    hidden: int = Field(8, ge=0, le=256, description="number of hidden units of the network")
    learning_rate: float = Field(
        0.03,
        gt=0,
        allow_inf_nan=False,
        description="Adam's learning rate for the network and α, at any scale of the loss",
    )
    decay: float = Field(0.99, ge=0, lt=1, description="share of the running averages that a step keeps")

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw, in which the network is called for each output of each sample."""
        return network_cost(super().cost(neuron, event, batch), 2, self.hidden)

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return the network's parameters and α with Adam's averages of them, and the running averages, empty."""
        one = torch.ones((), dtype=torch.float64, device=a.device)
        averages = {"weight": 0 * one, "spread": 0 * one, "first": one.new_zeros(2), "second": one.new_zeros(2)}
        return {**with_moments({**new_network(2, self.hidden, a.device), "alpha": one}), **averages}

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """Return the mean over samples of the score times what the control variates leave of the loss."""
        # in float64, because the gradient of its square is taken
        neuron, h, loss = draw.neuron, draw.points, feedback.get_loss().double()
        spread, centre, scale = self._standardisation(state)
        at = self._network_inputs(draw, feedback)
        outlook = self._mean_of_others(feedback.get_grad())  # of dL/dh

        def surrogate(x: Tensor) -> Tensor:  # H / D
            standardised = ((x.double() - centre) * scale).clamp(-_INPUT_LIMIT, _INPUT_LIMIT)
            return spread * network(parameters, standardised)

        def after(
            step: Tensor,
        ) -> Tensor:  # H / D with one unit moved, where `step` is the change of the predicted loss
            return surrogate(at[(..., *[None] * neuron.event_ndim, slice(None))] + _second(step))

        here = per_event(surrogate(at), neuron)
        if isinstance(neuron, SoftmaxOneHot):
            p = neuron.probability(draw.a)
            gap = after(outlook - (outlook * h).contiguous().sum(-1, keepdim=True)) - here
            expected = (p * gap).contiguous().sum(-1, keepdim=True)
            stein, own, added = event_sum(expected, neuron), expected + here, p * (gap - expected)
        else:
            own = after(outlook * (flip(neuron, h) - h))
            stein, added = event_sum(flip_probability(neuron, h, draw.a) * (own - here), neuron), None
        left = loss - self._mean_of_others(loss + parameters["alpha"] * stein) + stein
        estimates = (per_event(left, neuron) - own) * scores(draw)
        return leading_mean(estimates if added is None else estimates + added).to(draw.a)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Use the network and the running averages, then move both."""
        gradient, after = super().backward(draw, feedback, state)
        if after is state:
            return gradient, state
        at = self._network_inputs(draw, feedback).double().flatten(0, -2)
        now = {
            "weight": torch.ones_like(state["weight"]),
            "spread": feedback.get_loss().double().var(0).mean(),
            "first": at.mean(0),
            "second": (at * at).mean(0),
        }
        moved = {name: self.decay * state[name] + (1 - self.decay) * value for name, value in now.items()}
        return gradient, {**after, **moved}

    def _network_inputs(self, draw: Draw, feedback: Feedback) -> Tensor:
        """Return the network's inputs at each sample, `[K, *batch, 2]`.

        They are the mean loss of the other samples, and the change of the loss that their derivatives predict from them
        to this sample.
        """
        neuron, h, grad = draw.neuron, draw.points, feedback.get_grad()
        seen = event_sum(self._mean_of_others(grad) * h, neuron) - self._mean_of_others(event_sum(grad * h, neuron))
        return torch.stack([self._mean_of_others(feedback.get_loss()), seen], -1)

    def _standardisation(self, state: State) -> tuple[Tensor, Tensor, Tensor]:
        """Return the spread of the loss, the centre of the inputs, and the inverse of the inputs' spread (0 if constant)."""
        weight = state["weight"].clamp(min=torch.finfo(torch.float64).tiny)
        centre, square = state["first"] / weight, state["second"] / weight
        variance = square - centre * centre
        scale = torch.where(variance > _CONSTANT_BELOW * square, variance.abs().rsqrt(), 0)
        return (state["spread"] / weight).sqrt(), centre, scale

    def _mean_of_others(self, x: Tensor) -> Tensor:
        """Return for each sample the mean of x, `[K, ...]`, over the other samples."""
        return (leading_sum(x) - x) / (self.samples - 1)


def _second(x: Tensor) -> Tensor:
    """Return the change x of the second input, beside none of the first, `[..., 2]`."""
    return torch.stack([torch.zeros_like(x), x], -1)
