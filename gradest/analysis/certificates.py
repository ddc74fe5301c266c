"""Certificates: what was measured of an estimator's bias and variance, kept in a file beside the plugin.

`certify` measures. A package that registers estimators keeps the outcome in a file CERTIFICATES_FILE of its own, written by
`gradest certify`, and `load_certificates` reads it, for built-in estimators and for anybody's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import groupby
from typing import Any

import torch

from gradest.analysis.bias import (
    LOGITS,
    LOSSES,
    SIGNIFICANCE_SE,
    BiasRecord,
    event_of,
    measure_bias,
    network,
    pre_activations,
)
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.estimation.estimate import estimate

__all__ = [
    "CERTIFICATES_FILE",
    "Certificate",
    "certify",
    "dump",
    "is_current",
    "load",
    "load_certificates",
    "to_markdown",
]

CERTIFICATES_FILE = "certificates.json"
"""Its name, in the package of the plugin."""


@dataclass(frozen=True)
class Certificate:
    """What is claimed, and what was measured, of an estimator on a neuron, both with their default options."""

    estimator: str
    neuron: str
    claim: str
    target: str
    needs: tuple[str, ...]
    evaluations: int
    """K, for an event of two units."""
    probe: tuple[float, ...]
    """A few figures of 64 draws, by which `is_current` knows the code that was measured."""
    records: tuple[BiasRecord, ...]
    """On each loss, at each kind of logits."""

    @property
    def faults(self) -> tuple[str, ...]:
        """In what the measurement contradicts the claim; none for a good estimator."""
        broken = [f"claims bias {self.claim}, but {record}" for record in self.records if record.broken]
        seen = any(not record.agrees for record in self.records)
        if all(record.promised for record in self.records) or seen:
            return tuple(broken)
        return (*broken, f"claims bias {self.claim}, but no loss shows any")

    def signal(self, logits: str) -> float:
        """SNR² / K, the squared signal-to-noise ratio of one evaluation: its harmonic mean over losses."""
        noise = [record.snr**-2 if record.snr else math.inf for record in self.at(logits)]
        mean = sum(noise) * self.evaluations / len(noise)
        return 1 / mean if mean else math.inf

    def error(self, logits: str, draws: float) -> float:
        """`BiasRecord.error` of the mean of so many draws: its mean over losses."""
        errors = [record.error(draws) for record in self.at(logits)]
        return sum(errors) / len(errors)

    def at(self, logits: str) -> tuple[BiasRecord, ...]:
        """The records at these logits."""
        return tuple(record for record in self.records if record.logits == logits)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with measured numbers to four digits."""
        return {
            **asdict(self),
            "needs": list(self.needs),
            "probe": list(self.probe),
            "records": [_rounded(asdict(record)) for record in self.records],
        }


def certify(estimator: Estimator, neuron: Neuron, progress: Callable[[int, int], None] | None = None) -> Certificate:
    """Measure the estimator on the neuron: four losses, moderate and saturated logits. progress(done, measurements)."""
    records: list[BiasRecord] = []
    for logits in LOGITS:
        for record in measure_bias(estimator, neuron, logits):
            records.append(record)
            if progress:
                progress(len(records), len(LOGITS) * len(LOSSES))
    return Certificate(**_stated(estimator, neuron), probe=_probe(estimator, neuron), records=tuple(records))


def is_current(certificate: Certificate, estimator: Estimator, neuron: Neuron) -> bool:
    """Whether it was made of this code: the same claim, needs, target and K, and the same gradients in a few draws."""
    stated = _stated(estimator, neuron)
    if any(getattr(certificate, name) != value for name, value in stated.items()):
        return False
    now = _probe(estimator, neuron)
    pairs = zip(now, certificate.probe, strict=True)
    # another processor rounds otherwise
    return all(math.isclose(new, old, rel_tol=1e-3, abs_tol=1e-6) for new, old in pairs)


def _stated(estimator: Estimator, neuron: Neuron) -> dict[str, Any]:
    return {
        "estimator": estimator.name,
        "neuron": neuron.name,
        "claim": str(estimator.bias(neuron)),
        "target": str(estimator.target()),
        "needs": tuple(sorted(estimator.needs, reverse=True)),
        "evaluations": estimator.evaluations(neuron, event_of(neuron)),
    }


def _probe(estimator: Estimator, neuron: Neuron) -> tuple[float, ...]:
    """Weighted sums of the mean and the variance of 64 draws."""
    figures = []
    for logits in LOGITS:
        a = pre_activations(neuron, logits)
        found = estimate(network(neuron), a, neuron, estimator, 64, 5, warm_up=3)
        weights = torch.arange(1.0, a.numel() + 1).cos().double().reshape(a.shape)
        figures += [float((weights * x.double()).sum()) for x in (found.gradient, found.variance)]
    return tuple(float(f"{figure:.6g}") for figure in figures)


