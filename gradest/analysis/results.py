"""The records that `compare` and `recommend` return. This module does not import torch, so that the client can use it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Generic, Literal

from gradest.analysis.charts import chart
from gradest.analysis.markdown import table
from gradest.estimation.results import Array

__all__ = [
    "COMPARISON_COLUMNS",
    "RECOMMENDATION_COLUMNS",
    "Comparison",
    "ComparisonRow",
    "Excluded",
    "LossAccess",
    "Recommendation",
    "Recommended",
    "relative_error",
]

COMPARISON_COLUMNS = (
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
)
"""How tables for people call the fields of `ComparisonRow`, in their order."""

RECOMMENDATION_COLUMNS = ("estimator", "claimed bias", "K", "error", "why")
"""How tables for people call what they show of `Recommended`: label, claim, evaluations, error and reasons."""


@dataclass(frozen=True)
class ComparisonRow:
    """The figures of one estimator. Those that need the exact gradient are None if it cannot be computed.

    estimator: the estimator's label.
    claim: the bias that the estimator claims and, unless that is E[L], the target whose gradient it estimates.
    evaluations: K, the number of points at which one draw evaluates the loss.
    bias: the root mean square over coordinates of (mean gradient - exact gradient).
    bias_in_se: the root mean square over coordinates of that difference in standard errors; near 1 for an unbiased estimator.
    variance: the variance of one draw, averaged over coordinates.
    snr: the signal-to-noise ratio of one draw, |mean gradient| / √(variance summed over coordinates).
    cosine: the cosine of the angle between the mean gradient and the exact one; NaN if one of them is 0.
    efficiency: 1 / (variance · evaluations).
    seconds: the wall-clock time of all draws.
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

    def error(self, evaluations: int) -> float | None:
        """Return the `relative_error` of the mean of as many whole draws as this number of evaluations allows, at least one.

        It is between 0 and 1, and None if the exact gradient is not known.
        """
        draws = max(1, evaluations // self.evaluations)
        return None if self.cosine is None else relative_error(self.cosine, self.snr, draws)


@dataclass(frozen=True, eq=False)
class Comparison(Generic[Array]):
    """The figures of several estimators on one neuron and loss."""

    neuron: str
    draws: int
    seed: int
    rows: tuple[ComparisonRow, ...]
    exact: Array | None
    """The exact gradient of E[f(h)], `[*batch, *event]`, or None if it cannot be computed."""
    failures: tuple[Excluded, ...] = ()
    """The estimators without a row, because the code of a plugin failed, with file and line."""
    no_exact: str | None = None
    """Why the exact gradient of E[f(h)], or of another target of an estimator, is missing; None if it is not."""
    skipped: tuple[Excluded, ...] = ()
    """The estimators without a row, because they need dL/dh, which the loss does not have."""
    unresolved: tuple[Excluded, ...] = ()
    """The estimators whose `bias_in_se` is no evidence of bias, because the draws hardly show outputs that the gradient needs."""

    def to_dict(self) -> dict[str, Any]:
        """Return the table as numbers, strings, lists and dicts; figures that are not finite stay floats."""
        exact: Any = self.exact  # a tensor, or an array of a client
        return {
            "neuron": self.neuron,
            "draws": self.draws,
            "seed": self.seed,
            "rows": [asdict(row) for row in self.rows],
            "failures": [{**asdict(failure), "reasons": list(failure.reasons)} for failure in self.failures],
            "exact": None if exact is None else exact.tolist(),
            "no_exact": self.no_exact,
            "skipped": [{**asdict(one), "reasons": list(one.reasons)} for one in self.skipped],
            "unresolved": [{**asdict(one), "reasons": list(one.reasons)} for one in self.unresolved],
        }

    def to_markdown(self) -> str:
        """Return the rows as a Markdown table, and below it the estimators without a row, and why there is no exact gradient."""
        rows = ([_show(cell) for cell in asdict(row).values()] for row in self.rows)
        notes = [f"{failure.estimator} failed: {'; '.join(failure.reasons)}" for failure in self.failures]
        notes += [f"{one.estimator} is left out: {'; '.join(one.reasons)}." for one in self.skipped]
        notes += [
            f"The bias of {one.estimator} is not established: {'; '.join(one.reasons)}." for one in self.unresolved
        ]
        if self.no_exact is not None:
            notes.append(f"The bias is not shown: {self.no_exact}.")
        return "\n\n".join([table(COMPARISON_COLUMNS, rows, align="llrrrrrrrr"), *notes])

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows: the Markdown table."""
        return self.to_markdown()

    def chart(self, name: Literal["bias", "error"] = "bias") -> Any:
        """Return an altair chart, the same as on the service's page.

        "bias" shows the bias against the variance of each estimator, "error" its relative error against the evaluations of the
        loss. Needs the extra `gradest[plot]`; raises GradestError without it.
        """
        return chart(name, [asdict(row) for row in self.rows], f"{self.neuron}, {self.draws} draws")


def relative_error(cosine: float, snr: float, draws: float) -> float:
    """Return √E|s ĝ - exact|² / |exact| for the mean ĝ of so many draws and the factor s that makes it least.

    It is between 0 and 1. Variance and a bias in direction count as error. A wrong length of the gradient does not, because the
    learning rate can make up for it.

    cosine: the cosine of the angle between E[ĝ] and the exact gradient; NaN, if one of them is 0, gives 1.
    snr: the signal-to-noise ratio of one draw, |E[ĝ]| / √(variance summed over coordinates).
    """
    if math.isnan(cosine):
        return 1.0
    share = snr**2 / (snr**2 + 1 / draws) if math.isfinite(snr) else 1.0
    return math.sqrt(max(0.0, 1 - cosine**2 * share))


def _show(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)


LossAccess = Literal["loss", "grad", "relaxed"]
"""What a caller can compute: the loss L at outputs of the neuron, its gradient dL/dh there, or both at other points too.

"relaxed" stands for the last: L and dL/dh make sense between the outputs of the neuron.
"""


@dataclass(frozen=True)
class Recommended:
    """An estimator that fits the case.

    estimator: its spec, which `gradest.estimator` and requests accept.
    label: its name and options, for tables.
    claim: the bias that it claims.
    evaluations: K, the number of points at which one draw evaluates the loss.
    error: the `relative_error` of the mean of the whole draws that the allowed evaluations buy, between 0 and 1; None if it was
        not measured.
    reasons: what speaks for the estimator, and what to know before using it.
    """

    estimator: dict[str, Any]
    label: str
    claim: str
    evaluations: int
    error: float | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Excluded:
    """An estimator that fits the neuron but not the case, with the reasons.

    estimator: its name.
    """

    estimator: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Recommendation:
    """The estimators that fit a case, best first, and those that do not."""

    neuron: str
    source: str
    """Where the errors come from and how far they carry: the certificates, or a measurement on the caller's objective."""
    evaluations: int
    """The number of evaluations of the loss for which the errors hold."""
    rows: tuple[Recommended, ...]
    """The estimators that fit the case, by rising error. Those that learn come last where `source` says so."""
    rejected: tuple[Excluded, ...]
    """The estimators that fit the neuron but not the case."""

    def to_dict(self) -> dict[str, Any]:
        """Return the recommendation as a dict that can be written as JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Return the recommended estimators as a Markdown table."""
        rows = (
            [
                row.label,
                row.claim,
                row.evaluations,
                "-" if row.error is None else f"{row.error:.2g}",
                "; ".join(row.reasons),
            ]
            for row in self.rows
        )
        return table(RECOMMENDATION_COLUMNS, rows, align="llrrl")
