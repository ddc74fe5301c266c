"""Two units of four classes, losses of theirs, and means over their outputs."""

import itertools

import torch

import gradest
import gradest.nn

NEURON = gradest.neuron("categorical")
A = torch.tensor([[0.3, -1.2, 0.8, 0.1], [1.4, 0.0, -0.5, 0.6]], dtype=torch.float64)  # two units of four classes
P = torch.softmax(A, -1)
WEIGHT = torch.tensor([[1.0, -2.0, 0.5, 0.9], [0.3, 1.1, -0.7, 2.0]], dtype=torch.float64)


def linear(h):
    return (h * WEIGHT.to(h)).sum((-1, -2))


def quadratic(h):
    return (linear(h) + 0.3) ** 2


def cubic(h):
    return (linear(h) - 0.6) ** 3


def one_hot(index):
    return torch.nn.functional.one_hot(torch.as_tensor(index), 4).double()


def assert_close(found, wanted, tolerance=1e-12):
    assert float((found - wanted).abs().max()) < tolerance


def mean_over_outputs(estimator, f, neuron=NEURON, a=A):
    """E of an estimator that needs dL/dh at one sample and nothing else."""
    gradient = torch.zeros_like(a)
    draw = gradest.estimator("enumeration").forward(neuron, a, gradest.Key(0), {})
    for point, p in zip(draw.points, draw.weights, strict=True):
        h = point.clone().requires_grad_()
        (grad,) = torch.autograd.grad(f(h), h)
        one = gradest.Draw(neuron, a, gradest.Key(0), h.detach()[None], torch.ones(1))
        gradient += p * estimator.backward(one, gradest.Feedback(None, grad[None]), {})[0]
    return gradient


def error_over_outputs(estimator, f, neuron=NEURON, a=A):
    return float((mean_over_outputs(estimator, f, neuron, a) - gradest.exact(f, a, neuron=neuron)[1]).abs().max())


def over_samples(estimator, f, samples, state=None):
    """E of the gradient, of the value and of the gradient's square, of an estimator that asks at independent samples first."""
    every = gradest.estimator("enumeration").forward(NEURON, A, gradest.Key(0), {})
    at = torch.tensor(list(itertools.product(range(len(every.points)), repeat=samples))).T
    weight = every.weights[at].prod(0)
    a = A.expand(at.shape[1], 2, 4)
    own = estimator.forward(NEURON, a, gradest.Key(0), state or {})
    points = torch.cat([every.points[at], own.points[samples:]]).requires_grad_()
    loss = f(points)
    (grad,) = torch.autograd.grad(loss.sum(), points)
    draw = gradest.Draw(NEURON, a, gradest.Key(0), points.detach(), own.weights, {})
    found, _ = estimator.backward(draw, gradest.Feedback(loss.detach(), grad), state or {})
    value = estimator.value(draw, loss.detach())
    return tuple((weight * x.movedim(0, -1)).sum(-1) for x in (found, value, found**2))
