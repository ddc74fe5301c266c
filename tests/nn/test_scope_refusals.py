"""What StochasticGraph and broadcast_loss refuse or notice: costs and paths that do not fit, and uses before the scope."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.utils.checkpoint import checkpoint

from gradest.errors import GradestWarning, Incompatible, InvalidInput, MissingLoss, ToldAlready
from gradest.nn import Stochastic, StochasticGraph, broadcast_loss
from tests.nn.belief import Belief, compiled_inside

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_what_paths_refuse():
    def use(samples, x, run):
        with StochasticGraph(model, samples) as graph:
            run(graph, x)

    def run_all(graph, x):
        x = graph.expand(x)
        h, g = model(x)
        graph.add_cost(model.loss(x, h, g))
        return graph.surrogate()

    model, x = Belief("rloo", "rloo"), torch.zeros(4, 2)  # as many paths as examples below
    with pytest.raises(InvalidInput, match=r"first dim of every layer's input .*graph\.expand"):
        use(4, x, lambda graph, x: model(x))
    with pytest.raises(InvalidInput, match=r"first dim of a cost"):
        use(4, x, lambda graph, x: (model(graph.expand(x)), graph.add_cost(torch.zeros(3))))
    with pytest.raises(InvalidInput, match=r"\[K, \*batch\]"):
        use(4, x, lambda graph, x: (model(graph.expand(x)), graph.add_cost(torch.zeros(4))))

    def half_expanded(graph, x):
        h = model.first(model.inner(x))
        graph.expand(x)
        graph.add_cost(torch.zeros(4, 4) + h.sum())
        graph.surrogate()

    with pytest.raises(InvalidInput, match=r"graph\.expand"):
        use(4, x, half_expanded)

    def expanded_late(graph, x):
        graph.expand(x)
        model.first(model.inner(x))
        graph.add_cost(torch.zeros(4, 4))
        graph.surrogate()

    with pytest.raises(InvalidInput, match=r"a cost is one number an example"):
        use(4, x, expanded_late)
    with pytest.raises(InvalidInput, match="one scope has one form"):
        use(4, x, lambda graph, x: (graph.expand(x), graph.expand(x, flatten=True)))
    with pytest.raises(InvalidInput, match="one scope has one form"):
        use(4, x, lambda graph, x: (graph.expand(x, flatten=True), graph.expand(x[:2], flatten=True)))
    with pytest.raises(InvalidInput, match=r"rloo cannot credit 1 path\(s\) against each other"):
        use(1, x, run_all)
    model = Belief({"name": "rloo", "samples": 3}, "rloo")
    with pytest.raises(InvalidInput, match="credits 3 samples against each other, but there are 4"):
        use(4, x, run_all)
    model = Belief("rloo", "vimco")
    with pytest.raises(Incompatible, match="different targets"):
        use(4, x, run_all)
    with pytest.raises(Exception, match="different targets"):
        compiled_inside(model, 2, flatten=False)(x)
    model = Belief("vimco", "vimco")

    def twice(graph, x):
        run_all(graph, x)
        graph.add_cost(torch.zeros(4, 4))
        graph.surrogate()

    with pytest.raises(Incompatible, match="several surrogates cannot share"):
        use(4, x, twice)

    def with_baseline(graph, x):
        x = graph.expand(x)
        h = model.first(model.inner(x), baseline=torch.zeros(4, 4))
        graph.add_cost(h.sum(-1))
        graph.surrogate()

    with pytest.raises(Incompatible, match="a baseline of a use would change the bound"):
        use(4, x, with_baseline)
    for samples in (0, True, 1.5):
        with pytest.raises(InvalidInput, match="samples must be an integer"):
            StochasticGraph(model, samples)


def test_what_costs_refuse():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    with StochasticGraph(layer) as graph:
        h = layer(a)
        with pytest.raises(InvalidInput, match="batch_dims=0 is for a model without a batch dim"):
            graph.add_cost(h.sum())
        with pytest.raises(InvalidInput, match=r"finite, but at \[2\] of \[4\] this one is nan"):
            graph.add_cost(torch.tensor([0.0, 1.0, torch.nan, torch.inf]))
        for wrong, name in ((1.0, "float"), (torch.ones(4, dtype=torch.complex64), "torch.complex64")):
            with pytest.raises(InvalidInput, match=f"a torch tensor of real numbers, not {name}"):
                graph.add_cost(wrong)
        with pytest.raises(InvalidInput, match="no cost was added"):
            graph.surrogate()
        graph.add_cost(torch.ones(4, dtype=torch.int64))  # rewards are often integers
        with pytest.raises(InvalidInput, match="the costs of one surrogate have one batch"):
            graph.add_cost(torch.ones(3))
        with pytest.raises(InvalidInput, match="reduction"):
            graph.surrogate("max")
        graph.surrogate()
    with StochasticGraph(layer) as graph:
        layer(a)
        graph.add_cost(torch.ones(3))
        with pytest.raises(InvalidInput, match=r"must be, or begin, the batch \[4\]"):
            graph.surrogate()
        graph.discard()
    for wrong, match in (
        (torch.ones(5), "a baseline is one number an example"),
        (0.5, "a baseline must be a torch tensor"),
        (torch.tensor([0.0, 1.0, torch.nan, 2.0]), r"finite, but at \[2\] this one is nan"),
    ):
        with pytest.raises(InvalidInput, match=match):
            layer(a, baseline=wrong)
    with pytest.raises(InvalidInput, match="not open"):
        graph.add_cost(torch.ones(4))
    with pytest.raises(InvalidInput, match=r"torch\.nn\.ModuleList"):
        StochasticGraph([layer])


def test_a_use_before_the_scope_is_noticed():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(2, 3, requires_grad=True)
    h = layer(a)
    with StochasticGraph(layer) as graph:
        layer(a)
        graph.add_cost(h.sum(-1))
        with pytest.warns(GradestWarning, match="before this StochasticGraph was opened"):
            graph.surrogate()


def test_what_is_left_untold():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)

    def leave(run):
        with StochasticGraph(layer) as graph:
            run(graph)

    with pytest.raises(MissingLoss, match=r"graph\.discard\(\)"):
        leave(lambda graph: layer(a))
    with pytest.raises(MissingLoss, match=r"graph\.discard\(\)"):
        leave(lambda graph: (layer(a), graph.add_cost(torch.ones(4))))
    leave(lambda graph: (layer(a), graph.discard()))
    with pytest.raises(ZeroDivisionError):
        leave(lambda graph: (layer(a), 1 / 0))
    with torch.no_grad():
        leave(lambda graph: (layer(a), graph.add_cost(torch.ones(4))))
    layer.eval()
    leave(lambda graph: layer(a))
    layer.train()
    assert layer.scope is None
    with pytest.raises(MissingLoss, match="broadcast_loss"):
        leave(lambda graph: layer(a).sum().backward())

    def looked_at(graph):
        h = layer(a)
        graph.add_cost(h.sum(-1))
        graph.surrogate()  # its value is logged, and backward starts elsewhere
        h.sum().backward()

    with pytest.raises(MissingLoss, match="broadcast_loss"):
        leave(looked_at)

    def a_value_alone(graph):
        h = layer(a)
        graph.add_cost(h.sum(-1))
        with torch.no_grad():
            value = graph.surrogate()
        scalar = graph.surrogate()
        assert torch.equal(scalar, value)
        scalar.backward()

    a.grad = None
    leave(a_value_alone)
    assert a.grad is not None
    graph = StochasticGraph(layer)
    with graph, pytest.raises(InvalidInput, match="open already"), graph:
        pass


def test_broadcast_loss_is_for_one_cost():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    h = layer(a)
    with torch.no_grad():
        broadcast_loss(layer, h.sum(-1))  # a value that is only looked at tells nothing
    broadcast_loss(layer, h.sum(-1))
    with pytest.raises(ToldAlready, match="StochasticGraph"):
        broadcast_loss(layer, h.sum(-1))
    layer.eval()
    broadcast_loss(layer, layer(a).sum(-1))  # nothing to tell in evaluation
    layer.train()
    uses = [layer(a) for _ in range(5)]
    with pytest.raises(InvalidInput, match="StochasticGraph with add_cost"):
        broadcast_loss(layer, torch.zeros(5, 4))
    with pytest.raises(InvalidInput, match="a single number, but the layers have a batch"):
        broadcast_loss(layer, sum(uses).mean())
    broadcast_loss(layer, sum(uses).sum(-1)).backward()  # nothing was lost by the mistakes
    assert a.grad is not None
    del uses
    with StochasticGraph(layer) as graph:
        layer(a)
        with pytest.raises(InvalidInput, match=r"graph\.add_cost"):
            broadcast_loss(layer, torch.zeros(4))
        graph.discard()


def test_a_checkpoint_that_would_repeat_a_layer_from_another_state_is_refused():
    layer = Stochastic("bernoulli", "slope_annealed_straight_through")
    first, second = (
        checkpoint(layer, torch.zeros(2, 3, requires_grad=True), use_reentrant=True).sum() for _ in range(2)
    )
    first.backward()  # moves the state, which a reentrant checkpoint does not keep
    with pytest.raises(Incompatible, match=r"state of its estimator has moved.* needs use_reentrant=False"):
        second.backward()


@pytest.mark.parametrize("estimator", ["reinforce", "straight_through", "reinmax"])
def test_what_is_written_over(estimator):
    """To h one may write; a written over raises, as it does for torch's own operations."""
    linear, layer, x = nn.Linear(3, 5), Stochastic("bernoulli", estimator), torch.randn(6, 3)
    model = nn.Sequential(linear, layer)
    with StochasticGraph(model) as graph:
        h = model(x)
        was = h.detach().clone()
        h += 1
        graph.add_cost(h.sum(-1))
        graph.surrogate("sum").backward()
    if estimator == "reinforce":
        score = was - torch.sigmoid(linear(x))
        assert torch.allclose(linear.bias.grad, ((was + 1).sum(-1, keepdim=True) * score).sum(0), atol=1e-4)
    with pytest.raises(RuntimeError, match="in place"), StochasticGraph(model) as graph:  # noqa: PT012
        z = linear(x)
        h = layer(z)
        torch.relu_(z)
        graph.add_cost(h.sum(-1))
        graph.surrogate().backward()


