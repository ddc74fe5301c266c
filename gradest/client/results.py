"""Records of responses, where the library has no such record. Their arrays are of the kind that the call was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic

from gradest.client.arrays import Array
from gradest.estimation.results import Estimate

__all__ = ["RemoteDraw", "RemoteEstimate", "RemoteGradient", "RemoteMean"]


@dataclass(frozen=True, eq=False)
class RemoteDraw(Generic[Array]):
    """The points at which the estimator needs the loss.

    points: `[K, *batch, *event']`, in the dtype of `a`.
    weights: `[K]` or `[K, *batch]`; Σ_k weights_k loss_k is the estimate of E[loss].
    needs: what `backward` needs at the points, a subset of {"loss", "grad"}.
    seed: the seed of the noise.
    event_dims: the number of trailing dims of `a` that are one event.
    digest: identifies the draw, so that the service can refuse a `backward` with other arguments than `forward` had; None if the
        service is older than digests.
    """

    points: Array
    weights: Array
    needs: frozenset[str]
    seed: int
    event_dims: int
    digest: str | None = None


@dataclass(frozen=True, eq=False)
class RemoteGradient(Generic[Array]):
    """The gradient estimated from the losses.

    gradient: `[*batch, *event]`, in the dtype of `a`.
    value: the estimate of E[loss], or of the estimator's own target, `[*batch]`, in at least float32; None if no loss was sent.
    weights: the derivative of `value` in the losses, `[K]` or `[K, *batch]`: the weights of the draw, unless the target is not
        linear in the losses; None if no loss was sent.
    state: the estimator's state for the next step.
    """

    gradient: Array
    value: Array | None
    weights: Array | None
    state: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class RemoteEstimate(Estimate[Array]):
    """An estimate, with the exact values if the service can compute them.

    exact: E[loss], `[*batch]`, and its gradient, `[*batch, *event]`; None if neither a closed form nor enumeration gives them.
    """

    exact: tuple[Array, Array] | None


@dataclass(frozen=True, eq=False)
class RemoteMean(Generic[Array]):
    """Expectations of a neuron's output, both of the shape of `a`, in at least float32.

    mean: E[h].
    active_probability: P(h > 0).
    """

    mean: Array
    active_probability: Array
