"""The exponential-arrival-time (EAT) relaxation of a Poisson count, as an estimator."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from gradest.contract.estimator import Bias, Cost, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Neuron, PoissonCount
from gradest.contract.numerics import leading_mean, portable
from gradest.random import Key

_MOST_ARRIVALS = 256.0  # expected until the window ends; a unit with more takes the normal limit
_STEPS = 400  # arrivals that are drawn at most: 256 and 9 standard deviations more
_SIGMOID_REACH = 18.0  # beyond which a sigmoid's weight, 2e-8, is left out


class Eat(MonteCarlo):
    """Exponential arrival times: the pathwise gradient at a count of arrivals with weights that fall smoothly with time.

    ĝ = L'(s) · ds/da, with s = Σ_i φ((1 - t_i)/τ) over the arrivals t_i = (e_1 + ... + e_i)/λ of a Poisson process of rate
    λ(a), for exponential e_i. If φ is a step, s counts the arrivals before time 1, which is the unit. L is evaluated at s as
    well, so it must be defined between the counts.

    indicator="cubic": φ(x) = ¾ (x + 1) - ¼ (x³ + 1), a smooth step from 0 at x = -1 to 1 at x = 1, with τ up to 1. Then
    E[s] = λ ∫ φ((1 - t)/τ) dt = λ, because the step is symmetric and ends before time 0 would cut it: exact for losses that are
    linear in each unit. Var s = λ (1 - 9τ/35) instead of λ, so quadratic losses are biased.
    indicator="sigmoid": φ = σ. E[s] = λ τ log(1 + exp(1/τ)), above λ: biased, even for linear losses.

    Where more than 256 arrivals are expected until φ is 0, s is normal with the same mean and variance, λ m + √(λ v) z, which is
    the limit for large rates. That keeps the cost bounded, and is gradest's own.

    Introduced with the sigmoid by Vafaii, Galor and Yates (2024), Poisson Variational Autoencoder, arXiv 2405.14473, and with a
    cubic by Ibrahim, Zhao, Sennesh, Li, Wu, Yates, Li and Vafaii (2026), A Hitchhiker's Guide to Poisson Gradient Estimation,
    arXiv 2602.03896. Of the second only the abstract and summaries could be read, which state the cubic Hermite step and the
    right mean for τ up to 1; that the step is 2τ wide, and the variance, are derived here.
    """

    name = "eat"
    summary = "loss and gradient at a count of arrivals, weighted by a smooth step of their time"
    reference = "Vafaii, Galor, Yates 2024, arXiv 2405.14473; Ibrahim et al. 2026, arXiv 2602.03896"
    formula = (
        r"\hat g = L'(s)\,\frac{ds}{da}, \quad s = \sum_i \varphi\!\left(\frac{1 - t_i}{\tau}\right), \quad "
        r"t_i = \frac{e_1 + \dots + e_i}{\lambda}, \quad e_i \sim \mathrm{Exponential}"
    )
    needs = frozenset({"grad"})
    off_support = True
    capabilities: ClassVar[tuple[type[Neuron], ...]] = (PoissonCount,)

    examples = ({}, {"samples": 3, "indicator": "sigmoid", "temperature": 0.2})

    indicator: Literal["cubic", "sigmoid"] = Field("cubic", description="the smooth step φ of an arrival's time")
    temperature: float = Field(
        0.5, ge=1e-3, le=10, description="temperature τ, the width of the step; at most 1 for the cubic"
    )

    @model_validator(mode="after")
    def _refuse_a_cubic_that_is_cut(self) -> Eat:
        """Raise ValueError for a cubic step that begins before time 0."""
        if self.indicator == "cubic" and self.temperature > 1:
            raise ValueError("temperature can be at most 1 for the cubic indicator, which would be cut at time 0")
        return self

    def bias(self, neuron: Neuron) -> Bias:
        """Return exact to order 1 for the cubic, whose mean is that of the unit, and `Bias.BIASED` for the sigmoid."""
        return Bias.exact_to_order(1) if self.indicator == "cubic" else Bias.BIASED

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the work of the most arrivals that are drawn; a few of them are held at a time."""
        one = super().cost(neuron, event, batch)
        return Cost(one.held, one.work * _STEPS)

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the weighted counts of arrivals."""
        points = self._relax(neuron, a, key).points
        return Draw(neuron, a, key, points.to(a.dtype))

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean over samples of L'(s) ds/d log λ, times d log λ/da."""
        slope = leading_mean(feedback.get_grad().double() * self._relax(draw.neuron, draw.a, draw.key).slope)
        assert isinstance(draw.neuron, PoissonCount)
        with torch.enable_grad():
            a = draw.a.detach().double().requires_grad_()
            (gradient,) = torch.autograd.grad(draw.neuron.log_rate(a), a, slope)
        return gradient.to(draw.a.dtype), state

    def _relax(self, neuron: Neuron, a: Tensor, key: Key) -> _Relaxed:
        """Return s and ds/d log λ = Σ_i φ'((1 - t_i)/τ) t_i/τ, `[samples, *a.shape]`, in float64."""
        assert isinstance(neuron, PoissonCount)
        log_rate = neuron.log_rate(a.double())
        end = 1 + self.temperature * (1.0 if self.indicator == "cubic" else _SIGMOID_REACH)
        is_normal = log_rate > math.log(_MOST_ARRIVALS / end)
        wait = portable.exp(-log_rate)
        time = torch.where(is_normal, math.inf, torch.zeros_like(log_rate)).expand(self.samples, *a.shape)
        count = slope = torch.zeros_like(time)
        for step in range(_STEPS):
            if bool((time >= end).all()):
                break
            u = key.with_stream(step).uniform_like(a, self.samples)
            time = time - portable.log(u.double()) * wait
            step_at, step_slope = self._step((1 - time.clamp(max=end)) / self.temperature)
            is_in = time < end
            count = count + torch.where(is_in, step_at, 0)
            slope = slope + torch.where(is_in, step_slope * time / self.temperature, 0)
        normal = self._normal_limit(log_rate, key, a)
        return _Relaxed(torch.where(is_normal, normal.points, count), torch.where(is_normal, normal.slope, slope))

    def _step(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return φ(x) and φ'(x), with x at least -1 for the cubic."""
        if self.indicator == "sigmoid":
            p, q = portable.both_sigmoids(x)
            return p, p * q
        x = x.clamp(max=1)
        return (x + 1).square() * (2 - x) / 4, 0.75 * (1 - x * x)

    def _normal_limit(self, log_rate: Tensor, key: Key, a: Tensor) -> _Relaxed:
        """Return s = λ m + √(λ v) z and its derivative in log λ, with m = ∫ φ dt and v = ∫ φ² dt (Campbell's theorem)."""
        width = self.temperature
        if self.indicator == "cubic":
            mean, square = 1.0, 1 - 9 / 35 * width
        else:
            mean = width * math.log1p(math.exp(-1 / width)) + 1
            square = mean - width / (1 + math.exp(-1 / width))
        z = portable.ndtri(key.with_stream(_STEPS).uniform_like(a, self.samples)).double()
        rate = portable.exp(log_rate)
        spread = (square * rate).sqrt() * z
        return _Relaxed(mean * rate + spread, mean * rate + spread / 2)


class _Relaxed(NamedTuple):
    points: Tensor
    slope: Tensor
