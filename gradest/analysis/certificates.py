"""Certificates: the measured bias and variance of an estimator, kept in a file of the plugin's package.

`certify` measures. A package keeps the certificates of its estimators, and those of other estimators on its neurons, in a file
named CERTIFICATES_FILE, which `gradest certify` writes and `load_certificates` reads. A plugin that is a single module keeps
them beside it, in my_plugin.certificates.json. Built-in plugins and those of others do this alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from gradest.analysis.bias import (
    LOGIT_REGIMES,
    LOSSES,
    MORE_UNITS,
    SIGNIFICANCE_SE,
    UNITS,
    BiasRecord,
    SignalRecord,
    measure_bias,
    measure_signal,
    measurement_event_shape,
    network_loss,
    pre_activations,
)
from gradest.analysis.markdown import table
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.plugin import Plugin
from gradest.discovery.faults import name_of_class, read_attribute
from gradest.discovery.registry import registry
from gradest.estimation.estimate import estimate
from gradest.random import VERSION

__all__ = [
    "CERTIFICATES_FILE",
    "Certificate",
    "certificates_path",
    "certify",
    "from_json",
    "is_current",
    "label_of",
    "load_certificates",
    "options_of",
    "package_of",
    "to_json",
    "to_markdown",
]

CERTIFICATES_FILE = "certificates.json"
"""The name of the file with the certificates, in the package of the plugin."""


@dataclass(frozen=True)
class Certificate:
    """The claim and the measurements of one estimator on one neuron."""

    estimator: str
    """The estimator's name."""
    neuron: str
    """The neuron's name."""
    claim: str
    """The bias that the estimator claims, such as "none" or "biased"."""
    target: str
    """The expectation whose gradient the estimator estimates, such as "E[L]"."""
    needs: tuple[str, ...]
    """What the caller must compute: "loss", "grad" or both."""
    evaluations: int
    """K, the number of points at which one draw evaluates the loss, for an event of two units."""
    probe: tuple[float, ...]
    """Weighted sums of the mean and variance of 64 draws, by which `is_current` recognises the code that was measured."""
    records: tuple[BiasRecord, ...]
    """The measurements, one for each loss in each regime of pre-activations, on events of UNITS units."""
    signals: tuple[SignalRecord, ...]
    """Direction and noise on events of MORE_UNITS units, as far as `measure_signal` can measure them."""
    options: dict[str, Any] = field(default_factory=dict)
    """The estimator's options that are not the defaults, in their JSON form."""
    neuron_options: dict[str, Any] = field(default_factory=dict)
    """Those of the neuron."""
    noise: int = 1
    """The version of the noise with which it was measured, `gradest.random.VERSION`; the law of the estimator is that of any."""

    @property
    def labels(self) -> tuple[str, str]:
        """The labels of the estimator and the neuron, with their options, as `Plugin.label` writes them."""
        return label_of(self.estimator, self.options), label_of(self.neuron, self.neuron_options)

    @property
    def faults(self) -> tuple[str, ...]:
        """Where the measurements contradict the claim, in words; empty for a correct estimator.

        A claim is contradicted by a significant bias on a loss for which it promises none. A claim that does not promise an
        unbiased estimate for every loss is also contradicted if no loss shows a bias.
        """
        contradictions = [
            f"claims bias {self.claim}, but {record}" for record in self.records if record.contradicts_claim
        ]
        seen = any(not record.agrees_with_exact for record in self.records)
        if all(record.promised for record in self.records) or seen:
            return tuple(contradictions)
        return (*contradictions, f"claims bias {self.claim}, but no loss shows any")

    def squared_snr_per_evaluation(self, logits: str) -> float:
        """Return SNR² / K, the squared signal-to-noise ratio that one evaluation buys: the harmonic mean over losses.

        logits: a key of LOGIT_REGIMES. The result is infinite for an estimator without variance, and 0 if a mean gradient is 0.
        """
        noise = [record.snr**-2 if record.snr else math.inf for record in self.records_at(logits)]
        mean = sum(noise) * self.evaluations / len(noise)
        return 1 / mean if mean else math.inf

    @property
    def units(self) -> tuple[int, ...]:
        """The numbers of units of the events on which noise was measured, increasing."""
        return tuple(sorted({record.units for record in (*self.records, *self.signals)}))

    def error(self, logits: str, draws: float, units: int = UNITS) -> float:
        """Return the relative error of the mean of so many draws, between 0 and 1, averaged over losses.

        logits: a key of LOGIT_REGIMES. units: one of `units`.
        """
        measured = (record for record in (*self.records, *self.signals) if record.units == units)
        errors = [record.error(draws) for record in measured if record.logits == logits]
        return sum(errors) / len(errors)

    def records_at(self, logits: str) -> tuple[BiasRecord, ...]:
        """Return the records of one regime, a key of LOGIT_REGIMES."""
        return tuple(record for record in self.records if record.logits == logits)

    def to_dict(self) -> dict[str, Any]:
        """Return the certificate as a dict that can be written as JSON, its records rounded to four significant digits."""
        return {
            **asdict(self),
            "needs": list(self.needs),
            "probe": list(self.probe),
            "records": [_round_floats(asdict(record)) for record in self.records],
            "signals": [_round_floats(asdict(record)) for record in self.signals],
        }


