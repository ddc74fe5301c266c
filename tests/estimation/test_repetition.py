"""A state that the caller keeps in a variable, where an activation checkpoint runs the call again after the state has moved."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import gradest
from gradest.errors import Incompatible

STATEFUL = sorted(
    name
    for name, cls in gradest.registry.estimators.items()
    if cls.build().accepts(gradest.neuron("bernoulli"))
    and cls.build().init(gradest.neuron("bernoulli"), torch.zeros(1, 3))
)
A = torch.tensor([[0.3, -1.0, 2.0]])


def f(h):
    return (h * torch.tensor([1.0, -2.0, 0.5])).sum(-1).add(0.3).square() + 2


class Steps:
    """Steps of gradest.expect whose state is kept in an attribute."""

    def __init__(self, estimator, seed=None):
        self.estimator, self.seed, self.state = estimator, seed, None

    def value(self, a):
        value, self.state = gradest.expect(f, a, estimator=self.estimator, seed=self.seed, state=self.state)
        return value

    def run(self, reentrant=None):
        """Two steps, of whose values backward runs once. Return the gradients and the state."""
        leaves = [A.clone().requires_grad_() for _ in range(2)]
        torch.manual_seed(3)
        values = [
            self.value(a * 1)
            if reentrant is None
            else checkpoint(lambda a: self.value(a * 1), a, use_reentrant=reentrant)
            for a in leaves
        ]
        if reentrant:
            values = values[-1:]  # the state has moved since the first
        sum(values).sum().backward()
        return [a.grad for a in leaves], self.state


def test_some_estimators_have_a_state():
    assert len(STATEFUL) >= 8


@pytest.mark.parametrize("estimator", STATEFUL)
def test_a_checkpoint_has_the_gradient_and_the_state_of_no_checkpoint(estimator):
    """The second run had the next state, whose baseline contains these losses: the gradient of one example was 0."""
    (first, second), state = Steps(estimator).run()
    found, after = Steps(estimator).run(reentrant=False)
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], second)
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)


def test_a_state_that_is_an_argument_of_the_checkpoint():
    (first, _), _ = Steps("reinforce_average").run()
    a, state = A.clone().requires_grad_(), None
    torch.manual_seed(3)
    value, state = checkpoint(
        lambda a, state: gradest.expect(f, a * 1, estimator="reinforce_average", state=state),
        a,
        state,
        use_reentrant=False,
    )
    value.sum().backward()
    assert torch.equal(a.grad, first)
    assert state


def test_one_seed_for_several_steps_is_ambiguous():
    with pytest.raises(Incompatible, match="several calls with its seed 5, from different states"):
        Steps("reinforce_average", seed=5).run(reentrant=False)
    Steps("rloo", seed=5).run(reentrant=False)


def test_losses_of_samples_of_one_s_own_belong_outside_of_a_checkpoint():
    state = None

    def surrogate(log_prob):
        nonlocal state
        value, state = gradest.score_surrogate(log_prob * 1, torch.tensor([[1.0], [3.0]]), "reinforce_average", state)
        return value

    def weighted(log_prob):
        nonlocal state
        weights, state = gradest.credit("reinforce_average", torch.tensor([[1.0], [3.0]]), state)
        return (weights * log_prob.exp()).sum(0)

    for function in (surrogate, weighted):
        state, log_prob = None, torch.zeros(2, 1, requires_grad=True)
        value = checkpoint(function, log_prob, use_reentrant=False)
        with pytest.raises(Incompatible, match=r"cannot run inside torch.utils.checkpoint.*call it outside"):
            value.sum().backward()
