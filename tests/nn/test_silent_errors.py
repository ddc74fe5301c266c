"""Programs around layers that look right: each has the right gradient, or raises an error that says what to do."""

import copy
import sys
import threading
import warnings
import weakref

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

import gradest
from gradest.errors import GradestWarning, Incompatible, InvalidInput, MissingLoss, NotDifferentiable
from gradest.nn import Expectation, Stochastic, StochasticGraph, broadcast_loss
from tests.selection import deep

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


@pytest.fixture(autouse=True)
def _apart():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="torch")  # of the compiler's own code
        yield
    torch._dynamo.reset()


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


class EmitsItsInput(type(gradest.neuron("gaussian"))):
    name = "emits_its_input"

    def sample(self, key, a, draws):
        return a.expand(draws, *a.shape)


def test_the_output_of_a_neuron_that_emits_its_input_may_be_written_to():
    layer, z = Stochastic(EmitsItsInput(), "pathwise"), torch.ones(4, 3, requires_grad=True)
    a = 2 * z
    h = layer(a)
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


class Chain(nn.Module):
    def __init__(self, neuron, estimator):
        super().__init__()
        self.linears = nn.ModuleList([nn.Linear(4, 6), nn.Linear(6, 3)])
        self.layers = nn.ModuleList([Stochastic(neuron, estimator) for _ in range(2)])

    def forward(self, x):
        a = self.linears[0](x)
        h = self.layers[0](a)
        b = self.linears[1](h)
        return a, h, b, self.layers[1](b)


LOSSES = {  # what reaches the first sample: the gradient of the loss, that of the second sample's port, or both
    "of the samples": lambda h, g: (g.square().sum(-1) + 0.3 * h.sum(-1) - h[:, 0] * g[:, 1]) ** 2,
    "of the last sample": lambda h, g: (g.sum(-1) - 1) ** 2,
    "of numbers": lambda h, g: (g + h.sum(-1, keepdim=True)).detach().sum(-1),
}
ADDED = {
    "nothing": (lambda a, h, b, g, loss: 0, False),
    "of the pre-activations": (lambda a, h, b, g, loss: a.square().mean(), False),
    "of a detached sample": (lambda a, h, b, g, loss: h.detach().mean(), False),
    "of the first sample": (lambda a, h, b, g, loss: 5 * h.sum(-1).mean(), True),
    "of what follows from it": (lambda a, h, b, g, loss: b.square().sum(-1).mean(), True),
    "of the last sample": (lambda a, h, b, g, loss: 5 * g.sum(-1).mean(), True),
}


