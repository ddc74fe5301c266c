"""Straight-through estimators of one-hot units: by hand, by their sources, and to which order they are exact."""

import itertools

import pytest
import torch

import gradest
import gradest.nn
from gradest.errors import Incompatible
from tests.estimators.one_hot import (
    NEURON,
    WEIGHT,
    A,
    assert_close,
    cubic,
    error_over_outputs,
    linear,
    mean_over_outputs,
    one_hot,
    quadratic,
)


def test_straight_through_is_exact_to_first_order():
    exact = gradest.estimator("straight_through", derivative="sigmoid")
    assert error_over_outputs(exact, linear) < 1e-12
    assert error_over_outputs(exact, quadratic) > 0.1
    assert str(exact.bias(NEURON)) == "exact to order 1"
    for options in ({}, {"derivative": "sigmoid", "slope": 2.0}):
        assert error_over_outputs(gradest.estimator("straight_through", **options), linear) > 0.1


@pytest.mark.parametrize("neuron", ["argmax", "categorical", "sparse_categorical"])
def test_no_slope_makes_infinity_of_large_pre_activations(neuron):
    def gradient(most):
        a = torch.tensor([[[most, most, -most], [most, 1.0, 0.0]]])
        return gradest.estimate(lambda h: h[..., 0].sum(-1), a, neuron, straight_through, 1, 1).gradient

    straight_through = {"name": "straight_through", "derivative": "sigmoid", "slope": 3.0}
    assert gradient(3e38)[0, 0, 0] > 0.1
    assert_close(gradient(3e38), gradient(100.0))


def test_straight_through_by_hand():
    h, grad = one_hot([1, 2])[None], WEIGHT[None]
    draw = gradest.Draw(NEURON, A, gradest.Key(0), h, torch.ones(1))
    for slope in (1.0, 2.0):
        a = A.clone().requires_grad_()
        (wanted,) = torch.autograd.grad((torch.softmax(slope * a, -1) * grad[0]).sum(), a)
        estimator = gradest.estimator("straight_through", derivative="sigmoid", slope=slope)
        assert_close(estimator.backward(draw, gradest.Feedback(None, grad), {})[0], wanted)
    identity = gradest.estimator("straight_through", slope=3.0)
    assert_close(identity.backward(draw, gradest.Feedback(None, grad), {})[0], 3 * WEIGHT)
    with pytest.raises(Incompatible, match="does not take this neuron with these options"):
        gradest.expect(linear, A, NEURON, {"name": "straight_through", "derivative": "clipped"})


@pytest.mark.parametrize("name", ["straight_through_gumbel", "gumbel_rao"])
def test_the_jacobian_is_that_of_the_relaxation(name):
    estimator, noise = gradest.estimator(name, temperature=0.7), NEURON.noise(gradest.Key(3), A, 1)
    draw = estimator.forward(NEURON, A, gradest.Key(3), {})
    found, _ = estimator.backward(draw, gradest.Feedback(None, WEIGHT[None]), {})
    if name == "gumbel_rao":  # for its noises the unconditional ones that would have given its relaxed points
        noise = NEURON.noise(gradest.Key(3, stream=1), A, 10)
        relaxed = NEURON.conditional_relax(A, draw.points, noise, 0.7)
        assert torch.equal(relaxed.argmax(-1), draw.points.argmax(-1).expand(10, 2))
        gumbel = 0.7 * relaxed.log() - A
    else:
        gumbel = -torch.log(-torch.log(noise))
    a = A.clone().requires_grad_()
    (wanted,) = torch.autograd.grad((torch.softmax((a + gumbel) / 0.7, -1) * WEIGHT).sum() / len(gumbel), a)
    assert_close(found, wanted)


def test_gumbel_rao_has_the_mean_of_straight_through_gumbel_and_less_variance():
    found = [
        gradest.estimate(cubic, A, NEURON, {"name": name, "temperature": 0.5}, draws=40_000, seed=seed)
        for name, seed in (("straight_through_gumbel", 1), ("gumbel_rao", 2))
    ]
    error = (found[0].standard_error ** 2 + found[1].standard_error ** 2).sqrt()
    assert float(((found[0].gradient - found[1].gradient) / error).abs().max()) < 5
    assert float((found[1].variance / found[0].variance).max()) < 0.9
    assert found[1].evaluations == 1


