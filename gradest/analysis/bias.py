"""The measurement of an estimator's bias: its mean against the exact gradient, on losses of rising degree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gradest.analysis.comparison import cosine_of, in_standard_errors
from gradest.analysis.results import relative_error
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.estimation.estimate import estimate
from gradest.estimation.exact import exact

__all__ = [
    "CLASSES",
    "LOGITS",
    "LOSSES",
    "MAX_DRAWS",
    "SIGNIFICANCE_SE",
    "UNITS",
    "BiasRecord",
    "event_of",
    "linear",
    "measure_bias",
    "network",
    "pre_activations",
    "quadratic",
]

SIGNIFICANCE_SE = 5.0
"""Standard errors beyond which a difference is no chance."""
UNITS, CLASSES = 2, 3
"""The size of an event; the second where a unit has several classes."""
LOGITS = {"moderate": [[0.4, -0.9], [1.3, 0.2]], "saturated": [[3.5, -3.8], [3.6, -3.4]]}
"""Pre-activations by name: probabilities between 0.3 and 0.8, and within 0.03 of 0 and 1.

Beyond that, what makes the gradient happens so seldom that no affordable number of draws tells its standard error.
"""
_FIRST_DRAWS = {"moderate": 1 << 12, "saturated": 1 << 16}  # a thousand of the rarer outputs
_POWER = 20.0  # the exact gradient, in standard errors: half of it, a factor of two, is then ten
MAX_DRAWS = 1 << 20


@dataclass(frozen=True)
class BiasRecord:
    """What was measured of one estimator on one neuron and loss."""

    loss: str
    logits: str
    """"moderate" or "saturated"."""
    promised: bool
    """Whether the claim promises no bias on this loss."""
    gradient: float
    """The largest component of the exact gradient, |exact|."""
    bias: float
    """The largest |mean gradient - exact gradient| over coordinates."""
    standard_error: float
    """Of the mean gradient, at the coordinate of `bias`."""
    bias_in_se: float
    """The largest |mean gradient - exact gradient| over coordinates, in standard errors."""
    variance: float
    """Of one draw, mean over coordinates."""
    noise: float
    """Of one draw, the root of the variance summed over coordinates."""
    signal: float
    """The norm of the mean gradient over all coordinates."""
    cosine: float
    """Of the angle between the mean gradient and the exact one; 0 where one of them is 0."""
    draws: int

    @property
    def broken(self) -> bool:
        """Whether the claim promises no bias here, and there is one."""
        return self.promised and not self.agrees

    @property
    def snr(self) -> float:
        """The signal-to-noise ratio of one draw."""
        return self.signal / self.noise if self.noise else math.inf

    def error(self, draws: float) -> float:
        """Of the mean of so many draws, up to a factor: `relative_error`."""
        return relative_error(self.cosine, self.snr, draws)

    @property
    def agrees(self) -> bool:
        """Whether the mean is the exact gradient, as far as the draws can tell."""
        return self.bias_in_se < SIGNIFICANCE_SE

    def __str__(self) -> str:
        where = f"on a {self.loss} loss at {self.logits} logits"
        return f"{where} the mean is {self.bias_in_se:.1f} standard errors off ({self.draws} draws)"


def measure_bias(
    estimator: Estimator, neuron: Neuron, logits: str = "moderate", draws: int | None = None, seed: int = 17
) -> Iterator[BiasRecord]:
    """Hold the estimator's mean against enumeration (quadrature for continuous units) on four losses.

    `draws`, or else a number that goes with the logits, is where it begins: they are multiplied by four until the largest
    exact component is at least 20 standard errors, so that a factor of two is ten of them, or until there are 2^20. Where the
    exact gradient is 0 the first number is enough.
    """
    a, first = pre_activations(neuron, logits), draws or _FIRST_DRAWS[logits]
    claim = estimator.bias(neuron)
    for name, (order, make) in LOSSES.items():
        f = make(neuron)
        _, truth = exact(f, a, neuron, estimator.target())
        draws = first
        while True:
            found = estimate(f, a, neuron, estimator, draws, seed)
            size = float(truth.abs().max())
            if not size or size >= _POWER * float(found.standard_error.max()) or draws >= MAX_DRAWS:
                break
            draws *= 4
        difference = (found.gradient - truth).abs()
        yield BiasRecord(
            loss=name,
            logits=logits,
            promised=claim.order >= order,
            gradient=size,
            bias=float(difference.max()),
            standard_error=float(found.standard_error.flatten()[difference.argmax()]),
            bias_in_se=float(in_standard_errors(found, truth).abs().max()),
            variance=float(found.variance.mean()),
            noise=float(found.variance.double().sum().sqrt()),
            signal=float(found.gradient.double().norm()),
            cosine=cosine if math.isfinite(cosine := cosine_of(found.gradient, truth)) else 0.0,
            draws=draws,
        )


def event_of(neuron: Neuron) -> tuple[int, ...]:
    """The event shape that the measurement uses."""
    return (UNITS, CLASSES)[: neuron.event_ndim]


def pre_activations(neuron: Neuron, logits: str) -> Tensor:
    """The pre-activations at which it is made, `[2, *event]`."""
    a = torch.tensor(LOGITS[logits])
    if neuron.event_ndim == 1:
        return a
    rest = a.clamp(-1.3, 1.3)
    return torch.stack([a, -rest.roll(1, 0), 0.3 * rest], -1)


def _flat(neuron: Neuron, h: Tensor) -> Tensor:
    return h.flatten(-2) if neuron.event_ndim == 2 else h


def _projection(neuron: Neuron, rows: int) -> Tensor:
    return torch.randn(
        rows, math.prod(event_of(neuron)), generator=torch.Generator().manual_seed(7), dtype=torch.float64
    )


def linear(neuron: Neuron) -> Callable[[Tensor], Tensor]:
    """Σ w h, with positive weights: the gradient has no component near 0."""
    weight = _projection(neuron, 1)[0].abs() + 0.5
    return lambda h: (_flat(neuron, h) * weight.to(h)).sum(-1)


def quadratic(neuron: Neuron) -> Callable[[Tensor], Tensor]:
    """(Σ w h + 0.3)²: products of units as well."""
    inner = linear(neuron)
    return lambda h: (inner(h) + 0.3) ** 2


def cubic(neuron: Neuron) -> Callable[[Tensor], Tensor]:
    """(Σ w h - 0.6)³."""
    inner = linear(neuron)
    return lambda h: (inner(h) - 0.6) ** 3


def network(neuron: Neuron) -> Callable[[Tensor], Tensor]:
    """A network of two layers with five tanh units: no polynomial."""
    first = _projection(neuron, 5)

    def f(h: Tensor) -> Tensor:
        hidden = torch.stack([torch.tanh((_flat(neuron, h) * row.to(h)).sum(-1) + 0.4) for row in first], -1)
        return torch.tanh(hidden.sum(-1)) + 2 * hidden[..., 0] * hidden[..., 1]

    return f


LOSSES = {"linear": (1, linear), "quadratic": (2, quadratic), "cubic": (3, cubic), "network": (math.inf, network)}
"""The losses by name: the degree that a claim must reach to promise no bias on it, and what makes it for a neuron."""
