"""Layers in compiled graphs, whole ones: they train, draw and evaluate as eager code does, whatever plugin is inside."""

import copy
import functools
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import gradest
from gradest.errors import InvalidInput, MissingLoss
from gradest.nn import Expectation, Stochastic, broadcast_loss
from gradest_estimators.straight_through import StraightThrough

SINGLE = [
    (neuron, estimator)
    for neuron in ("bernoulli", "stochastic_times_smooth", "noisy_rectifier", "categorical")
    for estimator, built in gradest.registry.fitting(gradest.neuron(neuron)).items()
    if built.linear and built.evaluations(gradest.neuron(neuron), (2, 2)) == 1
]
FAST = [
    ("bernoulli", "reinforce"),  # the loss alone
    ("bernoulli", "straight_through"),  # dL/dh alone
    ("bernoulli", "nvil"),  # a state, and autograd inside
    ("stochastic_times_smooth", "pathwise_score"),  # both
]


@pytest.fixture(autouse=True)
def _apart():
    torch._dynamo.reset()
    counters.clear()
    with warnings.catch_warnings():  # the compiler's own code warns of torch's deprecations
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


def whole(function, backend="aot_eager"):
    return torch.compile(function, backend=backend, fullgraph=True)


def units(a, neuron):
    return a.unflatten(-1, (-1, 2)) if gradest.neuron(neuron).event_ndim == 2 else a


class TwoLayers(nn.Module):
    def __init__(self, neuron, estimator, **options):
        super().__init__()
        self.neuron = gradest.neuron(neuron)
        self.inner, self.outer, self.last = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 1)
        self.first, self.second = (Stochastic(neuron, estimator, **options) for _ in range(2))
        with torch.no_grad():
            self(torch.zeros(1, 4))  # the shapes of states follow from the input

    def forward(self, x):
        for linear, layer in ((self.inner, self.first), (self.outer, self.second)):
            a = linear(x)
            x = layer(a.unflatten(-1, (-1, 2))).flatten(-2) if self.neuron.event_ndim == 2 else layer(a)
        return self.last(x)[:, 0]


def train(model, call, sizes=(6, 6, 9, 5)):
    torch.manual_seed(1)
    optimiser, found = torch.optim.SGD(model.parameters(), lr=0.1), []
    for size in sizes:
        x = torch.randn(size, 4)
        optimiser.zero_grad()
        broadcast_loss(model, (call(x) - x.sum(-1)) ** 2).backward()
        optimiser.step()
        found += [parameter.grad.clone() for parameter in model.parameters()]
    return found + list(model.buffers())


def check_training(neuron, estimator, backend, sizes=(6, 6, 9, 5)):
    torch.manual_seed(0)
    eager = TwoLayers(neuron, estimator)
    compiled = copy.deepcopy(eager)
    found, wanted = train(compiled, whole(compiled, backend), sizes), train(eager, eager, sizes)
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] <= 2  # one for the first batch, one for batches of any size
    assert max(gradient.abs().max() for gradient in found) > 0.1


@pytest.mark.parametrize(("neuron", "estimator"), FAST)
def test_a_compiled_model_trains_as_the_model_does(neuron, estimator):
    check_training(neuron, estimator, "aot_eager")


@pytest.mark.deep
@pytest.mark.parametrize(("neuron", "estimator"), [pair for pair in SINGLE if pair not in FAST])
def test_every_estimator_of_one_point(neuron, estimator):
    check_training(neuron, estimator, "aot_eager")


@pytest.mark.slow
def test_with_inductor():
    """With batches of one size, because the compiler takes as long again for batches of any."""
    check_training("bernoulli", "nvil", "inductor", sizes=(6, 6))


@pytest.mark.deep
@pytest.mark.parametrize(("neuron", "estimator"), [*FAST, ("bernoulli", "reinforce_centered")])
def test_with_inductor_and_batches_of_any_size(neuron, estimator):
    check_training(neuron, estimator, "inductor")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.deep)])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("estimator", ["straight_through", "reinforce"])
