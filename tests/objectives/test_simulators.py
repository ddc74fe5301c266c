"""Objectives that are called point by point, and that have no derivative: what is computed with them, and what is left out."""

import pytest
import torch

import gradest
from gradest.errors import InvalidInput, NotDifferentiable, PluginError
from gradest.testing.checks import OBJECTIVE_CHECKS, objective_shapes_and_values

A = torch.tensor([[0.4, -0.9], [1.3, 0.2], [-0.5, 0.1]])


class Simulator(gradest.Objective):
    """Twice the number of units above a half, and the square of the first: one point at a time, by numpy."""

    name, summary = "simulator", "a simulator that takes one point"
    differentiable, pointwise = False, True

    def __call__(self, point):
        assert point.ndim == 1
        h = point.numpy()
        return 2 * (h > 0.5).sum() + float(h[0]) ** 2


class Counted(gradest.Objective):
    """The same for all points at once, not differentiable."""

    name, summary = "counted", "units above a half"
    differentiable = False

    def __call__(self, points):
        return 2 * (points > 0.5).to(points).sum(-1) + points[..., 0] ** 2


def alike(h):
    return 2 * h.round().sum(-1) + h[..., 0] ** 2  # for outputs 0 and 1


def test_the_numbers_are_those_of_all_points_at_once():
    simulator = Simulator()
    for one, two in zip(gradest.exact(simulator, A), gradest.exact(alike, A), strict=True):
        assert torch.allclose(one, two)
    one, two = (gradest.estimate(f, A, estimator="disarm", draws=64, seed=3) for f in (simulator, alike))
    assert torch.allclose(one.gradient, two.gradient)
    a = A.clone().requires_grad_()
    loss, _ = gradest.expect(simulator, a, estimator="rloo", seed=3)
    wanted, _ = gradest.expect(alike, A, estimator="rloo", seed=3)
    assert torch.equal(loss, wanted.double())  # a simulator's numbers keep their digits
    loss.sum().backward()
    assert a.grad.abs().max() > 0
    layer = gradest.nn.Expectation("bernoulli", "rloo")
    assert layer(simulator, A).shape == (3,)


def test_batches_without_rows():
    loss, _ = gradest.expect(Simulator(), torch.zeros(0, 2), estimator="rloo")
    assert loss.shape == (0,)


@pytest.mark.parametrize("objective", [Simulator(), Counted()], ids=lambda x: x.name)
@pytest.mark.parametrize("check", OBJECTIVE_CHECKS, ids=lambda check: check.__name__)
def test_the_kit_takes_them(check, objective):
    check(objective)


def test_the_kit_tries_the_derivative():
    class Claims(Counted):
        differentiable = True

    with pytest.raises(AssertionError, match="unless differentiable = False"):
        OBJECTIVE_CHECKS[0](RoundedSum())
    objective_shapes_and_values(Claims())  # smooth but for jumps, which the points of the check do not meet


class RoundedSum(gradest.Objective):
    name, summary = "rounded_sum", "states a derivative that it does not have"

    def __call__(self, points):
        return points.sum(-1).detach() ** 2


def test_a_pointwise_objective_must_return_one_number():
    class Vector(Simulator):
        def __call__(self, point):
            return point

    with pytest.raises(InvalidInput, match=r"must map one point \[2\] to one number, but it returned \[2\]"):
        gradest.exact(Vector(), A)


@pytest.mark.parametrize(
    "f", [Simulator(), Counted(), lambda h: (h > 0.5).to(h).sum(-1)], ids=["simulator", "counted", "f"]
)
def test_compare_leaves_out_what_needs_a_derivative(f):
    table = gradest.compare(f, A, estimators=["straight_through", "rloo", "rebar"], draws=20, seed=1)
    assert [row.estimator for row in table.rows] == ["rloo"]
    assert [one.estimator for one in table.skipped] == ["straight_through", "rebar"]
    assert "straight_through is left out: straight_through needs dL/dh, but" in table.to_markdown()
    assert table.to_dict()["skipped"][0]["reasons"] == list(table.skipped[0].reasons)
    assert table.exact is not None
    assert not gradest.compare(f, A, estimators=["straight_through"], draws=20).rows


def test_recommend_leaves_out_what_needs_a_derivative():
    case = {"bring": ["loss", "grad"], "evaluations": 2, "draws": 8, "seed": 1}
    found = gradest.recommend("stochastic_rounding", f=Counted(), a=A[:1], **case)
    reasons = {one.estimator.partition("(")[0]: one.reasons for one in found.rejected}
    assert "states that it is not differentiable" in reasons["straight_through"][0]
    assert "rloo" in {row.estimator["name"] for row in found.rows}


@pytest.mark.parametrize("f", [Simulator(), Counted()], ids=lambda x: x.name)
def test_an_estimator_that_needs_a_derivative_is_refused(f):
    with pytest.raises(
        NotDifferentiable, match="states that it is not differentiable; use an estimator that needs the loss"
    ):
        gradest.expect(f, A.clone().requires_grad_(), estimator="straight_through")
    with pytest.raises(NotDifferentiable):
        gradest.estimate(f, A, estimator="straight_through", draws=4)


@pytest.mark.parametrize("target", [None, gradest.Target(2)])
def test_exact_needs_the_derivative_where_outputs_move(target):
    """Without it, a part of the gradient would be missing: 0.09 instead of 0.28 for a square."""

    class Square(gradest.Separable):
        name, summary = "detached_square", "a square of which autograd knows nothing"
        differentiable = False

        def per_unit(self, h):
            return h.detach() ** 2

    a, neuron = A[:1, :1], "stochastic_times_smooth"
    for f in (lambda h: (h.detach() ** 2).sum(-1), Square(), Counted()):
        with pytest.raises(NotDifferentiable, match="the outputs of stochastic_times_smooth move with a"):
            gradest.exact(f, a, neuron, target)
    table = gradest.compare(Square(), a, neuron, estimators=["spsa"], draws=8)
    assert table.exact is None
    assert "move with a" in table.no_exact
    value, gradient = gradest.exact(
        lambda h: torch.ones(h.shape[:-1]), a, neuron, target
    )  # constant: nothing is missing
    assert torch.allclose(value, torch.ones(1))
    assert torch.allclose(gradient, torch.zeros_like(a), atol=1e-12)


def test_what_is_stated_must_be_true_or_false():
    class Unsure(Counted):
        name, differentiable = "unsure", "no"

    with pytest.raises(PluginError, match="`differentiable` must be True or False, not 'no'"):
        gradest.registry.register(Unsure)
