"""Targets beside E[L]: those of the library and of one's own, against enumeration, and estimators of them."""

from dataclasses import dataclass
from itertools import product

import pytest
import torch

import gradest
from gradest.contract.numerics import leading_mean, leave_one_out
from gradest.errors import Incompatible, InvalidInput, TooManyPoints
from gradest.testing.checks import estimator_bias_is_as_claimed, estimator_fits_layers

A = torch.tensor([[0.4, -0.9, 1.3], [2.0, 0.1, -0.4]], dtype=torch.float64)
BITS = torch.tensor(list(product((0.0, 1.0), repeat=3)), dtype=torch.float64)


def f(h):
    return (h * torch.tensor([1.0, -0.7, 0.5]).to(h)).sum(-1) ** 2 + h[..., 0]


@dataclass(frozen=True)
class ExponentialLoss(gradest.Target):
    def combine(self, loss):
        return loss.exp().mean(0)


@dataclass(frozen=True)
class LogExponentialLoss(ExponentialLoss):
    def outer(self, value, probability):
        return (probability * value).sum(0).log()


@dataclass(frozen=True)
class LogSquaredMean(gradest.Target):
    samples: int = 2

    def combine(self, loss):
        return loss.mean(0) ** 2

    def outer(self, value, probability):
        return (probability * value).sum(0).log()


class ExponentialScore(gradest.ScoreFunction):
    """The score function of E[exp L], with the right `value`; its subclasses are wrong."""

    name, summary = "exponential_score", "score function of E[exp L]"
    samples: int = 2

    def target(self):
        return ExponentialLoss()

    def value(self, draw, loss):
        return self.combine(loss)

    def combine(self, loss):
        return leading_mean(loss.exp())

    def credit(self, loss, state, features=None):
        return leave_one_out(loss.exp()), state


def losses_and_probabilities(a):
    """The losses of the eight outputs of three units, `[8]`, and their probabilities, `[8, *batch]`."""
    p = torch.sigmoid(a)
    return f(BITS), torch.where(BITS[:, None] == 1, p, 1 - p).prod(-1)


def upper_tail(loss, p, level):
    """The mean of the largest losses, taken one after the other until the share 1 - level is full."""
    taken, total = torch.zeros(()), torch.zeros(())
    for i in loss.argsort(descending=True).tolist():
        share = torch.minimum(p[i], 1 - level - taken)
        taken, total = taken + share, total + share * loss[i]
    return total / (1 - level)


WANTED = {
    gradest.Risk(): lambda loss, p: (p * loss.exp()).sum().log(),
    gradest.Risk(-2.5): lambda loss, p: (p * (-2.5 * loss).exp()).sum().log() / -2.5,
    gradest.ConditionalValueAtRisk(0.7): lambda loss, p: upper_tail(loss, p, 0.7),
    gradest.ConditionalValueAtRisk(0.0): lambda loss, p: (p * loss).sum(),
    gradest.MaxOfSamples(2): lambda loss, p: (p[:, None] * p * torch.minimum(loss[:, None], loss)).sum(),
    ExponentialLoss(): lambda loss, p: (p * loss.exp()).sum(),
    LogExponentialLoss(): lambda loss, p: (p * loss.exp()).sum().log(),
    LogSquaredMean(): lambda loss, p: (p[:, None] * p * ((loss[:, None] + loss) / 2) ** 2).sum().log(),
}


@pytest.mark.parametrize("target", WANTED, ids=str)
def test_exact_is_enumeration(target):
    a = A.clone().requires_grad_()
    loss, probability = losses_and_probabilities(a)
    wanted = torch.stack([WANTED[target](loss, p) for p in probability.unbind(1)])
    (gradient,) = torch.autograd.grad(wanted.sum(), a)
    value, found = gradest.exact(f, A, "bernoulli", target)
    assert torch.allclose(value, wanted.detach(), atol=1e-12)
    assert torch.allclose(found, gradient, atol=1e-12)


def test_risk_of_units_that_move_with_a():
    """log E[exp(w h)] of a normal h is w a + (w std)²/2, whose derivative is w."""
    a, w, std = torch.tensor([[0.3], [-1.0]], dtype=torch.float64), -0.7, 0.5
    value, gradient = gradest.exact(lambda h: w * h.sum(-1), a, {"name": "gaussian", "std": std}, gradest.Risk())
    assert torch.allclose(value, w * a[:, 0] + (w * std) ** 2 / 2, atol=1e-6)
    assert torch.allclose(gradient, torch.full_like(a, w), atol=1e-5)


def test_the_conditional_value_at_risk_of_units_that_move_with_a():
    """That of a normal h moves with its mean, whatever the level."""
    a = torch.tensor([[0.3], [-1.0]], dtype=torch.float64)
    _, gradient = gradest.exact(lambda h: h.sum(-1), a, "gaussian", gradest.ConditionalValueAtRisk(0.5), tolerance=0.1)
    assert torch.allclose(gradient, torch.ones_like(a), atol=1e-9)


