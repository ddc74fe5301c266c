"""The records that `compare` and `recommend` return. They import no torch, so that the client can use them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from gradest.analysis.charts import chart

__all__ = ["Bring", "Comparison", "ComparisonRow", "Excluded", "Recommendation", "Recommended", "relative_error"]


@dataclass(frozen=True)
class ComparisonRow:
    """One estimator's figures. Those that need the exact gradient are None where it is not to be had.

    bias: root mean square over coordinates of (mean gradient - exact gradient).
    bias_in_se: root mean square over coordinates of that difference in standard errors; near 1 for an unbiased estimator.
    variance: of one draw, mean over coordinates.
    snr: |mean gradient| / √(summed variance of one draw).
    cosine: of the angle between the mean gradient and the exact one.
    efficiency: 1 / (variance · evaluations).
    """

    estimator: str
    claim: str
    evaluations: int
    bias: float | None
    bias_in_se: float | None
    variance: float
    snr: float
    cosine: float | None
    efficiency: float
    seconds: float

    def error(self, evaluations: float) -> float | None:
        """`relative_error` of the mean of as many draws as so many evaluations pay for; None without an exact gradient."""
        return None if self.cosine is None else relative_error(self.cosine, self.snr, evaluations / self.evaluations)


@dataclass(frozen=True, eq=False)
class Comparison:
    """A table of estimators on one neuron and loss."""

    neuron: str
    draws: int
    seed: int
    rows: tuple[ComparisonRow, ...]
    exact: Tensor | None
    """The exact gradient, `[*batch, *event]`, or None where it is not to be had."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        return {
            "neuron": self.neuron,
            "draws": self.draws,
            "seed": self.seed,
            "rows": [asdict(row) for row in self.rows],
            "exact": None if self.exact is None else self.exact.tolist(),
        }

    def to_markdown(self) -> str:
        """The rows as a Markdown table."""
        head = [
            "estimator",
            "claimed bias",
            "K",
            "bias",
            "bias/SE",
            "variance",
            "SNR",
            "cosine",
            "efficiency",
            "seconds",
        ]
        lines = [_line(head), _line(["---", "---", *["---:"] * (len(head) - 2)])]
        lines += [_line([_show(cell) for cell in asdict(row).values()]) for row in self.rows]
        return "\n".join(lines)

    def _repr_markdown_(self) -> str:
        """What a notebook shows."""
        return self.to_markdown()

    def chart(self, name: Literal["bias", "error"] = "bias") -> Any:
        """An altair chart, as on the service's page: bias against variance, or error against evaluations of the loss.

        Needs the extra `gradest[plot]`.
        """
        return chart(name, [asdict(row) for row in self.rows], f"{self.neuron}, {self.draws} draws")


def relative_error(cosine: float, snr: float, draws: float) -> float:
    """√E|s ĝ - exact|² / |exact|, ĝ the mean of so many draws and s the number that makes it least.

    Between 0 and 1. What a factor does to ĝ is the learning rate's business, and no error here; variance and a bias in
    direction are. cosine: of the angle between E[ĝ] and the exact gradient; snr: of one draw.
    """
    if math.isnan(cosine):
        return 1.0
    share = snr**2 / (snr**2 + 1 / draws) if math.isfinite(snr) else 1.0
    return math.sqrt(max(0.0, 1 - cosine**2 * share))


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _show(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


Bring = Literal["loss", "grad", "relaxed"]
"""What a caller can bring: the loss L at outputs of the neuron; dL/dh; both between those outputs as well."""


@dataclass(frozen=True)
class Recommended:
    """An estimator that fits.

    estimator: its spec, to be passed on as it is.
    evaluations: K, of one draw.
    error: the relative error of the gradient that the allowed evaluations buy, up to a factor (the learning rate's business);
        between 0 and 1, `BiasRecord.error`. None where nothing is known.
    """

    estimator: dict[str, Any]
    label: str
    claim: str
    evaluations: int
    error: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Excluded:
    """An estimator that fits the neuron, but not the case."""

    estimator: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """Estimators for a case, best first."""

    neuron: str
    source: str
    """Where the errors come from: the certificates, or the caller's own objective."""
    evaluations: int
    """That the errors are for."""
    rows: tuple[Recommended, ...]
    rejected: tuple[Excluded, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def to_markdown(self) -> str:
        """The rows as a Markdown table."""
        lines = ["| estimator | claimed bias | K | error | why |", "| --- | --- | ---: | ---: | --- |"]
        for row in self.rows:
            error = "-" if row.error is None else f"{row.error:.2g}"
            lines.append(f"| {row.label} | {row.claim} | {row.evaluations} | {error} | {'; '.join(row.reasons)} |")
        return "\n".join(lines)