def test_each_call_draws_anew_and_torch_rules_the_seeds(estimator, learns, backend):
    layer, a = Stochastic("bernoulli", estimator), torch.zeros(40, 5, requires_grad=learns)

    @functools.partial(whole, backend=backend)
    def twice(a):
        return torch.stack([layer(a), layer(a)])

    torch.manual_seed(3)
    drawn = torch.cat([twice(a), twice(a)])
    layer.forget_uses()
    assert len({tuple(h.flatten().tolist()) for h in drawn}) == 4
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.stack([layer(a) for _ in range(4)]))


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_the_whole_step_in_one_graph(scale):
    torch.manual_seed(0)
    model, x = TwoLayers("bernoulli", "reinforce"), torch.randn(6, 4)

    def step(x):
        return scale * broadcast_loss(model, (model(x) - x.sum(-1)) ** 2, "sum")

    gradients = []
    for call in (step, whole(step)):
        model.zero_grad()
        torch.manual_seed(5)
        call(x).backward()
        gradients.append(model.inner.weight.grad)
    assert torch.allclose(*gradients, atol=1e-6)
    assert bool(gradients[0].any()) == bool(scale)


def test_a_loss_that_is_not_differentiable_and_extra_batch_dims():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 5, 3, requires_grad=True)
    h, loss = whole(layer)(a), torch.arange(4.0)
    broadcast_loss(layer, loss).backward()
    assert torch.allclose(a.grad, loss[:, None, None] * (h.detach() - 0.5) / 4)
    assert layer._thread.uses.latest is None
    whole(layer)(a)
    with pytest.raises(InvalidInput, match="one number an example"):
        broadcast_loss(layer, torch.zeros(5))


def test_what_is_not_told_or_not_to_be_told():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(4, 3, requires_grad=True)
    run = whole(layer)
    with pytest.raises(MissingLoss, match="broadcast_loss"):
        run(a).sum().backward()
    layer.forget_uses()
    with torch.no_grad():
        run(a)
    assert not run(a.detach()).requires_grad
    assert layer._thread.uses.latest is None
    empty = torch.zeros(0, 3, requires_grad=True)
    broadcast_loss(layer, run(empty).sum(-1)).backward()
    assert empty.grad.shape == (0, 3)


def test_bad_numbers_are_refused_in_a_graph_too():
    with pytest.raises(InvalidInput, match=r"a\[1, 2\] is nan"):
        whole(Stochastic("bernoulli", "reinforce"))(torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, torch.nan]]))


@pytest.mark.parametrize("evaluation", ["mean", "threshold", "sample"])
@pytest.mark.parametrize("neuron", ["bernoulli", "noisy_rectifier", "categorical"])
def test_evaluation(neuron, evaluation):
    estimator = "held_noise" if neuron == "noisy_rectifier" else "straight_through"
    layer = Stochastic(neuron, estimator, evaluation=evaluation, threshold=0.3).eval()
    a = units(torch.linspace(-2, 2, 24).reshape(4, 6), neuron).requires_grad_()
    run, found = whole(layer), []
    for call in (run, layer):
        torch.manual_seed(2)
        found.append(call(a))
    assert torch.allclose(*found, atol=1e-6)
    if evaluation == "mean":
        slopes = [torch.autograd.grad((h * a.detach()).sum(), a)[0] for h in found]
        assert torch.allclose(*slopes, atol=1e-6)
        assert slopes[0].abs().max() > 0.01


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16(autocast):
    torch.manual_seed(0)
    model, x = TwoLayers("bernoulli", "reinforce_average"), torch.randn(6, 4)
    if not autocast:
        model, x = model.bfloat16(), x.bfloat16()
    run, gradients = whole(model), []
    start = copy.deepcopy(model.state_dict())
    for call in (model, run):
        model.load_state_dict(start)
        model.zero_grad()
        torch.manual_seed(4)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = call(x)
        assert out.dtype == torch.bfloat16
        broadcast_loss(model, (out.float() - 1) ** 2).backward()
        gradients.append(model.inner.weight.grad)
    assert gradients[0].dtype == (torch.float32 if autocast else torch.bfloat16)
    assert torch.allclose(*gradients, rtol=0.05, atol=1e-3)


