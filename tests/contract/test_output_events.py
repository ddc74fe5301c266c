"""Neurons whose outputs have another event than their pre-activations, written as a stranger would, in every use.

Statistical tests compare with enumeration within five standard errors: a false alarm has probability below 6e-7 for each number.
"""

import itertools
import math
from typing import ClassVar

import pytest
import torch
from torch import nn

import gradest
from gradest.contract.numerics import sigmoid
from gradest.errors import InvalidInput, TooManyPoints
from gradest.testing import checks

TOLERANCE_SE = 5.0


class GatedPair(gradest.Discrete):
    """A unit of two pre-activations, a gate and a rate: 0 with a closed gate, else the number of two coins that are heads."""

    name = "acme_gated_pair"
    summary = "two coins behind a gate"
    event_ndim: ClassVar[int] = 2
    example_events: ClassVar = ((2, 2), (1, 2))

    def output_event(self, event):
        if event[-1] != 2:
            raise InvalidInput(f"a unit has a gate and a rate, so the last dim is 2, not {event[-1]}")
        return event[:-1]

    def check(self, a):
        if bool((a[..., 0] > 50).any()):
            raise InvalidInput("a gate of more than 50 never closes; use a smaller one")

    def support(self):
        return torch.tensor([0.0, 1.0, 2.0])

    def noise(self, key, a, draws):
        return torch.stack([key.with_stream(place).uniform_like(a[..., 0], draws) for place in range(3)], -1)

    def forward(self, a, noise):
        gate, rate = sigmoid(a).unbind(-1)
        heads = (noise[..., 1] < rate).to(a.dtype) + (noise[..., 2] < rate)
        return (noise[..., 0] < gate) * heads

    def backward(self, a, noise, grad_h):
        return grad_h.new_zeros((*grad_h.shape, 2), dtype=a.dtype)

    def mean(self, a):
        gate, rate = sigmoid(a).unbind(-1)
        return (2 * gate * rate).to(a.dtype)

    def active_probability(self, a):
        gate, rate = sigmoid(a).unbind(-1)
        return (gate * (1 - (1 - rate) ** 2)).to(a.dtype)

    def log_prob(self, h, a):
        gate, rate = sigmoid(a).unbind(-1)
        opened = torch.where(h == 1, 2 * rate * (1 - rate), torch.where(h == 2, rate**2, (1 - rate) ** 2))
        return torch.log(gate * opened + (1 - gate) * (h == 0)).to(a.dtype)

    def score(self, h, a):
        with torch.enable_grad():
            moved = a.detach().expand(*h.shape, 2).clone().requires_grad_()
            return torch.autograd.grad(self.log_prob(h, moved).sum(), moved)[0]


class Permutation(gradest.Discrete):
    """A permutation matrix of n scores, by the law of Plackett and Luce: h[i, j] = 1 if item j has place i."""

    name = "acme_permutation"
    summary = "permutation matrix of scores"
    event_ndim: ClassVar[int] = 2
    example_events: ClassVar = ((1, 3), (2, 2))

    def output_event(self, event):
        return *event, event[-1]

    def atoms(self, event):
        return math.factorial(event[-1])

    def noise(self, key, a, draws):
        return -torch.log(-torch.log(key.uniform_like(a, draws, 2)))

    def forward(self, a, noise):
        order = (a + noise).argsort(-1, descending=True)
        return (order[..., None] == torch.arange(a.shape[-1], device=a.device)).to(a.dtype)

    def backward(self, a, noise, grad_h):
        return grad_h.new_zeros(grad_h.shape[:-1], dtype=a.dtype)

    def law(self, a):
        n = a.shape[-1]
        every = torch.tensor(list(itertools.permutations(range(n))), device=a.device)
        values = nn.functional.one_hot(every, n).to(a.dtype)
        values = values.reshape(len(every), *[1] * (a.ndim - 1), n, n).expand(len(every), *a.shape, n)
        return values, self.log_prob(values, a).exp()

    def mean(self, a):
        values, weights = self.law(a)
        return (values * weights[..., None, None]).sum(0)

    def active_probability(self, a):
        return self.mean(a)

    def log_prob(self, h, a):
        scores = (h * a[..., None, :]).sum(-1)
        return (scores - scores.flip(-1).logcumsumexp(-1).flip(-1)).sum(-1)

    def score(self, h, a):
        scores = (h * a[..., None, :]).sum(-1)
        left = scores.flip(-1).logcumsumexp(-1).flip(-1)
        by_place = 1 - (scores[..., None, :] - left[..., None]).exp().triu().sum(-2)
        return (h * by_place[..., None]).sum(-2)


