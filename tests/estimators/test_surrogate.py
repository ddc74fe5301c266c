"""Surrogate derivatives: each is the slope of a step from low to high, and stands in the gradient as stated."""

import pytest
import torch

import gradest
import gradest.nn

SHAPES = ["sigmoid", "fast_sigmoid", "atan", "triangle", "rectangle"]


def gradient(neuron, a, **options):
    """With dL/dh = 1."""
    neuron, estimator = gradest.neuron(neuron), gradest.estimator("surrogate", **options)
    draw = estimator.forward(neuron, a, gradest.Key(0), {})
    return estimator.backward(draw, gradest.Feedback(None, torch.ones_like(draw.points)), {})[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("slope", [0.5, 3.0])
@pytest.mark.parametrize(("neuron", "height"), [("heaviside", 1), ("bipolar", 2)])
def test_each_rises_from_low_to_high(shape, slope, neuron, height):
    reach = 20_000.0  # fast_sigmoid and atan have heavy tails
    a = torch.cat([torch.linspace(-50, 50, 200_001), torch.logspace(1.69897, 4.30103, 200_001)]).double()
    middle, tail = a[:200_001], a[200_001:]
    total = torch.trapezoid(gradient(neuron, middle, derivative=shape, slope=slope), middle)
    total += 2 * torch.trapezoid(gradient(neuron, tail, derivative=shape, slope=slope), tail)
    missing = {"fast_sigmoid": 1 / (slope * reach), "atan": 4 / (torch.pi**2 * slope * reach)}.get(shape, 0)
    assert total.item() / height == pytest.approx(1 - missing, abs=5e-4)


def test_values_by_hand():
    a = torch.tensor([0.0, 0.5, -2.0])
    for shape, wanted in (
        ("fast_sigmoid", [0.5, 0.5 / 2.25, 0.5 / 9]),
        ("atan", [0.5, 0.5 / (1 + (torch.pi / 4) ** 2), 0.5 / (1 + torch.pi**2)]),
        ("triangle", [1, 0.5, 0]),
        ("rectangle", [0.5, 0.5, 0]),
    ):
        assert gradient("heaviside", a, derivative=shape).tolist() == pytest.approx(wanted)


def test_the_true_gradient_of_a_step_is_zero():
    a = torch.tensor([0.3, -0.7])
    for f in (gradest.objective("quadratic", target=0.2), lambda h: (h.sum(-1) - 0.2) ** 2):
        value, truth = gradest.exact(f, a, neuron="heaviside")
        assert truth.eq(0).all()
        assert value.item() == f(torch.tensor([[1.0, 0.0]])).item()
    table = gradest.compare(gradest.objective("quadratic", target=0.2), a, neuron="heaviside", draws=5, seed=0)
    assert table.exact.eq(0).all()


def test_it_trains_a_network_of_steps():
    """Exclusive or by four steps: zero error, which no gradient of the steps themselves could find."""
    torch.manual_seed(1)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([0.0, 1.0, 1.0, 0.0])
    model = torch.nn.Sequential(
        torch.nn.Linear(2, 8), gradest.nn.Stochastic("heaviside", "surrogate"), torch.nn.Linear(8, 1)
    )
    optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(400):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(x)[:, 0], y).backward()
        optimiser.step()
    assert ((model(x)[:, 0] > 0).float() == y).all()


def test_the_shapes_are_one_choice_to_whoever_asks_for_the_options():
    schema = gradest.estimator("surrogate").model_json_schema()["properties"]["derivative"]
    assert schema["enum"] == SHAPES
    assert schema["type"] == "string"
