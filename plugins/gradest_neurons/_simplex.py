"""Quadrature on the simplex of relaxed one-hot units: nodes of a plus Gumbel noise, up to a constant of all classes."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from gradest.contract.numerics import gauss_legendre, softplus
from gradest.errors import InvalidInput

_NODES_PER_DIM = {1: 1, 2: 64, 3: 18}  # by the number of classes, for each winner; the simplex has one dimension fewer
_POWER = 3  # of the substitution that moves nodes towards the corners
_FURTHER = 1.3  # at each further level
_SOBOL_POINTS = 1024  # for more classes than these


def winners(classes: int) -> list[int | None]:
    """Return the classes for which the law is computed apart, as the largest; [None] if it is computed for all at once."""
    return [*range(classes)] if classes in _NODES_PER_DIM else [None]


def count_nodes(classes: int) -> int:
    """Return how many nodes the law of a unit has at level 0."""
    of_dim = _NODES_PER_DIM.get(classes)
    return _SOBOL_POINTS if of_dim is None else int(classes * of_dim ** (classes - 1))


def perturbed(a: Tensor, nodes: Tensor, winner: int | None) -> Tensor:
    """Return a + G up to a constant, `[S, *a.shape]`, at the nodes of `simplex_nodes`.

    Given that class k is the largest, class c is below it by log(1 + E_c/(E p_c)) with E and E_c exponentially
    distributed: the node has log E_c/E.
    """
    at = nodes.to(a).reshape(len(nodes), *[1] * (a.ndim - 1), nodes.shape[-1])
    if winner is None:
        return a + at
    at = torch.cat([at[..., :winner], at.new_zeros(*at.shape[:-1], 1), at[..., winner:]], -1)
    below = softplus(at - torch.log_softmax(a, -1))
    return -torch.where(torch.arange(a.shape[-1], device=a.device) == winner, 0, below)


@functools.lru_cache(maxsize=8)  # of many classes, a table has tens of megabytes
@torch.inference_mode(False)  # a cached inference tensor could not take part in a later autograd graph
def simplex_nodes(classes: int, level: int) -> tuple[Tensor, Tensor]:
    """Return quadrature nodes, with twice as many in each dimension at each further level, and weights `[S]` that sum to 1.

    Level -1 has five sixths of the nodes of level 0: an even coarser rule would say little of the error of level 0.

    For up to three classes the nodes are log E_c/E, `[S, classes - 1]`, for exponentially distributed E_c and E: the
    logarithms of ratios of the coordinates of a point that is uniform on the simplex, built by stick breaking. A break
    leaves the share U^(1/k) to the k parts still to come, with U uniform on (0, 1). The substitution
    U = t^n/(t^n + (1-t)^n) moves the nodes towards both ends, which are corners of the simplex; n is 3, and more at further
    levels, so that each reaches further into the corners. For more classes the nodes are Gumbel noise, `[S, classes]`.
    """
    finer = 2.0**level if level >= 0 else 5 / 6
    if classes not in _NODES_PER_DIM:
        if classes > SobolEngine.MAXDIM:
            raise InvalidInput(
                f"a law on the simplex can be integrated for at most {SobolEngine.MAXDIM} classes, not {classes}"
            )
        points = max(4, round(_SOBOL_POINTS * finer))
        with torch.device("cpu"):
            sobol = SobolEngine(classes, scramble=True, seed=0)  # type: ignore[no-untyped-call]
            u = sobol.draw(points, dtype=torch.float64) + 0.5 ** (sobol.MAXBIT + 1)  # the middle of a cell, never 0
        return -torch.log(-torch.log(u)), u.new_full((points,), 1 / points)
    t, w = gauss_legendre(max(1, round(_NODES_PER_DIM[classes] * finer)))
    power = _POWER * _FURTHER ** max(0, level)
    w = w * power * (t * (1 - t)) ** (power - 1) / (t**power + (1 - t) ** power) ** 2
    logs, rest, weights = t.new_zeros(1, 0), t.new_zeros(1), t.new_ones(1)
    for parts in range(classes - 1, 0, -1):
        left = -softplus(power * torch.logit(t)) / parts
        broken = rest[:, None] + torch.log(-torch.expm1(left))
        logs = torch.cat([logs.repeat_interleave(len(t), 0), broken.reshape(-1, 1)], -1)
        rest = (rest[:, None] + left).flatten()
        weights = (weights[:, None] * w).flatten()
    return logs - rest[:, None], weights / weights.sum()