class Cell(gradest.Discrete):
    """A unit that is a matrix with a 1 in one cell: an event of three dims, the same for the output."""

    name = "acme_cell"
    summary = "matrix with a 1 in one cell"
    event_ndim: ClassVar[int] = 3

    def atoms(self, event):
        return event[-1] * event[-2]

    def forward(self, a, noise):
        return _of_cells("forward", a, noise)

    def backward(self, a, noise, grad_h):
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a):
        return _of_cells("mean", a)

    def active_probability(self, a):
        return _of_cells("mean", a)

    def law(self, a):
        values, weights = gradest.neuron("categorical").law(a.flatten(-2))
        return values.unflatten(-1, a.shape[-2:]), weights

    def log_prob(self, h, a):
        return gradest.neuron("categorical").log_prob(h.flatten(-2), a.flatten(-2))

    def score(self, h, a):
        return gradest.neuron("categorical").score(h.flatten(-2), a.flatten(-2)).unflatten(-1, a.shape[-2:])


def _of_cells(method, a, *given):
    found = getattr(gradest.neuron("categorical"), method)(a.flatten(-2), *(x.flatten(-2) for x in given))
    return found.unflatten(-1, a.shape[-2:])


class Chain(gradest.Discrete):
    """Binary units in a chain, each of which tends to agree with the one before: one unit of 2^n outputs."""

    name = "acme_chain"
    summary = "binary units, each like the one before"
    event_ndim: ClassVar[int] = 2
    example_events: ClassVar = ((2, 3),)

    def atoms(self, event):
        return 2 ** event[-1]

    def _steps(self, a, before):
        return torch.sigmoid(a + 2 * before - 1)

    def forward(self, a, noise):
        found = [(noise[..., 0] < torch.sigmoid(a[..., 0])).to(a.dtype)]
        for place in range(1, a.shape[-1]):
            found.append((noise[..., place] < self._steps(a[..., place], found[-1])).to(a.dtype))
        return torch.stack(found, -1)

    def backward(self, a, noise, grad_h):
        return torch.zeros_like(grad_h, dtype=a.dtype)

    def mean(self, a):
        p = [torch.sigmoid(a[..., 0])]
        for place in range(1, a.shape[-1]):
            p.append(p[-1] * self._steps(a[..., place], 1) + (1 - p[-1]) * self._steps(a[..., place], 0))
        return torch.stack(p, -1)

    def active_probability(self, a):
        return self.mean(a)

    def law(self, a):
        n = a.shape[-1]
        assert n < 12, "the law ran"
        every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=n))).to(a)
        values = every.reshape(len(every), *[1] * (a.ndim - 1), n).expand(len(every), *a.shape)
        return values, self.log_prob(values, a).exp()

    def log_prob(self, h, a):
        before = torch.cat([torch.full_like(h[..., :1], 0.5), h[..., :-1]], -1)
        logit = a + 2 * before - 1
        return -nn.functional.softplus(torch.where(h == 1, -logit, logit)).sum(-1)

    def score(self, h, a):
        before = torch.cat([torch.full_like(h[..., :1], 0.5), h[..., :-1]], -1)
        return h - torch.sigmoid(a + 2 * before - 1)


STRANGERS = (GatedPair(), Permutation(), Cell(), Chain())
SHAPES = {  # the event of a, and that of h
    "acme_gated_pair": ((3, 2), (3,)),
    "acme_permutation": ((1, 3), (1, 3, 3)),
    "acme_cell": ((2, 2, 3), (2, 2, 3)),
    "acme_chain": ((1, 4), (1, 4)),
    "diagonal_gaussian": ((3, 2), (3,)),
}


