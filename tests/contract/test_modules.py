"""Options that are torch modules: a stranger's estimator with one in every use, and the built-in estimators that take one.

Statistical tests compare with enumeration within five standard errors: a false alarm has probability below 6e-7 for each number.
"""

import copy
import pickle

import pytest
import torch
from pydantic import Field
from torch import nn

import gradest
from gradest.analysis.catalog import describe
from gradest.client.requests import to_spec
from gradest.contract.modules import call_module, module_state
from gradest.contract.neuron import per_event
from gradest.contract.numerics import leading_mean, sigmoid
from gradest.errors import InvalidInput, InvalidOptions, PluginError
from gradest.testing import checks
from tests.cli.conftest import run  # noqa: F401

TOLERANCE_SE = 5.0
A = torch.tensor([[0.4, -0.9], [0.1, 0.7]])


class Bump(nn.Module):
    """A network of any number of inputs whose result for a row has the same bits in any batch."""

    def __init__(self, value=0.3):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value, -0.2]))
        self.register_buffer("centre", torch.tensor(0.1))

    def forward(self, x):
        return self.weight[0] + self.weight[1] * ((x - self.centre) ** 2).sum(-1)


class Fitted(gradest.MonteCarlo):
    """The score function with a baseline b(a), a network of the user's own that is fitted to the loss."""

    name, summary = "acme_fitted", "score function with a baseline of one's own"
    needs, capabilities = frozenset({"loss"}), (gradest.Scored,)
    examples = ({}, {"network": Bump()})

    network: gradest.ModuleOption | None = Field(None, description="b, a network from [*, D] to [*]")
    rate: float = 0.05

    def bias(self, neuron):
        return gradest.Bias.NONE

    def init(self, neuron, a):
        return {} if self.network is None else module_state("network", self.network, a.device)

    def backward(self, draw, feedback, state):
        loss, after = feedback.get_loss(), state
        if self.network is not None:
            names = module_state("network", self.network, draw.a.device, trained=True)
            with torch.enable_grad():
                moving = {name: state[name].detach().requires_grad_() for name in names}
                a = draw.a.to(loss.dtype).flatten(-draw.neuron.event_ndim)
                at = sigmoid(a) - sigmoid(-a)  # within (-1, 1), so that no step of the fit is too long
                b = call_module("network", self.network, {**state, **moving}, at)
                error = (loss - b).double().square().mean() if loss.numel() else b.sum()
                slopes = torch.autograd.grad(error, tuple(moving.values()))
            loss = loss - b.detach()
            after = {
                **state,
                **{name: state[name] - self.rate * slope for name, slope in zip(names, slopes, strict=True)},
            }
        score = draw.neuron.score(draw.points, draw.a)
        return leading_mean(per_event(loss, draw.neuron) * score).to(draw.a.dtype), after


@pytest.fixture
def fitted():
    gradest.registry.register(Fitted)
    yield Fitted
    gradest.registry.unregister(Fitted)


def loss(h):
    return (h.sum(-1) - 1.3) ** 2 + h[..., 0]


@pytest.mark.parametrize("check", checks.ESTIMATOR_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("neuron", ["bernoulli", "categorical"])
def test_the_kit_passes_the_stranger(check, neuron):
    check(Fitted(network=Bump()), gradest.neuron(neuron))


def test_the_kit_finds_a_module_that_is_never_trained_and_one_that_is_written_to():
    class Frozen(Fitted):
        name = "acme_frozen"

        def init(self, neuron, a):
            return {}

        def backward(self, draw, feedback, state):
            c = self.network(draw.points).detach()
            return per_event(leading_mean(feedback.get_loss() - c), draw.neuron) * draw.a, state

    class Writing(Fitted):
        name = "acme_writing"

        def backward(self, draw, feedback, state):
            with torch.no_grad():
                self.network.weight.mul_(0.9)
            return super().backward(draw, feedback, state)

    neuron = gradest.neuron("bernoulli")
    with pytest.raises(AssertionError, match=r"the parameters of network are never trained: keep them in the state"):
        checks.estimator_is_pure(Frozen(network=Bump()), neuron)
    checks.estimator_is_pure(Frozen(network=Bump().requires_grad_(False)), neuron)
    with pytest.raises(AssertionError, match="changed in place by init, forward or backward, in a module"):
        checks.estimator_is_pure(Writing(network=Bump()), neuron)


def test_a_layer_trains_saves_and_copies_the_module():
    module = Bump()
    layer = gradest.nn.Stochastic("bernoulli", Fitted(network=module))
    a = A.clone().requires_grad_()
    for _ in range(3):
        model = nn.Sequential(layer)
        gradest.nn.broadcast_loss(model, loss(model(a)) + 4).backward()
    name = "state_network__weight"
    saved = layer.state_dict()
    assert float((saved[name] - module.weight.detach()).abs().min()) > 0.01  # trained
    assert torch.equal(module.weight, Bump().weight)  # the module itself is as it was
    assert saved["state_network__centre"] == Bump().centre.double()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other.state_dict()[name], saved[name])
        assert other.estimator.network is not module
    fresh = gradest.nn.Stochastic("bernoulli", Fitted(network=Bump()))
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.state["network__weight"], saved[name])
    assert layer.double().state["network__weight"].dtype == torch.float64
    layer.set_options(rate=0.01)
    assert torch.equal(layer.state["network__weight"], saved[name])
    layer.set_options(network=Bump(2.0))  # of the same shapes, but not the same function
    assert torch.equal(layer.state["network__weight"], Bump(2.0).weight.double())


