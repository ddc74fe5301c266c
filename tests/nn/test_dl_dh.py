"""Layers that need dL/dh: it reaches them, or an error names the layer and the remedy."""

import warnings

import pytest
import torch
from torch import nn
from torch.func import grad

import gradest
from gradest.errors import GradestWarning, NotDifferentiable
from gradest.nn import Expectation, Stochastic, StochasticGraph, broadcast_loss

pytestmark = pytest.mark.usefixtures("fresh_compiler")


class Beside(nn.Module):
    """A layer that needs dL/dh beside one that needs the loss, or under it."""

    def __init__(self, neuron="bernoulli", estimator="straight_through", chained=False):
        super().__init__()
        self.smooth, self.score = Stochastic(neuron, estimator), Stochastic("bernoulli", "reinforce")
        self.between = nn.Linear(3, 3) if chained else None

    def forward(self, a, b):
        h = self.smooth(a)
        return h, self.score(b if self.between is None else self.between(h))


def of_numpy(h, g):
    return torch.from_numpy(h.detach().numpy().sum(-1) + g.detach().numpy().sum(-1))


LOST = {
    "numpy": of_numpy,
    "detached": lambda h, g: (h.detach() + g).square().sum(-1),
    "integer": lambda h, g: h.argmax(-1) + g.argmax(-1),
    "comparison": lambda h, g: (h > 0.3).float().sum(-1) + g.sum(-1),
    "with parameters": lambda h, g: (h.detach() * WEIGHTS).sum(-1) + g.sum(-1),
    "unused": lambda h, g: g.sum(-1),
}
WEIGHTS = torch.ones(3, requires_grad=True)
PAIR = torch.zeros(2, 4, 3).requires_grad_()


def scalar_of(model, cost, scope, given=None):
    a, b = (x.clone() for x in PAIR)
    if not scope:
        h, g = model(a if given is None else given, b)
        loss = cost(h, g)
        del h
        return broadcast_loss(model, loss)
    with StochasticGraph(model) as graph:
        graph.add_cost(cost(*model(a if given is None else given, b)))
        return graph.surrogate()


