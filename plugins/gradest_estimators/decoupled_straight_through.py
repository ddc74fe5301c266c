"""The decoupled straight-through estimator."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Binary, Neuron, SoftmaxOneHot
from gradest.contract.numerics import leading_mean, select
from gradest.random import Key
from gradest_estimators._one_hot import softmax_vjp
from gradest_estimators._score import LogitEstimator


class DecoupledStraightThrough(LogitEstimator, MonteCarlo):
    """A straight-through estimator with one temperature for the samples and another for the derivative.

    ĝ = dE[h at a/τ_b]/da · L'(h), with h drawn at a/τ_f: for a one-hot unit 1/τ_b (diag s - ssᵀ) L'(h) with s =
    softmax(a/τ_b) and h ~ softmax(a/τ_f), for a binary one (high - low)/τ_b σ'(a/τ_b) L'(h) with P(h = high) = σ(a/τ_f).

    τ_f, `forward_temperature`, says how random the samples are. At any other τ_f than 1 they are not those of the unit
    at a, and the value is the mean loss of a unit at a/τ_f. Such a model has to be evaluated at a/τ_f, too. τ_b,
    `backward_temperature`, says how evenly the derivative reaches all classes: s is flatter at a higher one.

    Biased for the gradient of E[L(h)], except that with both temperatures 1 it is `straight_through` with derivative
    "sigmoid", which is exact for a loss that is linear in each unit. With both temperatures τ it is exact for such a
    loss of the unit at a/τ. In general it is that `straight_through`, with slope τ_f/τ_b, on a unit whose
    pre-activations are a/τ_f. That two temperatures train better than one is the authors' finding; it is not a matter
    of bias, which the tests measure.

    Introduced by Shah, Yan, Mozer and Liu (2024), Improving Discrete Optimisation Via Decoupled Straight-Through
    Estimator, arXiv 2410.13331. The default of τ_b is gradest's choice.
    """

    name = "decoupled_straight_through"
    summary = "straight_through with one temperature for the samples and one for the derivative"
    reference = "Shah, Yan, Mozer, Liu 2024, arXiv 2410.13331"
    formula = (
        r"\hat g = \frac1{\tau_b} \bigl(\operatorname{diag} s - s s^\top\bigr) L'(h), \quad s = "
        r"\mathrm{softmax}(a / \tau_b), \quad h \sim \mathrm{softmax}(a / \tau_f)"
    )
    needs = frozenset({"grad"})

    examples = (
        {},
        {"backward_temperature": 1.0},
        {"forward_temperature": 0.5, "backward_temperature": 1.5, "samples": 3},
    )

    forward_temperature: float = Field(1.0, ge=1e-30, le=1e30, description="temperature τ_f of the samples")
    backward_temperature: float = Field(2.0, ge=1e-30, le=1e30, description="temperature τ_b of the derivative")

    def bias(self, neuron: Neuron) -> Bias:
        """Return exactness to first order with both temperatures 1, and `Bias.BIASED` otherwise."""
        plain = self.forward_temperature == self.backward_temperature == 1
        return Bias.exact_to_order(1) if plain else Bias.BIASED

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at samples of the unit at a/τ_f."""
        cooled = a if self.forward_temperature == 1 else _relative(neuron, a) / self.forward_temperature
        points = neuron.sample(key, cooled, self.samples)
        return Draw(neuron, a, key, points)

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of L'(h), times the derivative of E[h] at a/τ_b."""
        neuron, a, grad, slope = draw.neuron, draw.a, leading_mean(feedback.get_grad()), 1 / self.backward_temperature
        if isinstance(neuron, SoftmaxOneHot):
            return softmax_vjp(
                neuron.probability(_relative(neuron, a) / self.backward_temperature), grad
            ) * slope, state
        assert isinstance(neuron, Binary)
        return select("logistic_backward", a.device)(a, grad, slope, slope * (neuron.high - neuron.low)), state


def _relative(neuron: Neuron, a: Tensor) -> Tensor:
    """Return logits of the same law, none above 0 for a one-hot unit, so that a low temperature makes none of them NaN."""
    return a - a.amax(-1, keepdim=True) if isinstance(neuron, SoftmaxOneHot) else a
