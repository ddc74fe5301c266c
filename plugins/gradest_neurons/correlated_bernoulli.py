"""The correlated Bernoulli neuron: binary units that are correlated by a Gaussian copula."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from gradest.contract.cost import Cost
from gradest.contract.law import MAX_POINTS
from gradest.contract.neuron import LogisticStep
from gradest.contract.numerics import leading_sum, portable, sinh_cosh, softplus, widen
from gradest.errors import TooManyPoints
from gradest.random import Key
from gradest_neurons._copula import FACTOR_STREAM, correlated_normals, normal_of_logit

_HALF_NODES = 48  # on either side of the mode of the integrand over the factor
_REACH = 9.0  # of the nodes: the logarithm of the integrand falls by at least half the squared distance from the mode
_FEW = 8  # units of a group, whose outputs are listed to compute each once
_NEWTON_STEPS = 20
_LARGEST = 350.0  # |a|, beyond which the derivative of σ(a) would underflow in the computation of that of Φ⁻¹(σ(a))
_NODES = 2 * _HALF_NODES + 1
_MOST_AT_ONCE = 1 << 22  # numbers at the nodes, unless autograd records all
_MAX_LAW = 1 << 27  # numbers at the nodes of a law, over all groups
_MAX_RECORDED = 1 << 25  # of one that autograd records
_ROOT_2_PI = math.sqrt(2 * math.pi)


class CorrelatedBernoulli(LogisticStep):
    """Groups of n binary units of which any two have a Gaussian copula with correlation ρ, each 1 with probability σ(a).

    h_i = 1 where √ρ f + √(1-ρ) z_i > -t_i, with t_i = Φ⁻¹(σ(a_i)). The factor f, common to the group, and z_i are standard
    normal. So P(h_i = 1) = σ(a_i) for any ρ, and with ρ = 0 the units are those of `bernoulli`. a and h are
    `[*batch, groups, n]`; groups are independent. At fixed noise h is constant in a almost everywhere: dh/da = 0.
    `correlated_binary_concrete` is the relaxed form, to which `pathwise` fits.

    P(h) is the probability of an orthant of n correlated normal variables. Given the factor they are independent, so it is an
    integral over one variable,

        P(h) = ∫ φ(f) Π_i Φ(s_i (t_i + √ρ f)/√(1-ρ)) df, with s_i = 1 where h_i is 1 and -1 where it is 0.

    Its integrand has one mode. A sum over 97 nodes about that gives log P and the score for any n, in O(97 n) operations of
    float64, with a relative error of P of about 1e-10. The law lists the 2^n outputs of a group, for n of up to about 14.
    Pre-activations beyond ±350 count as ±350. As for `bernoulli`, float32 noise has 24 bits, so outputs rarer than about 1e-7
    hardly ever appear; pass a.double() where that matters.

    Every estimator by the score fits and is unbiased. `straight_through` and `surrogate` with the sigmoid's derivative, and
    `muprop` and `double_cv` by their control variates, use dE[h]/da = σ(a)(1 - σ(a)), which the correlation does not change.
    Estimators that flip or pair single units, such as `disarm`, need independent units and do not fit.

    Correlated gates, with the correlations of the data: Lee, Imrie and van der Schaar (2022), Self-Supervision Enhanced Feature
    Selection with Correlated Gates, ICLR. Only summaries of it could be read; that all pairs have one correlation, which is not
    negative, is gradest's choice.
    """

    name = "correlated_bernoulli"
    summary = "binary units, 1 with probability σ(a), correlated in groups by a Gaussian copula"
    reference = "Lee, Imrie, van der Schaar 2022"
    formula = (
        r"h_i = \mathbf 1[\sqrt\rho f + \sqrt{1 - \rho}\, z_i > -\Phi^{-1}(\sigma(a_i))], "
        r"\quad f, z_i \sim \mathcal N(0, 1)"
    )

    event_ndim: ClassVar[int] = 2
    example_events: ClassVar[Sequence[tuple[int, ...]]] = ((2, 3), (1, 2), (2, 1))

    examples = ({}, {"correlation": 0.9})

    correlation: float = Field(
        0.5, ge=0, le=0.95, description="correlation ρ of the normal variables of two units of a group"
    )

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the correlated standard normal variables, `[draws, *a.shape]`."""
        return correlated_normals(key, a, draws, self.correlation)

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return 1 where noise > -Φ⁻¹(σ(a)), with the same bits on every device."""
        wide = widen(a)
        quantile = torch.copysign(portable.ndtri(portable.sigmoid(-wide.abs())), wide)
        return (noise > -quantile).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        shared, own = math.sqrt(self.correlation), math.sqrt(1 - self.correlation)
        h = key.fused("correlated", a, draws, self.event_ndim, a.shape[-1], FACTOR_STREAM, shared, own)
        return super().sample(key, a, draws) if h is None else h

    def log_prob(self, h: Tensor, a: Tensor) -> Tensor:
        """Return log P(h | a) of each group, `[..., *batch, groups]`."""
        return self._by_output(lambda h, a: _Orthant(h, a, self.correlation).log_probability()[..., None], h, a)[..., 0]

    def score(self, h: Tensor, a: Tensor) -> Tensor:
        """Return d log P(h | a)/da: that given the factor, averaged over the factor given h."""
        return self._by_output(lambda h, a: _Orthant(h, a, self.correlation).score(), h, a)

    def draw_size(self, event: tuple[int, ...]) -> int:
        """Return groups · n times the number of nodes, at which log P and the score are computed."""
        return _NODES * math.prod(event)

    def mean_cost(self, event: tuple[int, ...], batch: tuple[int, ...]) -> Cost:
        """Return the cost of a sigmoid for each unit."""
        elements = math.prod(batch) * math.prod(event)
        return Cost(elements, elements)

    def atoms(self, event: tuple[int, ...]) -> int:
        """Return 2^n, the number of outputs of a group."""
        return 1 << event[-1]

    def law_size(self, a: Tensor) -> int:
        """Return the number of outputs times the size of `a` and the number of nodes."""
        return self.atoms(tuple(a.shape[-1:])) * a.numel() * _NODES

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return all 2^n outputs of a group and their probabilities.

        Raises TooManyPoints if there are more than 2^20, or if they times the size of `a` and the nodes exceed 2^27, or 2^25
        where autograd records them.
        """
        n = a.shape[-1]
        most = _MAX_RECORDED if torch.is_grad_enabled() and a.requires_grad else _MAX_LAW
        if (1 << n) > MAX_POINTS or self.law_size(a) > most:
            raise TooManyPoints(
                f"listing the outputs of {n} correlated units takes 2^{n} outputs for each of {a[..., 0].numel()} groups, with "
                f"{_NODES} nodes for each unit of an output; the limit is {most} numbers in all. Use smaller groups or fewer of "
                "them, an objective with a closed form (objective.expectation), or estimate"
            )
        outputs = _all_outputs(n).to(a)
        values = outputs.reshape(len(outputs), *[1] * (a.ndim - 1), n).expand(len(outputs), *a.shape)
        return values, self.log_prob(values, a).exp()

    def _by_output(self, compute: Callable[[Tensor, Tensor], Tensor], h: Tensor, a: Tensor) -> Tensor:
        """Return compute(h, a), `[..., *batch, groups, ·]`, computed once for each output of a group where that is less work.

        So it is for many samples of few units, also where `a` is expanded, as for many draws at the same pre-activations.
        """
        n = a.shape[-1]
        if torch.is_grad_enabled() and a.requires_grad:
            return compute(h, a).to(a.dtype)
        draws = h.reshape(math.prod(h.shape[: h.ndim - a.ndim]), *a.shape)
        rows = a[tuple(slice(1) if stride == 0 else slice(None) for stride in a.stride()[:-2])]
        if n > _FEW or (1 << n) * rows.numel() >= draws.numel():
            found = _in_parts(compute, draws, a)
            return found.reshape(*h.shape[:-1], found.shape[-1]).to(a.dtype)
        outputs = _all_outputs(n).to(rows).reshape(1 << n, *[1] * (a.ndim - 1), n)
        table = _in_parts(compute, outputs.expand(-1, *rows.shape), rows)
        place = ((draws > 0) * 2 ** torch.arange(n - 1, -1, -1, device=a.device)).sum(-1, keepdim=True)
        found = table.expand(-1, *a.shape[:-1], -1).gather(0, place.expand(*draws.shape[:-1], table.shape[-1]))
        return found.reshape(*h.shape[:-1], found.shape[-1]).to(a.dtype)