@pytest.mark.parametrize("scope", [False, True])
@pytest.mark.parametrize("lost", LOST)
def test_a_layer_that_needs_dl_dh_beside_one_that_needs_the_loss(lost, scope):
    """Without a graph to its sample it would not be trained: backward raises, and names the layer and the remedy."""
    for neuron, estimator in (
        ("bernoulli", "straight_through"),
        ("noisy_rectifier", "pathwise"),
        ("stochastic_times_smooth", "pathwise_score"),
    ):
        if estimator == "pathwise_score" and not scope:
            continue  # its sample died, which MissingLoss says
        model = Beside(neuron, estimator)
        scalar = scalar_of(model, LOST[lost], scope)
        with pytest.raises(NotDifferentiable, match=rf'layer "smooth" {neuron}.*{estimator} needs it.*recommend'):
            scalar.backward()
        scalar_of(model, lambda h, g: (h + g).square().sum(-1), scope).backward()  # with a graph it is as ever


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(torch.__version__ < "2.13", reason="compiled layers are operators from torch 2.13 on")
@pytest.mark.parametrize("scope", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_layer_compiled_alone_that_needs_dl_dh(backend, scope):
    """A cost that is detached outside of the compiled code left the layer untrained, without a word."""
    for lost in ("numpy", "detached", "integer", "with parameters"):
        model = Beside()
        model.smooth.compile(backend=backend)
        with pytest.raises(NotDifferentiable, match=r'layer "smooth" bernoulli.*straight_through needs it'):
            scalar_of(model, LOST[lost], scope).backward()
    leaf = PAIR[0].detach().clone().requires_grad_()
    for cost in (lambda h, g: (h + g).square().sum(-1), lambda h, g: h.sum(-1) + g.detach().sum(-1)):
        for _ in range(2):
            scalar = scalar_of(model, cost, scope, leaf)
            with warnings.catch_warnings():
                warnings.simplefilter("error", GradestWarning)
                scalar.backward()
    assert bool(leaf.grad.abs().sum() > 0)
    weight = torch.ones(3, requires_grad=True)  # backward for some inputs alone does not go where the graph leads
    scalar = scalar_of(model, lambda h, g: (h * weight + g).square().sum(-1), scope)
    assert torch.autograd.grad(scalar, weight, retain_graph=True)[0] is not None
    scalar.backward()


@pytest.mark.parametrize("scope", [False, True])
def test_losses_that_reach_a_layer_that_needs_dl_dh_in_another_way(scope):
    def plain(h, g):
        return g.sum(-1)

    model = Beside()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scalar_of(Beside(chained=True), lambda h, g: of_numpy(h * 0, g), scope).backward()  # by the layer above it
        scalar_of(model, plain, scope, PAIR[0].detach()).backward()  # not to be trained
        model.smooth.eval()
        scalar_of(model, plain, scope).backward()
        model.smooth.train()
        kept = []

        def added(h, g):
            kept.append(h)
            return g.sum(-1)

        (scalar_of(model, added, scope) + kept[-1].sum()).backward()  # by a term beside the loss
        x = torch.zeros(4, 3, requires_grad=True)
        scalar = scalar_of(model, lambda h, g: (h + g).sum(-1) + x.sum(-1), scope)
        torch.autograd.grad(scalar, x, retain_graph=True)  # a pass that does not go to the layer, though the graph does
        scalar.backward()
        with torch.no_grad():
            scalar_of(model, plain, scope)


def of_two_surrogates(reached, late):
    """The second cost reaches the smooth layer, or none does. Backward runs inside of the scope, or after it."""
    model, scalars = Beside(), []
    with StochasticGraph(model) as graph:
        h, g = model(*PAIR.clone().unbind())
        for cost in (g.sum(-1), (h if reached else h.detach()).sum(-1) + g.sum(-1)):
            graph.add_cost(cost)
            scalars.append(graph.surrogate())
            if not late:
                scalars[-1].backward(retain_graph=True)
    if late:
        sum(scalars).backward()


@pytest.mark.parametrize("late", [False, True])
def test_costs_of_several_surrogates_that_reach_a_layer_that_needs_dl_dh(late):
    of_two_surrogates(True, late)
    with pytest.raises(NotDifferentiable, match='layer "smooth"'):
        of_two_surrogates(False, late)


def test_a_layer_that_needs_dl_dh_after_the_cost():
    model = Beside()
    with StochasticGraph(model) as graph:
        graph.add_cost(model.score(PAIR[1]).sum(-1))
        model.smooth(PAIR[0])  # the cost cannot depend on it
        scalar = graph.surrogate()
    scalar.backward()


def of_two_costs(second, chained=False):
    model = Beside(chained=chained)
    with StochasticGraph(model) as graph:
        h, g = model(*PAIR.clone().unbind())
        graph.add_cost((h + g).square().sum(-1))
        graph.add_cost(second(h, g))
        graph.surrogate().backward()


def test_a_cost_without_a_graph_beside_one_that_trains_the_layer():
    """The layer would be trained by one cost of two, without a word."""
    torch.manual_seed(0)
    with pytest.warns(
        GradestWarning, match=r'cost without a graph.*layer "smooth" bernoulli.*straight_through needs dL/dh'
    ):
        of_two_costs(of_numpy)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GradestWarning)
        of_two_costs(lambda h, g: torch.full((4,), 2.0))  # such as a price for each step
        of_two_costs(
            lambda h, g: of_numpy(0 * h, g), chained=True
        )  # the credit of the layer above goes on to the sample


