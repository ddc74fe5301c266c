"""Second derivatives of expect: their expectation, summed over ALL tuples of samples, against that of the exact expectation."""

import itertools

import pytest
import torch

import gradest
from gradest.contract.neuron import Discrete
from gradest.contract.score_function import ScoreFunction
from gradest.errors import InvalidInput
from gradest_neurons.bernoulli import Bernoulli
from gradest_neurons.categorical import Categorical

A = {"bernoulli": torch.tensor([0.3, -0.8]), "categorical": torch.tensor([[0.3, -0.8, 1.1]])}
HAVE = [
    ("reinforce", {}),
    ("reinforce", {"samples": 2}),
    ("rloo", {}),
    ("rloo", {"samples": 3}),
    ("reinforce_average", {"samples": 2}),
    ("nvil", {"samples": 2, "hidden": 2}),
    ("opo", {"leave_one_out": True}),
    ("pass_at_k", {"k": 1, "samples": 2}),
]
OTHERS = [
    "vimco",
    "pass_at_k",
    "opo",
    "otb",
    "grpo",
    "dr_grpo",
    "entropic_risk",
    "reinforce_centered",
    "disarm",
    "rebar",
    "straight_through",
]


def f(h):
    """A loss that is no sum over units or classes."""
    weights = torch.linspace(-1.0, 2.0, h.shape[-1] * (h.shape[-2] if h.ndim > 3 else 1), dtype=torch.float64)
    x = (h.double().flatten(2) * weights).sum(-1)
    return x**3 - 1.7 * x + 5


def all_tuples(neuron, a, samples):
    """All tuples of outputs, `[K, tuples, *event]`, and the log-probability of each tuple at `a`, differentiable, `[tuples]`."""
    values, _ = neuron.law(a)
    outputs = [torch.stack(choice) for choice in itertools.product(*values.unbind(1))]
    points = torch.stack([torch.stack(each) for each in itertools.product(outputs, repeat=samples)], 1)
    return points, neuron.log_prob(points, a).sum((0, -1))


def listed(kind, samples):
    """A neuron of this kind that draws row r of a batch as tuple r of all tuples, and the batch of as many equal rows."""
    base, a = {"bernoulli": Bernoulli, "categorical": Categorical}[kind], A[kind].double()
    points, _ = all_tuples(base(), a, samples)

    class Listed(base):
        def sample(self, key, a, draws):
            return points.to(a.dtype) if draws == samples else super().sample(key, a, draws)

    return Listed(), a.expand(points.shape[1], *a.shape).clone().requires_grad_(), points


def weighted_mean(kind, points, of_tuples):
    """The expectation of what each tuple of samples gives, `[tuples, ...]`."""
    neuron = gradest.neuron(kind)
    probability = neuron.log_prob(points, A[kind].double()).sum((0, -1)).exp()
    assert abs(probability.sum().item() - 1) < 1e-12
    return torch.tensordot(probability, of_tuples, 1)


def exact(kind, loss=f):
    """E[L] as a function of the flat pre-activations."""
    neuron, like = gradest.neuron(kind), A[kind]
    points, _ = all_tuples(neuron, like.double(), 1)

    def expectation(a):
        a = a.reshape(like.shape)
        return (neuron.log_prob(points[0], a).sum(-1).exp() * loss(points)[0]).sum()

    return expectation


def derivatives(value, a, orders):
    """The derivatives of each row's value in the row, flattened: `[rows, D]`, `[rows, D, D]`, ..."""
    rows, found = a.shape[0], []
    last = value
    for _ in range(orders):
        flat = last.reshape(rows, -1)
        slopes = [torch.autograd.grad(flat[:, i].sum(), a, create_graph=True)[0] for i in range(flat.shape[1])]
        last = torch.stack([slope.reshape(rows, -1) for slope in slopes], 1).reshape(*last.shape, -1)
        found.append(last.detach())
    return found


