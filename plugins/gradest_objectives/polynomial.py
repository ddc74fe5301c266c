"""A polynomial loss."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.objective import Separable
from gradest.contract.plugin import TensorOption


class Polynomial(Separable):
    """L(h) = mean_i (h_i - t_i)^n (or the sum), n a whole number: of degree n, to tell apart what is exact up to which order."""

    name = "polynomial"
    summary = "mean (or sum) of a power of the difference from a target"
    reference = "Liu et al. 2023, arXiv 2304.08612"
    formula = r"L(h) = \frac1D \sum_i (h_i - t_i)^n"

    examples = ({}, {"power": 4, "target": 0.45}, {"event_ndim": 2})

    power: int = Field(3, ge=1, description="n")
    target: TensorOption = Field(0.0, description="t, broadcast against [*batch, *event]")  # type: ignore[assignment]  # validated into a tensor

    def per_unit(self, h: Tensor) -> Tensor:
        """(h - t)^n."""
        return (h - self.target.to(h)) ** self.power
