"""The estimator of the entropic risk, against sums over all tuples of outputs."""

import itertools

import pytest
import torch

import gradest
from gradest.contract.estimator import Feedback
from gradest.errors import InvalidOptions

A = torch.tensor([0.4, -0.9], dtype=torch.float64)
BITS = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)), dtype=torch.float64)


def f(h):
    return (h * torch.tensor([1.0, -0.7]).to(h)).sum(-1) ** 2 + 1.5 * h[..., 0] * h[..., 1] - 0.4


def probabilities(a):
    p = torch.sigmoid(a)
    return torch.where(BITS == 1, p, 1 - p).prod(-1)


def risk(a, beta):
    return (probabilities(a) * (beta * f(BITS)).exp()).sum().log() / beta


def of_tuples(a, samples, beta):
    """E[V], over all tuples of outputs."""
    chosen = torch.tensor(list(itertools.product(range(4), repeat=samples)))
    value = (beta * f(BITS)[chosen]).exp().mean(-1).log() / beta
    return (probabilities(a)[chosen].prod(-1) * value).sum()


@pytest.mark.parametrize(("samples", "beta"), [(2, 1.0), (3, -0.5), (4, 2.5)])
def test_it_is_unbiased_for_the_risk_of_its_samples(samples, beta):
    """The mean gradient over all tuples of outputs is that of E[V], and the mean value is E[V], exactly."""
    a = A.clone().requires_grad_()
    wanted = of_tuples(a, samples, beta)
    (slope,) = torch.autograd.grad(wanted, a)
    chosen = torch.tensor(list(itertools.product(range(4), repeat=samples)))
    estimator, points = gradest.estimator("entropic_risk", samples=samples, aversion=beta), BITS[chosen].movedim(1, 0)
    neuron, rows = gradest.neuron("bernoulli"), A.expand(len(chosen), 2)
    draw = estimator.forward(neuron, rows, gradest.Key(0), {})
    draw = type(draw)(neuron, rows, draw.key, points, draw.weights)
    gradient, _ = estimator.backward(draw, Feedback(f(points)), {})
    p = probabilities(A)[chosen].prod(-1)
    torch.testing.assert_close((p[:, None] * gradient).sum(0), slope)
    torch.testing.assert_close((p * estimator.value(draw, f(points))).sum(), wanted.detach())


def test_the_bias_falls_with_the_samples():
    """E[V] and its gradient come nearer the risk, the first as the docstring has it; over all tuples, so without chance."""
    a = A.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(risk(a, 1.0), a)
    gaps, biases = [], []
    for samples in (2, 4, 8):
        value = of_tuples(a, samples, 1.0)
        gaps.append(float((torch.autograd.grad(value, a)[0] - wanted).norm()))
        biases.append(float((value - risk(a, 1.0)).detach()))
    assert gaps[0] > 1.5 * gaps[1] > 2.25 * gaps[2] > 0
    weight = probabilities(A)
    mean = (weight * f(BITS).exp()).sum()
    variance = (weight * f(BITS).exp().square()).sum() - mean**2
    assert biases[2] == pytest.approx(float(-variance / (2 * 8 * mean**2)), rel=0.15)


def test_many_samples_have_the_gradient_of_the_risk():
    """With 128 samples: within five standard errors and 2 %, a false alarm of 6e-7; the gradient of E[L] is another."""
    found = gradest.estimate(f, A, "bernoulli", {"name": "entropic_risk", "samples": 128}, draws=200, seed=3)
    _, wanted = gradest.exact(f, A, "bernoulli", gradest.Risk())
    _, of_mean = gradest.exact(f, A, "bernoulli")
    allowed = 5 * found.standard_error + 0.02 * wanted.abs()
    assert bool(((found.gradient - wanted).abs() < allowed).all())
    assert bool(((found.gradient - of_mean).abs() > allowed).any())


def test_with_an_aversion_of_minus_1_it_is_vimco():
    losses = torch.tensor([0.3, -1.2, 40.0, 2.0], dtype=torch.float64)[:, None]
    ours, _ = gradest.credit({"name": "entropic_risk", "aversion": -1.0}, losses)
    theirs, _ = gradest.credit({"name": "vimco", "baseline": "arithmetic"}, losses)
    torch.testing.assert_close(ours, theirs)


def test_it_trains_a_layer_of_paths():
    """A graph of 4,000 rows has the gradient of E[V], here that of 3 samples, to about six standard errors."""
    layer = gradest.nn.Stochastic("bernoulli", "entropic_risk")
    torch.manual_seed(3)
    a = A.expand(4000, 2).clone().requires_grad_()
    with gradest.nn.StochasticGraph(layer, samples=3) as graph:
        graph.add_cost(f(layer(graph.expand(a))))
        graph.surrogate().backward()
    at = A.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(of_tuples(at, 3, 1.0), at)
    assert bool(((a.grad.sum(0) - wanted).abs() < 0.15 * wanted.abs().max()).all())


def test_large_losses_and_options():
    weights, _ = gradest.credit("entropic_risk", torch.tensor([[1e4], [0.0], [-1e4]]))
    assert bool(torch.isfinite(weights).all())
    assert weights[0].item() > 9000
    with pytest.raises(InvalidOptions, match="use rloo"):
        gradest.estimator("entropic_risk", aversion=0)
