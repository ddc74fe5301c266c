"""The linear loss."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.objective import Separable
from gradest.contract.plugin import TensorOption


class Linear(Separable):
    """A weighted mean, or sum, of the outputs: L(h) = mean_i w_i h_i.

    Its exact expectation is mean_i w_i E[h_i].
    """

    name = "linear"
    summary = "weighted mean (or sum) of the outputs"
    formula = r"L(h) = \frac1D \sum_i w_i h_i"

    examples = ({}, {"weight": [2.0, -1.0], "reduction": "sum"}, {"event_ndim": 2})

    weight: TensorOption = Field(1.0, description="weights w, broadcast against [*batch, *event]")  # type: ignore[assignment]  # validated into a tensor

    def per_unit(self, h: Tensor) -> Tensor:
        """Return w h, elementwise."""
        return self.weight.to(h) * h
