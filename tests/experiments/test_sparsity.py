from __future__ import annotations

import math

import pytest
import torch

from gradest.contract.neuron import keeps_event
from gradest.discovery.registry import registry
from gradest_experiments.gated.sparsity import (
    KLPenalty,
    L1Penalty,
    Penalty,
    build_penalty,
    default_penalty,
    limit_norm,
    probe_points,
)


def test_kl_is_the_formula():
    p = torch.tensor([[0.2, 0.9], [0.4, 0.7]], dtype=torch.float64)
    s = 0.1
    by_hand = -0.5 * sum(s * math.log(q) + (1 - s) * math.log(1 - q) for q in (0.3, 0.8))
    assert float(KLPenalty(s, 0.5).of_probability(p)) == pytest.approx(by_hand, rel=1e-12)
    assert torch.equal(KLPenalty(s, 0.5).of_gates(p), torch.zeros(2, dtype=torch.float64))


def test_kl_is_least_at_the_target_and_pulls_towards_it():
    p = torch.tensor([[0.05, 0.1, 0.5]], dtype=torch.float64, requires_grad=True)
    KLPenalty(0.1, 1.0).of_probability(p).backward()
    below, at, above = p.grad[0].tolist()
    assert below < 0 < above
    assert at == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kl_stays_finite_where_gates_are_saturated(dtype):
    p = torch.tensor([[0.0, 1.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    loss = KLPenalty(0.1, 1.0).of_probability(p)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.equal(p.grad, torch.zeros_like(p))


def test_l1_is_the_formula():
    gates = torch.tensor([[1.0, -2.0, 0.0], [0.5, 0.0, 0.0]])
    penalty = L1Penalty(0.1, start=0.01)
    torch.testing.assert_close(penalty.of_gates(gates), torch.tensor([0.03, 0.005]))
    assert float(penalty.of_probability(gates.abs())) == 0


def test_l1_is_steered_by_a_tenth_outside_the_tolerance_and_not_at_all_inside():
    penalty = L1Penalty(0.1, start=1e-5)
    for share, coefficient in ((0.2, 1.1e-5), (0.109, 1.1e-5), (0.091, 1.1e-5), (0.0899, 0.99e-5), (0.1101, 1.089e-5)):
        penalty.steer(share)
        assert float(penalty.coefficient) == pytest.approx(coefficient, rel=1e-12)


def test_the_coefficient_of_l1_can_always_come_back():
    penalty = L1Penalty(0.1, start=1e-5)
    for share, limit in ((1.0, 1.0), (0.0, 1e-8)):
        for _ in range(1000):
            penalty.steer(share)
        assert float(penalty.coefficient) == limit
    penalty.steer(1.0)
    assert float(penalty.coefficient) > 1e-8


def test_the_coefficient_of_l1_is_saved():
    penalty, other = L1Penalty(0.1), L1Penalty(0.1)
    penalty.steer(1.0)
    other.load_state_dict(penalty.state_dict())
    assert torch.equal(other.coefficient, penalty.coefficient)


def test_no_penalty_is_zero():
    gates = torch.rand(3, 4)
    penalty = build_penalty("none", 0.1, 1.0, 0.1)
    penalty.steer(1.0)
    assert type(penalty) is Penalty
    assert torch.equal(penalty.of_gates(gates), torch.zeros(3))
    assert float(penalty.of_probability(gates)) == 0
    assert not penalty.state_dict()


def test_each_kind_is_built_with_its_options():
    kl, l1 = build_penalty("kl", 0.2, 0.5, 0.3), build_penalty("l1", 0.2, 0.5, 0.3)
    assert isinstance(kl, KLPenalty)
    assert (kl.target, kl.weight) == (0.2, 0.5)
    assert isinstance(l1, L1Penalty)
    assert (l1.target, float(l1.coefficient), l1.rate) == (0.2, 0.5, 0.3)


@pytest.mark.parametrize(
    ("neuron", "kind"),
    [
        ("bernoulli", "kl"),
        ("bipolar", "kl"),
        ("stochastic_times_smooth", "kl"),
        ("noisy_rectifier", "l1"),
        ({"name": "noisy_rectifier", "distribution": "gaussian", "std": 2.0}, "l1"),
        ("rectifier", "l1"),
        ("sigmoid", "none"),
        ("noisy_sigmoid", "none"),
    ],
)
def test_the_penalty_follows_from_what_the_neuron_does(neuron, kind):
    assert default_penalty(registry.neuron(neuron)) == kind


@pytest.mark.parametrize("name", sorted(name for name in registry.neurons if keeps_event(registry.neuron(name))))
def test_every_neuron_can_be_probed(name):
    neuron = registry.neuron(name)
    a = probe_points(neuron)
    assert a.ndim == 1 + neuron.event_ndim
    assert not (a == 0).any()
    assert default_penalty(neuron) in ("kl", "l1", "none")


def test_max_norm_scales_only_the_units_that_are_too_long():
    layer = torch.nn.Linear(2, 3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [1.0, 0.5], [0.0, 0.0]]))
    bias = layer.bias.clone()
    limit_norm(torch.nn.Sequential(layer, torch.nn.Tanh()), 2.0)
    torch.testing.assert_close(layer.weight.data, torch.tensor([[1.2, 1.6], [1.0, 0.5], [0.0, 0.0]]))
    assert torch.equal(layer.weight[1], torch.tensor([1.0, 0.5]))
    assert torch.equal(layer.bias, bias)


def test_max_norm_of_infinity_changes_nothing():
    layer = torch.nn.Linear(5, 4)
    before = layer.weight.clone()
    limit_norm(layer, math.inf)
    assert torch.equal(layer.weight, before)
