"""What a draw is stated to take, and how the kit measures it."""

import pytest
import torch

import gradest
from gradest.contract.neuron import per_event
from gradest.contract.numerics import leading_mean
from gradest.errors import TooManyPoints
from gradest.testing import checks

BERNOULLI = gradest.neuron("bernoulli")


class Inner(gradest.MonteCarlo):
    """The score function, with a baseline from many outputs more, held together, or from many steps."""

    name, summary = "acme_inner", "score function with inner samples"
    needs, capabilities = frozenset({"loss"}), (gradest.Scored,)
    inner: int = 60
    held_together: bool = True

    def bias(self, neuron):
        return gradest.Bias.NONE

    def backward(self, draw, feedback, state):
        neuron, others = draw.neuron, draw.a
        if self.held_together:
            others = neuron.sample(draw.key.with_stream(1), draw.a, self.inner).mean(0)
        else:
            for _ in range(20 * self.inner):
                others = 0.99 * others
        baseline = others.flatten(-neuron.event_ndim).sum(-1)
        return leading_mean(
            per_event(feedback.get_loss() - baseline, neuron) * neuron.score(draw.points, draw.a)
        ), state


class Stated(Inner):
    """The same, with its inner samples stated."""

    name = "acme_stated"

    def cost(self, neuron, event, batch):
        one = super().cost(neuron, event, batch)
        return one + gradest.Cost(one.held * self.inner if self.held_together else 0, one.work * self.inner)


@pytest.mark.parametrize(("held_together", "what"), [(True, "holds"), (False, "computes")])
def test_the_kit_finds_inner_samples_that_are_not_stated(held_together, what):
    checks.estimator_cost_is_as_stated(Stated(held_together=held_together), BERNOULLI)
    with pytest.raises(
        AssertionError, match=rf"a draw for \[.*\] {what} \d+ elements, but cost states \d+.*override cost"
    ):
        checks.estimator_cost_is_as_stated(Inner(held_together=held_together), BERNOULLI)


def test_the_kit_wants_a_cost():
    class Number(Inner):
        name = "acme_number"

        def cost(self, neuron, event, batch):
            return 7

    with pytest.raises(AssertionError, match="cost must return a Cost, not int"):
        checks.estimator_cost_is_as_stated(Number(), BERNOULLI)


def test_a_table_of_a_neuron_counts():
    """A unit that computes a table of 40 times its size for each sample states that itself, for every estimator."""

    class Table(type(BERNOULLI)):
        name = "acme_table"

        def score(self, h, a):
            table = torch.sigmoid(a)[..., None] * torch.ones(40)
            return super().score(h, a) + 0 * (h[..., None] * table).sum(-1)

    class StatedTable(Table):
        name = "acme_stated_table"

        def draw_size(self, event):
            return 40 * super().draw_size(event)

    estimator = gradest.estimator("reinforce", samples=2)
    checks.estimator_cost_is_as_stated(estimator, StatedTable())
    with pytest.raises(AssertionError, match="draw_size of the neuron"):
        checks.estimator_cost_is_as_stated(estimator, Table())


def test_a_cost_is_stated_before_anything_is_computed():
    """By default K points, for sizes that no machine could hold."""
    event, batch = (10**9,), (10**6, 3)
    for name, evaluations in (("reinforce", 1), ("disarm", 2), ("local_expectation", 10**9 + 1)):
        cost = gradest.estimator(name).cost(BERNOULLI, event, batch)
        assert cost == gradest.Cost(held=evaluations * 3 * 10**15, work=evaluations * 3 * 10**15)
    with pytest.raises(TooManyPoints):
        gradest.estimator("enumeration").cost(BERNOULLI, event, batch)
    subset = gradest.neuron("k_subset", k=100)
    assert gradest.estimator("simple").cost(subset, (1, 1000), (2,)).held == 2 * 1000 * 100


@pytest.mark.parametrize(
    ("estimator", "neuron", "options"),
    [
        ("gumbel_rao", "categorical", {"conditional_samples": 40}),
        ("imle", "categorical", {"terms": 30}),
        ("relax", "bernoulli", {"hidden": 24}),
        ("relax", "bernoulli", {"network": torch.nn.Sequential(torch.nn.Linear(2, 64), torch.nn.Linear(64, 1))}),
        ("unordered_set", "categorical", {"samples": 6}),
        ("vimco", "bernoulli", {"samples": 200}),
    ],
)
def test_options_that_cost_are_in_the_statement(estimator, neuron, options):
    neuron, found = gradest.neuron(neuron), gradest.estimator(estimator, **options)
    checks.estimator_cost_is_as_stated(found, neuron)
    event = tuple(neuron.example_events[0])
    assert found.cost(neuron, event, (32,)).work > 2 * gradest.Estimator.cost(found, neuron, event, (32,)).work


@pytest.mark.parametrize("method", ["mean_cost", "law_size"])
@pytest.mark.parametrize(
    "name", ["binary_concrete", "logistic_normal", "gumbel_softmax", "plackett_luce", "noisy_top_k"]
)
def test_the_kit_finds_means_and_laws_that_take_more_than_stated(name, method):
    """Nodes and tables are stated by the neurons that have them; without the statement the kit names what to override."""
    base = type(gradest.neuron(name))
    checks.neuron_costs_are_as_stated(base())
    if method == "law_size" and "atoms" in vars(base):
        return  # the default follows from it

    class Unstated(base):
        def mean_cost(self, event, batch):
            return (
                gradest.Neuron.mean_cost(self, event, batch)
                if method == "mean_cost"
                else super().mean_cost(event, batch)
            )

        def law_size(self, a):
            return a.numel() if method == "law_size" else super().law_size(a)

    with pytest.raises(AssertionError, match=f"override {method}"):
        checks.neuron_costs_are_as_stated(Unstated())


def test_the_size_of_a_law_is_known_before_it_runs():
    """Also where the largest pre-activation decides, and for sizes that no machine could hold."""
    poisson = gradest.neuron("poisson")
    for rate in (-3.0, 5.0, 400.0):
        a = torch.tensor([[rate, -1.0], [0.0, 1.0]])
        assert poisson.law_size(a) == poisson.law(a)[0].numel()
    assert poisson.law_size(torch.zeros(0, 3)) == 0
    huge = torch.zeros(1).expand(10**9, 10**6)
    assert gradest.neuron("bernoulli").law_size(huge) == 2 * 10**15
    assert gradest.neuron("binary_concrete").law_size(huge) >= 50 * 10**15
    assert gradest.neuron("plackett_luce").atoms((1, 10**7)) >= 10**30