def label_of(name: str, options: Mapping[str, Any]) -> str:
    """Return the label of a plugin with these options."""
    return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})" if options else name


def options_of(plugin: Plugin) -> dict[str, Any]:
    """Return the options that were given, in their JSON form. Raises PluginFault if the code of the plugin fails."""
    return {key: value for key, value in registry.call(plugin, "spec", kind=dict).items() if key != "name"}


def certify(estimator: Estimator, neuron: Neuron, progress: Callable[[int, int], None] | None = None) -> Certificate:
    """Measure the bias and variance of an estimator on a neuron, on four losses at moderate and at saturated logits.

    Bias is measured on events of UNITS units, and noise and direction on those of MORE_UNITS units too.

    progress: progress(done, measurements) is called after each of the eight measurements of bias.

    Raises what `measure_bias` raises.
    """
    records: list[BiasRecord] = []
    signals = [record for logits in LOGIT_REGIMES for record in measure_signal(estimator, neuron, logits)]
    for logits in LOGIT_REGIMES:
        for record in measure_bias(estimator, neuron, logits):
            records.append(record)
            if progress:
                progress(len(records), len(LOGIT_REGIMES) * len(LOSSES))
    return Certificate(
        **_declared_properties(estimator, neuron),
        probe=_measure_probe(estimator, neuron),
        records=tuple(records),
        signals=tuple(signals),
        noise=VERSION,
    )


def is_current(certificate: Certificate, estimator: Estimator, neuron: Neuron) -> bool:
    """Return whether a certificate was made with the present code of the estimator and the neuron.

    The claim, the needs, the target and K must be the same, and so must the gradients of 64 draws up to rounding.
    """
    declared = _declared_properties(estimator, neuron)
    if any(getattr(certificate, name) != value for name, value in declared.items()):
        return False
    now = _measure_probe(estimator, neuron)
    pairs = zip(now, certificate.probe, strict=True)
    # The tolerance allows for the rounding of another processor.
    return all(math.isclose(new, old, rel_tol=1e-3, abs_tol=1e-6) for new, old in pairs)


def _declared_properties(estimator: Estimator, neuron: Neuron) -> dict[str, Any]:
    return {
        "estimator": estimator.name,
        "neuron": neuron.name,
        "options": options_of(estimator),
        "neuron_options": options_of(neuron),
        "claim": str(estimator.bias(neuron)),
        "target": str(estimator.target()),
        "needs": tuple(sorted(estimator.needs, reverse=True)),
        "evaluations": estimator.evaluations(neuron, measurement_event_shape(neuron)),
    }


def _measure_probe(estimator: Estimator, neuron: Neuron) -> tuple[float, ...]:
    """Weighted sums of the mean and the variance of 64 draws in each regime, to six significant digits."""
    figures = []
    for logits in LOGIT_REGIMES:
        a = pre_activations(neuron, logits)
        found = estimate(network_loss(neuron), a, neuron, estimator, 64, 5, warm_up=3)
        weights = torch.arange(1.0, a.numel() + 1).cos().double().reshape(a.shape)
        figures += [float((weights * x.double()).sum()) for x in (found.gradient, found.variance)]
    return tuple(float(f"{figure:.6g}") for figure in figures)


def to_json(certificates: Iterable[Certificate]) -> str:
    """Return the text of a CERTIFICATES_FILE: JSON with a line for each certificate, so that a diff shows which changed."""
    lines = ",\n".join(json.dumps(certificate.to_dict()) for certificate in certificates)
    return f"[\n{lines}\n]\n"


def from_json(text: str) -> tuple[Certificate, ...]:
    """Return the certificates in the text of a CERTIFICATES_FILE, as `to_json` writes it.

    Raises ValueError, TypeError or KeyError for a text of another form.
    """
    return tuple(
        Certificate(
            **{
                **found,
                "needs": tuple(found["needs"]),
                "probe": tuple(found["probe"]),
                "records": tuple(BiasRecord(**record) for record in found["records"]),
                "signals": tuple(SignalRecord(**record) for record in found["signals"]),
            }
        )
        for found in json.loads(text)
    )


def package_of(cls: type[Plugin]) -> str:
    """Return the name of the top-level package, or of the single module, that defines the class."""
    return str(read_attribute(cls, "__module__")).partition(".")[0]


def certificates_path(package: str) -> Path:
    """Return where a package keeps its certificates; for a single module, beside it.

    Raises ImportError if it cannot be imported, AttributeError if it is not a file.
    """
    module = import_module(package)
    if hasattr(module, "__path__"):
        return Path(str(files(module).joinpath(CERTIFICATES_FILE)))
    if not module.__file__:
        raise AttributeError(f"{package} is not a file")
    return Path(module.__file__).with_name(f"{package}.{CERTIFICATES_FILE}")


