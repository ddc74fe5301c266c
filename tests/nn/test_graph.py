"""StochasticGraph: gradients against enumeration, and against gradients by hand, in every way of use."""

import itertools

import pytest
import torch
from torch import nn

import gradest
from gradest.nn import Expectation, Stochastic, StochasticGraph
from tests.nn.belief import WEIGHT, Belief, compiled_inside, compiled_outside, surrogate
from tests.selection import deep

pytestmark = pytest.mark.usefixtures("fresh_compiler")

# of z statistics: 5 is passed by chance once in 1.7 million, and a test looks at 19 of them
Z = 5.0
POWER = 40.0  # standard errors that the largest gradient has at least, so that a factor of two or a sign is 20 and more


def eagerly(model, samples, flatten):
    return lambda x: surrogate(model, x, samples, flatten)


def in_parts(model, samples, flatten):
    """The first cost is there before the second layer is used."""

    def run(x):
        with StochasticGraph(model, samples) as graph:
            x = graph.expand(x, flatten)
            h = model.first(model.inner(x))
            graph.add_cost(model.first_cost(x, h))
            g = model.second(model.outer(h))
            graph.add_cost(model.last_cost(h, g))
            return graph.surrogate()

    return run


def check(first, second, samples=None, flatten=False, way=eagerly, repeats=60, batch=6000):
    torch.manual_seed(1)
    model, x = Belief(first, second), torch.tensor([[0.5, -1.0]], requires_grad=True)
    with torch.no_grad():
        model(torch.zeros(1, 2))  # the shapes of states follow from the input
    parameters = list(model.parameters())
    target = model.first.sampler.of_samples(samples).target()
    truth = torch.autograd.grad(model.expectation(x, target).sum(), [x, *parameters])
    step, found = way(model, samples, flatten), []
    for _ in range(repeats):
        given = x.detach().expand(batch // (samples or 1), 2).clone().requires_grad_()
        slopes = torch.autograd.grad(step(given), [given, *parameters])
        found.append(torch.cat([slopes[0].sum(0), *(slope.flatten() for slope in slopes[1:])]))
    stacked, wanted = torch.stack(found), torch.cat([slope.flatten() for slope in truth])
    error = stacked.std(0) / repeats**0.5
    z = ((stacked.mean(0) - wanted) / error).abs().max()
    assert z < Z, z
    assert wanted.abs().max() > POWER * error.max()


PAIRS = [
    ("reinforce", "reinforce", None, False),
    ("reinforce_average", "reinforce_centered", None, False),
    ("nvil", "relax", None, False),
    ("rloo", "rloo", 2, False),
    ("rloo", "rloo", 4, True),
    ("rloo", {"name": "reinforce", "samples": 4}, 4, False),
    ("reinforce_centered", "reinforce", 2, True),
    ("vimco", {"name": "vimco", "baseline": "arithmetic"}, 2, False),
    ("vimco", "vimco", 2, True),
]
QUICK = [
    PAIRS[1],
    PAIRS[4],
    PAIRS[6],
    PAIRS[8],
]  # states, a baseline of other paths, paths that are averaged, and a bound


@pytest.mark.parametrize(
    ("first", "second", "samples", "flatten"),
    [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.deep) for pair in PAIRS],
)
def test_two_layers_against_enumeration(first, second, samples, flatten):
    check(first, second, samples, flatten)


@pytest.mark.parametrize(("estimator", "samples"), [*deep(("reinforce", None)), ("rloo", 2), ("vimco", 2)])
def test_a_cost_between_the_layers(estimator, samples):
    """rloo gets the cost-to-go, and vimco, whose target is a bound of the sum, all costs at every use."""
    check(estimator, estimator, samples, way=in_parts)


@pytest.mark.parametrize(
    ("first", "second", "samples", "flatten"),
    [pytest.param(*case, marks=() if case in PAIRS[3:4] else pytest.mark.deep) for case in PAIRS],
)
@pytest.mark.parametrize("way", [compiled_inside, *deep(compiled_outside)])
def test_two_layers_compiled(first, second, samples, flatten, way):
    check(first, second, samples, flatten, way, repeats=40)


