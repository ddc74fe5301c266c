"""The record that `estimate` returns. It imports no torch, so that the client can use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from gradest.contract.estimator import State

__all__ = ["Estimate"]


@dataclass(frozen=True, eq=False)
class Estimate:
    """The average of independent draws of an estimator. Tensors have the dtype of `a`, but at least float32.

    gradient: the mean of the draws, `[*batch, *event]`.
    variance: the variance of ONE draw for each coordinate, `[*batch, *event]`; NaN for a single draw.
    standard_error: that of `gradient`, √(variance / draws).
    loss: the mean estimate of E[f(h)], or of the estimator's own target, `[*batch]`.
    draws: the number of draws.
    evaluations: K, the number of evaluations of the loss in one draw.
    seconds: the wall-clock time of all draws.
    seed: that of the noise.
    state: the estimator's state with which all draws were made.
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
