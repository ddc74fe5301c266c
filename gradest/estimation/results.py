"""The record that `estimate` returns. It imports no torch, so that the client can use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic

from typing_extensions import TypeVar

if TYPE_CHECKING:
    from torch import Tensor  # noqa: F401: the default of Array

__all__ = ["Estimate"]

Array = TypeVar("Array", default="Tensor")
"""Tensor, but for clients that take other arrays."""


@dataclass(frozen=True, eq=False)
class Estimate(Generic[Array]):
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

    gradient: Array
    variance: Array
    standard_error: Array
    loss: Array
    draws: int
    evaluations: int
    seconds: float
    seed: int
    state: Mapping[str, Array]
