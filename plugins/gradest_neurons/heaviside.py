"""The Heaviside neuron, the deterministic step unit of spiking and binarised networks."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.neuron import Step
from gradest.random import Key
from gradest_neurons._deterministic import Deterministic, repeat_activation


class Heaviside(Deterministic, Step):
    """A deterministic unit that is 1 where a > 0 and 0 elsewhere.

    h = 1[a > 0]. Its derivative is 0 wherever it exists, so networks of such units are trained with a surrogate
    derivative (see the estimator `surrogate`).

    Introduced by McCulloch and Pitts (1943), A Logical Calculus of the Ideas Immanent in Nervous Activity, Bulletin of
    Mathematical Biophysics 5.
    """

    name = "heaviside"
    summary = "deterministic step, 1 where a > 0"
    reference = "McCulloch, Pitts 1943"
    formula = r"h = \mathbf 1[a > 0]"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return h = 1[a > 0], broadcast to the draws of the noise, which is zero."""
        return (a + noise > 0).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """Return h, `[draws, *a.shape]`, in one pass if the device has a kernel for it."""
        h = repeat_activation(a, draws, 0)
        return super().sample(key, a, draws) if h is None else h

    def active_probability(self, a: Tensor) -> Tensor:
        """Return P(h > 0), which is 1 where a > 0 and 0 elsewhere."""
        return (a > 0).to(a.dtype)