class Doubled(StraightThrough):
    """Somebody's plugin, which no registry knows."""

    name = "doubled"
    summary = "twice the straight-through estimator"

    def backward(self, draw, feedback, state):
        if float(feedback.get_grad().sum()) > 1e9:  # what no compiler could follow
            raise ValueError
        gradient, state = super().backward(draw, feedback, state)
        return 2 * gradient, state


def test_a_strangers_plugin():
    layer, a = Stochastic("bernoulli", Doubled()), torch.zeros(4, 3, requires_grad=True)
    whole(layer)(a).sum().backward()
    assert torch.equal(a.grad, torch.full((4, 3), 2.0))


def test_a_state_begins_before_the_graph():
    layer, a = Stochastic("bernoulli", "reinforce_centered"), torch.zeros(4, 3, requires_grad=True)
    with pytest.raises(Exception, match="call the model once before it is compiled"):
        whole(layer)(a)
    layer = Stochastic("bernoulli", "reinforce_centered")
    run = torch.compile(layer, backend="aot_eager")  # a graph in pieces
    for _ in range(3):
        broadcast_loss(layer, run(a).sum(-1)).backward()
    assert layer.steps == 3


def test_a_layer_used_twice_averages_its_next_states():
    layer = Stochastic("bernoulli", {"name": "reinforce_average", "decay": 0.0})
    a = torch.zeros(2, 3, requires_grad=True)
    layer(a)

    @whole
    def twice(a):
        return layer(a) + layer(a)

    twice(a)
    (first, second), _ = layer.waiting_uses()
    first.tell(torch.tensor([2.0, 4.0]))  # each is told a loss of its own
    second.tell(torch.tensor([6.0, 6.0]))
    assert layer.state["total"].item() == pytest.approx(4.5)
    assert layer.steps == 1


def test_copies_have_states_of_their_own():
    torch.manual_seed(0)
    model, x = TwoLayers("bernoulli", "reinforce_average"), torch.randn(6, 4)
    other = copy.deepcopy(model)
    broadcast_loss(other, whole(other)(x) ** 2).backward()
    assert model.first.state["weight"] == 0
    assert other.first.state["weight"] > 0


def test_many_points_break_the_graph_and_work():
    a, weight = torch.randn(4, 3), torch.tensor([1.0, -2.0, 0.5])

    def f(h):
        return ((h * weight).sum(-1) + 0.2) ** 2

    layer = Expectation("bernoulli", "rloo")

    def by_layer(a):
        return layer(f, 2 * a).sum()

    def by_function(a):
        return gradest.expect(f, 2 * a, "bernoulli", "disarm")[0].sum()

    for way in (by_layer, by_function):
        found = []
        for call in (way, torch.compile(way, backend="aot_eager")):
            torch.manual_seed(6)
            given = a.clone().requires_grad_()
            call(given).backward()
            found.append(given.grad)
        assert torch.allclose(*found)
        with pytest.raises(Exception, match="breaks the graph"):
            whole(way)(a)


@pytest.mark.deep
def test_with_a_torch_whose_operators_take_no_objects_a_layer_breaks_the_graph():
    script = """
        import sys
        sys.modules["gradest.nn.operators"] = None  # its import fails, as it does with an older torch
        import torch, gradest.nn
        layer = gradest.nn.Stochastic("bernoulli", "straight_through")
        a = torch.zeros(4, 3, requires_grad=True)
        compiled = torch.compile(lambda a: layer(a) * 2, backend="eager")
        compiled(a).sum().backward()
        assert torch.equal(a.grad, torch.full((4, 3), 2.0)), a.grad
        try:
            torch.compile(lambda a: layer(a) * 2, backend="eager", fullgraph=True)(a)
        except Exception as error:
            assert "from torch 2.13 on" in str(error), error
        else:
            raise AssertionError("it must say why")
    """
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_second_derivative_is_refused_in_a_graph_too():
    layer = Stochastic("bernoulli", "straight_through")
    a = torch.zeros(2, 3, requires_grad=True)
    (gradient,) = torch.autograd.grad((whole(layer, "eager")(a) ** 2).sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        gradient.sum().backward()
