"""What the service answers is what the library gives here, bit for bit, for the same seed."""

from dataclasses import replace

import pytest
import torch

import gradest
from gradest.contract.estimator import Feedback
from gradest.estimation.ask_tell import ask, tell
from gradest.estimation.exact import closed_form
from gradest.random import Key
from gradest.testing import checks as testing
from tests.events import event_of
from tests.losses import squares, with_gradient
from tests.selection import others_deep

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def name_of(value):
    return value.label() if isinstance(value, gradest.Plugin) else str(value)


def each_type_once(neurons):
    """The neurons in every dtype, all deep but each neuron in float32 and the first one in the others."""
    return [
        pytest.param(neuron, dtype, marks=[] if DTYPES[0] == dtype or not place else [pytest.mark.deep])
        for place, neuron in enumerate(neurons)
        for dtype in DTYPES
    ]


PAIRS = others_deep(testing.example_pairs(gradest.registry))  # to what is sent they are values like others
NEURONS = each_type_once(testing.example_neurons(gradest.registry))
DEFAULTS = [name for name in gradest.registry.estimators if name != "rebar"]
SHAPES = [(2, 3), (3,), (1,), (2, 2, 2), (0, 3), (2, 0), (0, 2, 3)]


def pre_activations(neuron, dtype=torch.float32, batch=(2,), units=3):
    shape = (*batch, *event_of(gradest.neuron(neuron), units, units))
    return torch.randn(shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64).to(dtype)


def assert_same(found, wanted):
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert torch.equal(found, wanted) or torch.equal(found.nan_to_num(7.0), wanted.nan_to_num(7.0))