def test_risk_of_large_losses_is_finite():
    value, gradient = gradest.exact(lambda h: 1e4 * h.sum(-1), A, target=gradest.Risk())
    assert torch.allclose(value, 3e4 + torch.sigmoid(A).log().sum(-1))  # log P(h = 1) beside the largest loss
    assert torch.allclose(gradient, 1 - torch.sigmoid(A))


def test_the_closed_form_of_an_objective_is_that_of_the_mean_alone():
    objective = gradest.objective("quadratic", target=0.3)
    table = gradest.compare(objective, A, estimators=[ExponentialScore(samples=4)], draws=2000, seed=1)
    assert table.rows[0].bias_in_se < 3  # twelve standard errors with the gradient of E[L]
    assert table.rows[0].claim == "none, of ExponentialLoss(samples=1)"


def test_the_kit_takes_a_target_of_one_sample():
    neuron = gradest.neuron("bernoulli")
    estimator_bias_is_as_claimed(ExponentialScore(), neuron)
    estimator_fits_layers(ExponentialScore(), neuron)


def test_the_kit_finds_the_gradient_and_the_value_of_another_target():
    class OfMean(ExponentialScore):
        def target(self):
            return gradest.Target()

    class ValueOfMean(ExponentialScore):
        def combine(self, loss):
            return leading_mean(loss)

    neuron = gradest.neuron("bernoulli")
    with pytest.raises(AssertionError, match="claims bias none, but"):
        estimator_bias_is_as_claimed(OfMean(), neuron)
    with pytest.raises(AssertionError, match="the mean of `value` differs from it"):
        estimator_bias_is_as_claimed(ValueOfMean(), neuron)


def test_a_graph_credits_the_whole_loss_and_returns_the_target():
    """E[exp(c + d)] with a cost c that was added before the layer: its factor exp(c) may not be dropped."""
    layer = gradest.nn.Stochastic("bernoulli", ExponentialScore(samples=2))
    torch.manual_seed(3)
    a = A[0].expand(4000, 3).clone().requires_grad_()
    with gradest.nn.StochasticGraph(layer, samples=2) as graph:
        h = layer(graph.expand(a))
        graph.add_cost(f(h))
        graph.add_cost(torch.full(h.shape[:2], 0.5, dtype=h.dtype))
        loss = graph.surrogate()
    loss.backward()
    wanted, gradient = gradest.exact(lambda h: f(h) + 0.5, A[0], target=ExponentialLoss())
    assert abs(loss.item() - float(wanted)) < 0.1 * float(wanted)  # six standard errors
    assert bool(((a.grad.sum(0) - gradient).abs() < 0.15 * gradient.abs().max()).all())


def test_what_a_target_returns_is_checked():
    class NoNumber(gradest.Target):
        def combine(self, loss):
            return loss

    class Cut(gradest.Target):
        def outer(self, value, probability):
            return (value * probability).sum(0).detach()

    with pytest.raises(InvalidInput, match=r"NoNumber.combine must return a tensor \[8, 2\]"):
        gradest.exact(f, A, target=NoNumber())
    with pytest.raises(InvalidInput, match=r"Cut.outer must be differentiable"):
        gradest.exact(f, A, target=Cut())
    with pytest.raises(InvalidInput, match=r"ExponentialLoss.combine is not finite"):
        gradest.exact(lambda h: 1e4 * h.sum(-1), A, target=ExponentialLoss())
    with pytest.raises(TooManyPoints, match="is no mean over outputs"):
        gradest.exact(lambda h: h.sum(-1), torch.zeros(20), target=gradest.Risk())
    for wrong in (
        lambda: gradest.Risk(0),
        lambda: gradest.Risk(float("nan")),
        lambda: gradest.ConditionalValueAtRisk(1),
    ):
        with pytest.raises(InvalidInput):
            wrong()


def test_a_layer_refuses_what_it_cannot_estimate():
    class OfRisk(ExponentialScore):
        def target(self):
            return gradest.Risk()

    layer = gradest.nn.Expectation("bernoulli", OfRisk()).eval()
    with pytest.raises(Incompatible, match="is not the mean of what a sample gives"):
        layer(f, A)

    class Own(gradest.MonteCarlo):
        name, summary, needs = "own", "no score function", frozenset({"loss"})

        def bias(self, neuron):
            return gradest.Bias.BIASED

        def target(self):
            return ExponentialLoss()

        def backward(self, draw, feedback, state):
            return torch.zeros_like(draw.a), state

    with pytest.raises(Incompatible, match="only for a ScoreFunction"):
        gradest.nn.Stochastic("bernoulli", Own())