@pytest.mark.parametrize("estimator", ["reinforce", "straight_through"])
def test_a_second_derivative_raises(estimator):
    layer, a = Stochastic("bernoulli", estimator), torch.zeros(4, 3, requires_grad=True)
    b = a * 1
    with StochasticGraph(layer) as graph:
        graph.add_cost(layer(b).sum(-1) ** 2)
        (slope,) = torch.autograd.grad(graph.surrogate(), b, create_graph=True)
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            slope.sum().backward()
    model, x = nn.Sequential(nn.Linear(3, 5), layer), torch.randn(6, 3)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def value(parameters):
        with StochasticGraph(model) as graph:
            graph.add_cost(functional_call(model, parameters, (x,)).sum(-1) ** 2)
            return graph.surrogate()

    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        grad(lambda p: sum(slope.sum() for slope in grad(value)(p).values()))(parameters)


def test_a_transform_inside_compiled_code_is_refused():
    model, x = nn.Sequential(nn.Linear(3, 2), Stochastic("bernoulli", "reinforce")), torch.randn(4, 3)
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    value = grad(lambda p: broadcast_loss(model, functional_call(model, p, (x,)).sum(-1)))
    with pytest.raises(Exception, match=r"without torch\.compile"):
        torch.compile(value, backend="aot_eager", fullgraph=True)(parameters)
