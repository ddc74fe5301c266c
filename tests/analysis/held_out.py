"""Held-out cases for `recommend`: losses, pre-activations and wishes drawn from a seed, with the exact gradient.

The losses are sums of functions of a few weighted sums of the units, none of which is the quadratic loss of the map of variance.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

import gradest
from gradest.analysis.results import Recommendation, relative_error

_MOST_WEIGHT = 2  # of a unit in a sum: an integer, so that the law of the sum can be computed
_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softplus": softplus,
    "cube": lambda s: s**3 / 3,
    "power": lambda s: (s.square() + 0.01) ** 0.75,
    "sine": lambda s: torch.sin(1.5 * s),
}


@dataclass(frozen=True)
class Case:
    """A loss `[..., units]` to `[...]`, pre-activations, and what `recommend` is told."""

    seed: int
    name: str
    loss: Callable[[Tensor], Tensor]
    a: Tensor
    exact: Tensor
    asked: dict[str, Any]

    def recommend(self) -> Recommendation:
        """Return what is recommended."""
        return gradest.recommend("bernoulli", **self.asked)

    def errors(self, found: Recommendation, effort: int) -> list[float]:
        """Return the measured error of each recommended estimator, in its order."""
        return [self._error(row.estimator, effort) for row in found.rows]

    def _error(self, spec: dict[str, Any], effort: int) -> float:
        estimator, neuron = gradest.estimator(spec), gradest.neuron("bernoulli")
        asked = estimator.evaluations(neuron, tuple(self.a.shape))
        budget = self.asked["evaluations"]
        draws = max(200, effort * budget // asked)
        found = gradest.estimate(self.loss, self.a, neuron, estimator, draws, self.seed, warm_up=100)
        noise, size = math.sqrt(float(found.variance.sum())), float(found.gradient.norm())
        if not size:
            return 1.0
        cosine = 1.0
        if not estimator.bias(neuron).unbiased:
            measured = float(torch.dot(found.gradient, self.exact)) / (size * float(self.exact.norm()))
            cosine = max(-1.0, min(1.0, measured * math.sqrt(1 + (noise / size) ** 2 / draws)))
        return relative_error(cosine, size / noise if noise else math.inf, max(1, budget // asked))


def draw_case(seed: int) -> Case:
    """Return the case of a seed."""
    lots = random.Random(seed)
    torch_lots = torch.Generator().manual_seed(seed)
    units = round(math.exp(lots.uniform(math.log(2), math.log(200))))
    certainty, spread = lots.uniform(0, 4), lots.uniform(0.2, 1)
    signs = torch.randint(0, 2, (units,), generator=torch_lots) * 2.0 - 1
    a = signs * certainty + spread * torch.randn(units, generator=torch_lots)
    a = a.double()
    shapes = [lots.choice(list(_SHAPES)) for _ in range(lots.choice([1, 3, 10]))]
    loss, exact, curvature = _draw_loss(lots, torch_lots, a, shapes)
    p = a.sigmoid()
    asked = {
        "units": units,
        "p": float(torch.minimum(p, 1 - p).mean()),
        "curvature": curvature,
        "bring": lots.choice([["loss"], ["loss", "grad"], ["loss", "grad", "relaxed"]]),
        "evaluations": lots.choice([2, 5, 20, 100]),
        "unbiased": lots.random() < 0.3,
    }
    return Case(seed, "+".join(sorted(shapes)), loss, a, exact, asked)


def _draw_loss(
    lots: random.Random, torch_lots: torch.Generator, a: Tensor, shapes: list[str]
) -> tuple[Callable[[Tensor], Tensor], Tensor, float]:
    """Return a loss of variance 1, the exact gradient of its mean in a, and its curvature."""
    sums, units = len(shapes), len(a)
    weights = torch.randint(-_MOST_WEIGHT, _MOST_WEIGHT + 1, (sums, units), generator=torch_lots).double()
    weights[:, 0] += (weights == 0).all(1)
    p = a.sigmoid()
    middle, spread = weights @ p, (weights.square() @ (p * (1 - p))).sqrt()
    width = torch.tensor([lots.uniform(0.5, 2) for _ in shapes]).double() / spread
    shift = torch.randn(sums, generator=torch_lots).double()
    heights = torch.randn(sums, generator=torch_lots).double()
    slopes = torch.randn(units, generator=torch_lots).double() * lots.choice([0, 0.3, 1]) / math.sqrt(units)
    level = lots.uniform(-3, 3)

    def terms(s: Tensor) -> Tensor:
        """Apply each shape to its sum, `[..., sums]`."""
        at = ((s - middle.to(s)) * width.to(s) + shift.to(s)).unbind(-1)
        return heights.to(s) * torch.stack([_SHAPES[name](one) for name, one in zip(shapes, at, strict=True)], -1)

    def raw(h: Tensor) -> Tensor:
        return terms(h @ weights.T.to(h)).sum(-1) + h @ slopes.to(h)

    logits = a.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(_mean(logits, weights, terms) + logits.sigmoid() @ slopes, logits)
    draws = torch.rand(20_000, units, generator=torch_lots, dtype=torch.float64) < p
    scale = float(raw(draws.double()).std())
    singles = float((gradient.square() / (p * (1 - p))).sum()) / scale**2
    return lambda h: raw(h) / scale + level, gradient / scale, max(0.0, 1 - singles)


def _mean(a: Tensor, weights: Tensor, terms: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the mean of the sum of terms(weights · h), from the law of each weighted sum, computed unit by unit."""
    most = int(weights.abs().sum(1).max())
    values = torch.arange(-most, most + 1).double()
    places = torch.arange(len(values))
    law = (values == 0).double().expand(len(weights), -1)
    for p, step in zip(a.sigmoid(), weights.T, strict=True):
        before = places - step.long()[:, None]
        moved = law.gather(1, before.clamp(0, len(values) - 1)) * ((before >= 0) & (before < len(values)))
        law = (1 - p) * law + p * moved
    return (law * terms(values[:, None].expand(-1, len(weights))).T).sum()
