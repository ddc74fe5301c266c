from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from gradest.contract.neuron import keeps_event
from gradest.discovery.registry import registry
from gradest.errors import InvalidInput, InvalidOptions, TooManyPoints
from gradest.nn import Expectation, Stochastic
from gradest_experiments.gated.network import GatedNetwork, needs_closed_gate_gradient, threshold_for_share
from gradest_experiments.gated.sparsity import L1Penalty, Penalty, build_penalty
from tests.selection import fitting_pairs, fitting_pairs_others_deep


def build(neuron="bernoulli", estimator="straight_through", *, event=(4,), penalty=None, seed=0, **options):
    torch.manual_seed(seed)
    pair = registry.neuron(neuron), registry.estimator(estimator)
    return GatedNetwork(6, 3, *pair, hidden=5, event=event, penalty=penalty or Penalty(), **options)


def minibatch(rows=7):
    return torch.rand(rows, 6), torch.arange(rows) % 3


@pytest.mark.parametrize(("k", "experts"), [(4, 6), (4, 4), (2, 3)])
def test_gates_that_choose_more_items_than_an_example_has(k, experts):
    gates = {"name": "k_subset", "k": k}
    assert isinstance(build(gates, "enumeration", event=(1, experts)).unit, Expectation)
    assert isinstance(build(gates, "reinforce", event=(1, experts)).unit, Stochastic)
    with pytest.raises(InvalidInput, match=rf"k={k}\) .* the shape \[1, {k - 1}\] "):
        build(gates, "enumeration", event=(1, k - 1))


def test_gates_have_one_pre_activation_each():
    with pytest.raises(InvalidOptions, match="cannot be gates"):
        build("diagonal_gaussian", "pathwise", event=(4, 2))


@pytest.mark.parametrize(("neuron", "estimator"), fitting_pairs_others_deep(keeps_event))
def test_every_fitting_pair_trains(neuron, estimator):
    event = (4,) if registry.neuron(neuron).event_ndim == 1 else (2, 3)
    network = build(neuron, estimator, event=event)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in network.named_parameters()}
    for _ in range(3):
        objective = network.objective(*minibatch(100))
        optimizer.zero_grad()
        objective.total.backward()
        optimizer.step()
        assert torch.isfinite(objective.total)
        assert 0 <= float(objective.open_share) <= 1
    for name, value in network.named_parameters():
        assert torch.isfinite(value).all(), name
        assert not torch.equal(value, before[name]), f"{name} has not moved"
    logits, gates = network.eval()(minibatch()[0])
    assert logits.shape == (7, 3)
    assert gates.shape == (7, math.prod(event))


@pytest.mark.parametrize(
    ("estimator", "layer"),
    [("straight_through", Stochastic), ("reinforce_centered", Stochastic), ("rloo", Expectation)],
)
def test_the_layer_follows_from_how_many_points_the_estimator_asks_for(estimator, layer):
    assert type(build(estimator=estimator).unit) is layer


def test_the_exact_estimator_gives_the_exact_gradient():
    """Enumeration sums over all gates, so the network's gradient must be that of the expected loss, which is computed here."""
    network = build(estimator="enumeration").double()
    x, y = (minibatch()[0].double(), minibatch()[1])
    network.objective(x, y).total.backward()
    found = [weights.grad.clone() for weights in network.parameters()]
    network.zero_grad()
    p = torch.sigmoid(network.gater(x))
    expected = 0.0
    for code in range(16):
        gates = torch.tensor([code >> i & 1 for i in range(4)], dtype=torch.float64)
        weight = torch.where(gates == 1, p, 1 - p).prod(-1)
        logits = network.readout(gates * network.experts(x))
        expected = expected + (weight * cross_entropy(logits, y, reduction="none")).mean()
    expected.backward()
    for (name, weights), gradient in zip(network.named_parameters(), found, strict=True):
        torch.testing.assert_close(gradient, weights.grad, rtol=1e-6, atol=1e-9, msg=name)


def test_l1_reaches_the_gater_through_an_estimator_that_sees_the_loss_alone():
    """If the experts are 0, only the penalty depends on the gates, and enumeration gives its exact gradient."""
    network = build(estimator="enumeration", penalty=L1Penalty(0.1, start=0.01)).double()
    torch.nn.init.zeros_(network.experts.weight)
    x, y = (minibatch()[0].double(), minibatch()[1])
    network.objective(x, y).total.backward()
    p = torch.sigmoid(network.gater(x).detach())
    torch.testing.assert_close(network.gater[2].bias.grad, 0.01 * (p * (1 - p)).mean(0), rtol=1e-6, atol=1e-12)


def test_the_objective_is_the_mean_loss_and_the_penalty_of_the_probabilities():
    penalty = build_penalty("kl", 0.1, 0.5, 0.1)
    network = build("sigmoid", "pathwise", penalty=penalty)
    x, y = minibatch()
    objective = network.objective(x, y)
    gates = torch.sigmoid(network.gater(x))
    loss = cross_entropy(network.readout(gates * network.experts(x)), y)
    torch.testing.assert_close(objective.loss, loss.detach())
    torch.testing.assert_close(objective.total, loss + penalty.of_probability(torch.ones(7, 4)))
    assert float(objective.open_share) == 1


