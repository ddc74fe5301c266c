"""Sign and argmax, and the derivatives that stand in for theirs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gradest


def test_sign() -> None:
    a = torch.tensor([-2.0, -1e-30, -0.0, 0.0, 0.3])
    neuron = gradest.neuron("sign")
    assert gradest.sample(neuron, a, samples=2, seed=1).tolist() == [[-1, -1, 1, 1, 1]] * 2
    assert neuron.mean(a).tolist() == neuron.threshold(a, 0.5).tolist() == [-1, -1, 1, 1, 1]
    assert neuron.active_probability(a).tolist() == [0, 0, 1, 1, 1]
    assert neuron.threshold(a, 1.0).tolist() == [-1] * 5
    _, gradient = gradest.exact(lambda h: (h - 0.3).square().sum(-1), a, neuron)
    assert gradient.tolist() == [0] * 5


def test_argmax() -> None:
    a = torch.tensor([[0.3, 1.2, -1.0], [2.0, 2.0, 1.0], [-torch.inf, -7.0, -torch.inf]])
    neuron = gradest.neuron("argmax")
    h = gradest.sample(neuron, a, samples=2, seed=1)
    assert h.tolist() == [[[0, 1, 0], [1, 0, 0], [0, 1, 0]]] * 2  # of equals the first
    assert torch.equal(neuron.threshold(a, 0.9), h[0])
    assert gradest.sample(neuron, torch.zeros(2, 3, 1), seed=1).eq(1).all()  # one class
    loss, gradient = gradest.exact(lambda h: (h * torch.tensor([1.0, 2, 4])).sum((-1, -2)), a[:2], neuron)
    assert loss.item() == 3
    assert gradient.eq(0).all()


def gradient_of(estimator: dict[str, object] | str, neuron: str, a: Tensor, weight: Tensor) -> Tensor:
    found = gradest.estimate(
        lambda h: (h * weight).flatten(-neuron_ndim(neuron)).sum(-1), a, neuron, estimator, draws=2
    )
    return found.gradient


def neuron_ndim(name: str) -> int:
    return gradest.neuron(name).event_ndim


def test_straight_through_of_hubara() -> None:
    """dL/dh where |a| <= 1, and 0 elsewhere."""
    a, weight = torch.tensor([[-2.0, -1.0, 0.2, 1.5]]), torch.tensor([3.0, 4.0, 5.0, 6.0])
    clipped = {"name": "straight_through", "derivative": "clipped"}
    assert gradient_of(clipped, "sign", a, weight).tolist() == [[0, 4, 5, 0]]
    assert gradient_of("straight_through", "sign", a, weight).tolist() == [[3, 4, 5, 6]]
    smooth = gradient_of({"name": "straight_through", "derivative": "sigmoid", "slope": 2.0}, "sign", a, weight)
    p = torch.sigmoid(2 * a)
    torch.testing.assert_close(smooth, 4 * p * (1 - p) * weight)  # high - low = 2, times the slope


@pytest.mark.parametrize("slope", [1.0, 2.5])
def test_straight_through_the_softmax_on_argmax(slope: float) -> None:
    """The same as autograd of Σ w softmax(slope a)."""
    a = torch.tensor([[[0.3, 1.2, -1.0], [0.1, 0.0, -2.0]]], requires_grad=True)
    weight = torch.tensor([[1.0, -2.0, 4.0], [0.5, 3.0, 1.0]])
    (wanted,) = torch.autograd.grad((weight * torch.softmax(slope * a, -1)).sum(), a)
    smooth = {"name": "straight_through", "derivative": "sigmoid", "slope": slope}
    torch.testing.assert_close(gradient_of(smooth, "argmax", a.detach(), weight), wanted)
    plain = gradient_of({"name": "straight_through", "slope": slope}, "argmax", a.detach(), weight)
    torch.testing.assert_close(plain, slope * weight[None])


@pytest.mark.parametrize("name", ["sign", "argmax"])
def test_no_estimator_claims_to_be_unbiased_but_by_the_gradient_0(name: str) -> None:
    neuron = gradest.neuron(name)
    accepted = [e.name for e in (cls() for cls in gradest.registry.estimators.values()) if e.accepts(neuron)]
    assert {"straight_through", "spsa", "evolution"} <= set(accepted)
    assert not {"pathwise", "reinforce", "enumeration"} & set(accepted)
    assert all(not gradest.estimator(e).bias(neuron).unbiased for e in accepted)


def test_a_sign_layer_trains_through_the_clipped_derivative() -> None:
    """Two binarised units separate the signs of one input; without a gradient the loss would stay at its first value."""
    torch.manual_seed(0)
    x = torch.randn(256, 1)
    layer = torch.nn.Linear(1, 2)
    gate = gradest.nn.Stochastic("sign", {"name": "straight_through", "derivative": "clipped"})
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    losses = []
    for _ in range(60):
        loss = (gate(layer(x)).mean(-1) - torch.sign(x[:, 0])).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * max(losses[0], 0.5)
