"""Measure an estimator's bias and noise: compare its mean gradient with the exact one, on losses of rising degree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from gradest.analysis.comparison import bias_in_standard_errors, cosine_similarity
from gradest.analysis.results import relative_error
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.errors import TooManyPoints
from gradest.estimation.estimate import estimate
from gradest.estimation.exact import exact
from gradest.estimation.results import Estimate

__all__ = [
    "CLASSES",
    "LOGIT_REGIMES",
    "LOSSES",
    "MAX_DRAWS",
    "MORE_UNITS",
    "SIGNIFICANCE_SE",
    "UNITS",
    "BiasRecord",
    "SignalRecord",
    "linear_loss",
    "measure_bias",
    "measure_signal",
    "measurement_event_shape",
    "network_loss",
    "pre_activations",
    "quadratic_loss",
]

SIGNIFICANCE_SE = 5.0
"""The number of standard errors from which a difference counts as significant."""
UNITS, CLASSES = 2, 3
"""The event of the measurement: its units and, for a neuron whose events have two dims, the classes of each unit."""
MORE_UNITS = 8
"""The number of units of an event in `measure_signal`, which measures noise and direction for larger events."""
LOGIT_REGIMES = {"moderate": [[0.4, -0.9], [1.3, 0.2]], "saturated": [[3.5, -3.8], [3.6, -3.4]]}
"""Pre-activations `[2, UNITS]` by regime. For a Bernoulli unit, P(h = 1) is between 0.3 and 0.8, or within 0.03 of 0 or 1.

Nearer to 0 or 1, the outputs that contribute most to the gradient are so rare that no affordable number of draws gives a reliable
standard error.
"""
_FIRST_DRAWS = {"moderate": 1 << 12, "saturated": 1 << 16}  # enough for about a thousand of the rarer outputs
_LEAST_GRADIENT_SE = (
    20.0  # how many standard errors the exact gradient should have: half of it, a wrong factor, is then ten
)
_MOST_CONFIGURATIONS = 1 << 16  # that are enumerated in `measure_signal`
_SIGNAL_DRAWS = 1 << 12  # in `measure_signal`: its figures rank estimators, and test no claim
_SIGNAL_EVALUATIONS = 1 << 20  # at most, but no fewer than 16 draws
MAX_DRAWS = 1 << 20
"""The number of draws from which `measure_bias` makes no more."""


@dataclass(frozen=True)
class SignalRecord:
    """The measured direction and noise of one draw of an estimator, on one neuron and one loss."""

    loss: str
    """The name of the loss, a key of LOSSES."""
    logits: str
    """The regime of the pre-activations, a key of LOGIT_REGIMES: "moderate" or "saturated"."""
    units: int
    """The number of units of an event."""
    noise: float
    """The square root of the variance of one draw summed over coordinates."""
    signal: float
    """The Euclidean norm of the mean gradient."""
    cosine: float
    """The cosine of the angle between the mean gradient and the exact one; 0 if one of them is 0."""
    draws: int
    """The number of draws in the mean gradient."""

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio of one draw, `signal / noise`; infinite if the draws do not vary."""
        return self.signal / self.noise if self.noise else math.inf

    def error(self, draws: float) -> float:
        """Return the `relative_error` of the mean of so many draws, between 0 and 1."""
        return relative_error(self.cosine, self.snr, draws)


@dataclass(frozen=True)
class BiasRecord(SignalRecord):
    """The measured bias and variance of one estimator on one neuron and one loss."""

    promised: bool
    """Whether the estimator's claim promises no bias on this loss."""
    gradient: float
    """The largest |exact gradient| over coordinates."""
    bias: float
    """The largest |mean gradient - exact gradient| over coordinates."""
    standard_error: float
    """The standard error of the mean gradient, at the coordinate of `bias`."""
    bias_in_se: float
    """The largest |mean gradient - exact gradient| over coordinates, in standard errors."""
    variance: float
    """The variance of one draw, averaged over coordinates."""

    @property
    def contradicts_claim(self) -> bool:
        """Whether the measured bias is significant although the claim promises none."""
        return self.promised and not self.agrees_with_exact

    @property
    def agrees_with_exact(self) -> bool:
        """Whether the mean gradient has no significant difference from the exact one."""
        return self.bias_in_se < SIGNIFICANCE_SE

    def __str__(self) -> str:
        where = f"on a {self.loss} loss at {self.logits} logits"
        return (
            f"{where} the mean gradient is {self.bias_in_se:.1f} standard errors off the exact one ({self.draws} draws)"
        )