@pytest.mark.parametrize("kind", A)
@pytest.mark.parametrize(("name", "options"), HAVE)
def test_score_functions_are_unbiased_over_all_tuples_of_samples(kind, name, options):
    estimator = gradest.estimator({"name": name, **options})
    neuron, a, points = listed(kind, estimator.samples)
    _, state = gradest.expect(f, A[kind].double()[None], kind, estimator, seed=1)  # a baseline that is not 0
    value, _ = gradest.expect(f, a, neuron, estimator, seed=1, state=state)
    first, second = derivatives(value, a, 2)
    flat = A[kind].double().flatten()
    wanted = torch.autograd.functional.jacobian(exact(kind), flat)
    torch.testing.assert_close(weighted_mean(kind, points, first), wanted, rtol=0, atol=1e-12)
    hessian = torch.autograd.functional.hessian(exact(kind), flat)
    assert hessian.abs().max() > 0.1
    torch.testing.assert_close(weighted_mean(kind, points, second), hessian, rtol=0, atol=1e-12)
    # with create_graph the first derivative is the estimator's own, as without
    (plain,) = torch.autograd.grad(gradest.expect(f, a, neuron, estimator, seed=1, state=state)[0].sum(), a)
    assert torch.equal(first, plain.flatten(1))


def test_third_derivatives_too():
    neuron, a, points = listed("bernoulli", 2)
    *_, third = derivatives(gradest.expect(f, a, neuron, "rloo", seed=1)[0], a, 3)
    flat = A["bernoulli"].double()
    wanted = torch.autograd.functional.jacobian(
        lambda a: torch.autograd.functional.hessian(exact("bernoulli"), a, create_graph=True), flat
    )
    torch.testing.assert_close(weighted_mean("bernoulli", points, third), wanted, rtol=0, atol=1e-12)


