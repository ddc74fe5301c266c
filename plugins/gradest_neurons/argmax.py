"""The argmax neuron, the deterministic choice of vector-quantised networks."""

from __future__ import annotations

import torch
from torch import Tensor

from gradest.contract.neuron import OneHot
from gradest_neurons._deterministic import Deterministic


class Argmax(OneHot, Deterministic):
    """A deterministic one-hot unit: 1 at the class of the largest pre-activation.

    h = e_c with c = argmax a, the first of equals. a and h are `[*batch, units, classes]`, and h is one-hot over the last
    dimension. With the negative squared distances to the entries of a codebook for a, it chooses the nearest entry, as
    vector-quantised networks do. Its derivative is 0 wherever it exists, so such networks are trained with another one:
    `straight_through` passes dL/dh to a as it is, or through the derivative of softmax(a) with derivative="sigmoid".
    `categorical` is the random unit with the same outputs.

    A class whose a is -inf is masked: it is never chosen. Each unit needs a finite class.

    Used by van den Oord, Vinyals and Kavukcuoglu (2017), Neural Discrete Representation Learning, arXiv 1711.00937.
    """

    name = "argmax"
    summary = "deterministic one-hot unit, 1 at the class of the largest pre-activation"
    reference = "van den Oord, Vinyals, Kavukcuoglu 2017, arXiv 1711.00937"
    formula = r"h = e_c, \quad c = \arg\max_k a_k"

    def forward(self, a: Tensor, noise: Tensor) -> Tensor:
        """Return 1 at the class of the largest pre-activation, broadcast to the draws of the noise, which is zero."""
        return self.one_hot((a + noise).argmax(-1), a)

    def active_probability(self, a: Tensor) -> Tensor:
        """Return h itself, the probability of each class to be chosen."""
        return self.mean(a)

    def law(self, a: Tensor) -> tuple[Tensor, Tensor]:
        """Return the law of h: a single atom at h, with weight 1 for each unit."""
        h = self.mean(a)[None]
        return h, torch.ones_like(h[..., 0])

    def threshold(self, a: Tensor, level: float | Tensor) -> Tensor:
        """Return h for every level, because exactly one class of a unit is 1."""
        return self.mean(a)
