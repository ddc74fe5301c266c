"""Programs around layers that look right: each has the right gradient, or raises an error that says what to do."""

import copy
import sys
import threading

import pytest
import torch
from torch import nn
from torch.func import vmap

import gradest
from gradest.errors import GradestWarning, Incompatible, InvalidInput, MissingLoss
from gradest.nn import Expectation, Stochastic, StochasticGraph, broadcast_loss
from tests.selection import deep

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@pytest.mark.parametrize("compiled", [False, *deep(True)])
def test_a_layer_that_needs_the_loss_inside_the_function_of_an_expectation(compiled):
    """With as many points as examples, the losses would fit the wrong rows."""
    outer, inner = Expectation("bernoulli", {"name": "rloo", "samples": 4}), Stochastic("bernoulli", "reinforce")
    first, second, x = nn.Linear(3, 3), nn.Linear(3, 3), torch.randn(4, 3)

    def f(h):
        return inner(second(h)).sum(-1)

    call = torch.compile(f, backend="aot_eager", fullgraph=True) if compiled else f
    with pytest.raises(Exception if compiled else Incompatible, match="inside the function f of an Expectation"):
        outer(call, first(x))
    with pytest.raises(Exception if compiled else Incompatible, match="inside the function f of an Expectation"):
        gradest.expect(call, first(x))
    with StochasticGraph(inner) as graph:
        with pytest.raises(Exception if compiled else Incompatible, match="inside the function f of an Expectation"):
            outer(call, first(x))
        with pytest.raises(InvalidInput, match="return the cost from f"):
            outer(lambda h: graph.add_cost(h.sum(-1)) or h.sum(-1), first(x))
        graph.discard()
    broadcast_loss(inner, call(first(x))).backward()  # outside it is as ever
    assert second.weight.grad.abs().max() > 0
    with torch.no_grad():
        assert outer(call, first(x)).shape == (4,)


def test_a_layer_that_needs_no_loss_inside_the_function_of_an_expectation():
    """Autograd alone trains it, at every point, with the weight that the value gives to the point."""
    torch.manual_seed(0)
    outer, inner = Expectation("bernoulli", {"name": "rloo", "samples": 4}), Stochastic("bernoulli", "straight_through")
    a, scale, weight = torch.zeros(4, 3), torch.zeros(3, requires_grad=True), torch.tensor([1.0, -2.0, 0.5])
    points = []
    value = outer(lambda h: points.append(h) or inner(scale + h - h) @ weight, a)
    (slope,) = torch.autograd.grad(value.sum(), scale)
    assert points[0].shape == (4, 4, 3)
    assert torch.allclose(slope, 4 * weight)  # four examples, and the mean over their four points


def test_a_model_without_a_stochastic_layer_is_refused():
    plain = nn.Linear(3, 3)
    for run in (lambda: broadcast_loss(plain, torch.zeros(4)), lambda: StochasticGraph(plain)):
        with pytest.raises(
            InvalidInput, match=r"Linear without a gradest\.nn\.Stochastic or Expectation layer.*ModuleList"
        ):
            run()
    with pytest.raises(InvalidInput, match=r"broadcast_loss takes a torch\.nn\.Module, not list"):
        broadcast_loss([plain], torch.zeros(4))
    layer, a = Expectation("bernoulli", "rloo"), torch.zeros(4, 3, requires_grad=True)
    broadcast_loss(layer, layer(lambda h: h.sum(-1), a)).backward()
    assert a.grad is not None