def pre_activations(neuron, *batch):
    event, _ = SHAPES[neuron.name]
    return torch.randn(*batch, *event, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def loss_of(neuron):
    """Return a loss in which all entries of an output meet, `[K, *batch, *event]` to `[K, *batch]`."""
    dims = len(SHAPES[neuron.name][1])

    def f(h):
        flat = h.flatten(-dims)
        weight = torch.arange(1, flat.shape[-1] + 1).to(flat).cos()
        return ((flat * weight).sum(-1) + 0.3) ** 2

    return f


@pytest.fixture(params=STRANGERS, ids=lambda neuron: neuron.name)
def stranger(request):
    return request.param


SLOW_CHECKS = ("neuron_rows_are_independent", "neuron_survives_saturation")  # which need row-stable arithmetic


@pytest.mark.parametrize(
    "check",
    [check for check in checks.NEURON_CHECKS if check.__name__ not in SLOW_CHECKS],
    ids=lambda check: check.__name__,
)
def test_the_kit_passes_strangers(stranger, check):
    check(stranger)


def test_the_kit_finds_outputs_of_another_shape():
    class Wrong(Permutation):
        name = "acme_wrong"

        def output_event(self, event):
            return event[0], event[1] ** 2

    with pytest.raises(AssertionError, match=r"the values of law has shape \[6, 3, 1, 3, 3\], not \[6, 3, 1, 9\]"):
        checks.neuron_shapes_and_dtypes(Wrong())


def test_the_kit_finds_a_wrong_number_of_atoms():
    class Wrong(Permutation):
        name = "acme_wrong"

        def atoms(self, event):
            return event[-1]

    with pytest.raises(AssertionError, match=r"atoms says 3 for .*law has 6"):
        checks.neuron_shapes_and_dtypes(Wrong())


@pytest.mark.parametrize("estimator", ["reinforce", {"name": "rloo", "samples": 4}, "reinforce_centered"], ids=str)
def test_score_estimators_are_unbiased_against_enumeration(stranger, estimator):
    a, f = pre_activations(stranger, 2), loss_of(stranger)
    _, gradient = gradest.exact(f, a, stranger)
    found = gradest.estimate(f, a, stranger, estimator, draws=1 << 14, seed=3)
    error = (found.gradient - gradient).abs() / (found.standard_error + 1e-9)
    assert float(error.max()) < TOLERANCE_SE
    assert float(gradient.abs().max()) > 10 * float(found.standard_error.max())  # a wrong sign would show


def test_the_exact_gradient_of_a_permutation_is_that_of_all_orders():
    neuron, f = Permutation(), loss_of(Permutation())
    a = pre_activations(neuron).requires_grad_()
    total = torch.zeros(())
    for order in itertools.permutations(range(3)):
        left, probability = list(range(3)), torch.ones(())
        for item in order:
            probability = probability * torch.softmax(a[0, left], 0)[left.index(item)]
            left.remove(item)
        total = total + probability * f(nn.functional.one_hot(torch.tensor(order), 3).to(a)[None])
    (wanted,) = torch.autograd.grad(total, a)
    loss, gradient = gradest.exact(f, a.detach(), neuron)
    torch.testing.assert_close(loss, total.detach())
    torch.testing.assert_close(gradient, wanted)
    h = gradest.sample(neuron, a.detach(), 1000, seed=1)
    assert bool(((h.sum(-1) == 1) & (h.sum(-2) == 1)).all())


def test_the_diagonal_gaussian_has_the_gradient_of_its_quadrature():
    a, neuron = pre_activations(gradest.neuron("diagonal_gaussian"), 2)[:, :2], "diagonal_gaussian"
    mean, std = a[..., 0], a[..., 1].exp()
    loss, gradient = gradest.exact(lambda h: h.square().sum(-1), a, neuron)
    torch.testing.assert_close(loss, (mean**2 + std**2).sum(-1))
    torch.testing.assert_close(gradient, torch.stack([2 * mean, 2 * std**2], -1))

    def f(h):
        return torch.tanh(h[..., 0] + 0.3) * h[..., 1] + (h**3).sum(-1)

    loss, gradient = gradest.exact(f, a, neuron)
    found = gradest.estimate(f, a, neuron, "pathwise", draws=1 << 16, seed=4)
    assert float(((found.gradient - gradient).abs() / found.standard_error).max()) < TOLERANCE_SE
    assert float(gradient.abs().max()) > 10 * float(found.standard_error.max())


@pytest.mark.parametrize("neuron", [*STRANGERS, gradest.neuron("diagonal_gaussian")], ids=lambda neuron: neuron.name)
def test_every_use_has_the_shapes_of_the_output_event(neuron):
    a, f = pre_activations(neuron, 4).float().requires_grad_(), loss_of(neuron)
    _, output = SHAPES[neuron.name]
    estimator = "pathwise" if neuron.name == "diagonal_gaussian" else "reinforce"
    assert gradest.sample(neuron, a, 5, seed=0).shape == (5, 4, *output)
    value, _ = gradest.expect(f, a, neuron, estimator, seed=1)
    value.sum().backward()
    assert value.shape == (4,)
    eager = a.grad.clone()
    assert eager.shape == a.shape

    def gradient_of_row(row, number):
        return torch.func.grad(lambda a: gradest.expect(f, a, neuron, estimator, gradest.Key(1, rows=number))[0])(row)

    if neuron.name != "acme_gated_pair":  # its score uses autograd, which transforms do not let run
        mapped = torch.func.vmap(gradient_of_row)(a.detach(), torch.arange(4))
        torch.testing.assert_close(mapped, eager)
    draw, _ = gradest.ask(neuron, "reinforce" if estimator == "reinforce" else "evolution", a, seed=2)
    assert draw.points.shape[1:] == (4, *output)
    table = gradest.compare(f, a, neuron, estimators=[estimator], draws=50, seed=0)
    assert table.exact is None or table.exact.shape == a.shape
    for evaluation in ("mean", "sample", "threshold"):
        layer = gradest.nn.Stochastic(neuron, estimator, evaluation=evaluation).eval()
        assert layer(a).shape == (4, *output)
        assert gradest.nn.Expectation(neuron, estimator, evaluation=evaluation).eval()(f, a).shape == (4,)


@pytest.mark.parametrize("neuron", [*STRANGERS, gradest.neuron("diagonal_gaussian")], ids=lambda neuron: neuron.name)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.deep)], ids=["eager", "compiled"])
def test_layers_and_paths_have_the_shapes_of_the_output_event(neuron, compiled):
    torch._dynamo.reset()
    a, f = pre_activations(neuron, 4).float().requires_grad_(), loss_of(neuron)
    estimator = "pathwise" if neuron.name == "diagonal_gaussian" else "rloo"
    layer = gradest.nn.Stochastic(neuron, estimator)
    model = nn.Sequential(layer)
    with gradest.nn.StochasticGraph(model, samples=3) as graph:

        def run(a):
            return model(graph.expand(a))

        h = (torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run)(a)
        assert h.shape == (3, 4, *SHAPES[neuron.name][1])
        graph.add_cost(f(h))
        graph.surrogate().backward()
    assert a.grad.shape == a.shape
    assert float(a.grad.abs().sum()) > 0