def fitting_cases():
    """Every estimator for a layer that needs the loss and claims no bias, with 1, 2 and 4 paths where it takes them."""
    neuron = gradest.neuron("bernoulli")
    for name, built in gradest.registry.fitting(neuron).items():
        in_groups = isinstance(built, gradest.ScoreFunction) and built.samples > 1
        one_point = built.evaluations(neuron, (2,)) == 1
        if "loss" in built.needs and built.bias(neuron).unbiased and (in_groups or one_point):
            for samples in (1, 2, 4) if one_point else (2, 4):
                target = built.of_samples(samples).target() if in_groups else built.target()
                if target.samples <= 2:  # the enumeration of all tuples grows as 32^samples
                    yield name, samples


@pytest.mark.deep
@pytest.mark.parametrize(("estimator", "samples"), list(fitting_cases()))
def test_every_estimator_that_fits(estimator, samples):
    check(estimator, estimator, samples)


class Walk(nn.Module):
    """Three steps of a chain with three actions; each step has a cost of its own. The samples are used as integers alone."""

    def __init__(self, estimator, **options):
        super().__init__()
        self.table = nn.Parameter(torch.linspace(-0.6, 0.8, 9).reshape(3, 3))
        self.policy = Stochastic("categorical", estimator, **options)

    @staticmethod
    def cost(state, action):
        return (state - 1.5 * action + 0.5 * state * action) / 2

    def expectation(self):
        total = 0
        for actions in itertools.product(range(3), repeat=3):
            probability, state, cost = 1, 0, 0
            for action in actions:
                probability = probability * torch.softmax(self.table[state], -1)[action]
                cost, state = cost + self.cost(state, action), (state + action) % 3
            total = total + probability * cost
        return total

    def value(self, steps):
        """The expected cost of so many further steps from each state, `[3]`."""
        if not steps:
            return torch.zeros(3)
        later, p = self.value(steps - 1), torch.softmax(self.table.detach(), -1)
        return torch.stack([sum(p[s, a] * (self.cost(s, a) + later[(s + a) % 3]) for a in range(3)) for s in range(3)])

    def act(self, state, baseline=None):
        h = self.policy(self.table[state][..., None, :], baseline)
        return h.squeeze(-2).argmax(-1)  # h dies here


