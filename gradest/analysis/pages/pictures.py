"""The pictures of the pages: outputs of a neuron against its pre-activation, and the measurements of certificates."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from gradest.analysis.bias import SIGNIFICANCE_SE, BiasRecord
from gradest.analysis.certificates import Certificate
from gradest.analysis.charts import write_svg
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.random import Key

__all__ = ["draw_certificates", "draw_law"]

_GRID = 41  # pre-activations from -4 to 4
_SAMPLES = 4000
_DOTS = 10  # of the samples at each pre-activation
_SEED = 1
_NOISELESS = 1e4  # from this SNR² on, what varies is rounding alone


def draw_law(neuron: Neuron, path: Path) -> None:
    """Draw samples and the mean of the first output against the first pre-activation, as SVG.

    Raises PluginFault if the code of the neuron fails, and GradestError if the extra `gradest[plot]` is not installed.
    """
    event = neuron.example_events[0]
    a = torch.zeros(_GRID, *event)
    a.view(_GRID, -1)[:, 0] = torch.linspace(-4, 4, _GRID)
    samples = registry.call(neuron, "sample", Key(_SEED), a, _SAMPLES).flatten(2)[:, :, 0]
    x = a.view(_GRID, -1)[:, 0].tolist()
    rows = [
        {"a": place, "h": h, "of": "sample"} for column, place in enumerate(x) for h in samples[:_DOTS, column].tolist()
    ]
    rows += [
        {"a": place, "h": h, "of": "mean of the samples"} for place, h in zip(x, samples.mean(0).tolist(), strict=True)
    ]
    write_svg("law", rows, f"{neuron.name}: outputs against the pre-activation", path)


def draw_certificates(certificates: Iterable[tuple[str, Certificate]], title: str, path: Path) -> None:
    """Draw the bias and the signal-to-noise ratio that were measured, as SVG.

    certificates: each with the label of its row.

    Raises GradestError if the extra `gradest[plot]` is not installed.
    """
    rows = [
        {
            "of": label,
            "case": f"{record.logits} {record.loss}",
            "logits": record.logits,
            **_figures(record, certificate),
        }
        for label, certificate in certificates
        for record in certificate.records
    ]
    write_svg("certificate", rows, title, path)


def _figures(record: BiasRecord, certificate: Certificate) -> dict[str, Any]:
    """Return what is drawn of a record. What has no number, such as a share of a gradient of 0, is None."""
    signal = record.snr**2 / certificate.evaluations
    figures = {
        "verdict": "no bias seen" if record.agrees_with_exact else "a bias is seen",
        "signal": signal if 0 < signal < _NOISELESS else None,
        "bias": None,
    }
    if record.gradient:
        scale = 100 / record.gradient
        reach = SIGNIFICANCE_SE * record.standard_error
        figures |= {
            "bias": record.bias * scale,
            "low": max(0.0, record.bias - reach) * scale,
            "high": (record.bias + reach) * scale,
        }
    return figures