def test_reinmax_is_exact_to_second_order():
    estimator = gradest.estimator("reinmax")
    weight = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)
    logits = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
    for order, exact in ((1, True), (2, True), (3, False)):
        assert (error_over_outputs(estimator, lambda h, n=order: (linear(h) + 0.3) ** n) < 1e-11) == exact
        for name in ("bernoulli", "bipolar"):
            neuron = gradest.neuron(name)
            error = error_over_outputs(estimator, lambda h, n=order: ((h * weight).sum(-1) + 0.3) ** n, neuron, logits)
            assert (error < 1e-11) == exact
    assert str(estimator.bias(NEURON)) == "exact to order 2"
    assert error_over_outputs(gradest.estimator("reinmax", temperature=1.5), linear) > 1e-3


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_reinmax_is_what_the_source_computes(temperature):
    """As backpropagation through 2π - ½p, with π moved by softmax from where it stands."""
    h, a = one_hot([1, 2]), A.clone().requires_grad_()
    middle = 0.5 * (torch.softmax(a / temperature, -1) + h)
    moved = torch.softmax((middle.log() - a).detach() + a, -1)
    (wanted,) = torch.autograd.grad(((2 * moved - 0.5 * torch.softmax(a, -1)) * WEIGHT).sum(), a)
    draw = gradest.Draw(NEURON, A, gradest.Key(0), h[None], torch.ones(1))
    estimator = gradest.estimator("reinmax", temperature=temperature)
    assert_close(estimator.backward(draw, gradest.Feedback(None, WEIGHT[None]), {})[0], wanted)


@pytest.mark.parametrize("name", ["bernoulli", "bipolar"])
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_reinmax_of_a_binary_unit(name, temperature):
    neuron, estimator = gradest.neuron(name), gradest.estimator("reinmax", temperature=temperature)
    a, grad = torch.tensor([0.3, -1.8, 35.0], dtype=torch.float64), torch.tensor([2.0, 5.0, 1.0], dtype=torch.float64)
    p = torch.sigmoid(a)
    pair = torch.stack([a, torch.zeros_like(a)], -1)  # the same units as one-hot pairs
    for bits in itertools.product([0.0, 1.0], repeat=3):
        b = torch.tensor(bits, dtype=torch.float64)
        h = neuron.low + (neuron.high - neuron.low) * b
        draw = gradest.Draw(neuron, a, gradest.Key(0), h[None], torch.ones(1))
        found, _ = estimator.backward(draw, gradest.Feedback(None, grad[None]), {})
        if temperature == 1:
            assert_close(found, 0.5 * (b - p).abs() * (neuron.high - neuron.low) * grad)
        draw = gradest.Draw(NEURON, pair, gradest.Key(0), torch.stack([b, 1 - b], -1)[None], torch.ones(1))
        both = torch.stack([grad * (neuron.high - neuron.low), torch.zeros_like(grad)], -1)
        assert_close(found, estimator.backward(draw, gradest.Feedback(None, both[None]), {})[0][..., 0], 1e-11)


def test_on_a_cubic_reinmax_can_be_worse_than_straight_through():
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    a = torch.tensor([[0.0, 0.0, 0.0]], dtype=torch.float64)

    def f(h):
        return (h * weight).sum((-1, -2)) ** 3

    straight = gradest.estimator("straight_through", derivative="sigmoid")
    assert error_over_outputs(gradest.estimator("reinmax"), f, a=a) > error_over_outputs(straight, f, a=a)


@pytest.mark.parametrize(("temperature", "gap"), [(1.0, 1.0), (0.5, 0.0), (0.7, 3.0)])
def test_gapped_straight_through_moves_the_logits_as_the_source_does(temperature, gap):
    """At every output, by autograd through a softmax of a + m₁ + m₂, with the two moves held."""
    estimator = gradest.estimator("gapped_straight_through", temperature=temperature, gap=gap)
    for classes in itertools.product(range(4), repeat=2):
        h, a = one_hot(classes), A.clone().requires_grad_()
        top = A.amax(-1, keepdim=True)
        moves = h * (top - A) - (1 - h) * (A + gap - top).clamp(min=0)
        s = torch.softmax((a + moves) / temperature, -1)
        (wanted,) = torch.autograd.grad((s * WEIGHT).sum(), a)
        draw = gradest.Draw(NEURON, A, gradest.Key(0), h[None], torch.ones(1))
        assert_close(estimator.backward(draw, gradest.Feedback(None, WEIGHT[None]), {})[0], wanted)


