"""The sign neuron, the deterministic unit of binarised networks."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.neuron import Step
from gradest_neurons._deterministic import Deterministic


class Sign(Deterministic, Step):
    """A deterministic unit that is +1 where a >= 0 and -1 elsewhere.

    h = sign(a), with sign(0) = 1 as in Hubara et al. (2016). a and h are `[*batch, units]`. Its derivative is 0 wherever it
    exists, so networks of such units are trained with another one: `straight_through` with derivative="clipped" is that of
    Hubara et al., and `surrogate` has smooth ones. `bipolar` is the random unit with the same outputs.

    Introduced for binarised networks by Hubara, Courbariaux, Soudry, El-Yaniv and Bengio (2016), Binarized Neural Networks,
    arXiv 1602.02830.
    """

    name = "sign"
    summary = "deterministic step of binarised networks, 1 where a >= 0, else -1"
    reference = "Hubara, Courbariaux, Soudry, El-Yaniv, Bengio 2016, arXiv 1602.02830"
    formula = r"h = 2 \cdot \mathbf 1[a \ge 0] - 1"

    low = -1.0

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = sign(a), broadcast to the draws of the noise, which is zero."""
        return 2 * (a + noise >= 0).to(a.dtype) - 1

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0), which is 1 where a >= 0 and 0 elsewhere."""
        return (a >= 0).to(a.dtype)

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return sign(a) for every level below 1, and -1 for others: 1 where P(h > 0) > level."""
        return 2 * (self.active_probability(a) > level).to(a.dtype) - 1