def test_schemas_leave_it_out_with_the_reason(fitted, run):  # noqa: F811
    described = describe(fitted)
    assert described["faults"] == []
    assert "network" not in described["options"]["properties"]
    reason = described["options"]["x-python-only"]["network"]
    assert reason.startswith(
        "b, a network from [*, D] to [*]: it takes a torch.nn.Module, which only Python code can give"
    )
    shown = " ".join(run("describe", "acme_fitted").out.split())
    assert "option, in Python alone" in shown
    assert "only Python code can give" in shown
    assert run("describe", "acme_fitted", "--json").json["options"]["x-python-only"]["network"] == reason


def test_it_has_a_label_but_no_json_form(fitted):
    estimator = gradest.estimator("acme_fitted", network=Bump())
    assert estimator.label() == "acme_fitted(network=Bump)"
    for refused in (estimator.spec, lambda: to_spec(estimator)):
        with pytest.raises(InvalidOptions, match=r"network=Bump, which has no JSON form: it takes a torch\.nn\.Module"):
            refused()
    assert gradest.estimator("acme_fitted", network=None).spec() == {"name": "acme_fitted", "network": None}
    for text in ("Bump", 3, [1.0]):
        with pytest.raises(InvalidOptions, match=r"network: .*which only Python code can give: neither a request nor"):
            gradest.estimator({"name": "acme_fitted", "network": text})
    with pytest.raises(InvalidOptions, match="no shapes yet; call the module once"):
        gradest.estimator("acme_fitted", network=nn.LazyLinear(1))


def test_tell_takes_the_same_module_alone():
    one = Fitted(network=Bump())
    draw, state = gradest.ask("bernoulli", one, A, 1)
    told = gradest.Feedback(loss(draw.points))
    with pytest.raises(InvalidInput, match="pass the estimator that was asked, with the same options"):
        gradest.tell(Fitted(network=Bump()), draw, told, state)
    gradest.tell(Fitted(network=one.network), draw, told, state)


def test_a_class_declares_a_module_as_such():
    class Plain(Fitted):
        name = "acme_plain"
        network: nn.Linear | None = None

    with pytest.raises(
        PluginError, match=r"`network` is a torch\.nn\.Module, so declare it as network: gradest\.ModuleOption"
    ):
        gradest.registry.register(Plain)


def test_a_neuron_takes_a_module_that_is_not_to_be_trained():
    class Warped(type(gradest.neuron("bernoulli"))):
        name = "acme_warped"
        warp: gradest.ModuleOption | None = None

    with pytest.raises(InvalidOptions, match=r"Call warp\.requires_grad_\(False\)"):
        Warped.build(warp=Bump())
    assert Warped.build(warp=Bump().requires_grad_(False)).label() == "acme_warped(warp=Bump)"


@pytest.mark.parametrize(
    ("name", "neuron"),
    [
        ("lax", "gaussian"),
        pytest.param("relax", "bernoulli", marks=pytest.mark.deep),
        ("relax_rebar", "bernoulli"),
    ],
)
def test_the_control_variate_may_be_ones_own(name, neuron):
    """Unbiased at any parameters, here far from the best ones, for a network of torch's own layers; and it learns."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1))
    with torch.no_grad():
        network[2].weight += 1
    a, exact = A[0], gradest.exact(loss, A[0], neuron)[1]
    found = gradest.estimate(loss, a, neuron, gradest.estimator(name, network=network, learn=False), draws=4000, seed=1)
    assert float(((found.gradient - exact).abs() / found.standard_error).max()) < TOLERANCE_SE
    plain = gradest.estimate(loss, a, neuron, gradest.estimator(name, learn=False), draws=4000, seed=1)
    assert not torch.allclose(found.variance, plain.variance, rtol=0.02)  # the network has a part in it
    estimator, state = gradest.estimator(name, network=network, learning_rate=0.03), None
    rows = a.expand(16, 2).clone().requires_grad_()
    for seed in range(40):
        _, state = gradest.expect(loss, rows, neuron, estimator, seed=seed, state=state)
    learned = gradest.estimate(loss, a, neuron, estimator, draws=4000, seed=2, state=state)
    assert learned.variance.mean() < 0.9 * found.variance.mean()


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (nn.Sequential(nn.Linear(2, 4), nn.Dropout(), nn.Linear(4, 1)), "draws noise of its own"),
        (nn.Sequential(nn.Linear(2, 4), nn.Softmax(0), nn.Linear(4, 1)), "depends on the other rows"),
        (nn.Linear(3, 1), r"cannot be called with an input of shape \[2, 2\]"),
        (nn.Linear(2, 2), r"for an input of shape \[2, 2\] it returns \[2, 2\], not one number"),
        (nn.Sequential(nn.Linear(2, 1), nn.Threshold(0, 0)).requires_grad_(False), ""),
        (nn.Embedding(2, 1), "cannot be called"),
    ],
)
def test_a_network_that_would_be_wrong_is_refused(network, reason):
    torch.manual_seed(1)
    estimator, a = gradest.estimator("lax", network=network), A.clone().requires_grad_()
    if not reason:
        gradest.expect(loss, a, "gaussian", estimator, seed=1)[0].sum().backward()
        return
    with pytest.raises(InvalidOptions, match=f"lax cannot use this network as control variate: .*{reason}"):
        gradest.expect(loss, a, "gaussian", estimator, seed=1)


def test_hidden_units_of_the_built_in_network_are_refused_beside_another():
    with pytest.raises(InvalidOptions, match="hidden is of the built-in network"):
        gradest.estimator("lax", network=Bump(), hidden=3)
