"""Outputs of probability 0 with an infinite loss: they are no part of an expectation, in whatever way it is computed."""

import math

import pytest
import torch

import gradest
from gradest.contract.neuron import Discrete
from gradest.errors import InvalidInput

INF = math.inf


def one_hot(a, bad):
    return a, lambda h: h[..., 0, bad] > 0


def numbers(a, is_bad):
    return a, lambda h: is_bad(h[..., 0])


CASES = {  # unit: pre-activations, and the outputs that cannot occur
    "categorical masked": one_hot([[[0.3, -INF, 0.2], [0.1, 0.5, -0.3]]], 1),
    "categorical with its first class masked": one_hot([[[-INF, 0.3, 0.2], [0.1, 0.5, -0.3]]], 0),
    "categorical saturated": one_hot([[[0.3, -2000.0, 0.2], [0.1, 0.5, -0.3]]], 1),
    "sparse_categorical": one_hot([[[0.3, -9.0, 0.2], [0.1, 0.5, -0.3]]], 1),
    "k_subset masked": one_hot([[[0.3, -INF, 0.2, 0.4]]], 1),
    "bernoulli low": numbers([[-2000.0, 0.4]], lambda h: h > 0),
    "bernoulli high": numbers([[2000.0, 0.4]], lambda h: h < 1),
    "bipolar low": numbers([[-2000.0, 0.4]], lambda h: h > 0),
    "binomial low": numbers([[-2000.0, 0.4]], lambda h: h > 0),
}
TARGETS = [
    gradest.Target(),
    gradest.Target(2),
    gradest.MaxOfSamples(2),
    gradest.ConditionalValueAtRisk(level=0.5),
    gradest.ConditionalValueAtRisk(level=0.0),
    gradest.Risk(),
]


def case_of(name):
    """Return the unit, its pre-activations, the loss that is infinite where it cannot occur, and one that is finite there."""
    a, is_bad = CASES[name]
    neuron = gradest.neuron(name.split()[0])

    def finite(h):
        flat = h.flatten(-neuron.output_ndim)
        return ((flat * torch.arange(1.0, flat.shape[-1] + 1)).sum(-1) - 0.3) ** 2

    def f(h):
        return torch.where(is_bad(h), INF, finite(h))

    return neuron, torch.tensor(a, dtype=torch.float64), f, finite


def stateless(neuron, a):
    for cls in gradest.registry.estimators.values():
        for options in getattr(cls, "examples", ({},)):
            estimator = cls(**options)
            if estimator.accepts(neuron) and not estimator.off_support and not estimator.init(neuron, a):
                yield estimator


@pytest.mark.parametrize("name", CASES)
def test_every_estimator_has_the_value_and_gradient_of_a_finite_loss(name):
    neuron, a, f, finite = case_of(name)
    estimators = list(stateless(neuron, a))
    assert {"enumeration", "rloo"} <= {estimator.name for estimator in estimators}
    for estimator in estimators:
        if "grad" in estimator.needs:
            continue  # the derivative of this f is finite everywhere
        for seed in range(2):
            found = []
            for loss in (f, finite):
                x = a.clone().requires_grad_()
                value, _ = gradest.expect(loss, x, neuron, estimator, seed, allow_inf=True)
                value.sum().backward()
                found.append((value.detach(), x.grad))
            torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-12, msg=estimator.label())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("target", TARGETS, ids=str)
def test_exact_has_the_value_and_gradient_of_a_finite_loss(name, target):
    neuron, a, f, finite = case_of(name)
    found, wanted = gradest.exact(f, a, neuron, target, allow_inf=True), gradest.exact(finite, a, neuron, target)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)


def test_a_target_of_a_users_own():
    class LogMean(gradest.Target):
        def outer(self, value, probability):
            return (probability * value).sum(0).log()

    neuron, a, f, finite = case_of("categorical masked")
    torch.testing.assert_close(
        gradest.exact(f, a, neuron, LogMean(), allow_inf=True), gradest.exact(finite, a, neuron, LogMean())
    )


def test_an_infinite_loss_that_can_occur_is_still_infinite():
    neuron, a, f, _ = case_of("bernoulli low")
    assert gradest.exact(f, a * 0, neuron, allow_inf=True)[0].item() == INF
    value, _ = gradest.expect(f, a * 0, neuron, "enumeration", 1, allow_inf=True)
    assert value.item() == INF


def test_a_smooth_value_whose_gate_is_never_closed():
    """At a = 800 h is √σ(a) = 1, and not 0, where -log h is infinite."""
    neuron, a = gradest.neuron("stochastic_times_smooth"), torch.tensor([[800.0]], dtype=torch.float64)
    for target in TARGETS:
        loss, gradient = gradest.exact(lambda h: 3 - h.log().sum(-1), a, neuron, target, allow_inf=True)
        torch.testing.assert_close(loss, torch.full((1,), 3.0, dtype=torch.float64))
        torch.testing.assert_close(gradient, torch.zeros(1, 1, dtype=torch.float64))


