"""slope_annealed_straight_through: straight_through with the slope of the step, which the state counts."""

import pytest
import torch

import gradest
import gradest.nn

A = torch.tensor([[0.4, -0.9], [1.5, 0.2]])


def f(h):
    return (h.sum(-1) - 0.3) ** 2


def gradients(steps, **options):
    estimator, state, found = gradest.estimator("slope_annealed_straight_through", **options), None, []
    for step in range(steps):
        a = A.clone().requires_grad_()
        loss, state = gradest.expect(f, a, "bernoulli", estimator, seed=step, state=state)
        loss.sum().backward()
        found.append(a.grad)
    return found, state


def plain(step, slope, **options):
    a = A.clone().requires_grad_()
    spec = {"name": "straight_through", "slope": slope, **options}
    gradest.expect(f, a, "bernoulli", spec, seed=step)[0].sum().backward()
    return a.grad


@pytest.mark.parametrize("derivative", ["sigmoid", "identity", "clipped"])
def test_each_step_is_straight_through_with_its_slope(derivative):
    found, state = gradients(6, derivative=derivative, rate=0.5, max_slope=2.6)
    for step, slope in enumerate([1.0, 1.5, 2.0, 2.5, 2.6, 2.6]):
        assert torch.allclose(found[step], plain(step, slope, derivative=derivative)), slope
    assert state["steps"] == 6


def test_the_state_is_saved_with_a_layer():
    model = torch.nn.Sequential(
        gradest.nn.Stochastic("bernoulli", {"name": "slope_annealed_straight_through", "rate": 0.5})
    )
    for _ in range(3):
        model(A.clone().requires_grad_()).sum().backward()
    saved = model.state_dict()
    assert saved["0.state_steps"] == 3
    again = torch.nn.Sequential(
        gradest.nn.Stochastic("bernoulli", {"name": "slope_annealed_straight_through", "rate": 0.5})
    )
    again.load_state_dict(saved)
    results = []
    for layer in (model, again):
        torch.manual_seed(1)
        a = A.clone().requires_grad_()
        layer(a).sum().backward()
        results.append(a.grad)
    assert torch.equal(*results)
    x = 2.5 * A
    assert torch.allclose(results[0], 2.5 * torch.sigmoid(x) * torch.sigmoid(-x))


def test_a_slope_above_the_greatest_is_cut_to_it():
    (found,), _ = gradients(1, slope=9.0, max_slope=2.0)
    assert torch.allclose(found, plain(0, 2.0, derivative="sigmoid"))
