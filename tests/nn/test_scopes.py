"""StochasticGraph and broadcast_loss: what is credited with what, and what they live beside."""

import copy
import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint

from gradest.errors import InvalidInput, MissingLoss
from gradest.nn import Stochastic, StochasticGraph, broadcast_loss
from tests.nn.belief import Belief, surrogate
from tests.selection import deep

pytestmark = pytest.mark.usefixtures("fresh_compiler")


def test_a_baseline_is_subtracted_once_and_state_moves_once_a_surrogate():
    a, baseline = torch.zeros(4, 3, requires_grad=True), torch.tensor([1.0, 2.0, 3.0, 4.0])
    layer = Stochastic("bernoulli", "reinforce")
    with StochasticGraph(layer) as graph:
        h = layer(a, baseline=baseline.requires_grad_())
        graph.add_cost(torch.full((4,), 5.0))
        first = graph.surrogate("sum")
        graph.add_cost(torch.full((4,), 7.0))
        (2 * first + graph.surrogate("sum")).backward()
    assert torch.allclose(a.grad, (2 * (5 - baseline) + 7)[:, None] * (h.detach() - 0.5))
    assert baseline.grad is None
    layer = Stochastic("bernoulli", "reinforce_average")
    with StochasticGraph(layer) as graph:
        layer(a)
        graph.add_cost(torch.ones(4))
        scalar = graph.surrogate()
        assert layer.steps == 1
        scalar.backward(retain_graph=True)
        scalar.backward()
        assert layer.steps == 1


def test_a_use_that_no_cost_follows_is_not_told():
    a = torch.zeros(4, 3, requires_grad=True)
    layer = Stochastic("bernoulli", "reinforce_average")
    with StochasticGraph(layer) as graph:
        graph.add_cost(a.sum(-1) + 1)
        layer(a)
        graph.surrogate("sum").backward()
    assert layer.steps == 0
    assert torch.equal(a.grad, torch.ones(4, 3))


@pytest.mark.parametrize("flatten", [False, True])
def test_every_path_of_every_example_has_its_own_noise(flatten):
    layer = Stochastic("bernoulli", "rloo")
    with StochasticGraph(layer, 3) as graph:
        h = layer(graph.expand(torch.zeros(5, 2, 64, requires_grad=True), flatten))
        graph.discard()
    assert len({tuple(row.tolist()) for row in h.reshape(30, 64)}) == 30


@pytest.mark.parametrize("flatten", [*deep(False), True])
def test_a_compiled_network_is_not_compiled_for_every_batch(flatten):
    model = nn.Sequential(nn.Linear(2, 3), Stochastic("bernoulli", "rloo"))
    call = torch.compile(model, backend="aot_eager", fullgraph=True)
    counters.clear()
    for batch in range(3, 14):
        with StochasticGraph(model, 2) as graph:
            for _ in range(2):
                graph.add_cost(call(graph.expand(torch.randn(batch, 2), flatten)).sum(-1) ** 2)
            graph.surrogate().backward()
    assert counters["stats"]["unique_graphs"] <= 4


def test_costs_and_baselines_may_be_written_over_afterwards():
    """As an environment does that has one buffer for its rewards, and a running mean that is moved by each of them."""
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(3, 2, requires_grad=True)
    reward, mean, told = torch.zeros(3), torch.zeros(3), []
    with StochasticGraph(layer) as graph:
        for _ in range(2):
            h, before = layer(a, baseline=mean), mean.clone()
            reward.copy_(h.detach().sum(-1) + 1)
            graph.add_cost(reward)
            told.append((h.detach() - 0.5, reward.clone(), before))
            mean.lerp_(reward, 0.9)
        graph.surrogate("sum").backward()
    (one, first, before), (two, second, between) = told
    assert torch.allclose(a.grad, one * (first + second - before)[:, None] + two * (second - between)[:, None])


def test_narrow_costs_are_added_up_in_float32():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(2, 3, requires_grad=True)
    with StochasticGraph(layer) as graph:
        h = layer(a)
        for cost in [*[1.0] * 32, 256.0]:
            graph.add_cost(torch.full((2,), cost, dtype=torch.bfloat16))
        scalar = graph.surrogate()
        scalar.backward()
    assert scalar.item() == 288
    assert torch.allclose(a.grad, 144 * (h.detach() - 0.5))


def test_copies_threads_and_nested_scopes_are_apart():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    inner = Stochastic("bernoulli", "reinforce")
    both = nn.ModuleList([layer, inner])
    elsewhere = {}

    def other_thread():
        elsewhere["scope"] = layer.scope
        h = layer(b)
        broadcast_loss(layer, 3 + 0 * h.sum(-1), "sum").backward()
        elsewhere["wanted"] = 3 * (h.detach() - 0.5)

    b = torch.zeros(2, 3, requires_grad=True)
    with StochasticGraph(both) as outer:
        h = layer(a)
        with StochasticGraph(inner) as nested:
            g = inner(a)
            layer(a)
            nested.add_cost(torch.full((4,), 2.0))
            nested.surrogate("sum").backward()
        assert torch.allclose(a.grad, 2 * (g.detach() - 0.5))
        duplicate = copy.deepcopy(layer)
        assert duplicate.scope is None
        broadcast_loss(duplicate, duplicate(a).sum(-1))
        thread = threading.Thread(target=other_thread)
        thread.start()
        thread.join()
        a.grad = None
        outer.add_cost(torch.ones(4))
        outer.surrogate("sum").backward()
    assert elsewhere["scope"] is None
    assert torch.allclose(b.grad, elsewhere["wanted"])
    assert a.grad is not None
    assert len(h) == 4


