"""The quadratic loss."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from gradest.contract.objective import Separable
from gradest.contract.plugin import TensorOption


class Quadratic(Separable):
    """The mean, or sum, of the squared difference from a target: L(h) = mean_i (h_i - t_i)².

    It is the toy problem of Tucker et al. (2017), REBAR, arXiv 1703.07370, with one unit, and of Titsias and Shi
    (2021), Double Control Variates, arXiv 2111.05300, with 200 units.
    """

    name = "quadratic"
    summary = "mean (or sum) of squared differences from a target"
    reference = "Tucker et al. 2017, arXiv 1703.07370"
    formula = r"L(h) = \frac1D \sum_i (h_i - t_i)^2"

    examples = ({}, {"target": 0.499}, {"target": [0.2, -1.0], "reduction": "sum"}, {"event_ndim": 2})

    target: TensorOption = Field(0.0, description="target t, broadcast against [*batch, *event]")  # type: ignore[assignment]  # validated into a tensor

    def per_unit(self, h: Tensor) -> Tensor:
        """Return (h - t)², elementwise."""
        return (h - self.target.to(h)) ** 2
