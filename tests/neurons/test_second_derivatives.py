"""Second derivatives of what neurons compute from their pre-activations: finite everywhere, and those of finite differences."""

import pytest
import torch
from torch.func import jacrev

import gradest
from gradest.contract.neuron import Discrete
from gradest.errors import GradestError

DISCRETE = [name for name, kind in gradest.registry.neurons.items() if issubclass(kind, Discrete)]


def functions(neuron, a):
    """The functions of `a` that a neuron has: log P of some outputs and their scores, means, entropy, probabilities."""
    try:
        h = neuron.law(a)[0][:6]
    except GradestError:
        h = neuron.sample(gradest.Key(1), a, 4)
    found = {
        "log_prob": lambda a: neuron.log_prob(h, a),
        "score": lambda a: neuron.score(h, a),
        "mean": neuron.mean,
        "active_probability": neuron.active_probability,
    }
    if hasattr(neuron, "entropy"):
        found["entropy"] = neuron.entropy
    return found


def first(function, weights, a):
    """The derivative of the weighted sum, and `a` in its graph, or None if there is no such graph."""
    a = a.detach().clone().requires_grad_()
    total = (function(a) * weights).sum()
    if not total.requires_grad:
        return None, a
    return torch.autograd.grad(total, a, create_graph=True)[0], a


def second(slope, a):
    """The derivative of `slope · v` for a fixed v, by a second backward pass."""
    if not slope.requires_grad:
        return torch.zeros_like(a)
    direction = torch.linspace(-1, 2, a.numel(), dtype=a.dtype).reshape(a.shape)
    found = torch.autograd.grad((slope * direction).sum(), a, allow_unused=True)[0]
    return torch.zeros_like(a) if found is None else found


def by_differences(function, weights, a, step=1e-5):
    direction = torch.linspace(-1, 2, a.numel(), dtype=a.dtype).reshape(a.shape)
    up, down = (first(function, weights, a + sign * step * direction)[0] for sign in (1, -1))
    return (up - down).detach() / (2 * step)


def test_there_are_discrete_neurons():
    assert len(DISCRETE) >= 9


@pytest.mark.parametrize("scale", [1.0, 20.0, 800.0])
@pytest.mark.parametrize("name", DISCRETE)
def test_second_derivatives(name, scale):
    """Also where the upstream gradient is 0, as the weight of a sample may be, and at saturation."""
    neuron = gradest.neuron(name)
    generator = torch.Generator().manual_seed(3)
    event = tuple(neuron.example_events[0])
    a = torch.randn(event, generator=generator, dtype=torch.float64)
    for distinct in (True, False):
        at = (a if distinct else a.sign()) * scale
        for what, function in functions(neuron, at).items():
            numbers = torch.arange(function(at).numel()).reshape(function(at).shape)
            for weights in (torch.ones_like(numbers), torch.zeros_like(numbers), numbers % 2):
                slope, given = first(function, weights, at)
                if slope is None:
                    continue
                found = second(slope, given)
                assert torch.isfinite(slope).all(), what
                assert torch.isfinite(found).all(), what
                if distinct:  # units that round or threshold may have a kink at the others
                    wanted = by_differences(function, weights, at)
                    torch.testing.assert_close(
                        found, wanted, rtol=1e-5, atol=1e-7, msg=lambda m, what=what: f"{what}: {m}"
                    )


def test_equal_items_of_an_order_have_their_second_derivatives():
    """Against -Σ_r (diag p - p pᵀ) over the places r of the order, p being the softmax of the items that are left there."""
    neuron, n = gradest.neuron("plackett_luce"), 4
    h = torch.eye(n, dtype=torch.float64)[None]

    def log_prob(a):
        return neuron.log_prob(h, a).sum()

    for a in (torch.zeros(1, n, dtype=torch.float64), torch.tensor([[2.0, 2.0, 2.0, -1e9]], dtype=torch.float64)):
        wanted = torch.zeros(n, n, dtype=torch.float64)
        for place in range(n - 1):
            p = torch.zeros(n, dtype=torch.float64)
            p[place:] = torch.softmax(a[0, place:], -1)
            wanted -= torch.diag(p) - p[:, None] * p
        found = torch.autograd.functional.hessian(log_prob, a)[0, :, 0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
        found = jacrev(jacrev(log_prob))(a)[0, :, 0]
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)