def test_weights_start_within_their_bounds():
    torch.manual_seed(0)
    pair = registry.neuron("bernoulli"), registry.estimator("straight_through")
    network = GatedNetwork(60, 10, *pair, hidden=40, event=(200,), penalty=Penalty())
    for layer, factor in ((network.gater[0], 1), (network.gater[2], 4), (network.experts, 1), (network.readout, 1)):
        bound = factor * math.sqrt(6 / (layer.in_features + layer.out_features))
        largest = float(layer.weight.detach().abs().max())
        assert 0.97 * bound < largest <= bound
        assert torch.equal(layer.bias, torch.zeros_like(layer.bias))


def test_calibration_opens_the_share_that_is_wanted():
    network = build(event=(50,), evaluation="threshold").eval()
    x = torch.rand(40, 6)
    for share in (0.1, 0.25, 0.9):
        network.calibrate(x, share)
        _, gates = network(x)
        assert float(gates.mean()) == pytest.approx(share, abs=1 / 2000)


@pytest.mark.parametrize(
    ("probability", "share", "opened"),
    [
        ([0.1, 0.4, 0.2, 0.3], 0.5, [0, 1, 0, 1]),
        ([1.0, 1.0, 0.0, 0.0], 0.25, [0, 0, 0, 0]),  # 2 or none may open; both are one off, and fewer is chosen
        ([1.0, 1.0, 1.0, 0.5], 0.5, [1, 1, 1, 0]),  # a level of 1 would close all
        ([0.5, 0.5], 1.0, [1, 1]),
        ([0.3], 0.9, [1]),
        ([0.3], 0.1, [0]),
    ],
)
def test_the_level_comes_nearest_to_the_share(probability, share, opened):
    probability = torch.tensor(probability)
    assert (probability > threshold_for_share(probability, share)).int().tolist() == opened


def test_the_level_of_nothing_is_a_level():
    assert float(threshold_for_share(torch.zeros(0), 0.1)) == 1


def test_evaluation_is_deterministic_unless_it_samples():
    x = minibatch()[0]
    for estimator in ("straight_through", "rloo"):
        for evaluation, same in (("mean", True), ("threshold", True), ("sample", False)):
            network = build(estimator=estimator, event=(50,), evaluation=evaluation).eval()
            assert torch.equal(network(x)[0], network(x)[0]) is same


def test_forward_in_training_is_refused():
    with pytest.raises(RuntimeError, match="call eval"):
        build()(minibatch()[0])


def test_more_gates_than_can_be_enumerated_are_refused_before_training():
    with pytest.raises(TooManyPoints):
        build(estimator="enumeration", event=(30,))


def test_an_event_of_the_wrong_rank_is_refused():
    with pytest.raises(InvalidOptions, match="events of 1 dim"):
        build(event=(2, 2))


def learn(network, x, y, steps=4):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        network.objective(x, y).total.backward()
        optimizer.step()


@pytest.mark.parametrize(("neuron", "estimator"), fitting_pairs_others_deep(keeps_event))
def test_experts_that_skip_give_the_same_network(neuron, estimator):
    event = (4,) if registry.neuron(neuron).event_ndim == 1 else (2, 2)
    x, y = minibatch(20)
    networks = []
    for sparse in (False, True):
        network = build(neuron, estimator, event=event, sparse_experts=sparse).double()
        network.experts.method = "sparse" if sparse else "dense"  # however many gates are open
        torch.manual_seed(1)
        learn(network, x.double(), y, steps=2)
        networks.append(network)
    for one, two in zip(*(network.parameters() for network in networks), strict=True):
        torch.testing.assert_close(one, two)


def test_closed_gates_are_looked_at_by_what_passes_a_gradient_through_a_choice():
    found = {}
    for neuron, estimator in fitting_pairs(keeps_event):
        found[neuron, estimator] = needs_closed_gate_gradient(registry.neuron(neuron), registry.estimator(estimator))
    assert found["bernoulli", "straight_through"]
    assert found["categorical", "straight_through"]
    for pair in (
        *[("bernoulli", "reinforce_centered"), ("bernoulli", "rloo"), ("rectifier", "pathwise")],
        *[("noisy_rectifier", "pathwise"), ("stochastic_times_smooth", "held_noise")],
    ):
        assert not found[pair], pair


@pytest.mark.parametrize(("estimator", "forward"), [("reinforce_centered", False), ("straight_through", True)])
def test_only_estimators_that_look_at_closed_gates_compute_them(estimator, forward):
    network = build(estimator=estimator, event=(50,), sparse_experts=True)
    torch.nn.init.constant_(network.gater[2].bias, -3.0)
    network.objective(*minibatch()).total.backward()
    computed = network.experts.computed
    assert computed.of == 2 * 7 * 50 * 6  # forward, and with respect to the weights
    share = computed.share - 0.5 * forward
    assert 0 < share < 0.25


def test_experts_are_dense_where_most_gates_are_open():
    network = build("sigmoid", "pathwise", event=(50,), sparse_experts=True)
    network.objective(*minibatch()).total.backward()
    assert network.experts.computed.share == 1
