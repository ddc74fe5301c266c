"""A loss that is a power of the outputs."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.objective import Separable
from gradest.contract.plugin import TensorOption


class Polynomial(Separable):
    """The mean, or sum, of the n-th power of the difference from a target: L(h) = mean_i (h_i - t_i)^n.

    Its degree n tells apart estimators that are exact up to different orders, as in Liu et al. (2023), Bridging
    Discrete and Backpropagation: Straight-Through and Beyond, arXiv 2304.08612.
    """

    name = "polynomial"
    summary = "mean (or sum) of a power of the difference from a target"
    reference = "Liu et al. 2023, arXiv 2304.08612"
    formula = r"L(h) = \frac1D \sum_i (h_i - t_i)^n"

    examples = ({}, {"power": 4, "target": 0.45}, {"event_ndim": 2})

    power: int = Field(3, ge=1, description="exponent n")
    target: TensorOption = Field(0.0, description="target t, broadcast against [*batch, *event]")  # type: ignore[assignment]  # validated into a tensor

    def per_unit(self, h: Tensor) -> Tensor:
        """Return (h - t)^n, elementwise."""
        return (h - self.target.to(h)) ** self.power
