"""Layers: gradients against enumeration, several layers, state, evaluation, copies, processes, and compilation."""

import copy
import gc
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import gradest
from gradest.errors import GradestWarning, Incompatible, InvalidInput, MissingLoss, TooManyPoints
from gradest.nn import Expectation, Stochastic, broadcast_loss
from tests.nn.data_parallel import train

ROOT = Path(__file__).parents[2]
WEIGHT = torch.tensor([1.0, -2.0, 0.5])


def f(h):
    return ((h * WEIGHT.to(h)).sum(-1) + 0.2) ** 2 + h[..., 0]


class OneLayer(nn.Module):
    def __init__(self, estimator, neuron="bernoulli", **options):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, -0.5, 1.0]))
        self.layer = Stochastic(neuron, estimator, **options)

    def forward(self, batch):
        return self.layer(self.a.expand(batch, 3))


class TwoLayers(nn.Module):
    """x -> 3 units -> 2 units -> a number, small enough to enumerate by hand."""

    def __init__(self, first, second):
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 3), nn.Linear(3, 2)
        self.first, self.second = Stochastic("bernoulli", first), Stochastic("bernoulli", second)

    def forward(self, x):
        return ((self.second(self.outer(self.first(self.inner(x)))) * torch.tensor([1.0, -0.7])).sum(-1) + 0.3) ** 2

    def expectation(self, x):
        def after_first(h):
            q = torch.sigmoid(self.outer(h))
            total = 0
            for bits in ([0, 0], [0, 1], [1, 0], [1, 1]):
                b = torch.tensor(bits, dtype=torch.float32)
                total = (
                    total + torch.where(b == 1, q, 1 - q).prod(-1) * ((b * torch.tensor([1.0, -0.7])).sum() + 0.3) ** 2
                )
            return total

        p, total = torch.sigmoid(self.inner(x)), 0
        for number in range(8):
            b = torch.tensor([number & 1, number >> 1 & 1, number >> 2], dtype=torch.float32)
            total = total + torch.where(b == 1, p, 1 - p).prod(-1) * after_first(b)
        return total


@pytest.mark.parametrize(
    ("neuron", "estimator"),
    [
        ("bernoulli", "reinforce"),
        ("bernoulli", "reinforce_average"),
        ("bernoulli", "reinforce_centered"),
        ("stochastic_times_smooth", "pathwise_score"),
        ("noisy_rectifier", "pathwise"),
    ],
)
def test_gradient_of_a_layer(neuron, estimator):
    torch.manual_seed(0)
    model, gradients = OneLayer(estimator, neuron), []
    for _ in range(60):
        model.a.grad = None
        broadcast_loss(model, f(model(2000))).backward()
        gradients.append(model.a.grad.clone())
    stacked = torch.stack(gradients)[10:]  # the first ones have young baselines
    if neuron == "noisy_rectifier":  # three units are too many for a quick quadrature
        found = gradest.estimate(f, model.a.detach(), neuron, estimator, draws=400_000, seed=1)
        truth, error = found.gradient, found.standard_error
    else:
        truth, error = gradest.exact(f, model.a.detach(), neuron=neuron)[1], 0
    z = (stacked.mean(0) - truth) / (stacked.std(0) / 50**0.5 + error)
    assert z.abs().max() < 5
    assert (stacked.std(0) / 50**0.5).max() < 0.1 * truth.abs().max()  # a factor of two would be five and more


@pytest.mark.parametrize(("first", "second"), [("reinforce", "reinforce"), ("reinforce_centered", "reinforce_average")])
def test_two_layers_against_enumeration(first, second):
    torch.manual_seed(1)
    model, x = TwoLayers(first, second), torch.tensor([[0.5, -1.0]])
    parameters = list(model.parameters())
    truth = torch.autograd.grad(model.expectation(x).sum(), parameters)
    samples = []
    for _ in range(40):
        scalar = broadcast_loss(model, model(x.expand(5000, 2)))
        samples.append(torch.cat([g.flatten() for g in torch.autograd.grad(scalar, parameters)]))
    stacked = torch.stack(samples)
    error = stacked.std(0) / 40**0.5
    wanted = torch.cat([g.flatten() for g in truth])
    assert ((stacked.mean(0) - wanted) / error).abs().max() < 5
    assert wanted.abs().max() > 20 * error.max()


