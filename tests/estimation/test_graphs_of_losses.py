"""Derivatives of a loss: graphs that do not lead to the points are none, and second derivatives are exact or refused."""

from __future__ import annotations

import pytest
import torch

import gradest
from gradest.errors import Incompatible, NotDifferentiable
from tests.estimation.every_estimator import CASES, SEED, A, gradient_of


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_second_derivatives_by_enumeration():
    """Those of exp(E), by torch.func and by create_graph, beside the sum over outputs by hand."""
    a = A[:, :2].double()

    def f(h):
        return torch.sin(h[..., 0] + 2 * h[..., 1]) + h[..., 0] * h[..., 1]

    def by_hand(a):
        p, total = torch.sigmoid(a), 0.0
        for bits in ([0, 0], [0, 1], [1, 0], [1, 1]):
            h = torch.tensor(bits, dtype=a.dtype)
            total = total + torch.where(h == 1, p, 1 - p).prod(-1) * f(h)
        return total.exp().sum()

    def by_expect(a):
        return gradest.expect(f, a, "bernoulli", "enumeration", 3)[0].exp().sum()

    wanted = torch.func.hessian(by_hand)(a)
    assert wanted.abs().max() > 0.01
    assert torch.allclose(torch.func.hessian(by_expect)(a), wanted, atol=1e-12)
    assert torch.allclose(torch.autograd.functional.hessian(by_expect, a), wanted, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(
    ("estimator", "neuron"), [("disarm", "bernoulli"), ("straight_through", "bernoulli"), ("pathwise", "gaussian")]
)
def test_second_derivatives_that_samples_do_not_give_raise(estimator, neuron):
    parameter = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)

    def value(a):
        return gradest.expect(lambda h: (h * parameter).sum(-1) ** 2, a, neuron, estimator, 3)[0].sum()

    a = A.clone().requires_grad_()
    of_a, of_parameter = torch.autograd.grad(value(a) * scale, (a, parameter), create_graph=True)
    for first, second in ((of_a, a), (of_a, parameter), (of_parameter, a)):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            torch.autograd.grad(first.sum(), second, retain_graph=True)
    for transform in (
        torch.func.hessian,
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    ):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            transform(value)(A)
    # what the samples do give
    (by_scale,) = torch.autograd.grad(of_a.sum(), scale, retain_graph=True)
    assert torch.allclose(by_scale, of_a.sum() / 2)
    (curvature,) = torch.autograd.grad(of_parameter.sum(), parameter)
    assert curvature.abs().max() > 0
    (forward,), (backward,) = (
        [jacobian(value)(A)] for jacobian in (torch.func.jacfwd, torch.func.jacrev)
    )  # first derivatives in both modes
    assert torch.allclose(forward, backward)
    assert torch.allclose(forward * 2, of_a)


def _with_a_parameter(neuron, read):
    """A loss whose graph leads to a parameter of its own, and not to the points."""
    weight = torch.linspace(-1, 1, 8).requires_grad_()
    event_ndim = gradest.neuron(neuron).event_ndim

    def f(h):
        return (read(h) * weight[: h.shape[-1]]).flatten(h.ndim - event_ndim).sum(-1).square()

    return f


READS = {
    "detached": torch.Tensor.detach,
    "compared": lambda h: (h > 0.3).to(h),
    "as integers": lambda h: h.long().to(h),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(("estimator", "neuron", "a"), CASES)
def test_a_graph_that_does_not_lead_to_the_points_is_no_derivative(estimator, neuron, a, read):
    """Without an error the gradient would be 0."""
    f = _with_a_parameter(neuron, read)
    if "grad" not in gradest.estimator(estimator).needs:
        assert gradient_of(f, neuron, estimator, a).abs().max() > 0
        return
    with pytest.raises(NotDifferentiable, match="not differentiable in its points"):
        gradient_of(f, neuron, estimator, a)
    with pytest.raises(NotDifferentiable):
        gradest.estimate(f, a, neuron, estimator, draws=4)
    with pytest.raises((NotDifferentiable, Incompatible)):  # some do not run inside a transform
        torch.func.vmap(lambda a: gradest.expect(f, a, neuron, estimator, SEED)[0], randomness="same")(a[None])
    skipped = gradest.compare(f, a, neuron, estimators=[estimator], draws=4, seed=0).skipped
    assert estimator in {one.estimator.partition("(")[0] for one in skipped}


@pytest.mark.parametrize("target", [None, gradest.Target(2), gradest.Risk()])
@pytest.mark.parametrize("neuron", ["sigmoid", "rectifier", "stochastic_times_smooth"])
def test_exact_takes_no_such_graph_for_a_derivative(neuron, target):
    a = A[:1, :2]
    for f in (
        _with_a_parameter(neuron, torch.Tensor.detach),
        lambda h: h.detach().square().sum(-1),
        lambda h: torch.from_numpy(h.detach().numpy()).sum(-1),
    ):
        with pytest.raises(NotDifferentiable, match=f"the outputs of {neuron} move with a"):
            gradest.exact(f, a, neuron, target)

    value, gradient = gradest.exact(lambda h: h.square().sum(-1), a, neuron, target)
    assert torch.isfinite(value).all()
    assert gradient.abs().max() > 0