def test_the_mixed_derivative_in_a_and_a_parameter_of_f():
    neuron, a, points = listed("bernoulli", 2)
    parameter = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def scaled(h):
        return f(h) * parameter**2

    value, _ = gradest.expect(scaled, a, neuron, "rloo", seed=1)
    (slope,) = torch.autograd.grad(value.sum(), a, create_graph=True)
    weights = gradest.neuron("bernoulli").log_prob(points, A["bernoulli"].double()).sum((0, -1)).exp()
    mixed = [torch.autograd.grad((weights * slope[:, i]).sum(), parameter, retain_graph=True)[0] for i in range(2)]
    wanted = torch.autograd.functional.jacobian(exact("bernoulli"), A["bernoulli"].double()) * 2 * 0.7
    torch.testing.assert_close(torch.stack(mixed), wanted, rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(
        gradest.expect(scaled, a, neuron, "rloo", seed=1)[0].sum(), parameter, create_graph=True
    )
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        torch.autograd.grad(slope, a)


@pytest.mark.parametrize("estimator", OTHERS)
def test_the_others_raise(estimator):
    a = A["bernoulli"][None].clone().requires_grad_()
    value, _ = gradest.expect(lambda h: (h.sum(-1) - 0.4) ** 2, a, estimator=estimator, seed=1)
    (slope,) = torch.autograd.grad(value.sum(), a, create_graph=True)
    with pytest.raises(RuntimeError, match="such as rloo"):
        torch.autograd.grad(slope.sum(), a)


def test_every_score_function_is_among_those_that_have_them_or_raise():
    family = {name for name, cls in gradest.registry.estimators.items() if issubclass(cls, ScoreFunction)}
    assert family <= {name for name, _ in HAVE} | set(OTHERS)


def test_a_loss_that_depends_on_a_raises():
    a = A["bernoulli"][None].clone().requires_grad_()
    for estimator in ("rloo", "enumeration"):
        value, _ = gradest.expect(lambda h: (h * a).sum(-1) ** 2, a, estimator=estimator, seed=1)
        plain = torch.autograd.grad(value.sum(), a, retain_graph=True)[0]
        (slope,) = torch.autograd.grad(value.sum(), a, create_graph=True)
        torch.testing.assert_close(slope.detach(), plain)  # the loss's own derivative counts once
        with pytest.raises(RuntimeError, match="only if f itself does not depend on them"):
            torch.autograd.grad(slope.sum(), a)


def test_a_neuron_whose_log_prob_autograd_does_not_see_raises():
    class Opaque(Bernoulli):
        def log_prob(self, h, a):
            return super().log_prob(h, a.detach())

    a = A["bernoulli"][None].clone().requires_grad_()
    (slope,) = torch.autograd.grad(gradest.expect(f, a, Opaque(), "rloo", seed=1)[0].sum(), a, create_graph=True)
    assert slope.abs().max() > 0
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        torch.autograd.grad(slope.sum(), a)


@pytest.mark.parametrize(
    "neuron", [name for name, cls in gradest.registry.neurons.items() if issubclass(cls, Discrete)]
)
def test_the_log_prob_of_every_discrete_neuron_has_the_score_s_derivative(neuron):
    """By central differences of the score, whose error here is below 1e-7."""
    neuron = gradest.neuron(neuron)
    a = torch.tensor([[0.3, -0.8, 1.1]], dtype=torch.float64)
    a = a[:, None] if neuron.event_ndim == 2 else a
    h = neuron.sample(gradest.random.Key(3), a, 1)[0]
    moving = a.clone().requires_grad_()
    (score,) = torch.autograd.grad(neuron.log_prob(h, moving).sum(), moving, create_graph=True)
    torch.testing.assert_close(score.detach(), neuron.score(h, a), rtol=1e-9, atol=1e-9)
    for place in range(3):
        (second,) = torch.autograd.grad(score[..., place].sum(), moving, retain_graph=True)
        bump = torch.zeros_like(a)
        bump[..., place] = 1e-5
        wanted = (neuron.score(h, a + bump) - neuron.score(h, a - bump)) / 2e-5
        torch.testing.assert_close(second, wanted, rtol=1e-6, atol=1e-6)


def test_pre_activations_that_were_written_over_are_refused():
    weight = A["bernoulli"][None].clone().requires_grad_()
    value, _ = gradest.expect(f, weight, seed=1)
    with torch.no_grad():
        weight += 1
    torch.autograd.grad(value.sum(), weight, retain_graph=True)  # a first derivative is that at the draw
    with pytest.raises(InvalidInput, match="written to in place"):
        torch.autograd.grad(value.sum(), weight, create_graph=True)


def test_losses_that_f_wrote_into_and_a_large_offset():
    def writing(h):
        loss = f(h) + 1e9
        h.fill_(7)
        return loss

    a = A["bernoulli"][None].clone().requires_grad_()
    found = []
    for loss in (f, writing):
        value, _ = gradest.expect(loss, a, estimator={"name": "rloo", "samples": 3}, seed=3)
        (slope,) = torch.autograd.grad(value.sum(), a, create_graph=True)
        found.append(torch.stack([slope, torch.autograd.grad(slope[0, 0], a)[0]]))
    assert found[0][1].abs().max() > 0.01
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_masked_classes_and_an_expectation_layer():
    a = torch.tensor([[[0.3, -torch.inf, 1.1]]], dtype=torch.float64, requires_grad=True)
    layer = gradest.nn.Expectation("categorical", {"name": "rloo", "samples": 64})
    torch.manual_seed(0)
    (slope,) = torch.autograd.grad(layer(f, a).sum(), a, create_graph=True)
    (second,) = torch.autograd.grad(slope[0, 0, 0], a)
    assert second.isfinite().all()
    assert second[0, 0, 1] == 0
    assert second[0, 0, 0].abs() > 0.01
    torch.testing.assert_close(second[0, 0, 0], -second[0, 0, 2])