def test_mixed_estimators_need_one_broadcast():
    torch.manual_seed(0)
    model, x = TwoLayers("reinforce", "straight_through"), torch.randn(6, 2)
    with pytest.raises(MissingLoss, match="broadcast_loss"):
        model(x).mean().backward()
    model.first.forget_uses()
    broadcast_loss(model, model(x)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    grad_only = TwoLayers("straight_through", "straight_through")
    grad_only(x).mean().backward()  # autograd alone trains it
    assert grad_only.inner.weight.grad.abs().sum() > 0


def test_scaling_and_reduction():
    gradients = []
    for scale, reduction in ((1.0, "mean"), (8.0, "mean"), (0.125, "sum")):
        torch.manual_seed(4)
        model = OneLayer("pathwise_score", "stochastic_times_smooth")
        (scale * broadcast_loss(model, f(model(8)), reduction)).backward()
        gradients.append(model.a.grad)
    assert torch.allclose(gradients[1], 8 * gradients[0], rtol=1e-4)
    assert torch.allclose(gradients[2], gradients[0], rtol=1e-4)
    torch.manual_seed(4)
    model = OneLayer("pathwise_score", "stochastic_times_smooth")
    (0 * broadcast_loss(model, f(model(8)))).backward()
    assert model.a.grad.eq(0).all()


def test_a_loss_that_is_not_differentiable():
    torch.manual_seed(0)
    model, gradients = OneLayer("reinforce"), []
    for _ in range(30):
        model.a.grad = None
        h = model(5000)
        broadcast_loss(model, (h.detach().sum(-1) > 1).float()).backward()
        gradients.append(model.a.grad)
    stacked = torch.stack(gradients)
    truth = gradest.exact(lambda h: (h.sum(-1) > 1).float(), model.a.detach())[1]
    error = stacked.std(0) / 30**0.5
    assert ((stacked.mean(0) - truth) / error).abs().max() < 5
    assert truth.abs().max() > 20 * error.max()


def test_extra_batch_dims_share_their_examples_loss():
    layer = Stochastic("bernoulli", "reinforce")
    a = torch.zeros(4, 5, 3, requires_grad=True)  # five positions an example
    torch.manual_seed(0)
    h = layer(a)
    loss = torch.arange(4.0)
    broadcast_loss(layer, loss + 0 * h.sum((1, 2))).backward()
    wanted = loss[:, None, None] * (h.detach() - 0.5) / 4
    assert torch.allclose(a.grad, wanted)
    wrong = layer(a).sum((0, 1))
    with pytest.raises(InvalidInput, match="one number an example"):
        broadcast_loss(layer, wrong)
    with pytest.raises(InvalidInput, match="reduction"):
        broadcast_loss(layer, loss, "max")


def test_uses_that_died_are_counted_and_leave_nothing_behind():
    model = OneLayer("reinforce")
    for _ in range(5):
        f(model(10))
    gc.collect()
    assert len(model.layer._thread.uses.alive) == 0
    kept = f(model(10))
    f(model(10))
    gc.collect()
    assert len(model.layer._thread.uses.alive) == 1
    with pytest.warns(GradestWarning, match=r"6 of 7 uses .*StochasticGraph"):
        scalar = broadcast_loss(model, kept)
    scalar.backward()
    assert model.a.grad is not None
    chosen = model(10).argmax(-1)
    with pytest.raises(MissingLoss, match=r"1 of 1 uses .*argmax"):
        broadcast_loss(model, chosen.float())
    broadcast_loss(model, f(model(10))).backward()  # the next step is not troubled by it
    assert len(model.layer._thread.uses.alive) == 0


def test_a_layer_used_twice_averages_its_next_states():
    torch.manual_seed(0)
    layer = Stochastic("bernoulli", {"name": "reinforce_average", "decay": 0.0})
    a = torch.zeros(2, 3, requires_grad=True)
    one, two = layer(a), layer(a)
    broadcast_loss(layer, torch.tensor([2.0, 4.0]) + 0 * (one + two).sum(-1)).backward()
    assert layer.state["total"].item() == pytest.approx(3.0)
    first, second = layer(a), layer(a)
    broadcast_loss(layer, torch.tensor([6.0, 6.0]) + 0 * (first + second).sum(-1)).backward()
    assert layer.state["total"].item() == pytest.approx(6.0)


def test_next_states_that_differ_have_equal_weights():
    """Of three uses, each with pre-activations and noise of its own, against three layers that are used once."""
    inputs, loss = torch.tensor([[-2.0], [0.5], [1.0]]).expand(3, 4).split(1), torch.tensor([3.0])
    inputs = [a.clone().requires_grad_() for a in inputs]
    layer = Stochastic("bernoulli", "reinforce_centered")
    alone = [Stochastic("bernoulli", "reinforce_centered") for _ in inputs]
    torch.manual_seed(1)
    broadcast_loss(layer, loss + 0 * sum(layer(a) for a in inputs).sum(-1)).backward()
    torch.manual_seed(1)
    for once, a in zip(alone, inputs, strict=True):
        broadcast_loss(once, loss + 0 * once(a).sum(-1)).backward()
    for name, averaged in layer.state.items():
        each = torch.stack([once.state[name] for once in alone])
        assert each.std(0).max() > 0
        torch.testing.assert_close(averaged, each.mean(0))


def test_no_gradient_no_bookkeeping():
    model = OneLayer("reinforce")
    with torch.no_grad():
        assert model(7).shape == (7, 3)
    frozen = Stochastic("bernoulli", "reinforce")
    h = frozen(torch.zeros(7, 3))
    assert not h.requires_grad
    assert len(frozen._thread.uses.alive) == 0


def test_estimators_with_many_points_are_sent_to_expectation():
    for estimator in ("disarm", "enumeration", {"name": "straight_through", "samples": 2}):
        with pytest.raises(Incompatible, match=r"gradest\.nn\.Expectation"):
            Stochastic("bernoulli", estimator)
    for k in (3, 4, 40):  # of which there is one way to take all items, or which the neuron's example does not have
        with pytest.raises(Incompatible, match=r"gradest\.nn\.Expectation"):
            Stochastic({"name": "k_subset", "k": k}, "enumeration")
    with pytest.raises(TooManyPoints):  # of one item more there are too many ways
        Stochastic({"name": "k_subset", "k": 1500}, "enumeration")
    for estimator in ("rloo", "vimco", {"name": "nvil", "samples": 2}):
        layer, a = Stochastic("bernoulli", estimator), torch.zeros(4, 3, requires_grad=True)
        with pytest.raises(Incompatible, match=r"StochasticGraph\(model, samples=K\)"):
            layer(a)
        with torch.no_grad():
            assert layer(a).shape == (4, 3)
    with pytest.raises(Incompatible, match="does not fit"):
        Stochastic("noisy_rectifier", "reinforce")
    with pytest.raises(InvalidInput, match="evaluation must be"):
        Stochastic("bernoulli", "reinforce", evaluation="median")


def test_expectation_layer_is_expect():
    readout, a = nn.Linear(3, 1), torch.randn(4, 3, requires_grad=True)

    def rest(h):
        return readout(h)[..., 0] ** 2

    layer = Expectation("bernoulli", "enumeration")
    layer(rest, a).sum().backward()
    _, truth = gradest.exact(rest, a.detach())
    assert torch.allclose(a.grad, truth, atol=1e-6)
    assert readout.weight.grad.abs().sum() > 0
    stateful = Expectation("bernoulli", "reinforce_centered")
    stateful(rest, a)
    before = stateful.state
    stateful(rest, a)
    assert not torch.equal(before["numerator"], stateful.state["numerator"])
    fresh = Expectation("bernoulli", "reinforce_centered")
    fresh.load_state_dict(stateful.state_dict())
    assert torch.equal(fresh.state["numerator"], stateful.state["numerator"])
    layer.eval()
    torch.manual_seed(0)
    value = layer(rest, a)
    torch.manual_seed(0)
    assert torch.equal(value, rest(gradest.sample("bernoulli", a))[0])


@pytest.mark.parametrize("neuron", ["bernoulli", "bipolar", "noisy_rectifier", "stochastic_times_smooth"])
def test_evaluation_modes(neuron):
    estimator = "straight_through" if neuron.startswith("b") else "held_noise"
    built, a = gradest.neuron(neuron), torch.tensor([[-2.0, 0.1, 3.0]])
    mean = Stochastic(neuron, estimator).eval()
    assert torch.equal(mean(a), built.mean(a))
    threshold = Stochastic(neuron, estimator, evaluation="threshold", threshold=0.2).eval()
    assert torch.equal(threshold(a), built.threshold(a, 0.2))
    threshold.threshold.fill_(0.8)
    assert torch.equal(threshold(a), built.threshold(a, 0.8))
    sample = Stochastic(neuron, estimator, evaluation="sample").eval()
    torch.manual_seed(3)
    once = sample(a.expand(500, 3))
    torch.manual_seed(3)
    assert torch.equal(once, gradest.sample(neuron, a.expand(500, 3))[0])


def test_state_dict_round_trip_and_copies():
    torch.manual_seed(0)
    model = OneLayer("reinforce_centered")
    for _ in range(3):
        broadcast_loss(model, f(model(16))).backward()
    saved = io.BytesIO()
    torch.save(model.state_dict(), saved)
    saved.seek(0)
    fresh = OneLayer("reinforce_centered")
    fresh.load_state_dict(torch.load(saved, weights_only=True))
    pending = f(model(4))
    duplicate = copy.deepcopy(model)
    assert len(duplicate.layer._thread.uses.alive) == 0
    for other in (fresh, duplicate):
        other.zero_grad()
        torch.manual_seed(9)
        broadcast_loss(other, f(other(16))).backward()
    assert torch.equal(fresh.a.grad, duplicate.a.grad)
    assert torch.equal(fresh.layer.state["numerator"], duplicate.layer.state["numerator"])
    del pending
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    assert torch.load(whole, weights_only=False)(2).shape == (2, 3)
    assert "bernoulli, reinforce_centered" in repr(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model = OneLayer("reinforce_centered").to(dtype)
    for _ in range(2):
        h = model(6)
        assert h.dtype == dtype
        broadcast_loss(model, f(h)).backward()
        assert model.a.grad.dtype == dtype


@pytest.mark.deep
def test_compiled_model_trains_alike():
    gradients = []
    for compiled in (False, True):
        torch.manual_seed(0)
        model = TwoLayers("reinforce", "straight_through")
        x = torch.randn(6, 2)
        with warnings.catch_warnings():  # the compiler's own code warns of torch's deprecations
            warnings.simplefilter("ignore")
            run = torch.compile(model) if compiled else model
            torch.manual_seed(5)
            broadcast_loss(model, run(x)).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for eager, fused in zip(*gradients, strict=True):
        assert torch.allclose(eager, fused, atol=1e-6)


TRAINED = ["straight_through", "reinforce_centered", "relax"]  # by broadcast_loss
TRAINED += ["reinforce_centered uneven"]  # where the parts of the batch differ in size
TRAINED += ["rloo paths", "nvil paths", "reinforce_centered paths"]  # in a StochasticGraph of three paths


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The weights after training with each estimator, in this process and in two, each of which has every second example."""
    folder = tmp_path_factory.mktemp("parallel")
    command = [sys.executable, "-m", "tests.nn.data_parallel", folder / "store", folder / "weights"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    processes = [subprocess.Popen([*command, str(rank), *TRAINED], env=environment) for rank in range(2)]
    alone = {estimator: train(estimator).state_dict() for estimator in TRAINED}
    assert [process.wait(timeout=240) for process in processes] == [0] * 2
    return alone, torch.load(folder / "weights", weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", TRAINED)
def test_two_processes_equal_one_on_the_joined_batch(trained, estimator):
    """relax moves its network by Adam, so its state is no mean of what two parts of a batch would make of it."""
    one, two = (weights[estimator] for weights in trained)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.allclose(value, two[name], atol=1e-5), name


def test_a_process_without_examples_takes_part_in_what_is_joined(monkeypatch):
    """In compiled code, where the others would wait for it for ever."""
    layer = Stochastic("bernoulli", "reinforce_average")
    layer(torch.zeros(2, 3))
    joined = []
    for module in ("gradest.nn.uses", "gradest.estimation.distributed", "gradest.estimation.ask_tell"):
        monkeypatch.setattr(f"{module}.world_size", lambda: 2)
    monkeypatch.setattr(
        "gradest.estimation.ask_tell.joined_state",
        lambda estimator, draw, feedback, state: joined.append(feedback) or state,
    )
    none = torch.zeros(0, 3, requires_grad=True)
    torch.compile(layer, backend="eager", fullgraph=True)(none)
    (use,), _ = layer.waiting_uses()
    assert use.tell(torch.zeros(0)).shape == (0, 3)
    assert [feedback.loss.shape for feedback in joined] == [(1, 0)]
