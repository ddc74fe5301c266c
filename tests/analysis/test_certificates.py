"""Certificates: what they hold, that those on file were made with the present code, and that a wrong estimator gets faults."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import gradest
import gradest_estimators
from gradest.analysis import certificates
from gradest.analysis.bias import LOGIT_REGIMES, LOSSES, measure_signal
from gradest.analysis.results import relative_error
from gradest_estimators.rloo import Rloo
from gradest_estimators.straight_through import StraightThrough
from gradest_neurons.bernoulli import Bernoulli

ROOT = Path(__file__).parents[2]
RUN = "run `gradest certify --out docs/results`"
KEPT = certificates.from_json((Path(gradest_estimators.__file__).parent / certificates.CERTIFICATES_FILE).read_text())
NEURONS = [cls() for cls in gradest.registry.neurons.values()]
DEFAULTS = [
    (estimator, neuron)
    for estimator in (cls() for cls in gradest.registry.estimators.values())
    for neuron in NEURONS
    if estimator.accepts(neuron)
]


def of(estimator, neuron):
    (found,) = [found for found in KEPT if (found.estimator, found.neuron) == (estimator, neuron)]
    return found


def test_every_estimator_has_one_on_every_neuron_that_it_fits():
    assert [(found.estimator, found.neuron) for found in KEPT] == [(e.name, n.name) for e, n in DEFAULTS]
    for found in KEPT:
        assert [(r.logits, r.loss) for r in found.records] == [
            (logits, loss) for logits in LOGIT_REGIMES for loss in LOSSES
        ]


def test_none_has_a_fault():
    assert {(found.estimator, found.neuron): found.faults for found in KEPT if found.faults} == {}


@pytest.mark.parametrize("pair", DEFAULTS, ids=lambda pair: "-".join(plugin.name for plugin in pair))
def test_the_kept_ones_are_of_this_code(pair):
    estimator, neuron = pair
    assert certificates.is_current(of(estimator.name, neuron.name), estimator, neuron), RUN


def test_the_table_is_of_the_kept_ones():
    assert (ROOT / "docs/results/certificates.md").read_text() == certificates.to_markdown(KEPT), RUN


@pytest.mark.deep
@pytest.mark.parametrize(
    ("estimator", "neuron"),
    [("rloo", "bernoulli"), ("reinmax", "categorical"), ("held_noise", "stochastic_times_smooth")],
)
def test_measuring_again_gives_the_kept_figures(estimator, neuron):
    now = certificates.certify(gradest.estimator(estimator), gradest.neuron(neuron))
    for new, old in zip(now.records, of(estimator, neuron).records, strict=True):
        assert (new.loss, new.logits, new.promised, new.draws) == (old.loss, old.logits, old.promised, old.draws)
        for name in ("gradient", "variance", "noise", "signal", "cosine"):
            assert getattr(new, name) == pytest.approx(getattr(old, name), rel=2e-3, abs=1e-6)
        assert new.bias == pytest.approx(old.bias, abs=0.1 * old.standard_error + 1e-3 * old.gradient)


class Flipped(Rloo):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return -gradient, state


class Scaled(Rloo):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return 1.05 * gradient, state


class Modest(Rloo):
    def bias(self, neuron):
        return gradest.Bias.BIASED


def test_code_that_changed_is_seen():
    found, neuron = of("rloo", "bernoulli"), Bernoulli()
    assert certificates.is_current(found, Rloo(), neuron)
    for changed in (Flipped(), Scaled(), Modest(), Rloo(samples=3)):
        assert not certificates.is_current(found, changed, neuron)


def test_a_wrong_estimator_gets_faults():
    assert any("standard errors off" in fault for fault in certificates.certify(Flipped(), Bernoulli()).faults)


def test_a_claim_of_bias_must_show():
    found = of("rloo", "bernoulli")
    modest = replace(found, claim="biased", records=tuple(replace(r, promised=False) for r in found.records))
    assert modest.faults == ("claims bias biased, but no loss shows any",)
    assert of("straight_through", "bernoulli").faults == ()


def test_events_whose_enumeration_is_refused_have_no_signal():
    """Eight units of six outputs; it raised TooManyPoints, and no certificate of the pair could be measured."""
    enumeration = gradest.estimator("enumeration")
    assert not list(measure_signal(enumeration, gradest.neuron("plackett_luce")))
    assert len(list(measure_signal(enumeration, gradest.neuron("bernoulli")))) == len(LOSSES)


def test_progress_counts_every_measurement():
    seen = []
    certificates.certify(gradest.estimator("enumeration"), Bernoulli(), lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)]


def test_the_file_is_read_as_it_was_written():
    text = certificates.to_json(KEPT)
    assert certificates.from_json(text) == KEPT
    json.loads(text, parse_constant=lambda constant: pytest.fail(f"{constant} is no JSON"))


def test_load_certificates_reads_the_file_of_the_package():
    assert certificates.load_certificates(Rloo) == tuple(found for found in KEPT if found.estimator == "rloo")


def test_a_class_of_no_package_has_none():
    class Local(StraightThrough):
        pass

    Local.__module__ = "__main__"
    assert certificates.load_certificates(Local) == ()


def test_relative_error_is_that_of_the_best_multiple():
    """Against a least-squares fit of a factor over sampled estimates."""
    generator = torch.Generator().manual_seed(0)
    exact, mean = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.8, -1.0, 1.5]).double()
    noise = torch.tensor([0.3, 0.5, 0.2]).double()
    estimates = mean + noise * torch.randn(400_000, 3, generator=generator, dtype=torch.float64)
    factor = (estimates @ exact).mean() / estimates.square().sum(-1).mean()
    wanted = float((factor * estimates - exact).square().sum(-1).mean().sqrt() / exact.norm())
    cosine = float(mean @ exact / mean.norm() / exact.norm())
    snr = float(mean.norm() / noise.norm())
    assert relative_error(cosine, snr, 1) == pytest.approx(wanted, abs=2e-3)
    assert relative_error(cosine, snr, 4) < relative_error(cosine, snr, 1)
    assert relative_error(1.0, math.inf, 1) == 0
    assert relative_error(math.nan, 1.0, 1) == 1


def test_the_summary_is_sorted_by_signal():
    table = certificates.to_markdown(KEPT).split("### bernoulli\n")[1].split("###")[0]
    names = [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("| ")][2:]
    signals = [of(name, "bernoulli").squared_snr_per_evaluation("moderate") for name in names]
    assert signals == sorted(signals, reverse=True)
    assert len(names) > 20