@pytest.mark.parametrize("scope", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("added", ADDED)
def test_a_penalty_that_is_added_to_the_scalar(added, loss, scope):
    for neuron, estimator, dtype in (
        ("bernoulli", "reinforce", torch.float32),
        ("bernoulli", "reinforce_average", torch.bfloat16),
        ("stochastic_times_smooth", "pathwise_score", torch.float64),
    ):
        if estimator == "pathwise_score" and loss == "of numbers":
            continue  # it needs dL/dh
        torch.manual_seed(0)
        model, x = Chain(neuron, estimator).to(dtype), torch.randn(16, 4, dtype=dtype)
        penalty, noticed = ADDED[added]
        with StochasticGraph(model) if scope else torch.enable_grad() as graph:
            a, h, b, g = model(x)
            cost = LOSSES[loss](h, g)
            if scope:
                graph.add_cost(cost)
                scalar = graph.surrogate()
                graph.add_cost(2 * cost)  # the second surrogate sends its own part along the same graph
                scalar = scalar + graph.surrogate()
            else:
                scalar = broadcast_loss(model, cost)
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            (3 * scalar + penalty(a, h, b, g, cost)).backward()
        assert any("no part of the loss this layer was told" in str(one.message) for one in given) == noticed


def test_a_penalty_is_looked_for_now_and_then_and_keeps_nothing_alive():
    layer, lin, x = Stochastic("bernoulli", "reinforce"), nn.Linear(4, 6), torch.randn(5, 4)
    noticed = []
    for step in range(1, 10):
        a = lin(x)
        kept = weakref.ref(a)
        h = layer(a)
        scalar = broadcast_loss(layer, h.sum(-1)) + h.mean()
        del a, h
        with warnings.catch_warnings(record=True) as given:
            warnings.simplefilter("always")
            scalar.backward()
        noticed += [step] * len(given)
        del scalar
        assert kept() is None
    assert noticed == [1, 2, 4, 8]


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


def in_parts(run, rows):
    parts = []
    for part in rows:
        torch.manual_seed(7)
        parts.append(run(part))
    return torch.cat(parts)


@pytest.mark.parametrize("extra", [(), (3,)])
def test_a_batch_in_parts_has_the_bits_of_the_whole(extra):
    """Values, samples and gradients in `a`, whatever the size and the order of the parts."""
    a = torch.randn(8, *extra, 5)
    order = torch.tensor([6, 1, 0, 7, 2, 5, 4, 3])
    rows = order.split([2, 5, 1])

    def f(h):
        return (h.sum(-1) - 1.3) ** 2

    def gradient(layer, part, given):
        x = a[part].requires_grad_()
        h = layer(x, rows=given)
        loss = f(h)
        return torch.autograd.grad(broadcast_loss(layer, loss.flatten(1).sum(-1) if extra else loss, "sum"), x)[0]

    def of_paths(layer, part, given):
        x = a[part].requires_grad_()
        with StochasticGraph(layer, 4) as graph:
            h = layer(graph.expand(x), rows=given)
            graph.add_cost(f(h))
            return torch.autograd.grad(graph.surrogate("sum"), x)[0]

    def value(part, given):
        return gradest.expect(f, a[part], estimator="disarm", seed=7, rows=given)[0]

    layer, paths = Stochastic("bernoulli", "reinforce"), Stochastic("bernoulli", "rloo")
    expectation = Expectation("bernoulli", "arms")
    sampled = Stochastic("bernoulli", "reinforce", evaluation="sample").eval()
    for run in (
        lambda part, given: gradient(layer, part, given),
        lambda part, given: of_paths(paths, part, given),
        lambda part, given: expectation(f, a[part], rows=given),
        lambda part, given: sampled(a[part], rows=given),
        value,
    ):
        torch.manual_seed(7)
        whole = run(torch.arange(8), None)
        assert torch.equal(in_parts(lambda part, run=run: run(part, part), rows), whole[order])
        assert not torch.equal(in_parts(lambda part, run=run: run(part, None), rows), whole[order])


def test_what_rows_refuse():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    for wrong in (
        torch.arange(3),
        torch.arange(4.0),
        [0, 1, 2, 3],
        torch.zeros(4, dtype=torch.bool),
        torch.arange(4) - 1,
    ):
        with pytest.raises(InvalidInput, match="row"):
            layer(a, rows=wrong)
        with pytest.raises(InvalidInput, match="row"):
            gradest.expect(lambda h: h.sum(-1), a, rows=wrong)
    positions = torch.zeros(1, 4, 3, requires_grad=True)
    for large in (1 << 62, 1 << 30, 1 << 32):  # times 4 positions the first was that of row 0
        with pytest.raises(InvalidInput, match="row"):
            layer(positions, rows=torch.tensor([large]))
        with pytest.raises(InvalidInput, match="row"):
            gradest.expect(lambda h: h.sum(-1), positions, rows=torch.tensor([large]))
    with pytest.raises(InvalidInput, match="given twice"):
        gradest.expect(lambda h: h.sum(-1), a, seed=gradest.Key(1, rows=torch.arange(4)), rows=torch.arange(4))
    with pytest.raises(InvalidInput, match="transform"):
        vmap(lambda a, row: layer(a[None], rows=row[None]), randomness="same")(a, torch.arange(4))
    with pytest.raises(Exception, match="a compiled layer takes no rows"):
        torch.compile(layer, backend="eager", fullgraph=True)(a, rows=torch.arange(4))