def dump(certificates: Iterable[Certificate]) -> str:
    """The text of a CERTIFICATES_FILE: a line a certificate, so that a change shows as a line that changed."""
    lines = ",\n".join(json.dumps(certificate.to_dict()) for certificate in certificates)
    return f"[\n{lines}\n]\n"


def load(text: str) -> tuple[Certificate, ...]:
    """What `dump` wrote."""
    return tuple(
        Certificate(
            **{
                **found,
                "needs": tuple(found["needs"]),
                "probe": tuple(found["probe"]),
                "records": tuple(BiasRecord(**record) for record in found["records"]),
            }
        )
        for found in json.loads(text)
    )


def load_certificates(estimator: type[Estimator]) -> tuple[Certificate, ...]:
    """The certificates of this estimator, one a neuron, from its package's file; none where the package keeps none."""
    package = estimator.__module__.partition(".")[0]
    return tuple(found for found in _load_package(package) if found.estimator == estimator.name)


@lru_cache
def _load_package(package: str) -> tuple[Certificate, ...]:
    try:
        return load(files(package).joinpath(CERTIFICATES_FILE).read_text(encoding="utf-8"))
    except (OSError, ImportError, AttributeError, TypeError, ValueError, KeyError):
        return ()  # no file, no package (a notebook), a module that is no package, a file of another form


# --- the table for people ---


_INTRODUCTION = f"""\
# Certificates

What each estimator claims of its bias, and what was measured, with default options, on two rows of two units. `gradest certify`
writes this file, and anyone can run it again; a test fails where the file and the code have parted.

The losses are of degree 1, 2 and 3 in h, and a small network. Logits are moderate (probabilities from 0.3 to 0.8) or saturated
(within 0.03 of 0 or 1). The mean of the draws is held against the exact gradient, by enumeration, or by quadrature for units
with continuous output. **Bold** is a bias of more than {SIGNIFICANCE_SE:g}
standard errors; where a claim promises none there is no bold.
"""
_SIGNAL = """\
## Signal of one evaluation

|mean|² / (variance · K), the squared signal-to-noise ratio that one evaluation of the loss buys: the harmonic mean over the four
losses. It says nothing of bias, which the claim and the cosine do: the least one, over losses and logits, of the angle between
the mean and the exact gradient.
"""
_SECTIONS = """\
## Bias and variance

Bias: the largest difference of a coordinate from the exact gradient, ± its standard error, in % of the gradient's largest
coordinate (as it is, where the gradient is 0). Variance: of one draw, mean over coordinates, times K."""


def to_markdown(certificates: Sequence[Certificate]) -> str:
    """A summary, best first for each neuron, and then a section for each estimator."""
    return "\n".join([_INTRODUCTION, *_summary(certificates), *_sections(certificates), ""])


def _summary(certificates: Sequence[Certificate]) -> list[str]:
    lines = [_SIGNAL]
    by_neuron = sorted(certificates, key=lambda found: (found.neuron, -found.signal("moderate")))
    for neuron, group in groupby(by_neuron, key=lambda found: found.neuron):
        lines += [
            f"### {neuron}",
            "",
            "| estimator | needs | claimed bias | K | moderate logits | saturated logits | cosine |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: |",
        ]
        for found in group:
            cells = [found.estimator, ", ".join(found.needs), found.claim, found.evaluations]
            cosine = f"{min(record.cosine for record in found.records):.2f}"
            lines.append(_line([*cells, *(_number(found.signal(logits)) for logits in LOGITS), cosine]))
        lines.append("")
    return lines


def _sections(certificates: Sequence[Certificate]) -> Iterator[str]:
    yield _SECTIONS
    for estimator, group in groupby(certificates, key=lambda found: found.estimator):
        yield ""
        yield f"### {estimator}"
        yield ""
        yield _line(
            [
                "neuron",
                "claimed bias",
                "logits",
                *(f"bias, {loss}" for loss in LOSSES),
                *(f"var·K, {loss}" for loss in LOSSES),
            ]
        )
        yield _line(["---"] * 3 + ["---:"] * (2 * len(LOSSES)))
        for found in group:
            for logits in LOGITS:
                records = found.at(logits)
                cells = [found.neuron, found.claim, logits]
                variances = [_number(record.variance * found.evaluations) for record in records]
                yield _line([*cells, *(_bias(record) for record in records), *variances])


def _bias(record: BiasRecord) -> str:
    scale, unit = (100 / record.gradient, " %") if record.gradient else (1.0, "")
    text = f"{_number(record.bias * scale)} ± {_number(record.standard_error * scale)}{unit}"
    return text if record.agrees else f"**{text}**"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _number(value: float) -> str:
    if math.isinf(value):
        return "∞"
    return f"{value:.2g}" if value < 100 else f"{value:.0f}" if value < 1e5 else f"{value:.1e}"


def _rounded(record: dict[str, Any]) -> dict[str, Any]:
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in record.items()}
