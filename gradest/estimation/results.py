"""The record that `estimate` returns. It imports no torch, so that the client can use it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradest.contract.estimator import State

__all__ = ["Estimate"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """The average of independent draws of an estimator.

    gradient: the mean of the draws, `[*batch, *event]`; float32 or wider, like all that follows.
    variance: per coordinate, of ONE draw; NaN with a single draw.
    standard_error: of `gradient`, √(variance / draws).
    loss: the mean estimate of E[f(h)], or of the estimator's own target, `[*batch]`.
    evaluations: of the loss, in one draw.
    seconds: wall-clock time of all draws.
    state: the estimator's state at which the draws were made.
    """

    gradient: Tensor
    variance: Tensor
    standard_error: Tensor
    loss: Tensor
    draws: int
    evaluations: int
    seconds: float
    seed: int
    state: State
