"""The tempered binary concrete neuron: each unit has its own logit and its own temperature, and both are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradest.contract.numerics import computable, panels, portable, sigmoid, widen
from gradest.random import Key
from gradest_neurons._continuous import Squashed, nodes_at, normalised, reach_at, sigmoid_at
from gradest_neurons._tempered import MOST, check_log_temperature, check_parts, logistic_slope, with_temperature


class TemperedBinaryConcrete(Squashed):
    """A relaxed binary unit with two pre-activations, the logit m and the logarithm of the temperature τ, and one output.

    h = σ((m + z)/τ) with z standard logistic and τ = exp(a_1), so P(h > ½) = σ(m) and P(h > 0) = 1. With x = (m + z)/τ,
    dh/dm = h (1 - h)/τ and dh/d log τ = -x h (1 - h). It takes `a` `[*batch, units, 2]` and gives h `[*batch, units]`. As log τ
    falls the unit becomes the Bernoulli unit, and as it grows h becomes ½: the temperature is learned like any other
    pre-activation, instead of being annealed. `binary_concrete` has one pre-activation and a fixed τ.

    The magnitude of log τ may be at most 69, so that τ is between 1e-30 and 1e30. E[h] is integrated as for `binary_concrete`,
    with the same errors.

    The law is that of Maddison, Mnih and Teh (2017), The Concrete Distribution: A Continuous Relaxation of Discrete Random
    Variables, arXiv 1611.00712. That the temperature can be learned is a remark of Jang, Gu and Poole (2017), Categorical
    Reparameterization with Gumbel-Softmax, arXiv 1611.01144; one for each unit, by its logarithm, is gradest's choice.
    """

    name = "tempered_binary_concrete"
    summary = "relaxed binary unit with a learned logit and a learned log temperature"
    reference = "Maddison, Mnih, Teh 2017, arXiv 1611.00712; Jang, Gu, Poole 2017, arXiv 1611.01144"
    formula = r"h = \sigma\!\left(\frac{m + z}{\tau}\right), \quad (m, \log \tau) = a, \quad z \sim \mathrm{Logistic}"

    event_ndim: ClassVar[int] = 2
    example_events: ClassVar[Sequence[tuple[int, ...]]] = ((2, 2), (3, 2), (1, 2))

    def output_event(self, event: tuple[int, ...]) -> tuple[int, ...]:
        """Return (units,) for (units, 2). Raises InvalidInput for a last dim of another size."""
        check_parts(
            self, event, event[-1] == 2, "[*batch, units, 2], the logit and the log temperature of each unit", "logit"
        )
        return event[:-1]

    def check(self, a: Tensor) -> None:
        """Raise InvalidInput for a log temperature of a magnitude above 69."""
        check_log_temperature(self, a)

    def noise(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return the logistic noise z, `[draws, *batch, units]`: the logit of uniform noise."""
        return portable.logit(key.uniform_like(a[..., 0], draws))

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = σ((m + z)/τ)."""
        logit, log_temperature = _parts(a)
        return portable.sigmoid((logit + noise) * portable.exp(-log_temperature)).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Draw h, `[draws, *batch, units]`, in one pass if the device has a kernel for it."""
        h = key.fused("scaled_concrete", a, draws, self.event_ndim, MOST, event=a.shape[-2:-1])
        return super().sample(key, a, draws) if h is None else h

    def pullback(self, key: Key, a: Tensor, h: Tensor, grad_h: Tensor) -> Tensor:
        """Return what `backward` returns, in one pass if the device has a kernel for it, which draws the noise again."""
        grad = computable(grad_h, a)
        found = key.fused("scaled_concrete_pullback", a, len(h), self.event_ndim, grad, MOST)
        return super().pullback(key, a, h, grad_h) if found is None else found

    def backward(self, a: Tensor, noise: Tensor, grad_h: Tensor) -> Tensor:
        """Return grad_h · h (1 - h) · (1/τ, -x), with x = (m + z)/τ."""
        logit, log_temperature = _parts(a)
        steep = portable.exp(-log_temperature)
        x, slope = logistic_slope((logit + noise) * steep)
        slope = grad_h * slope
        return torch.stack([steep * slope, -x * slope], -1).to(a.dtype)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0) = 1, because the output is always positive."""
        return torch.ones_like(a[..., 0])

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return 1 where P(h > ½) = σ(m) > level, else 0: what the Bernoulli unit does, the limit of τ to 0."""
        return (sigmoid(a[..., 0]) > level).to(a.dtype)

    def quadrature(self, a: Tensor, level: int) -> tuple[Tensor, Tensor]:
        """Return h at nodes of m + z, weighted with its density.

        h, and so x = (m + z)/τ, is fixed at the present value of a; the density of z = τ x - m is differentiated in both.
        That of x is τ times it, a factor that is the same at all nodes, so that `normalised` supplies it.
        """
        logit, log_temperature = _parts(a)
        here, temperature = logit.detach(), log_temperature.detach().exp()
        reach = reach_at("logistic", level)
        shifted, z, dz = panels(here, here - reach, here + reach, (0.0, temperature), 1.0, nodes_at(level))
        moved = log_temperature - log_temperature.detach()
        z = z + shifted * torch.expm1(moved) - (logit - here)
        return sigmoid_at(level, shifted / temperature), normalised(dz * sigmoid(z) * sigmoid(-z))


def _parts(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return m and log τ, `[*batch, units]`, in at least float32."""
    wide = widen(a)
    return wide[..., 0], with_temperature(wide)