def load_certificates(estimator: type[Estimator], neuron: type[Neuron] | None = None) -> tuple[Certificate, ...]:
    """Return the certificates of an estimator, one for each neuron and set of options, from the file of its package.

    neuron: only those on this neuron, also from the neuron's package. There are none if a package has no file of certificates, or
    it cannot be read.
    """
    packages = dict.fromkeys(package_of(cls) for cls in (estimator, neuron) if cls is not None)
    found = [one for package in packages for one in _load_package(package) if one.estimator == name_of_class(estimator)]
    return tuple(one for one in found if neuron is None or one.neuron == name_of_class(neuron))


@lru_cache
def _load_package(package: str) -> tuple[Certificate, ...]:
    try:
        return from_json(certificates_path(package).read_text(encoding="utf-8"))
    except (OSError, ImportError, AttributeError, TypeError, ValueError, KeyError):
        # There is no file, the class is from a notebook, or the file has another form.
        return ()


# --- the Markdown table ---


_INTRODUCTION = f"""\
# Certificates

For each estimator, its claim about its bias and the bias and variance that were measured, on two rows of two units. Options are
the defaults, unless a name has others in parentheses. `gradest certify` writes this file, and anyone can run it again; a test
fails if the file does not match the code.

Each estimator is measured on four losses, a linear, a quadratic and a cubic one and a small network, at moderate logits
(probabilities from 0.3 to 0.8) and at saturated ones (probabilities within 0.03 of 0 or 1). The mean of many draws is compared
with the exact gradient, which comes from enumeration, or from quadrature for units with continuous output. A bias of more than
{SIGNIFICANCE_SE:g} standard errors is printed in **bold**. Where the claim excludes a bias, a bold number would
contradict it, and `gradest certify` fails. The losses are continuous, which the claim "none for continuous losses" requires.
The file of certificates states for each the version of the noise; the law of an estimator is the same under all.
"""
_SIGNAL = f"""\
## Signal of one evaluation

The columns for moderate and saturated logits give |mean|² / (variance · K), the squared signal-to-noise ratio per evaluation of
the loss, as the harmonic mean over the four losses. This figure does not show bias; the claim and the cosine do. The cosine is
that of the angle between the mean of the draws and the exact gradient, and the smallest over all losses and logits is given.
Estimators that learn had taken 100 steps at the pre-activations of the measurement. The order for events of more units often
differs: certificates.json also has figures for {MORE_UNITS} units, and `gradest recommend` uses those nearest to the case.
"""
_SECTIONS = """\
## Bias and variance

The bias is the largest difference between a coordinate of the mean and of the exact gradient, ± its standard error, in % of the
gradient's largest coordinate (or without a unit, if the gradient is 0). The variance is that of one draw, averaged over
coordinates, times K."""


def to_markdown(certificates: Sequence[Certificate]) -> str:
    """A summary, best first for each neuron, and then a section for each estimator."""
    return "\n".join([_INTRODUCTION, *_summary(certificates), *_sections(certificates), ""])


def _summary(certificates: Sequence[Certificate]) -> Iterator[str]:
    yield _SIGNAL
    head = ["estimator", "needs", "claimed bias", "K", "moderate logits", "saturated logits", "cosine"]
    by_neuron = sorted(certificates, key=lambda found: (found.labels[1], -found.squared_snr_per_evaluation("moderate")))
    for neuron, group in groupby(by_neuron, key=lambda found: found.labels[1]):
        rows = (
            [
                *[found.labels[0], ", ".join(found.needs), found.claim, found.evaluations],
                *(_number(found.squared_snr_per_evaluation(logits)) for logits in LOGIT_REGIMES),
                f"{min(record.cosine for record in found.records):.2f}",
            ]
            for found in group
        )
        yield f"### {neuron}\n"
        yield table(head, rows, align="lllrrrr") + "\n"


def _sections(certificates: Sequence[Certificate]) -> Iterator[str]:
    yield _SECTIONS
    measured = [f"{figure}, {loss}" for figure in ("bias", "var·K") for loss in LOSSES]
    for estimator, group in groupby(certificates, key=lambda found: found.labels[0]):
        rows = (
            [
                *[found.labels[1], found.claim, logits],
                *(_bias(record) for record in found.records_at(logits)),
                *(_number(record.variance * found.evaluations) for record in found.records_at(logits)),
            ]
            for found in group
            for logits in LOGIT_REGIMES
        )
        yield f"\n### {estimator}\n"
        yield table(["neuron", "claimed bias", "logits", *measured], rows, align="lll" + "r" * len(measured))


def _bias(record: BiasRecord) -> str:
    scale, unit = (100 / record.gradient, " %") if record.gradient else (1.0, "")
    text = f"{_number(record.bias * scale)} ± {_number(record.standard_error * scale)}{unit}"
    return text if record.agrees_with_exact else f"**{text}**"


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.1e}"


def _round_floats(record: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in record.items()}