def walk(model, batch, variant):
    samples = 4 if variant == "paths" else None
    with StochasticGraph(model, samples) as graph:
        state = graph.expand(torch.zeros(batch // (samples or 1), dtype=torch.int64))
        parts, scalar = [], 0
        for step in range(3):
            action = model.act(state, model.value(3 - step)[state] if variant == "baseline" else None)
            parts.append(model.cost(state, action))
            state = (state + action) % 3
            if variant != "total":
                graph.add_cost(parts[-1])
            if variant == "surrogates":
                scalar = scalar + graph.surrogate()
        if variant == "total":
            graph.add_cost(sum(parts))
        (scalar if variant == "surrogates" else graph.surrogate()).backward()


@pytest.mark.parametrize("variant", ["to go", *deep("total"), "baseline", *deep("surrogates"), "paths"])
def test_a_loop_of_integer_actions(variant):
    torch.manual_seed(2)
    model, found = Walk("rloo" if variant == "paths" else "reinforce"), []
    (truth,) = torch.autograd.grad(model.expectation(), model.table)
    for _ in range(60):
        model.table.grad = None
        walk(model, 4000, variant)
        found.append(model.table.grad)
    stacked = torch.stack(found)
    error = stacked.std(0) / 60**0.5
    assert ((stacked.mean(0) - truth) / error).abs().max() < Z
    assert truth.abs().max() > POWER * error.max()


def test_cost_to_go_and_a_baseline_lower_the_variance():
    torch.manual_seed(3)
    spread = {}
    for variant in ("total", "to go", "baseline"):
        model, found = Walk("reinforce"), []
        for _ in range(200):
            model.table.grad = None
            walk(model, 50, variant)
            found.append(model.table.grad)
        spread[variant] = float(torch.stack(found).var(0).sum())
    assert spread["to go"] < 0.9 * spread["total"]  # variances of 200 repeats are off by a tenth
    assert spread["baseline"] < 0.9 * spread["to go"]


def test_actor_and_critic_as_by_hand():
    """A pole on a cart, in short: the gradients of scope and hand agree to rounding."""
    torch.manual_seed(4)
    actor, critic = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)), nn.Linear(4, 1)
    layer = Stochastic("bernoulli", "reinforce")
    model = nn.Sequential(actor, layer)
    parameters = [*actor.parameters(), *critic.parameters()]
    start = 0.1 * torch.randn(32, 4)

    def move(state, push):
        x, v, angle, spin = state.unbind(-1)
        force = 20 * push - 10
        bent = (force + 0.05 * spin**2 * angle.sin()) / 1.1
        turn = (9.8 * angle.sin() - angle.cos() * bent) / (0.5 * (4 / 3 - 0.1 * angle.cos() ** 2 / 1.1))
        return torch.stack([x + 0.02 * v, v + 0.02 * (bent - 0.05 * turn), angle + 0.02 * spin, spin + 0.02 * turn], -1)

    def by_scope():
        state = start
        with StochasticGraph(model) as graph:
            errors = []
            for _ in range(8):
                value = critic(state).squeeze(-1)
                with torch.no_grad():
                    before = state
                state = move(state, layer(actor(state), value).detach().squeeze(-1))
                cost = before[:, 2] ** 2 + state[:, 2] ** 2
                graph.add_cost(cost)
                errors.append((value, cost))
            to_go, loss = 0, 0
            for value, cost in reversed(errors):
                to_go = to_go + cost
                loss = loss + (value - to_go) ** 2
            return graph.surrogate() + loss.mean()

    def by_hand():
        state, logs, values, costs = start, [], [], []
        for _ in range(8):
            a = actor(state)
            h = gradest.sample("bernoulli", a.detach(), 1)[0]
            logs.append(torch.distributions.Bernoulli(logits=a).log_prob(h).squeeze(-1))
            values.append(critic(state).squeeze(-1))
            before, state = state, move(state, h.squeeze(-1))
            costs.append(before[:, 2] ** 2 + state[:, 2] ** 2)
        to_go, total = 0, 0
        for log, value, cost in zip(reversed(logs), reversed(values), reversed(costs), strict=True):
            to_go = to_go + cost
            total = total + log * (to_go - value).detach() + (value - to_go) ** 2
        return total.mean()

    found = []
    for way in (by_scope, by_hand):
        torch.manual_seed(5)
        found.append(torch.autograd.grad(way(), parameters))
    for scope, hand in zip(*found, strict=True):
        torch.testing.assert_close(scope, hand, rtol=1e-4, atol=1e-6)
    assert max(float(slope.abs().max()) for slope in found[0]) > 1e-3


def test_positions_that_depend_on_each_other_are_credited_with_all_they_influence():
    layer, a = Stochastic("bernoulli", "reinforce"), torch.zeros(2, 3, 4, requires_grad=True)  # 2 examples, 3 positions
    cost = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    for batch_dims, credit in ((1, cost.sum(-1, keepdim=True).expand(2, 3) / 2), (2, cost / 6)):
        a.grad = None
        with StochasticGraph(layer) as graph:
            h = layer(a)
            graph.add_cost(cost, batch_dims)
            scalar = graph.surrogate()
            scalar.backward()
        assert scalar.item() == pytest.approx(float(cost.sum() / (2 if batch_dims == 1 else 6)))
        assert torch.allclose(a.grad, credit[..., None] * (h.detach() - 0.5))
    free = Stochastic("bernoulli", "reinforce")
    single = torch.zeros(4, requires_grad=True)
    with StochasticGraph(free) as graph:
        h = free(single)
        graph.add_cost(torch.tensor(3.0), batch_dims=0)
        graph.surrogate().backward()
    assert torch.allclose(single.grad, 3 * (h.detach() - 0.5))


