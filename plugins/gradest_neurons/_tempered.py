"""Shared parts of the relaxed units whose temperature is a pre-activation, the last of each unit."""

from __future__ import annotations

from torch import Tensor

from gradest.contract.neuron import Neuron
from gradest.contract.numerics import portable
from gradest.errors import InvalidInput

MOST = 69.0
"""The largest |log τ|: exp(69) is 9e29, whose products with a loss's derivative stay far below the largest float32."""

_STEEPEST = 200.0  # beyond this |x|, σ'(x) is 0 beside every other number


def check_parts(neuron: Neuron, event: tuple[int, ...], fits: bool, shape: str, first: str) -> None:
    """Raise InvalidInput unless the event `fits`, and say which shape it must have."""
    if not fits:
        raise InvalidInput(
            f"{neuron.name} takes pre-activations {shape}, but here an event is {list(event)}; "
            f"torch.cat([{first}, log_temperature], -1) makes them"
        )


def check_log_temperature(neuron: Neuron, a: Tensor) -> None:
    """Raise InvalidInput for a log temperature, the last entry of each unit, of a magnitude above 69."""
    # all entries are seldom so large, and looking at them takes a fraction of the time that looking at the strided ones does
    if a.numel() and bool(a.amax() > MOST or a.amin() < -MOST) and bool((a[..., -1].abs() > MOST).any()):
        raise InvalidInput(
            f"{neuron.name} takes a log temperature between {-MOST:g} and {MOST:g}. Bound it, as in "
            "log_temperature.clamp(-5, 5)"
        )


def with_temperature(a: Tensor) -> Tensor:
    """Return log τ, the last entry of each unit, `[*batch, units]`, within the bounds that `check_log_temperature` states."""
    return a[..., -1].clamp(-MOST, MOST)


def logistic_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return x, bounded so that its product with the slope is finite, and the slope σ(x) σ(-x)."""
    x = x.clamp(-_STEEPEST, _STEEPEST)
    p, q = portable.both_sigmoids(x)
    return x, p * q