def _in_parts(compute: Callable[[Tensor, Tensor], Tensor], h: Tensor, a: Tensor) -> Tensor:
    """Return compute(h, a) for h `[draws, *batch, groups, n]`, so many groups at a time that memory is bounded."""
    n = a.shape[-1]
    size = max(1, _MOST_AT_ONCE // (_NODES * max(n, 1)))
    parts = zip(*(torch.split(x.reshape(-1, n), size) for x in (h, a.expand(h.shape))), strict=True)
    found = torch.cat([compute(*part) for part in parts])
    return found.reshape(*h.shape[:-1], found.shape[-1])


class _Orthant:
    """The integral over the factor that is P(h | a), at its nodes, which do not move with `a`; float64.

    h: `[..., *batch, groups, n]`. a: `[*batch, groups, n]`.
    """

    def __init__(self, h: Tensor, a: Tensor, correlation: float) -> None:
        self.a = a.double().clamp(-_LARGEST, _LARGEST)
        self.moves = a.abs() <= _LARGEST
        self.sign = torch.where(h > 0, 1.0, -1.0).double()
        self.near = math.sqrt(1 - correlation)
        self.far = math.sqrt(correlation)
        self.quantile = normal_of_logit(self.a)
        with torch.no_grad():
            self.factor, log_weights = self._nodes()
        self.argument = self._argument(self.factor)
        self.log_cdf = torch.special.log_ndtr(self.argument)
        self.log_integrand = log_weights - 0.5 * self.factor.square() + self.log_cdf.contiguous().sum(-1)

    def log_probability(self) -> Tensor:
        """Return log P(h | a), `[..., *batch, groups]`."""
        top = self.log_integrand.detach().amax(0)
        log_p: Tensor = top + torch.log(leading_sum(torch.exp(self.log_integrand - top)))
        return log_p

    def score(self) -> Tensor:
        """Return d log P(h | a)/da, `[..., *batch, groups, n]`."""
        share = torch.exp(self.log_integrand - self.log_probability())
        ratio = leading_sum(share[..., None] * _hazard(self.argument, self.log_cdf))
        # dt/da = σ(a)σ(-a)/φ(t)
        slope = torch.exp(0.5 * self.quantile.square() - softplus(self.a) - softplus(-self.a)) * _ROOT_2_PI
        return torch.where(self.moves, self.sign * ratio * slope / self.near, 0)

    def _argument(self, factor: Tensor) -> Tensor:
        x: Tensor = self.sign * (self.quantile + self.far * factor[..., None]) / self.near
        return x

    def _nodes(self) -> tuple[Tensor, Tensor]:
        """Return nodes of the factor and the logarithms of their weights, `[S, ..., *batch, groups]`.

        They are f + w sinh(u) for an even grid of u, dense on the width w of the mode f and sparse far from it.
        """
        mode, width = self._mode()
        reach = torch.asinh(_REACH / width)
        step = torch.arange(-_HALF_NODES, _HALF_NODES + 1, dtype=torch.float64, device=mode.device) / _HALF_NODES
        sinh, cosh = sinh_cosh(step[(..., *[None] * mode.ndim)] * reach)
        return mode + width * sinh, torch.log(width * cosh * reach / (_HALF_NODES * _ROOT_2_PI))

    def _mode(self) -> tuple[Tensor, Tensor]:
        """Return the mode of the integrand, whose logarithm is concave, and 1/√-curvature there.

        By Newton's steps, and halving where they leave what is known to contain it. The value of the logarithm at 0 bounds it.
        """
        upper = (
            -2 * torch.special.log_ndtr(self._argument(torch.zeros_like(self.sign[..., 0]))).contiguous().sum(-1)
        ).sqrt()
        lower, mode = -upper, torch.zeros_like(upper)
        slope, curvature = self._derivatives(mode)
        for _ in range(_NEWTON_STEPS):
            lower, upper = torch.where(slope > 0, mode, lower), torch.where(slope < 0, mode, upper)
            newton = mode + slope / curvature
            mode = torch.where((newton > lower) & (newton < upper), newton, (lower + upper) / 2)
            slope, curvature = self._derivatives(mode)
        return mode, curvature.rsqrt()

    def _derivatives(self, factor: Tensor) -> tuple[Tensor, Tensor]:
        """Return the derivative of the logarithm of the integrand, and minus its second derivative."""
        argument, per_factor = self._argument(factor), self.far / self.near
        hazard = _hazard(argument, torch.special.log_ndtr(argument))
        bend = (hazard * (hazard + argument)).clamp(0, 1)
        slope = per_factor * (self.sign * hazard).contiguous().sum(-1) - factor
        return slope, 1 + per_factor**2 * bend.contiguous().sum(-1)


def _hazard(x: Tensor, log_cdf: Tensor) -> Tensor:
    """Return φ(x)/Φ(x), given log Φ(x)."""
    return torch.exp(-0.5 * x.square() - log_cdf) / _ROOT_2_PI


@functools.lru_cache(maxsize=4)
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def _all_outputs(n: int) -> Tensor:
    """Return every vector of n zeros and ones, `[2^n, n]`, uint8."""
    return torch.tensor(list(itertools.product([0, 1], repeat=n)), dtype=torch.uint8, device="cpu").reshape(1 << n, n)