def test_a_compiled_layer_has_the_bits_of_an_eager_one():
    a = pre_activations(gradest.neuron("diagonal_gaussian"), 4).float()
    layer = gradest.nn.Stochastic("diagonal_gaussian", "pathwise")
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True, dynamic=True, backend="aot_eager")):
        given = a.clone().requires_grad_()
        torch.manual_seed(3)
        h = run(given)
        h.square().sum().backward()
        found.append((h.detach(), given.grad))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_event_dims_restores_the_dims_that_count_units():
    a = torch.randn(2, 4, 3, 2)
    seen = []

    def f(h):
        seen.append(h.shape)
        return h.flatten(2).sum(-1)

    gradest.expect(f, a, "diagonal_gaussian", "pathwise", seed=0, event_dims=3)
    assert seen == [(1, 2, 4, 3)]
    assert gradest.nn.Stochastic("diagonal_gaussian", "pathwise", event_dims=3)(a).shape == (2, 4, 3)


def test_event_dims_leaves_outputs_of_other_units_as_they_are():
    class Total(GatedPair):
        """The sum of two gated pairs: one unit for each two of `a`."""

        name = "acme_total"
        example_events: ClassVar = ((2, 2),)

        def output_event(self, event):
            return (event[0] // 2,)

        def forward(self, a, noise):
            return super().forward(a, noise).unflatten(-1, (-1, 2)).sum(-1)

    seen = []

    def f(h):
        seen.append(h.shape)
        return h.sum(-1)

    gradest.expect(f, torch.zeros(5, 3, 4, 2), Total(), {"name": "spsa"}, seed=0, event_dims=3)
    assert seen == [(2, 5, 6)]


def test_a_chain_of_30_units_is_refused_before_its_law_runs():
    neuron, a = Chain(), torch.zeros(2, 1, 30)
    for refused in (
        lambda: gradest.exact(lambda h: h.sum((-1, -2)), a, neuron),
        lambda: gradest.expect(lambda h: h.sum((-1, -2)), a, neuron, "enumeration"),
    ):
        with pytest.raises(TooManyPoints, match=f"{2**30} outputs"):
            refused()
    quadratic = gradest.objective("quadratic", event_ndim=2)
    assert quadratic.expectation(neuron, a) is None
    found = gradest.compare(quadratic, a, neuron, ["reinforce"], draws=20, seed=0)
    assert "2^20" in found.no_exact
    assert gradest.estimate(quadratic, a, neuron, "reinforce", draws=20, seed=0).gradient.shape == a.shape
    assert quadratic.expectation(neuron, a[..., :4]).shape == (2,)


def test_separable_objectives_take_events_of_three_dims():
    for neuron in (Permutation(), Cell()):
        a = pre_activations(neuron, 2)
        objective = gradest.objective("quadratic", event_ndim=3, target=0.2)
        loss, gradient = gradest.exact(objective.__call__, a, neuron)
        given = a.clone().requires_grad_()
        stated = objective.expectation(neuron, given)
        torch.testing.assert_close(stated.detach(), loss)
        torch.testing.assert_close(torch.autograd.grad(stated.sum(), given)[0], gradient)
        with pytest.raises(InvalidInput, match="set event_ndim=3"):
            gradest.objective("quadratic").expectation(neuron, a)


def test_a_neuron_refuses_shapes_and_values():
    for a, reason in (
        (torch.zeros(3, 3), "the last dim is 2, not 3"),
        (torch.full((3, 2), 60.0), "never closes"),
    ):
        for refused in (
            lambda a=a: gradest.sample(GatedPair(), a),
            lambda a=a: gradest.expect(lambda h: h.sum(-1), a, GatedPair(), "reinforce"),
            lambda a=a: gradest.exact(lambda h: h.sum(-1), a, GatedPair()),
            lambda a=a: gradest.nn.Stochastic(GatedPair(), "reinforce")(a),
        ):
            with pytest.raises(InvalidInput, match=reason):
                refused()
    with pytest.raises(InvalidInput, match="log std of at most 30"):
        gradest.sample("diagonal_gaussian", torch.full((1, 2), 31.0))
    with pytest.raises(InvalidInput, match=r"torch\.stack"):
        gradest.nn.Stochastic("diagonal_gaussian", "pathwise", event=(4, 3))


def test_example_events_are_checked_when_a_neuron_is_registered():
    class Wrong(GatedPair):
        name = "acme_wrong"
        example_events: ClassVar = ((2,),)

    with pytest.raises(gradest.GradestError, match="`example_events` must be a sequence of shapes of 2 dim"):
        gradest.registry.register(Wrong)
