"""Layers whose `event_dims` say which trailing dims of the input are one event, and what Expectation evaluates by."""

import copy

import pytest
import torch
from torch import nn

import gradest
from gradest.errors import InvalidInput
from gradest.nn import Expectation, Stochastic, StochasticGraph, broadcast_loss

W = torch.tensor([[1.0, -2.0], [0.5, 1.0], [0.3, -0.7]])


def f(h):
    return ((h * W).sum((-1, -2)) + 0.2) ** 2


def inputs(*shape, seed=3):
    torch.manual_seed(seed)
    return torch.randn(shape, requires_grad=True)


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_centered", "straight_through", "reinmax", "nvil"])
def test_a_layer_has_the_samples_and_gradients_of_the_flattened_event(estimator):
    layer, flat = Stochastic("bernoulli", estimator, event_dims=2), Stochastic("bernoulli", estimator)
    for step in range(3):
        a, b = inputs(4, 3, 2), inputs(4, 3, 2)
        torch.manual_seed(step)
        h = layer(a)
        torch.manual_seed(step)
        g = flat(b.flatten(1)).reshape(4, 3, 2)
        assert torch.equal(h, g)
        broadcast_loss(layer, f(h)).backward()
        broadcast_loss(flat, f(g)).backward()
        assert torch.equal(a.grad, b.grad)
    assert all(torch.equal(x, flat.state[name]) for name, x in layer.state.items())


def test_the_gradient_is_that_of_positions_that_share_a_loss():
    """2000 examples of one event; |z| > 5 in one of 6 coordinates has probability 3e-6."""
    a = inputs(3, 2).detach()
    _, truth = gradest.exact(f, a, event_dims=2)
    layer, many = Stochastic("bernoulli", "reinforce", event_dims=2), a.expand(2000, 3, 2).clone().requires_grad_()
    broadcast_loss(layer, f(layer(many)), reduction="sum").backward()
    error = many.grad.std(0) / 2000**0.5
    assert ((many.grad.mean(0) - truth) / error).abs().max() < 5
    assert truth.abs().max() > 10 * error.max()


def test_positions_that_are_events_of_their_own_may_change_in_number():
    layer = Stochastic("categorical", "reinforce_centered", event_dims=1)
    for positions in (4, 6, 1, 4):
        a = inputs(5, positions, 3)
        h = layer(a)
        assert h.shape == a.shape
        broadcast_loss(layer, h[..., 0].sum(-1)).backward()
        assert a.grad.abs().sum() > 0
    assert {tuple(x.shape) for x in layer.state.values()} == {(1, 3)}


@pytest.mark.parametrize("estimator", ["reinforce_centered", "nvil", "relax"])
@pytest.mark.parametrize(("before", "after"), [(4, 6), (4, 1), (1, 4)])
def test_a_state_for_another_number_of_positions_is_refused_with_the_remedy(estimator, before, after):
    layer = Stochastic("categorical", estimator)
    broadcast_loss(layer, layer(inputs(5, before, 3))[..., 0].sum(-1)).backward()
    with pytest.raises(InvalidInput, match="event_dims=1"):
        layer(inputs(5, after, 3))


def test_parameters_are_one_event():
    layer, weight = Stochastic("bernoulli", "reinforce", event_dims="all"), inputs(2, 3, 2)
    h = layer(weight)
    assert h.shape == weight.shape
    loss = h.sum() ** 2
    broadcast_loss(layer, loss).backward()
    score = h.detach() - torch.sigmoid(weight)
    torch.testing.assert_close(weight.grad, (score * loss).detach())


@pytest.mark.parametrize("event_dims", [2, "all"])
@pytest.mark.parametrize("estimator", ["rloo", "vimco", "reinforce"])
def test_in_a_scope_of_paths_the_path_is_no_part_of_the_event(estimator, event_dims):
    layer, flat = Stochastic("bernoulli", estimator, event_dims=event_dims), Stochastic("bernoulli", estimator)
    a, b = inputs(3, 2), inputs(3, 2)
    for stochastic, given, shape in ((layer, a, (3, 2)), (flat, b.flatten(), (6,))):
        torch.manual_seed(0)
        with StochasticGraph(stochastic, samples=4) as graph:
            h = stochastic(graph.expand(given))
            assert h.shape == (4, *shape)
            graph.add_cost(f(h.reshape(4, 3, 2)), batch_dims=0)
            graph.surrogate().backward()
    assert a.grad.abs().sum() > 0
    torch.testing.assert_close(a.grad, b.grad)


def test_a_baseline_is_one_number_an_event():
    layer, a = Stochastic("bernoulli", "reinforce", event_dims=2), inputs(4, 3, 2)
    h = layer(a, baseline=torch.full((4,), 2.0))
    loss = f(h)
    broadcast_loss(layer, loss, reduction="sum").backward()
    torch.testing.assert_close(a.grad, ((h - torch.sigmoid(a)) * (loss - 2)[:, None, None]).detach())
    with pytest.raises(InvalidInput, match=r"\[4\].*event_dims"):
        layer(a, baseline=torch.zeros(4, 3))


@pytest.mark.parametrize("evaluation", ["mean", "sample", "threshold"])
def test_evaluation_keeps_the_shape(evaluation):
    layer = Stochastic("bernoulli", "reinforce", evaluation, event_dims=2).eval()
    flat = Stochastic("bernoulli", "reinforce", evaluation).eval()
    a = inputs(4, 3, 2)
    torch.manual_seed(0)
    h = layer(a)
    torch.manual_seed(0)
    assert torch.equal(h, flat(a.flatten(1)).reshape(4, 3, 2))