def measure_bias(
    estimator: Estimator, neuron: Neuron, logits: str = "moderate", draws: int | None = None, seed: int = 17
) -> Iterator[BiasRecord]:
    """Compare the estimator's mean gradient with the exact one, on the four LOSSES: yields a record for each.

    The exact gradient comes from enumeration or, for continuous units, from quadrature.

    logits: the regime of the pre-activations, a key of LOGIT_REGIMES.
    draws: the number of draws to begin with, by default 2^12 for moderate and 2^16 for saturated logits. It is multiplied by four
        until the largest component of the exact gradient is at least 20 standard errors, so that a wrong factor of two shows as
        ten, or until it reaches MAX_DRAWS. If the exact gradient is 0, it is not increased.
    seed: the seed of the draws.

    Raises what `exact` and `estimate` raise.

    >>> import gradest
    >>> records = gradest.testing.measure_bias(gradest.estimator("rloo"), gradest.neuron("bernoulli"))
    >>> all(record.agrees_with_exact for record in records)
    True
    """
    a, first = pre_activations(neuron, logits), draws or _FIRST_DRAWS[logits]
    claim = estimator.bias(neuron)
    for name, (degree, make_loss) in LOSSES.items():
        f = make_loss(neuron)
        _, truth = exact(f, a, neuron, estimator.target())
        draws = first
        while True:
            found = estimate(f, a, neuron, estimator, draws, seed)
            size = float(truth.abs().max())
            if not size or size >= _LEAST_GRADIENT_SE * float(found.standard_error.max()) or draws >= MAX_DRAWS:
                break
            draws *= 4
        difference = (found.gradient - truth).abs()
        yield BiasRecord(
            loss=name,
            logits=logits,
            units=UNITS,
            promised=claim.order >= degree,
            gradient=size,
            bias=float(difference.max()),
            standard_error=float(found.standard_error.flatten()[difference.argmax()]),
            bias_in_se=float(bias_in_standard_errors(found, truth).abs().max()),
            variance=float(found.variance.mean()),
            **_signal(found, truth),
        )