def test_a_layer_that_dl_dh_reached_at_some_of_its_uses():
    layer, a = Stochastic("bernoulli", "straight_through"), torch.zeros(4, 3, requires_grad=True)
    for scope in (False, True):
        with StochasticGraph(layer) if scope else torch.enable_grad() as graph:
            cost = layer(a).sum(-1) + layer(a).argmax(-1)
            if scope:
                graph.add_cost(cost)
            scalar = graph.surrogate() if scope else broadcast_loss(layer, cost)
        with pytest.warns(GradestWarning, match="no dL/dh reached some uses of the layer bernoulli"):
            scalar.backward()
    one, other = Stochastic("bernoulli", "straight_through"), Stochastic("bernoulli", "straight_through")
    heads = nn.ModuleList([one, other])
    samples = [head(a) for head in heads]
    for h in samples:
        broadcast_loss(heads, h.sum(-1)).backward()  # autograd trains such layers alone, each by its own loss


@pytest.mark.parametrize("outer", ["rloo", "straight_through"])
def test_a_layer_that_needs_dl_dh_inside_the_function_of_an_expectation(outer):
    """The graph of the losses has to lead to it, or autograd would train the rest of f alone."""
    layer, inner, lin = Expectation("bernoulli", outer), Stochastic("bernoulli", "straight_through"), nn.Linear(3, 3)
    other, a = Expectation("bernoulli", "straight_through"), torch.zeros(4, 3, requires_grad=True)

    def plain(h):
        return h.sum(-1)

    def lost(h):
        return plain(h) + inner(lin(h)).argmax(-1)

    for run in (lambda f: layer(f, a), lambda f: gradest.expect(f, a, "bernoulli", outer)[0]):
        with pytest.raises(NotDifferentiable, match="no dL/dh reached the layer bernoulli"):
            run(lost)
        with pytest.raises(NotDifferentiable):
            run(lambda h: plain(inner(lin(h)).detach()))
        lin.zero_grad()
        run(lambda h: plain(h) + inner(lin(h)).square().sum(-1)).sum().backward()
        assert lin.weight.grad.abs().max() > 0
        with torch.no_grad():
            run(lost)
        run(lambda h: other(lambda g: plain(inner(lin(g))), lin(h))).sum().backward()  # in the f of an f
        with pytest.raises(NotDifferentiable, match="no dL/dh reached"):
            run(lambda h: other(lambda g: plain(g) + inner(lin(g)).argmax(-1), lin(h)))
    with pytest.warns(GradestWarning, match="different losses"):
        gradest.estimate(lost, a, "bernoulli", "rloo", draws=4)  # which trains nothing in f


def test_a_layer_that_needs_both_in_compiled_and_transformed_code():
    layer, x = Stochastic("stochastic_times_smooth", "pathwise_score"), torch.randn(4, 3, requires_grad=True)

    def run(x, differentiable):
        h = layer(2 * x)
        return broadcast_loss(layer, (h if differentiable else h.detach()).square().sum(-1))

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for differentiable in (True, False):
        fails = warnings.catch_warnings() if differentiable else pytest.raises(NotDifferentiable)
        with fails:
            grad(run)(x, differentiable)
        fails = warnings.catch_warnings() if differentiable else pytest.raises(Exception, match="no dL/dh reached")
        with fails:
            compiled(x, differentiable).backward()


def test_dl_dh_as_a_view_that_negates(monkeypatch):
    """As of an imaginary part of a conjugate. The kernel reads memory, which holds the opposite numbers."""
    monkeypatch.setenv("GRADEST_KERNELS", "cpu")
    found = []
    for turned in (False, True):
        torch.manual_seed(0)
        layer, a = Stochastic("stochastic_times_smooth", "pathwise_score"), torch.randn(4, 3, requires_grad=True)
        h = layer(a)
        if turned:
            h.register_hook(lambda slope: torch._neg_view(-slope))
        broadcast_loss(layer, h.square().sum(-1)).backward()
        found.append(a.grad)
    assert torch.equal(*found)