def test_a_reduced_loss_is_refused_unless_the_layers_have_no_batch():
    layer = Stochastic("bernoulli", "reinforce")
    a, single = torch.zeros(4, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    h = layer(a)
    for wrong in (h.sum(-1).mean(), h.sum(-1).mean(0, keepdim=True)):
        with pytest.raises(InvalidInput, match=r"[Dd]o not reduce"):
            broadcast_loss(layer, wrong)
    broadcast_loss(layer, h.sum(-1))
    h = layer(single)
    broadcast_loss(layer, h.sum()).backward()
    assert torch.allclose(single.grad, h.sum() * (h.detach() - 0.5))
    single.grad = None
    h = layer(single)
    broadcast_loss(layer, 2 * h, "sum", batch_dims=0).backward()
    assert torch.allclose(single.grad, 2 * h.sum() * (h.detach() - 0.5))
    for wrong in ("loss", torch.ones(4, dtype=torch.complex64)):
        with pytest.raises(InvalidInput, match="a torch tensor of real numbers"):
            broadcast_loss(layer, wrong)


def test_a_batch_that_shares_one_loss():
    """The error for a reduced loss names batch_dims=0, by which every row has the score times the whole loss."""
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    h = layer(a)
    with pytest.raises(
        InvalidInput, match=r"shares this one loss, say so: broadcast_loss\(model, loss, batch_dims=0\)"
    ):
        broadcast_loss(layer, h.sum())
    broadcast_loss(layer, h.sum(), batch_dims=0).backward()
    assert torch.allclose(a.grad, h.sum() * (h.detach() - 0.5))


def test_a_layer_that_was_called_with_a_part_of_the_examples():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    h = torch.cat([layer(a[:3]), torch.zeros(1, 3)])
    with pytest.raises(
        InvalidInput, match=r"batch \[3\] of the layer.*it is \[4\].*call it with all of them.*torch\.where"
    ):
        broadcast_loss(layer, h.sum(-1))


def test_positions_that_attend_to_each_other():
    """Against enumeration of E[2·h0·h1 + (h0 - h1)], where the loss of either position depends on both."""
    torch.manual_seed(0)
    layer, a, found = Stochastic("bernoulli", "reinforce"), torch.zeros(2, 1), []
    for _ in range(60):
        given = a.expand(2000, 2, 1).clone().requires_grad_()
        one, two = layer(given)[..., 0].unbind(1)
        loss = torch.stack([2 * one * two, one - two], 1)
        found.append(torch.autograd.grad(broadcast_loss(layer, loss, "sum"), given)[0].sum(0).flatten())
    stacked, truth = torch.stack(found), 2000 * torch.tensor([0.5, 0.0])
    error = stacked.std(0) / 60**0.5
    assert ((stacked.mean(0) - truth) / error).abs().max() < 5  # by chance once in 870,000
    assert error.max() < 0.02 * truth.max()


def test_the_credit_of_each_element_is_asked_for():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(2, 3, 4, requires_grad=True)
    loss = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for batch_dims, credit in ((1, loss.sum(-1, keepdim=True).expand(2, 3)), (2, loss)):
        a.grad = None
        h = layer(a)
        scalar = broadcast_loss(layer, loss, batch_dims=batch_dims)
        scalar.backward()
        assert scalar.item() == 3.5  # the mean of all numbers, whoever is credited with them
        assert torch.allclose(a.grad, credit[..., None] * (h.detach() - 0.5) / 6)
    single = torch.zeros(2, 4, requires_grad=True)  # a code of the example, and one loss for each of three positions
    h = layer(single)
    broadcast_loss(layer, loss, "sum").backward()
    assert torch.allclose(single.grad, loss.sum(-1, keepdim=True) * (h.detach() - 0.5))
    layer(a)
    with pytest.raises(InvalidInput, match="batch_dims is 3, but the loss has 2"):
        broadcast_loss(layer, loss, batch_dims=3)
    with pytest.raises(InvalidInput, match="batch_dims must be an integer"):
        broadcast_loss(layer, loss, batch_dims=True)


@pytest.fixture
def _switching():
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_switching")
@pytest.mark.parametrize("scope", [False, True])
def test_two_threads_train_one_model(scope):
    """Each step has the loss of its own thread, and the state is never a mixture of two updates."""
    layer, wrong, steps = Stochastic("bernoulli", "reinforce_average"), [], 150
    layer(torch.zeros(2, 3))
    baseline = []

    def step(a, loss):
        if not scope:
            h = layer(a)
            return h, broadcast_loss(layer, loss, "sum")
        with StochasticGraph(layer) as graph:
            h = layer(a)
            graph.add_cost(loss)
            return h, graph.surrogate("sum")

    def work(number):
        for _ in range(steps):
            a = torch.zeros(2, 3, requires_grad=True)
            h, scalar = step(a, torch.full((2,), number))
            scalar.backward()
            with torch.no_grad():
                told = number - a.grad / (h - 0.5)  # the baseline that this step had
            baseline.append(float(told.mean()))
            if scalar.item() != 2 * number or told.max() - told.min() > 1e-3:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (-5.0, 5.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(baseline) == 2 * steps
    assert max(map(abs, baseline)) <= 5 + 1e-3
    assert 0 < layer.steps <= 2 * steps
    assert abs(layer.state["total"] / layer.state["weight"]) <= 5 + 1e-3


def test_a_model_that_was_not_called():
    """A copy of it was, or it was called in another thread."""
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    other = copy.deepcopy(layer)
    with pytest.raises(MissingLoss, match="was called in this thread"):
        broadcast_loss(other, layer(a).argmax(-1))
    with StochasticGraph(other) as graph:
        graph.add_cost(layer(a).argmax(-1))
        with pytest.raises(MissingLoss, match="was called inside this StochasticGraph"):
            graph.surrogate()
        graph.discard()
    thread = threading.Thread(target=lambda: other(a))
    thread.start()
    thread.join()
    with pytest.raises(MissingLoss, match="was called in this thread"):
        broadcast_loss(other, torch.zeros(4))
    broadcast_loss(other.eval(), torch.zeros(4))  # a model in evaluation has nothing to be told


def test_a_scalar_without_a_gradient():
    layer, frozen = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3)
    with StochasticGraph(layer) as graph:
        graph.add_cost(layer(frozen).sum(-1))
        with pytest.warns(GradestWarning, match="this scalar has no gradient"):
            graph.surrogate()
    with pytest.warns(GradestWarning, match="this scalar has no gradient"):
        broadcast_loss(layer, layer(frozen).sum(-1))


def test_a_transform_that_ended_before_the_loss_was_told():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    mapped = vmap(lambda a: layer(a).argmax(-1), randomness="different")
    with StochasticGraph(layer) as graph:
        graph.add_cost(mapped(a))
        with pytest.raises(InvalidInput, match=r"inside a transform of torch\.func"):
            graph.surrogate()
        graph.discard()
    loss = mapped(a)
    with pytest.raises(MissingLoss, match="told inside the same transform"):
        broadcast_loss(layer, loss)
