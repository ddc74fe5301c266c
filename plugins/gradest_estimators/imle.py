"""Implicit maximum likelihood estimation."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.estimator import Bias, Cost, Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Discrete, Neuron, SoftmaxOneHot, Subset, per_event
from gradest.contract.numerics import leading_mean
from gradest.random import Key
from gradest_estimators._score import event_sum
from gradest_estimators._subset import largest, subset_size

_OMITTED = 2.0**-26  # the share of a gamma variable's mean that its series leaves out
_MAX_LOG_SHARE = 50.0  # a row whose gradient stays 0, as for a constant loss, would raise α for ever


class Imle(MonteCarlo):
    """The difference of the most probable outputs at a and at a step against dL/dh, both with the same noise.

    ĝ = 1/λ [MAP(a + τε) - MAP(a - λL'(h) + τε)], where MAP(x) is 1 at the k largest entries of x, of a subset or of a
    one-hot unit (k = 1), and the loss is evaluated at h = MAP(a + τε). It is the gradient of the log-likelihood of outputs
    of a target distribution, whose parameters a - λL' make a lower loss more probable. As λ goes to 0, its mean tends to
    L' · dE[h]/da for the law of MAP(a + τε); a larger λ has less variance.

    The noise is Sum-of-Gamma, ε = (1/k)(Σ_i X_i - log s) with X_i ~ Gamma(1/k, k/i) for i = 1 to s, where s is `terms`: as
    s grows, the sum of ε over any k items tends to a Gumbel variable. A gamma variable is drawn by the series
    Σ_j E_j exp(-Γ_j k) of exponential E_j, with Γ_j the j-th arrival of a Poisson process (Bondesson 1982), up to
    2^-26 of its mean. So a draw takes 2 s J random numbers for each item, with J = 17 for k = 2 and 8 for k = 10, which is
    most of its time: 10,000 groups of 8 items take about a second on one core. `simple` and `gumbel_top_k` take one number.

    Biased: L' is a first-order expansion, λ is not 0, and the law of h is near to that of the unit, but not equal to it, so
    that the value is biased, too.

    It is not linear in L', so a `gradest.nn.Stochastic`, to which autograd hands L' divided by the size of a batch, does not take
    it; `gradest.nn.Expectation` does.

    With `adaptive`, λ = α ‖a‖/‖L'‖ for each row, with both norms over the event and ‖a‖ at least 1, and α is learned: it
    starts at `step`, and after each step it rises by the share `rate` if the average number of nonzero entries of a row's
    gradient is below `sparsity`, and falls by that share otherwise.

    Introduced by Niepert, Minervini and Franceschi (2021), Implicit MLE: Backpropagating Through Discrete Exponential
    Family Distributions, arXiv 2106.01798. The adaptive step follows Minervini, Franceschi and Niepert (2023), Adaptive
    Perturbation-Based Gradient Estimation for Discrete Latent Variable Models, arXiv 2209.04862. It differs from their code
    in three ways: α changes by a share of itself, where theirs changes by a constant and may become 0; the norms are those
    of a row, where theirs are of the whole batch, on which a row's gradient would then depend; and entries are counted in
    the mean over samples, where theirs are counted in each sample.
    """

    name = "imle"
    summary = "difference of the most probable outputs at a and at a step against dL/dh, with the same noise"
    reference = (
        "Niepert, Minervini, Franceschi 2021, arXiv 2106.01798; Minervini, Franceschi, Niepert 2023, arXiv 2209.04862"
    )
    formula = (
        r"\hat g = \frac1\lambda \bigl[\mathrm{MAP}(a + \tau\varepsilon) - \mathrm{MAP}(a - \lambda L'(h) + "
        r"\tau\varepsilon)\bigr]"
    )
    needs = frozenset({"grad"})
    capabilities = (Discrete,)
    linear = False  # a larger L' changes which output is the most probable

    examples = ({}, {"samples": 3, "temperature": 0.5, "step": 2.0}, {"adaptive": True})

    step: float = Field(1.0, gt=0, le=1e30, description="λ, the size of the step from a; with adaptive, the first α")
    temperature: float = Field(1.0, ge=1e-30, le=1e30, description="scale τ of the noise")
    terms: int = Field(10, ge=1, le=1000, description="number s of gamma variables in the noise of an item")
    adaptive: bool = Field(False, description="whether λ is learned, relative to the norms of a and L'")
    sparsity: float = Field(
        1.0, gt=0, description="number of nonzero entries of a row's gradient that adaptive aims at"
    )
    rate: float = Field(0.01, gt=0, lt=1, description="share by which adaptive changes α at each step")
    decay: float = Field(
        0.9, ge=0, lt=1, description="share of the average number of nonzero entries that a step keeps"
    )

    def accepts(self, neuron: Neuron) -> bool:
        """Return whether the neuron is a subset or a one-hot unit."""
        return isinstance(neuron, SoftmaxOneHot | Subset)

    def bias(self, neuron: Neuron) -> Bias:
        """Return `Bias.BIASED`: neither the step nor the sampler is exact."""
        return Bias.BIASED

    def cost(self, neuron: Neuron, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a draw, in which one gamma variable of an output is held at a time."""
        calls, numbers = super().cost(neuron, event, batch), 2 * _arrivals(subset_size(neuron))
        return Cost(calls.held * numbers, calls.work * numbers * self.terms)

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return log(α / step), 0, and the average number of nonzero entries with its weight; nothing unless `adaptive`."""
        if not self.adaptive:
            return {}
        zero = a.new_zeros((), dtype=torch.float64)
        return {"log_share": zero, "nonzero": zero.clone(), "weight": zero.clone()}

    def forward(self, neuron: Neuron, a: Tensor, key: Key, state: State) -> Draw:
        """Ask for the loss at the most probable outputs at a + τε, for independent ε."""
        noisy = self._perturbed(neuron, a, key)
        points = largest(noisy, subset_size(neuron)).to(a.dtype)
        return Draw(neuron, a, key, points, saved={"noisy": noisy})

    def backward(self, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
        """Return the mean difference of the two outputs, divided by λ."""
        neuron, noisy, grad = draw.neuron, draw.saved["noisy"], feedback.get_grad().double()
        size = self._step(draw.a, grad, neuron, state)
        moved = largest(noisy - size * grad, subset_size(neuron))
        gradient = leading_mean((draw.points.double() - moved) / size)
        return gradient.to(draw.a.dtype), self._learn(gradient, neuron, state)

    def _perturbed(self, neuron: Neuron, a: Tensor, key: Key) -> Tensor:
        """Return a + τε, `[samples, *a.shape]`, in float64."""
        return a.double() + self.temperature * self.noise(neuron, a, key)

    def noise(self, neuron: Neuron, a: Tensor, key: Key) -> Tensor:
        """Return ε, `[samples, *a.shape]`, in float64."""
        k, split = subset_size(neuron), a.ndim - neuron.event_ndim
        arrivals = _arrivals(k)
        total = torch.zeros((self.samples, *a.shape), dtype=torch.float64, device=a.device)
        for i in range(1, self.terms + 1):
            u = key.with_stream(i).uniform(
                a.shape[:split], (*a.shape[split:], 2, arrivals), self.samples, dtype=a.dtype, device=a.device
            )
            e = -torch.log(u.double())
            total = total + _gamma(e, k) * (k / i)
        return (total - math.log(self.terms)) / k

    def _step(self, a: Tensor, grad: Tensor, neuron: Neuron, state: State) -> Tensor | float:
        """Return λ: a number, or `[samples, *batch, 1, 1]` if it is learned."""
        if not self.adaptive:
            return self.step
        wide = a.double().where(torch.isfinite(a), 0)
        scale = event_sum(wide.square(), neuron).sqrt().clamp(min=1)
        norm = event_sum(grad.square(), neuron).sqrt()
        size = self.step * torch.exp(state["log_share"]) * torch.where(norm > 0, scale / norm, 1)
        return per_event(size, neuron)

    def _learn(self, gradient: Tensor, neuron: Neuron, state: State) -> State:
        """Return the next state: the average number of nonzero entries of a row, and α moved against it."""
        if not self.adaptive or not gradient.numel():
            return state
        keep, new = self.decay, 1 - self.decay
        nonzero = keep * state["nonzero"] + new * event_sum((gradient != 0).double(), neuron).mean()
        weight = keep * state["weight"] + new
        change = torch.where(nonzero < self.sparsity * weight, 1.0, -1.0) * math.log1p(self.rate)
        share = (state["log_share"] + change).clamp(-_MAX_LOG_SHARE, _MAX_LOG_SHARE)
        return {"log_share": share, "nonzero": nonzero, "weight": weight}


def _arrivals(k: int) -> int:
    """Return how many terms the series of a gamma variable of shape 1/k has."""
    return 1 if k == 1 else math.ceil(math.log(_OMITTED) / -math.log(1 + k))


def _gamma(e: Tensor, k: int) -> Tensor:
    """Return gamma variables of shape 1/k, `[...]`, from exponential ones `[..., 2, J]`: Σ_j E_j exp(-k Γ_j)."""
    if k == 1:  # such a variable is exponential itself
        return e[..., 0, 0]
    total, factor = torch.zeros_like(e[..., 0, 0]), torch.ones_like(e[..., 0, 0])
    for size, gap in zip(e[..., 0, :].unbind(-1), e[..., 1, :].unbind(-1), strict=True):
        factor = factor * torch.exp(-k * gap)
        total = total + size * factor
    return total