def test_gapped_straight_through_is_biased_and_varies_as_it_says():
    _, gradient = gradest.exact(linear, A, neuron=NEURON)
    assert error_over_outputs(gradest.estimator("gapped_straight_through"), linear) > 0.05
    assert float(mean_over_outputs(gradest.estimator("gapped_straight_through"), linear).mul(gradient).sum()) > 0
    cold = gradest.estimator("gapped_straight_through", temperature=0.1)
    assert float(mean_over_outputs(cold, linear).norm() / gradient.norm()) < 0.01

    def ratio(f, **options):
        gumbel, gapped = (
            gradest.estimate(f, A, NEURON, estimator, draws=4000, seed=1).variance.sum()
            for estimator in (
                gradest.estimator("straight_through_gumbel", temperature=options["temperature"]),
                gradest.estimator("gapped_straight_through", **options),
            )
        )
        return float(gapped / gumbel)

    assert 0.3 < ratio(linear, temperature=1.0) < 0.5
    assert ratio(quadratic, temperature=0.5) < 0.6
    assert ratio(cubic, temperature=1.0) > 0.9
    assert ratio(linear, temperature=0.1, gap=0.0) > 2


@pytest.mark.parametrize("neuron", ["categorical", "bernoulli", "bipolar"])
@pytest.mark.parametrize(("forwards", "backwards"), [(1.0, 2.0), (0.5, 1.5), (2.0, 2.0)])
def test_decoupled_straight_through_is_straight_through_on_scaled_pre_activations(neuron, forwards, backwards):
    estimator = gradest.estimator(
        "decoupled_straight_through", forward_temperature=forwards, backward_temperature=backwards, samples=3
    )
    plain = gradest.estimator("straight_through", derivative="sigmoid", slope=forwards / backwards, samples=3)
    neuron, grad = gradest.neuron(neuron), torch.stack([WEIGHT, -2 * WEIGHT, WEIGHT.roll(1, -1)])
    a = A.expand(50, 2, 4)
    draws = estimator.forward(neuron, a, gradest.Key(3), {}), plain.forward(neuron, a / forwards, gradest.Key(3), {})
    assert torch.equal(draws[0].points, draws[1].points)
    feedback = gradest.Feedback(None, grad[:, None].expand(3, 50, 2, 4))
    assert_close(
        estimator.backward(draws[0], feedback, {})[0], plain.backward(draws[1], feedback, {})[0] / forwards, 1e-12
    )


def test_decoupled_straight_through_is_exact_for_linear_losses_only_where_it_says_so():
    equal = gradest.estimator("decoupled_straight_through", backward_temperature=1.0)
    assert str(equal.bias(NEURON)) == "exact to order 1"
    assert error_over_outputs(equal, linear) < 1e-12
    assert error_over_outputs(gradest.estimator("decoupled_straight_through"), linear) > 0.05
    both = gradest.estimator("decoupled_straight_through", forward_temperature=2.0, backward_temperature=2.0)
    assert str(both.bias(NEURON)) == "biased"
    a = A.clone().requires_grad_()  # of the unit at a/2 it gives the gradient of linear losses
    (wanted,) = torch.autograd.grad(linear(torch.softmax(a / 2, -1)), a)
    assert_close(mean_over_outputs(both, linear), wanted)
    cold = {"name": "decoupled_straight_through", "forward_temperature": 1e-30, "backward_temperature": 1e-30}
    for neuron, f in (("categorical", linear), ("bernoulli", lambda h: h.sum(-1))):
        found = gradest.estimate(f, 3e30 * A, neuron, cold, draws=2, seed=1)
        assert torch.isfinite(found.gradient).all()
