"""Inputs and samples of a layer that a program writes to: the gradient is right, or the error says what to do."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad

import gradest
from gradest.nn import Expectation, Stochastic, StochasticGraph, broadcast_loss

pytestmark = pytest.mark.usefixtures("fresh_compiler")

KINDS = [  # loss alone, dL/dh alone, both, with a state, with a state and autograd inside
    ("bernoulli", "reinforce"),
    ("bernoulli", "reinmax"),
    ("stochastic_times_smooth", "held_noise"),
    ("noisy_rectifier", "pathwise"),
    ("stochastic_times_smooth", "pathwise_score"),
    ("bernoulli", "reinforce_average"),
    ("bernoulli", "relax"),
]
WEIGHT = torch.linspace(0, 1, 8)


def by_broadcast(layer, lin, x, write):
    z = lin(x)
    h = layer(z)
    if write:
        z.relu_()
    return broadcast_loss(layer, h.square().sum(-1) * WEIGHT)


def by_scope(layer, lin, x, write):
    with StochasticGraph(layer) as graph:
        z = lin(x)
        h = layer(z)
        if write:
            z.relu_()
        graph.add_cost(h.square().sum(-1) * WEIGHT)
        return graph.surrogate()


def after_telling(layer, lin, x, write):
    z = lin(x)
    scalar = broadcast_loss(layer, layer(z).square().sum(-1) * WEIGHT)
    if write:
        z.relu_()
    return scalar


@pytest.mark.parametrize("way", [by_broadcast, by_scope, after_telling])
@pytest.mark.parametrize(("neuron", "estimator"), KINDS)
def test_an_input_that_is_written_to_before_backward(neuron, estimator, way):
    """It raises, or the gradient is the one without the write."""
    torch.manual_seed(0)
    layer, lin, x = Stochastic(neuron, estimator), nn.Linear(4, 6), torch.randn(8, 4)
    with torch.no_grad():
        layer(lin(x))
    other, found = copy.deepcopy(layer), []
    for module, write in ((layer, False), (other, True)):
        torch.manual_seed(1)
        lin.zero_grad()
        if write and (way is not after_telling or "grad" in layer.estimator.needs):
            with pytest.raises(RuntimeError, match="written to in place"):
                way(module, lin, x, write).backward()
            return
        way(module, lin, x, write).backward()
        found.append(lin.weight.grad.clone())
    assert torch.equal(*found)  # the gradient was known before the write
    assert found[0].abs().max() > 0


@pytest.mark.parametrize(
    ("estimator", "differentiable"), [("reinforce", False), ("reinforce", True), ("pathwise_score", True)]
)
def test_an_input_of_a_compiled_or_transformed_layer_that_is_written_to(estimator, differentiable):
    neuron = "bernoulli" if estimator == "reinforce" else "stochastic_times_smooth"
    layer, lin, x = Stochastic(neuron, estimator), nn.Linear(4, 6), torch.randn(8, 4)

    def loss(h):
        return h.square().sum(-1) if differentiable else (h.detach() > 0.3).float().sum(-1)

    z = lin(x)
    h = torch.compile(layer, backend="aot_eager", fullgraph=True)(z)
    z.relu_()
    scalar = broadcast_loss(layer, loss(h))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        scalar.backward()

    def transformed(parameters):
        z = functional_call(lin, parameters, (x,))
        h = layer(z)
        z.relu_()
        return broadcast_loss(layer, loss(h))

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        grad(transformed)({name: value.detach() for name, value in lin.named_parameters()})


def test_an_expectation_has_its_gradient_before_its_input_is_written_to():
    found = []
    for write in (False, True):
        torch.manual_seed(0)
        layer, lin, x = Expectation("bernoulli", "rebar"), nn.Linear(4, 6), torch.randn(8, 4)
        z = lin(x)
        value = layer(lambda h: h.square().sum(-1), z)
        if write:
            z.relu_()
        value.sum().backward()
        found.append(lin.weight.grad)
    assert torch.equal(*found)


@pytest.mark.parametrize("estimator", ["reinforce", "straight_through"])
@pytest.mark.parametrize("scope", [False, True])
def test_a_sample_may_be_written_to(estimator, scope):
    layer, a = Stochastic("bernoulli", estimator), torch.zeros(4, 3, requires_grad=True)
    with StochasticGraph(layer) if scope else torch.enable_grad() as graph:
        h = layer(a)
        drawn = h.detach().clone()
        h.mul_(3)
        loss = h.sum(-1)
        if scope:
            graph.add_cost(loss)
        (graph.surrogate("sum") if scope else broadcast_loss(layer, loss, "sum")).backward()
    wanted = loss.detach()[:, None] * (drawn - 0.5) if estimator == "reinforce" else torch.full((4, 3), 3.0)
    assert torch.allclose(a.grad, wanted)


@pytest.mark.parametrize(("neuron", "estimator"), [("bernoulli", "straight_through"), ("gaussian", "pathwise")])
def test_a_sample_of_compiled_code_may_be_written_to(neuron, estimator):
    layer, z = Stochastic(neuron, estimator), torch.full((4, 3), 0.5, requires_grad=True)
    h = torch.compile(layer, backend="aot_eager")(z * 2)
    h.mul_(3)
    h.sum().backward()
    assert torch.equal(z.grad, torch.full((4, 3), 6.0))


def test_a_gradient_that_depends_on_the_sample_of_compiled_code_is_that_of_the_sample_drawn():
    layer, a = Stochastic("bernoulli", "reinmax"), torch.ones(64, 3, requires_grad=True)
    h = torch.compile(layer, backend="aot_eager")(a)
    drawn = h.detach().clone()
    h.neg_()
    h.sum().backward()
    assert torch.allclose(a.grad, -0.5 * (drawn - torch.sigmoid(a.detach())).abs())


class EmitsItsInput(type(gradest.neuron("gaussian"))):
    name = "emits_its_input"

    def sample(self, key, a, draws):
        return a.expand(draws, *a.shape)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_output_of_a_neuron_that_emits_its_input_may_be_written_to(compiled):
    layer, z = Stochastic(EmitsItsInput(), "pathwise"), torch.ones(4, 3, requires_grad=True)
    a = 2 * z
    h = (torch.compile(layer, backend="aot_eager") if compiled else layer)(a)
    h.mul_(3)
    h.sum().backward()
    assert torch.equal(a, torch.full((4, 3), 2.0))
    assert torch.equal(z.grad, torch.full((4, 3), 6.0))


def test_a_sample_that_nobody_writes_to_is_drawn_once(monkeypatch):
    layer, a, drawn = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True), []
    forward = type(layer.estimator).forward
    monkeypatch.setattr(type(layer.estimator), "forward", lambda *given: drawn.append(1) or forward(*given))
    broadcast_loss(layer, layer(a).sum(-1)).backward()
    assert len(drawn) == 1


@pytest.mark.parametrize("estimator", ["reinforce", "straight_through"])
def test_compiled_code_draws_a_sample_once(monkeypatch, estimator):
    layer, a, drawn = Stochastic("bernoulli", estimator), torch.zeros(4, 3, requires_grad=True), []
    sample = type(layer.neuron).sample
    monkeypatch.setattr(type(layer.neuron), "sample", lambda *given: drawn.append(1) or sample(*given))
    step = torch.compile(lambda a: broadcast_loss(layer, layer(a).sum(-1)), backend="aot_eager", fullgraph=True)
    step(a).backward()
    assert len(drawn) == 1