def measure_signal(
    estimator: Estimator, neuron: Neuron, logits: str = "moderate", units: int = MORE_UNITS, seed: int = 17
) -> Iterator[SignalRecord]:
    """Measure direction and noise of one draw for events of `units` units, on the four LOSSES: yields a record for each.

    An estimator that claims no bias has a cosine of 1, so its draws are not compared with the exact gradient. Nothing is yielded
    if one draw, or the exact gradient, takes more than 2^16 evaluations of the loss. An estimator that learns first takes the 100
    steps of `estimate`, at these pre-activations.

    Raises what `exact` and `estimate` raise.
    """
    a = pre_activations(neuron, logits, units)
    unbiased = estimator.bias(neuron).unbiased
    event = measurement_event_shape(neuron, units)
    try:
        evaluations = estimator.evaluations(neuron, event)
    except TooManyPoints:
        return
    if evaluations > _MOST_CONFIGURATIONS or not (unbiased or _can_enumerate(neuron, a, event)):
        return
    draws = max(16, min(_SIGNAL_DRAWS, _SIGNAL_EVALUATIONS // evaluations))
    for name, (_, make_loss) in LOSSES.items():
        f = make_loss(neuron, units)
        found = estimate(f, a, neuron, estimator, draws, seed)
        truth = None if unbiased else exact(f, a, neuron, estimator.target())[1]
        yield SignalRecord(loss=name, logits=logits, units=units, **_signal(found, truth))


def _can_enumerate(neuron: Neuron, a: Tensor, event: tuple[int, ...]) -> bool:
    """Return whether a sum over the law of an event takes at most 2^16 points. The law runs only if it may."""
    units = neuron.output_event(event)[0]
    if neuron.atoms(event) ** units > _MOST_CONFIGURATIONS:
        return False
    return bool(len(neuron.law(a)[0]) ** units <= _MOST_CONFIGURATIONS)


def _signal(found: Estimate, truth: Tensor | None) -> dict[str, Any]:
    """The fields of a `SignalRecord` that follow from the draws; the cosine is 1 if no exact gradient is given."""
    cosine = 1.0 if truth is None else cosine_similarity(found.gradient, truth)
    return {
        "noise": float(found.variance.double().sum().sqrt()),
        "signal": float(found.gradient.double().norm()),
        "cosine": cosine if math.isfinite(cosine) else 0.0,
        "draws": found.draws,
    }


def measurement_event_shape(neuron: Neuron, units: int = UNITS) -> tuple[int, ...]:
    """Return the event shape at which bias is measured: the neuron's first example, with more units if there are more than UNITS.

    For most neurons it is (UNITS,), or (UNITS, CLASSES) for events of two dims.
    """
    first, *rest = neuron.example_events[0]
    return first * units // UNITS, *rest


def pre_activations(neuron: Neuron, logits: str, units: int = UNITS) -> Tensor:
    """Return the pre-activations `[2, *event]`, float32, at which bias is measured.

    logits: a key of LOGIT_REGIMES. For units of several pre-activations, its values belong to the first of each unit, and
        those of the others are between -1.3 and 1.3.
    units: the number of units, a multiple of UNITS; the values of the regime are repeated.
    """
    first, *rest = measurement_event_shape(neuron, units)
    regime = torch.tensor(LOGIT_REGIMES[logits])
    a = regime.repeat(1, -(-first // UNITS))[:, :first]
    within = math.prod(rest)
    if within == 1:
        return a.reshape(len(a), first, *rest)
    mild = a.clamp(-1.3, 1.3)
    others = [(-1, 0.3)[place % 2] * mild.roll(place + 1, 0) / (1 + place // 2) for place in range(within - 1)]
    return torch.stack([a, *others], -1).reshape(len(a), first, *rest)


def _flatten_event(neuron: Neuron, h: Tensor) -> Tensor:
    return h.flatten(-neuron.output_ndim)


@lru_cache(maxsize=64)
def _projection(rows: int, size: int) -> Tensor:
    """Fixed random weights `[rows, size]` on a flattened event of so many entries, float64."""
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def _shrink(units: int) -> float:
    """The factor by which weights are smaller for more units, so that Σ w h keeps its spread."""
    return math.sqrt(UNITS / units)


def linear_loss(neuron: Neuron, units: int = UNITS) -> Callable[[Tensor], Tensor]:
    """Return the loss Σ w h, from `[*leading, *event]` to `[*leading]`, for events of so many units.

    All weights are at least 0.5 for two units, so that no component of the gradient is near 0.
    """

    def f(h: Tensor) -> Tensor:
        flat = _flatten_event(neuron, h)
        weight = (_projection(1, flat.shape[-1])[0].abs() + 0.5) * _shrink(units)
        return (flat * weight.to(h)).sum(-1)

    return f


def quadratic_loss(neuron: Neuron, units: int = UNITS) -> Callable[[Tensor], Tensor]:
    """Return the loss (Σ w h + 0.3)², which has products of different units."""
    inner = linear_loss(neuron, units)
    return lambda h: (inner(h) + 0.3) ** 2


def cubic_loss(neuron: Neuron, units: int = UNITS) -> Callable[[Tensor], Tensor]:
    """Return the loss (Σ w h - 0.6)³."""
    inner = linear_loss(neuron, units)
    return lambda h: (inner(h) - 0.6) ** 3


def network_loss(neuron: Neuron, units: int = UNITS) -> Callable[[Tensor], Tensor]:
    """Return a loss that is no polynomial: a network with a hidden layer of five tanh units."""

    def f(h: Tensor) -> Tensor:
        flat = _flatten_event(neuron, h)
        first = _projection(5, flat.shape[-1]) * _shrink(units)
        hidden = torch.stack([torch.tanh((flat * row.to(h)).sum(-1) + 0.4) for row in first], -1)
        return torch.tanh(hidden.sum(-1)) + 2 * hidden[..., 0] * hidden[..., 1]

    return f


LOSSES = {
    "linear": (1, linear_loss),
    "quadratic": (2, quadratic_loss),
    "cubic": (3, cubic_loss),
    "network": (math.inf, network_loss),
}
"""The losses by name, each with its degree as a polynomial in h and the function that makes it for a neuron.

A claim `Bias(order)` promises no bias on a loss if its order is at least the degree.
"""
