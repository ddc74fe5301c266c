"""Every pair of an estimator and a neuron, with all example options, on eight losses, against sums over all outputs."""

from __future__ import annotations

import pytest

import gradest
from gradest.random import Key
from tests.estimation import audit, audit_truth

PAIRS = audit.pairs()

QUICK = [  # one estimator of each kind
    ("bernoulli", "disarm", ["parity", "offset"]),
    ("bernoulli", "nvil", ["network"]),
    ("bernoulli", {"name": "straight_through", "derivative": "sigmoid"}, ["linear"]),
    ("bipolar", "rebar", ["rows"]),
    ("categorical", "unordered_set", ["saturating"]),
    ("binomial", "vimco", ["interaction"]),
    ("poisson", "rloo", ["rows"]),
    ("noisy_sigmoid", "pathwise", ["quadratic"]),
    ("stochastic_times_smooth", "pathwise_score", ["network"]),
]


def expect_as_promised(findings: list[audit.Finding]) -> None:
    """Check what the claims promise, and that a wrong sign or factor would have shown."""
    promised = [finding for finding in findings if finding.promised]
    wrong = [str(finding) for finding in promised if finding.z > audit.Z_BOUND]
    assert not wrong, "\n".join(["a promise of no bias is not kept:", *wrong])
    weak = [str(finding) for finding in promised if finding.of == "a" and finding.signal < audit.LEAST_SIGNAL]
    assert not weak, "\n".join(["too little signal to see a wrong factor:", *weak])


@pytest.mark.parametrize(("neuron", "estimator", "losses"), QUICK)
def test_a_pair_of_each_kind(neuron, estimator, losses):
    findings = list(audit.audit(gradest.neuron(neuron), [gradest.estimator(estimator)], losses))
    assert all(finding.promised for finding in findings)
    expect_as_promised(findings)


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("label", PAIRS)
def test_every_pair_on_eight_losses(label):
    neuron, estimators = PAIRS[label]
    findings = list(audit.audit(neuron, estimators))
    assert {(finding.estimator, finding.loss) for finding in findings} == {
        (estimator.label(), loss) for estimator in estimators for loss in audit.losses_for(neuron)
    }
    expect_as_promised(findings)


def test_all_that_fits_is_audited():
    fitting = {(neuron.name, name) for neuron, _ in PAIRS.values() for name in gradest.registry.fitting(neuron)}
    assert fitting == {
        (neuron.name, estimator.name) for neuron, estimators in PAIRS.values() for estimator in estimators
    }
    assert {neuron for neuron, _ in fitting} == set(gradest.registry.neurons)


@pytest.mark.parametrize("factor", [-1.0, 0.5, 2.0])
@pytest.mark.parametrize(
    ("neuron", "estimator", "loss"), [("bernoulli", "rloo", "parity"), ("poisson", "nvil", "offset")]
)
def test_a_wrong_sign_or_factor_is_seen(neuron, estimator, loss, factor, monkeypatch):
    given = gradest.estimator(estimator)
    right = type(given).backward

    def backward(self, draw, feedback, state):
        gradient, state = right(self, draw, feedback, state)
        return factor * gradient, state

    monkeypatch.setattr(type(given), "backward", backward)
    with pytest.raises(AssertionError, match="not kept"):
        expect_as_promised(list(audit.audit(gradest.neuron(neuron), [given], [loss])))


@pytest.mark.parametrize("label", PAIRS)
def test_the_laws_are_those_of_the_samples(label):
    """E[h] and E[h²] of each unit, within 6 standard errors: 200 numbers, so a false alarm is one in two million."""
    neuron, _ = PAIRS[label]
    a, draws = audit_truth.pre_activations(neuron), 1 << 14
    values, weights = audit_truth.law(neuron, a.double())
    weights = weights[(..., *[None] * (values.ndim - weights.ndim))]
    h = neuron.sample(Key(5), a, draws).double()
    for power in (1, 2):
        wanted = (weights * values**power).sum(0)
        gap = (h**power).mean(0) - wanted
        error = (h**power).std(0) / draws**0.5
        assert bool((gap.abs() <= 6 * error + 1e-4 * wanted.abs() + 1e-6).all())
