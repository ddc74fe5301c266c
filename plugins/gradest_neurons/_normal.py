"""Quadrature over independent standard normal variables, for units of several of them."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from gradest.errors import InvalidInput

GRID_DIMS = 2
"""The most dimensions for which the nodes are a grid; for more, they are a Sobol sequence."""

_REACH = 6.0  # of the grid at level 0, in standard deviations
_FURTHER = 1.5  # at each further level
_SOBOL_POINTS = 1024


def count_normal_nodes(dims: int, step: float) -> int:
    """Return the number of nodes of level 0."""
    return _SOBOL_POINTS if dims > GRID_DIMS else int((2 * math.ceil(_REACH / step) + 1) ** dims)


@functools.lru_cache(maxsize=8)  # of many dimensions, a table has tens of megabytes
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def normal_nodes(dims: int, step: float, level: int, name: str) -> tuple[Tensor, Tensor]:
    """Return nodes `[S, dims]` and weights `[S]`, with twice as many nodes in each dimension at each further level.

    Level -1 has five sixths of the nodes of level 0, and less reach.

    step: of the grid at level 0, in standard deviations. name: of the neuron, for the error of too many dimensions.
    """
    finer = 2.0**level if level >= 0 else 5 / 6
    with torch.device("cpu"):
        if dims > GRID_DIMS:
            if dims > SobolEngine.MAXDIM:
                raise InvalidInput(
                    f"the law of {name} can be integrated for at most {SobolEngine.MAXDIM} normal variables, not {dims}"
                )
            points = max(4, round(_SOBOL_POINTS * finer))
            sobol = SobolEngine(dims, scramble=True, seed=0)  # type: ignore[no-untyped-call]
            u = sobol.draw(points, dtype=torch.float64) + 0.5 ** (sobol.MAXBIT + 1)  # the middle of a cell, never 0
            return torch.special.ndtri(u), torch.full((points,), 1 / points, dtype=torch.float64)
        if dims == 0:
            return torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
        reach = _REACH + _FURTHER * level if level >= 0 else _REACH * finer
        half = math.ceil(reach / step * finer)
        x = torch.arange(-half, half + 1, dtype=torch.float64) * (step / finer)
        grid = torch.cartesian_prod(*[x] * dims).reshape(-1, dims)
        weights = torch.exp(-0.5 * grid.square().sum(-1))
        return grid, weights / weights.sum()