@pytest.mark.parametrize("compiled", [False, True])
def test_a_compiled_layer_in_threads(compiled):
    layer = Stochastic("bernoulli", "reinforce")
    call = torch.compile(layer, backend="eager", fullgraph=True) if compiled else layer
    a = torch.zeros(4, 3, requires_grad=True)
    with StochasticGraph(layer) as graph:
        call(a)
        graph.add_cost(torch.ones(4))
        graph.surrogate()
    failures = []

    def work(number):
        for _ in range(5):
            own = torch.zeros(2, 3, requires_grad=True)
            with StochasticGraph(layer) as graph:
                h = call(own)
                graph.add_cost(torch.full((2,), float(number)))
                graph.surrogate("sum").backward()
            if not torch.allclose(own.grad, number * (h.detach() - 0.5)):
                failures.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.mark.parametrize("estimator", ["reinforce", "straight_through", "reinforce_average"])
def test_activation_checkpoints(estimator):
    torch.manual_seed(0)
    lower, upper = nn.Linear(3, 5), nn.Linear(5, 1)
    layer = Stochastic("bernoulli", estimator)
    model = nn.Sequential(lower, layer, upper)
    x = torch.randn(6, 3)

    def step(run):
        fresh = copy.deepcopy(model)  # without a state yet
        torch.manual_seed(7)
        with StochasticGraph(fresh) as graph:
            graph.add_cost(run(fresh, x).squeeze(-1) ** 2)
            graph.surrogate().backward()
        return [parameter.grad for parameter in fresh.parameters()]

    plain = step(lambda model, x: model(x))
    recomputed = step(lambda model, x: checkpoint(model, x, use_reentrant=False))
    for one, other in zip(plain, recomputed, strict=True):
        assert torch.equal(one, other)
    torch.manual_seed(7)
    model.zero_grad()
    given = x.clone().requires_grad_()
    reentrant = checkpoint(model, given, use_reentrant=True)
    if estimator == "straight_through":
        (reentrant.squeeze(-1) ** 2).mean().backward()
        assert torch.allclose(lower.weight.grad, plain[0])
    else:
        with pytest.raises(MissingLoss, match="use_reentrant=False"):
            broadcast_loss(model, reentrant.squeeze(-1) ** 2).backward()

        def looked_at(x):
            z = lower(x)
            return z, layer(z).detach()  # the sample is used as a number alone

        z, h = checkpoint(looked_at, given, use_reentrant=True)
        with pytest.raises(MissingLoss, match="use_reentrant=False"):
            (z.sum() + h.sum()).backward()

        def whole(x):
            with StochasticGraph(model) as graph:
                graph.add_cost(model(x).squeeze(-1))
                return graph.surrogate()

        scalar = checkpoint(whole, given, use_reentrant=False)
        with pytest.raises(InvalidInput, match="while backward is running"):
            scalar.backward()


@pytest.mark.parametrize(("estimator", "samples"), [("reinforce", None), ("rloo", 3), ("vimco", 3)])
def test_inside_transforms_of_torch_func(estimator, samples):
    torch.manual_seed(0)
    model, x = Belief(estimator, estimator), torch.randn(5, 2)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def one(parameters, x):
        with StochasticGraph(model, samples) as graph:
            y = graph.expand(x[None])
            h, g = functional_call(model, parameters, (y,))
            graph.add_cost((h.sum(-1) - g.sum(-1) + 0.3) ** 2)
            return graph.surrogate()

    torch.manual_seed(9)
    found = vmap(grad(one), in_dims=(None, 0), randomness="same")(parameters, x)
    for place, example in enumerate(x):
        torch.manual_seed(9)
        model.zero_grad()
        one(dict(model.named_parameters()), example).backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(found[name][place], parameter.grad, atol=1e-5), name
    assert found["inner.weight"].abs().max() > 0.01


def test_memory_is_freed():
    layer = Stochastic("bernoulli", "reinforce")
    model = nn.Sequential(nn.Linear(3, 5), layer)
    held = []
    for step in range(1000):
        with StochasticGraph(model) as graph:
            h = model(torch.zeros(2, 3))
            held.append(weakref.ref(h))
            graph.add_cost(h.sum(-1))
            if step % 2:
                graph.surrogate().backward()
            else:
                graph.discard()
            del h
    gc.collect()
    assert not [ref for ref in held if ref() is not None]


def test_scaling_precision_and_accumulation():
    torch.manual_seed(0)
    model, x = Belief("reinforce_average", "reinforce"), torch.randn(6, 2)
    model(x)[1].sum()  # a pass outside of the scope, which is no part of it
    model.first.forget_uses(), model.second.forget_uses()
    found = []
    for scale in (1.0, 1024.0):
        torch.manual_seed(3)
        fresh = copy.deepcopy(model)
        for part in x.split(3):
            (scale * surrogate(fresh, part) / 2).backward()
        found.append(fresh.inner.weight.grad)
    assert torch.allclose(found[1], 1024 * found[0], rtol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16), StochasticGraph(model) as graph:
        h, g = model(x)
        assert h.dtype == torch.bfloat16
        graph.add_cost(h.float().sum(-1) + g.float().sum(-1))
        graph.surrogate().backward()
    half = Belief("rloo", "rloo").bfloat16()
    surrogate(half, x.bfloat16(), 4).backward()
    assert half.inner.weight.grad.dtype == torch.bfloat16
    for samples, flatten in ((None, False), (2, False), (2, True)):
        surrogate(Belief("rloo", "rloo") if samples else model, torch.zeros(0, 2), samples, flatten).backward()
