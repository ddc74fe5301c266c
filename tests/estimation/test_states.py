"""Which states are refused, and what a loss that is not finite leaves of a state."""

from __future__ import annotations

import pytest
import torch

import gradest
from gradest.errors import InvalidInput
from tests.estimation.every_estimator import BAD, STATEFUL, A, loss_for
from tests.losses import mixed


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize(("estimator", "neuron", "a"), STATEFUL)
def test_a_loss_that_is_not_finite_leaves_the_state(estimator, neuron, a, bad):
    f = loss_for(neuron)
    _, state = gradest.expect(f, a, neuron, estimator, 3)
    kept = {name: value.clone() for name, value in state.items()}
    for allow_inf in (False, True):
        with pytest.raises(InvalidInput):
            gradest.expect(lambda h: f(h) + bad, a, neuron, estimator, 3, state, allow_inf=allow_inf)
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    if estimator in {
        "lax",
        "nvil",
        "rebar",
        "relax",
        "relax_rebar",
        "rodeo",
    }:  # they learn by autograd, which transforms lack
        return
    _, after = torch.func.vmap(lambda a: gradest.expect(lambda h: f(h) + bad, a, neuron, estimator, 3, state))(a[None])
    assert all(torch.equal(after[name][0], value) for name, value in kept.items())


def test_a_derivative_that_is_not_finite_leaves_the_state_of_a_layer():
    """Loss scaling makes infinite derivatives, and skips the step when it sees them in the parameters."""
    layer = gradest.nn.Stochastic("bernoulli", "slope_annealed_straight_through")
    a = A.clone().requires_grad_()
    layer(a).sum().backward()
    state = layer.state
    a.grad = None
    (layer(a) * torch.inf).sum().backward()
    assert not torch.isfinite(a.grad).all()
    assert all(torch.equal(layer.state[name], value) for name, value in state.items())


@pytest.mark.parametrize(("estimator", "neuron", "a"), STATEFUL)
def test_a_state_that_does_not_fit_is_refused(estimator, neuron, a):
    f = loss_for(neuron)
    _, state = gradest.expect(f, a, neuron, estimator, 3)
    name = next(iter(state))
    draw, asked = gradest.ask(neuron, estimator, a, 3)
    points = draw.points.requires_grad_()
    loss = f(points)
    (grad,) = torch.autograd.grad(loss.sum(), points)
    feedback = gradest.Feedback(loss.detach(), grad)
    gradest.tell(estimator, draw, feedback, asked)
    wrong = [{}, {**state, "more": torch.zeros(())}, {**state, name: torch.zeros(7, 5)}, {**state, name: 0.5}]
    for given in [*wrong, 3, [state]]:
        text = "have tensors of the shapes" if isinstance(given, dict) else "be the dict that was returned"
        with pytest.raises(InvalidInput, match=f"the state of {estimator} must {text}"):
            gradest.expect(f, a, neuron, estimator, 3, given)
        with pytest.raises(InvalidInput, match="the state of"):
            gradest.estimate(f, a, neuron, estimator, 2, 3, given)
        with pytest.raises(InvalidInput, match="the state of"):
            gradest.tell(estimator, draw, feedback, given)
    with pytest.raises(InvalidInput, match=r"the state of rloo must be \{\}, because it keeps none"):
        gradest.expect(mixed, A, "bernoulli", "rloo", 3, state)


@pytest.mark.parametrize("state", [None, [], 3, {"total": torch.zeros(())}])
def test_tell_takes_the_state_that_ask_returned(state):
    draw, asked = gradest.ask("bernoulli", "rloo", A, 3)
    feedback = gradest.Feedback(mixed(draw.points))
    gradest.tell("rloo", draw, feedback, asked)
    with pytest.raises(InvalidInput, match="the state of rloo must be"):
        gradest.tell("rloo", draw, feedback, state)