class Moving(type(gradest.neuron("stochastic_times_smooth"))):
    """a + 1, and with probability 0 it is a + 2."""

    def law(self, a):
        return torch.stack([a + 1, a + 2]), torch.stack([torch.ones_like(a), torch.zeros_like(a)])


def test_an_infinite_derivative_at_an_output_that_moves():
    """At a = 1, -log(3 - h) and its derivative are infinite at h = 3, and 0 and 1 at h = 2."""
    for target in TARGETS:
        loss, gradient = gradest.exact(
            lambda h: -(3 - h).log().sum(-1), torch.ones(1, 1).double(), Moving(), target, allow_inf=True
        )
        torch.testing.assert_close(loss, torch.zeros(1, dtype=torch.float64))
        torch.testing.assert_close(gradient, torch.ones(1, 1, dtype=torch.float64))


class IfOpen(gradest.Separable):
    name, summary = "if_open", "h, and infinite where a unit is closed"

    def per_unit(self, h):
        return torch.where(h > 0, h, INF)


@pytest.mark.parametrize("name", ["noisy_rectifier", "hard_concrete", "stochastic_gate"])
def test_an_atom_of_a_continuous_unit(name):
    """At a = 800 these are never closed."""
    a = torch.tensor([[800.0]], dtype=torch.float64)
    loss, _ = gradest.exact(lambda h: torch.where(h > 0, h, INF).sum(-1), a, name, allow_inf=True)
    torch.testing.assert_close(loss, gradest.neuron(name).mean(a)[0])
    expectation = IfOpen().expectation(gradest.neuron(name), a)
    torch.testing.assert_close(expectation, gradest.neuron(name).mean(a)[0])


def test_a_separable_objective():
    class Barrier(gradest.Separable):
        name, summary = "barrier", "-log(1 - h) and more"

        def per_unit(self, h):
            return -torch.log1p(-h) + 3 * h.clamp(max=0.5) + 1

    a = torch.full((1, 2), -2000.0, dtype=torch.float64)
    loss, gradient = gradest.estimation.exact.exact_or_raise(Barrier(), a, gradest.neuron("bernoulli"))
    assert loss.item() == 1
    assert gradient.tolist() == [[0.0, 0.0]]
    with pytest.raises(InvalidInput, match="must be finite"):
        gradest.estimation.exact.exact_or_raise(Barrier(), a * 0, gradest.neuron("bernoulli"))


def test_the_error_says_that_the_output_is_impossible():
    remedy = r"probability 0.*sparse_enumeration.*allow_inf=True to .*, which leaves it out"
    neuron, a, f, _ = case_of("categorical masked")
    for estimator in ("enumeration", "local_expectation", "measure_valued"):
        for grad in (True, False):
            with torch.set_grad_enabled(grad), pytest.raises(InvalidInput, match=remedy):
                gradest.expect(f, a.clone().requires_grad_(), neuron, estimator, 1)
    with pytest.raises(InvalidInput, match=remedy):
        gradest.exact(f, a, neuron)
    for estimator in ("sparse_enumeration", "rloo"):
        gradest.expect(f, a.clone().requires_grad_(), neuron, estimator, 1)
    with pytest.raises(InvalidInput, match="Give f a finite loss there, or skip this step") as found:
        gradest.expect(f, torch.zeros_like(a), neuron, "enumeration", 1)
    assert "probability 0" not in str(found.value)


class Ramp(Discrete):
    """1 with probability a, 0 <= a <= 1, and else 0."""

    name, summary = "ramp", "1 with probability a"

    def support(self):
        return torch.arange(2.0)

    def forward(self, a, noise):
        return (noise < a).to(a.dtype)

    def backward(self, a, noise, grad_h):
        return torch.zeros_like(grad_h)

    def mean(self, a):
        return a

    def active_probability(self, a):
        return a

    def law(self, a):
        values = self.support().to(a)[:, None, None].expand(2, *a.shape)
        return values, torch.stack([1 - a, a])

    def log_prob(self, h, a):
        return torch.log(torch.where(h > 0, a, 1 - a))

    def score(self, h, a):
        return torch.where(h > 0, 1 / a, -1 / (1 - a))


def test_an_output_that_the_least_step_makes_possible_is_refused():
    a = torch.zeros(1, 1, dtype=torch.float64)
    f = lambda h: torch.where(h[..., 0] > 0, INF, 1.0)  # noqa: E731
    for target in TARGETS[:3]:
        with pytest.raises(InvalidInput, match="next to them"):
            gradest.exact(f, a, Ramp(), target, allow_inf=True)


def test_transforms_leave_them_out_too():
    """Values cannot be read there, so nothing refuses the loss."""
    neuron, a, f, finite = case_of("categorical masked")

    def value(a, loss):
        return gradest.expect(loss, a, neuron, "enumeration", 1)[0].sum()

    torch.testing.assert_close(torch.func.grad(value)(a, f), torch.func.grad(value)(a, finite))
