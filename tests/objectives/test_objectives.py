"""Objectives: values by hand, closed forms against enumeration, and what they refuse."""

import pytest
import torch
from torch.nn import functional

import gradest
from gradest.errors import InvalidInput, InvalidOptions

POINTS = torch.tensor([[[1.0, 0.0, 1.0]], [[0.0, 0.0, 1.0]]])  # K = 2, batch 1, three units


@pytest.mark.parametrize(
    ("spec", "values"),
    [
        ({"name": "linear"}, [2 / 3, 1 / 3]),
        ({"name": "linear", "weight": [1, 2, -3], "reduction": "sum"}, [-2, -3]),
        ({"name": "quadratic", "target": 0.5, "reduction": "sum"}, [0.75, 0.75]),
        ({"name": "quadratic", "target": [1, 0, 0]}, [1 / 3, 2 / 3]),
        ({"name": "polynomial", "power": 3, "target": 0.5, "reduction": "sum"}, [0.125, -0.125]),
    ],
)
def test_values(spec, values):
    assert gradest.objective(spec)(POINTS)[:, 0].tolist() == pytest.approx(values)


@pytest.mark.parametrize("neuron", sorted(gradest.registry.neurons))
@pytest.mark.parametrize(
    "spec",
    [
        {"name": "linear", "weight": [1.0, -2.0]},
        {"name": "quadratic", "target": [0.2, 1.5], "reduction": "sum"},
        {"name": "polynomial", "power": 4, "target": 0.45},
    ],
    ids=lambda spec: spec["name"],
)
def test_closed_forms_are_what_enumeration_gives(neuron, spec):
    neuron = gradest.neuron(neuron)
    a = torch.tensor([[0.3, -1.2], [2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    one_group = neuron.name in (
        "correlated_binary_concrete",
        "invertible_gaussian",
    )  # whose law has too many nodes for two
    given = a[:, None] if one_group else a
    last = neuron.output_event(tuple(given.shape[-neuron.event_ndim :]))[-1]
    spec = {name: [*value, 0.7][:last] if isinstance(value, list) else value for name, value in spec.items()}
    objective = gradest.objective(spec | {"event_ndim": neuron.output_ndim})
    loss = objective.expectation(neuron, given)
    (gradient,) = torch.autograd.grad((loss + 0 * a.sum()).sum(), a)  # a step does not move with a at all
    wanted_loss, wanted_gradient = gradest.exact(objective, given, neuron=neuron)
    rough = 1e3 if one_group else 1.0  # and is less fine
    assert torch.allclose(loss, wanted_loss, rtol=1e-9 * rough, atol=1e-12)
    assert torch.allclose(gradient, wanted_gradient.reshape(a.shape), rtol=1e-7 * rough, atol=1e-10 * rough)


def test_the_source_toy():
    """One Bernoulli unit, (b - t)²: the gradient is p(1-p)(1-2t)."""
    _, gradient = gradest.exact(gradest.objective("quadratic", target=0.499), torch.zeros(1), neuron="bernoulli")
    assert gradient.item() == pytest.approx(5.0e-4, rel=1e-4)


def test_cross_entropy_is_torchs():
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(10, 6, generator=generator), torch.randn(10, generator=generator)
    points, labels = torch.randn(4, 7, 6, generator=generator), torch.randint(0, 10, (7,), generator=generator)
    objective = gradest.objective("cross_entropy", weight=weight, bias=bias, labels=labels)
    logits = functional.linear(points, weight, bias)
    wanted = functional.cross_entropy(logits.flatten(0, 1), labels.repeat(4), reduction="none").reshape(4, 7)
    assert torch.allclose(objective(points), wanted, atol=1e-5)
    assert objective.expectation(gradest.neuron("bernoulli"), torch.zeros(7, 6)) is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"labels": 0}, "weight: Field required"),
        ({"weight": [1.0, 2.0], "labels": 0}, r"\[classes, units\]"),
        ({"weight": [[1.0], [2.0]], "labels": 2}, r"integers in \[0, 2\)"),
        ({"weight": [[1.0], [2.0]], "labels": 0.5}, "labels must be integers"),
        ({"weight": [[1.0], [2.0]], "labels": 0, "bias": [1.0]}, r"bias must have the shape \[classes\]"),
        ({"weight": [[1.0], [2.0, 3.0]], "labels": 0}, "rectangular"),
        ({"weight": [[1.0]], "labels": 0, "wieght": 1}, "wieght: Extra inputs"),
    ],
)
def test_cross_entropy_refuses(options, reason):
    with pytest.raises(InvalidOptions, match=reason):
        gradest.objective("cross_entropy", **options)


def test_cross_entropy_names_shapes_that_do_not_fit():
    objective = gradest.objective("cross_entropy", weight=[[1.0, 2.0]], labels=[0, 0, 0])
    with pytest.raises(InvalidInput, match="weight is for 2 units, but the points have 3"):
        objective(torch.zeros(1, 3, 3))
    with pytest.raises(InvalidInput, match="labels of shape"):
        objective(torch.zeros(1, 2, 2))


def test_targets_that_do_not_fit_are_named():
    objective = gradest.objective("quadratic", target=[0.1, 0.2])
    with pytest.raises(InvalidInput, match="options of quadratic must broadcast"):
        objective(torch.zeros(1, 3))
    with pytest.raises(InvalidInput, match="options of quadratic must broadcast"):
        objective.expectation(gradest.neuron("bernoulli"), torch.zeros(3))


def test_polynomial_refuses_fractions():
    with pytest.raises(InvalidOptions, match="power"):
        gradest.objective("polynomial", power=1.5)


def test_specs_build_the_same_objective_again():
    objective = gradest.objective("quadratic", target=[0.5, 0.25])
    again = gradest.objective(objective.spec())
    assert objective.spec() == {"name": "quadratic", "target": [0.5, 0.25]}
    assert torch.equal(objective(POINTS[..., :2]), again(POINTS[..., :2]))


@pytest.mark.parametrize(
    ("objective", "neuron", "event"),
    [
        ("load_balance", "bernoulli", (3,)),
        ("load_balance", "diagonal_gaussian", (3, 2)),
        ("load_balance", "plackett_luce", (2, 3)),
        ("quadratic", "categorical", (2, 3)),
        ({"name": "linear", "event_ndim": 2}, "bernoulli", (3,)),
    ],
)
def test_an_objective_on_outputs_of_other_dims(objective, neuron, event):
    built, dims = gradest.objective(objective), gradest.neuron(neuron).output_ndim
    remedy = "another neuron" if objective == "load_balance" else f"event_ndim={dims}"
    for batch in ((4,), ()):
        with pytest.raises(InvalidInput, match=rf"takes outputs with {built.event_ndim} dim.* have {dims} .*{remedy}"):
            gradest.estimate(built, torch.zeros(*batch, *event), neuron, "spsa", draws=3)