def test_what_is_written_into_the_output_does_not_change_the_gradient():
    layer, a = Stochastic("bernoulli", "reinforce", event_dims=2), inputs(4, 3, 2)
    with StochasticGraph(layer) as graph:
        h = layer(a)
        kept = h.detach().clone()
        h -= 0.5
        loss = f(h)
        graph.add_cost(loss)
        graph.surrogate("sum").backward()
    torch.testing.assert_close(a.grad, ((kept - torch.sigmoid(a)) * loss[:, None, None]).detach())


@pytest.mark.parametrize("bad", [-1, True, 1.5, "each"])
def test_event_dims_are_checked_when_the_layer_is_made(bad):
    for layer in (Stochastic, Expectation):
        with pytest.raises(InvalidInput, match="event_dims"):
            layer("bernoulli", "reinforce", event_dims=bad)
    with pytest.raises(InvalidInput, match="at least 1"):
        Stochastic("categorical", "reinforce", event_dims=0)
    with pytest.raises(InvalidInput, match="more dims than"):
        Stochastic("bernoulli", "reinforce", event_dims=3)(torch.zeros(2, 3))


def test_copies_and_the_repr_have_event_dims():
    layer = copy.deepcopy(Stochastic("bernoulli", "reinforce", event_dims="all"))
    assert "event_dims='all'" in repr(layer)
    assert layer(inputs(2, 3)).shape == (2, 3)


@pytest.mark.parametrize("estimator", ["reinforce", "reinforce_centered", "straight_through"])
@pytest.mark.filterwarnings("ignore")  # of the compiler's own code
def test_compiled(estimator):
    layer = Stochastic("bernoulli", estimator, event=(6,), event_dims=2)
    other = copy.deepcopy(layer)

    def step(layer, a):
        return broadcast_loss(layer, f(layer(a)))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for batch in (4, 5):
        a, b = inputs(batch, 3, 2), inputs(batch, 3, 2)
        torch.manual_seed(0)
        compiled(layer, a).backward()
        torch.manual_seed(0)
        step(other, b).backward()
        torch.testing.assert_close(a.grad, b.grad)
        assert a.grad.abs().sum() > 0


def test_in_a_transform_of_torch_func():
    layer, a = Stochastic("bernoulli", "reinforce", event_dims=2), inputs(4, 3, 2).detach()

    def value(a):
        return broadcast_loss(layer, f(layer(a)), reduction="sum")

    torch.manual_seed(0)
    slope = torch.func.grad(value)(a)
    torch.manual_seed(0)
    given = a.clone().requires_grad_()
    value(given).backward()
    torch.testing.assert_close(slope, given.grad)


def test_expectation_takes_the_events_of_its_input():
    layer, a = Expectation("bernoulli", "enumeration", event_dims=2), inputs(2, 3, 2)
    layer(f, a).sum().backward()
    value, truth = gradest.exact(f, a.detach(), event_dims=2)
    torch.testing.assert_close(a.grad, truth)
    torch.testing.assert_close(layer(f, a).detach(), value)


def test_expectation_is_evaluated_at_a_sample():
    """The mean of 4000 values is E[f(h)]; |z| > 5 has probability 6e-7."""
    a = torch.tensor([[[0.3, -0.5], [1.0, 0.2], [0.0, -1.0]]])
    value, _ = gradest.exact(f, a, event_dims=2)
    layer = Expectation("bernoulli", "disarm", event_dims=2).eval()
    found = layer(f, a.expand(4000, 3, 2))
    error = found.std() / 4000**0.5
    assert (found.mean() - value).abs() < 5 * error
    at_mean = f(torch.sigmoid(a))
    assert (at_mean - value).abs() > 20 * error  # which is what evaluation="mean" gives, if it is asked for
    mean = Expectation("bernoulli", "disarm", "mean", event_dims=2).eval()
    torch.testing.assert_close(mean(f, a), at_mean)


def test_expectation_of_a_bound_is_evaluated_as_that_bound():
    """The mean of 4000 values is the bound of three samples; |z| > 5 has probability 6e-7."""
    a = torch.tensor([[0.3, -0.5]])
    estimator = gradest.estimator("vimco", samples=3)

    def g(h):
        return (h * torch.tensor([2.0, -1.0])).sum(-1)

    value, _ = gradest.exact(g, a, target=estimator.target())
    one, _ = gradest.exact(g, a)
    found = Expectation("bernoulli", estimator).eval()(g, a.expand(4000, 2))
    error = found.std() / 4000**0.5
    assert (found.mean() - value).abs() < 5 * error
    assert (one - value).abs() > 10 * error


def test_expectation_in_evaluation_leaves_the_state_and_trains_the_loss():
    layer, readout = Expectation("bernoulli", "reinforce_centered"), nn.Linear(3, 1)
    a = inputs(4, 3)
    layer(lambda h: readout(h)[..., 0] ** 2, a).sum().backward()
    state = {name: x.clone() for name, x in layer.state.items()}
    layer.eval()
    readout.zero_grad()
    layer(lambda h: readout(h)[..., 0] ** 2, a).sum().backward()
    assert all(torch.equal(x, layer.state[name]) for name, x in state.items())
    assert readout.weight.grad.abs().sum() > 0