@pytest.fixture(params=["client", "json_client"])
def either(request):
    """The client of each form of bodies."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize(("neuron", "dtype"), NEURONS, ids=name_of)
def test_sample(either, neuron, dtype):
    a = pre_activations(neuron, dtype)
    assert_same(either.sample(neuron, a, 4, seed=11), gradest.sample(neuron, a, 4, seed=11))


@pytest.mark.parametrize(("neuron", "dtype"), NEURONS, ids=name_of)
def test_mean(either, neuron, dtype):
    a = pre_activations(neuron, dtype)
    wide = a.to(torch.promote_types(dtype, torch.float32))
    found = either.mean(neuron, a)
    assert_same(found.mean, neuron.mean(wide))
    assert_same(found.active_probability, neuron.active_probability(wide))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sample_of_every_shape(either, shape):
    a = torch.linspace(-2, 2, torch.Size(shape).numel()).reshape(shape)
    for samples in (0, 1, 5):
        assert_same(
            either.sample("noisy_rectifier", a, samples, seed=3), gradest.sample("noisy_rectifier", a, samples, seed=3)
        )


@pytest.mark.parametrize(("estimator", "neuron"), PAIRS, ids=name_of)
def test_forward_and_backward(client, neuron, estimator):
    check_forward_and_backward(client, neuron, estimator, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("estimator", ["rebar", *(pytest.param(name, marks=pytest.mark.deep) for name in DEFAULTS)])
def test_forward_and_backward_in_every_type(client, estimator, dtype):
    """rebar is the one with all there is: a loss, its derivative, weights and a state."""
    estimator = gradest.estimator(estimator)
    for _, neuron in (pair for pair in testing.example_pairs(gradest.registry) if pair[0] == estimator):
        check_forward_and_backward(client, neuron, estimator, dtype)


@pytest.mark.parametrize(("estimator", "neuron"), PAIRS, ids=name_of)
def test_forward_and_backward_in_json(json_client, neuron, estimator):
    check_forward_and_backward(json_client, neuron, estimator, torch.float32)


def check_forward_and_backward(client, neuron, estimator, dtype):
    a = pre_activations(neuron, dtype)
    draw, state = ask(neuron, estimator, a, Key(2**53 - 1))
    loss, grad = with_gradient(squares, draw.points.to(dtype), neuron.output_ndim)
    grad = grad if "grad" in estimator.needs else None
    gradient, after = tell(estimator, draw, Feedback(loss, grad), state)

    remote = client.forward(neuron, estimator, a, seed=2**53 - 1)
    assert remote.needs == estimator.needs
    assert remote.seed == 2**53 - 1
    assert_same(remote.points, draw.points.to(dtype))
    assert_same(remote.weights, draw.weights)
    told = client.backward(neuron, estimator, a, remote, loss, grad)
    assert_same(told.gradient, gradient.to(dtype))
    assert_same(told.value, estimator.value(draw, loss.to(draw.a.dtype)))
    assert told.state.keys() == after.keys()
    for name in after:
        assert_same(told.state[name], after[name])


class Scaled(torch.nn.Module):
    """A loss with a parameter."""

    def __init__(self, dtype):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(0.75, dtype=dtype))

    def forward(self, points):
        return ((points * self.scale - 0.499) ** 3).flatten(points.ndim - self.event_ndim).sum(-1)


def expect_both(client, neuron, estimator, dtype, seed=3, state=None):
    """(value, gradient in a, gradient of the loss's parameter, state) of the library and of the client."""
    for expect in (gradest.expect, client.expect):
        a, loss = pre_activations(neuron, dtype).requires_grad_(), Scaled(dtype)
        loss.event_ndim = gradest.neuron(neuron).output_ndim
        value, after = expect(loss, a, neuron, estimator, seed=seed, state=state)
        (value * torch.arange(1, value.numel() + 1).reshape(value.shape)).sum().backward()
        yield value.detach(), a.grad, loss.scale.grad, after


@pytest.mark.parametrize(("estimator", "neuron"), PAIRS, ids=name_of)
def test_expect(client, neuron, estimator):
    here, there = expect_both(client, neuron, estimator, torch.float32)
    assert_same(there[0], here[0])
    assert_same(there[1], here[1])
    # torch adds up a parameter's gradient in the order in which the losses' weights lie in memory, which does not travel
    torch.testing.assert_close(there[2], here[2], rtol=1e-6, atol=1e-6)
    assert there[3].keys() == here[3].keys()
    for name in here[3]:
        assert_same(there[3][name], here[3][name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("estimator", ["rloo", "reinforce_average", "straight_through", "vimco"])
def test_expect_in_every_type(either, estimator, dtype):
    here, there = expect_both(either, "bernoulli", estimator, dtype)
    for found, wanted in zip(there[:3], here[:3], strict=True):
        assert found.dtype == wanted.dtype
        if estimator == "vimco" and dtype.itemsize == 2:  # its value is computed in float32 there, and then rounded
            assert torch.allclose(found, wanted, rtol=0.02, atol=2**-8)
        else:
            assert_same(found, wanted)


def test_expect_with_a_value_that_is_not_linear_and_weights_of_every_row(client, registered):
    class Spread(gradest.registry.estimators["vimco"]):
        name, summary = "spread", "vimco, which states its weights for every row"

        def forward(self, neuron, a, key, state):
            draw = super().forward(neuron, a, key, state)
            return replace(draw, weights=draw.weights[:, None].expand(-1, len(a)))

    registered(Spread)
    here, there = expect_both(client, "bernoulli", "spread", torch.float32)
    for found, wanted in zip(there[:3], here[:3], strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize("estimator", ["rloo", "vimco", "straight_through", "reinforce_average"])
def test_expect_without_gradients(client, estimator):
    a, state = pre_activations("bernoulli"), {"total": torch.tensor(3.0), "weight": torch.tensor(0.5)}
    state = state if estimator == "reinforce_average" else {}
    f = lambda points: points.detach().sum(-1)  # noqa: E731
    with torch.no_grad():
        here, _ = gradest.expect(f, a, estimator=estimator, seed=2, state=state)
        there, after = client.expect(f, a, estimator=estimator, seed=2, state=state)
    assert_same(there, here)
    assert not there.requires_grad
    assert after == state
    if estimator == "straight_through":
        with pytest.raises(gradest.errors.InvalidInput, match="not differentiable"):
            client.expect(f, a, estimator=estimator)


def test_expect_trains_with_a_state(client):
    """A training loop with the estimator elsewhere takes the steps that it takes here."""
    finals, target = [], torch.tensor([1.0, 0.0, 1.0, 0.0])

    def f(h):
        return ((h - target) ** 2).sum(-1)

    for expect in (gradest.expect, client.expect):
        a, state = torch.zeros(1, 4, requires_grad=True), None
        optimizer = torch.optim.SGD([a], lr=1.0)
        for step in range(40):
            value, state = expect(f, a, estimator="reinforce_centered", seed=step, state=state)
            optimizer.zero_grad()
            value.sum().backward()
            optimizer.step()
        assert torch.equal((a > 0).float(), target[None])
        finals.append(a.detach())
    assert_same(finals[1], finals[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("estimator", ["rloo", "reinforce_centered", "straight_through", "enumeration"])
def test_forward_and_backward_of_every_shape(either, estimator, shape):
    a = torch.linspace(-2, 2, torch.Size(shape).numel()).reshape(shape)
    built = gradest.estimator(estimator)
    draw, state = ask(gradest.neuron("bernoulli"), built, a, Key(1))
    loss, grad = with_gradient(squares, draw.points, 1)
    gradient, after = tell(built, draw, Feedback(loss, grad), state)
    remote = either.forward("bernoulli", estimator, a, seed=1)
    told = either.backward("bernoulli", estimator, a, remote, loss, grad if "grad" in built.needs else None)
    assert_same(remote.points, draw.points)
    assert_same(told.gradient, gradient)
    assert_same(told.value, built.value(draw, loss))
    for name in after:
        assert_same(told.state[name], after[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("estimator", ["reinforce_centered", "reinforce_average"])
def test_state_goes_round_over_steps(client, estimator, dtype):
    a = pre_activations("bernoulli", dtype)
    built, neuron = gradest.estimator(estimator), gradest.neuron("bernoulli")
    here = there = None
    for step in range(5):
        draw, before = ask(neuron, built, a, Key(step), here)
        loss = squares(draw.points.to(dtype))
        gradient, here = tell(built, draw, Feedback(loss), before)
        remote = client.forward("bernoulli", estimator, a, seed=step, state=there)
        told = client.backward("bernoulli", estimator, a, remote, squares(remote.points), state=there)
        there = told.state
        assert_same(told.gradient, gradient.to(dtype))
        assert here.keys() == there.keys() != set()
        for name in here:
            assert_same(there[name], here[name])


def test_backward_equals_the_gradient_that_expect_puts_on_a(client):
    a = pre_activations("bernoulli").requires_grad_()
    value, _ = gradest.expect(squares, a, "bernoulli", "rloo", seed=9)
    value.sum().backward()
    remote = client.forward("bernoulli", "rloo", a.detach(), seed=9)
    told = client.backward("bernoulli", "rloo", a.detach(), remote, squares(remote.points))
    assert_same(told.gradient, a.grad)
    assert_same(told.value, value.detach())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "estimator", ["rloo", {"name": "straight_through", "derivative": "sigmoid"}, "reinforce_centered"]
)
def test_estimate(either, estimator, dtype):
    a = pre_activations("bernoulli", dtype)
    objective = gradest.objective("quadratic", target=torch.tensor([0.1, 0.2, 0.3]), reduction="sum")
    here = gradest.estimate(objective, a, "bernoulli", estimator, draws=50, seed=4)
    there = either.estimate(objective, a, "bernoulli", estimator, draws=50, seed=4)
    for name in ("gradient", "variance", "standard_error", "loss"):
        assert_same(getattr(there, name), getattr(here, name))
    assert (there.draws, there.evaluations, there.seed) == (here.draws, here.evaluations, here.seed)
    assert there.state.keys() == here.state.keys()
    for name in here.state:
        assert_same(there.state[name], here.state[name])
    for found, wanted in zip(there.exact, closed_form(objective, a, gradest.neuron("bernoulli")), strict=True):
        assert_same(found, wanted)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_estimate_of_every_shape(either, shape):
    a = torch.linspace(-2, 2, torch.Size(shape).numel()).reshape(shape)
    here = gradest.estimate(gradest.objective("linear"), a, draws=1, seed=4)
    there = either.estimate("linear", a, draws=1, seed=4)
    for name in ("gradient", "variance", "standard_error", "loss"):
        assert_same(getattr(there, name), getattr(here, name))
    assert there.exact[0].shape == shape[:-1]


def test_exact_is_none_where_there_is_none(client):
    a = torch.zeros(21)
    objective = {"name": "cross_entropy", "weight": torch.ones(2, 21), "labels": 1}
    assert client.estimate(objective, a, draws=2, seed=0).exact is None
    assert client.compare(objective, a, estimators=["rloo"], draws=2, seed=0).exact is None


@pytest.mark.parametrize("dtype", DTYPES[1:3], ids=str)
def test_compare(client, dtype):
    a = pre_activations("bernoulli", dtype)
    objective = gradest.objective("quadratic", target=0.499)
    chosen = ["rloo", "reinforce_average", "enumeration", "straight_through"]
    here = gradest.compare(objective, a, "bernoulli", chosen, draws=30, seed=4).to_dict()
    seen = []
    table = client.compare(
        objective, a, "bernoulli", chosen, draws=30, seed=4, progress=lambda *report: seen.append(report)
    )
    there = table.to_dict()
    for row in (*here["rows"], *there["rows"]):
        assert row.pop("seconds") >= 0
    assert repr(there) == repr(here)  # repr: not-a-number equals itself in it
    assert table.exact.dtype == torch.promote_types(dtype, torch.float32)
    assert {label for label, _, _ in seen} == {row["estimator"] for row in here["rows"]}
    assert all(done == draws == 30 for _, done, draws in seen)


def test_a_fresh_seed_is_reported_and_gives_the_same_again(http):
    request = {"neuron": "noisy_rectifier", "a": [[0.1, 0.2, 0.3]], "samples": 2}
    first = http.post("/v1/sample", json=request).json()
    assert 0 <= first["seed"] < 2**53
    again = http.post("/v1/sample", json={**request, "seed": first["seed"]}).json()
    other = http.post("/v1/sample", json=request).json()
    assert again == first
    assert other["seed"] != first["seed"]
    assert other["h"] != first["h"]


def test_plain_json_is_enough(http):
    a = torch.tensor([[0.1, -0.7]])
    answer = http.post(
        "/v1/sample", json={"neuron": "noisy_rectifier", "a": a.tolist(), "samples": 3, "seed": 7}
    ).json()
    assert_same(torch.tensor(answer["h"]), gradest.sample("noisy_rectifier", a, 3, seed=7))
    assert answer["tensors"] == {"h": {"shape": [3, 1, 2], "dtype": "float32"}}
    integers = http.post("/v1/sample", json={"neuron": "bernoulli", "a": [0, 1], "seed": 7}).json()
    assert_same(torch.tensor(integers["h"]), gradest.sample("bernoulli", torch.tensor([0.0, 1.0]), seed=7))