def test_straight_through_beside_a_bound():
    """The value of the bound weights the paths by a softmax, and straight-through follows it."""
    torch.manual_seed(0)
    model, x = Belief("straight_through", "vimco"), torch.randn(5, 2)
    with StochasticGraph(model, 3) as graph:
        y = graph.expand(x)
        h, g = model(y)
        h.retain_grad()
        loss = model.loss(y, h, g)
        graph.add_cost(loss)
        scalar = graph.surrogate()
        (slope,) = torch.autograd.grad(scalar, h, retain_graph=True)
        (inner,) = torch.autograd.grad(scalar, model.inner.bias)
    assert scalar.item() == pytest.approx(
        float((torch.tensor(3.0).log() - torch.logsumexp(-loss.detach(), 0)).mean()), rel=1e-5
    )
    p = torch.sigmoid(model.inner(y))
    direct = torch.autograd.grad(
        (torch.softmax(-loss, 0).detach() * 0.3 * (p * h.detach()).sum(-1)).sum() / 5, model.inner.bias
    )[0]
    assert torch.allclose(inner, slope.sum((0, 1)) + direct, atol=1e-5)


def test_models_with_one_batch_dim():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), Stochastic("bernoulli", "rloo"), nn.Flatten(), nn.Linear(8, 1)
    )
    x = torch.randn(5, 1, 4, 4)
    with StochasticGraph(model, 3) as graph:
        out = model(graph.expand(x, flatten=True))
        assert out.shape == (15, 1)
        graph.add_cost(out.squeeze(-1) ** 2)
        graph.surrogate().backward()
    assert model[0].weight.grad.abs().max() > 0


NESTED = ["disarm", "arms", "rebar", "rloo", "local_expectation"]


@pytest.mark.parametrize(
    "estimator", [*NESTED[:1], *(pytest.param(name, marks=pytest.mark.deep) for name in NESTED[1:])]
)
@pytest.mark.parametrize("depth", [2, 3])
def test_expectations_nested_in_each_other(estimator, depth):
    """Several layers for estimators that ask at pairs and flips; f of an outer layer is the expectation over the inner ones."""
    torch.manual_seed(1)
    linears = nn.ModuleList([nn.Linear(2, 2) for _ in range(depth)])
    layers = nn.ModuleList([Expectation("bernoulli", estimator) for _ in range(depth)])
    evaluations = 0

    def loss(h):
        nonlocal evaluations
        evaluations = h.shape[:-1].numel()
        return ((h * WEIGHT).sum(-1) + 0.3) ** 2

    def value(x, level=0):
        a = linears[level](x)
        return layers[level](loss if level == depth - 1 else lambda h: value(h, level + 1), a)

    def expectation(x, level=0):
        p, total = torch.sigmoid(linears[level](x)), 0
        for bits in itertools.product([0.0, 1.0], repeat=2):
            h = torch.tensor(bits).expand(*p.shape)
            rest = loss(h) if level == depth - 1 else expectation(h, level + 1)
            total = total + (h * p + (1 - h) * (1 - p)).prod(-1) * rest
        return total

    x, parameters, found = torch.tensor([[0.5, -1.0]]), list(linears.parameters()), []
    truth = torch.cat([slope.flatten() for slope in torch.autograd.grad(expectation(x).sum(), parameters)])
    for _ in range(60):
        slopes = torch.autograd.grad(value(x.expand(2000, 2)).mean(), parameters)
        found.append(torch.cat([slope.flatten() for slope in slopes]))
    asked = gradest.estimator(estimator).evaluations(gradest.neuron("bernoulli"), (2,))
    assert evaluations == 2000 * asked**depth
    stacked = torch.stack(found)[10:]
    error = stacked.std(0) / len(stacked) ** 0.5
    assert ((stacked.mean(0) - truth) / error).abs().max() < Z
    assert truth.abs().max() > 20 * error.max()
