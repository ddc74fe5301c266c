"""What a service's answers become, where the library has no such thing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gradest.contract.estimator import State
from gradest.estimation.results import Estimate

__all__ = ["RemoteDraw", "RemoteEstimate", "RemoteGradient", "RemoteMean"]


@dataclass(frozen=True, eq=False)
class RemoteDraw:
    """Where the estimator wants the loss.

    points: `[K, *batch, *event]`, in the dtype of `a`.
    weights: `[K]` or `[K, *batch]`; Σ_k weights_k loss_k is the estimate of E[loss].
    needs: what `backward` wants, of {"loss", "grad"}.
    """

    points: Tensor
    weights: Tensor
    needs: frozenset[str]
    seed: int


@dataclass(frozen=True, eq=False)
class RemoteGradient:
    """What the losses gave.

    gradient: `[*batch, *event]`, in the dtype of `a`.
    value: the estimate of E[loss], or of the estimator's own target, `[*batch]`, in at least float32; None if no loss was sent.
    weights: its derivative in the losses, `[K]` or `[K, *batch]`; those of the draw, unless the target is not linear in them.
    state: for the next step.
    """

    gradient: Tensor
    value: Tensor | None
    weights: Tensor | None
    state: State


@dataclass(frozen=True, eq=False)
class RemoteEstimate(Estimate):
    """An estimate, with what the service knows of the truth.

    exact: E[loss] `[*batch]` and its gradient `[*batch, *event]`; None where neither a closed form nor enumeration gives them.
    """

    exact: tuple[Tensor, Tensor] | None


@dataclass(frozen=True, eq=False)
class RemoteMean:
    """What a neuron gives on average, both of the shape of `a`, in at least float32.

    mean: E[h].
    active_probability: P(h > 0).
    """

    mean: Tensor
    active_probability: Tensor
