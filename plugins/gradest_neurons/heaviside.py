"""The deterministic step unit, of spiking and binarised networks."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.neuron import Step
from gradest.random import Key
from gradest_neurons._deterministic import Deterministic, repeated


class Heaviside(Deterministic, Step):
    """h = 1[a > 0]; the true derivative is 0 wherever there is one, so training takes a surrogate for it."""

    name = "heaviside"
    summary = "deterministic step, 1 where a > 0"
    reference = "McCulloch, Pitts 1943"
    formula = r"h = \mathbf 1[a > 0]"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """1[a > 0], once for each draw that the noise has room for."""
        return (a + noise > 0).to(a.dtype)

    def sample(self, key: Key, a: Tensor, draws: int) -> Tensor:
        """In one pass where there is a kernel."""
        h = repeated(a, draws, 0)
        return super().sample(key, a, draws) if h is None else h

    def active_probability(self, a: Tensor) -> Tensor:
        """1[a > 0]."""
        return (a > 0).to(a.dtype)
