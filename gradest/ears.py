"""Ears: how a layer hears its loss where it cannot be told: in a compiled graph, and inside a transform of torch.func.

An ear is zeros `[3, *batch]` that a layer puts out beside its sample. `gradest.nn.broadcast_loss` has its gradient be, for each
example, the loss, what backward's scalar holds that loss times, and 1. An ear is `[0]` where the estimator needs no loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradest.kernels.reference import widen

__all__ = ["ear", "whisper"]


def ear(a: Tensor, hears: bool, event_ndim: int) -> Tensor:
    """An ear for `a`, `[*batch, *event]`, or the one that does not hear."""
    return widen(a).new_zeros((3, *a.shape[: a.ndim - event_ndim]) if hears else (0,))


def whisper(to: Tensor, loss: Tensor, share: float) -> Tensor:
    """A zero, whose backward tells the ear the loss `[*batch]`, of which backward's scalar holds `share` times."""
    zero: Tensor = _Whisper.apply(to, loss, share)  # type: ignore[no-untyped-call]
    return zero


class _Whisper(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(ear: Tensor, loss: Tensor, share: float) -> Tensor:
        return ear.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        ear, loss, ctx.share = inputs
        ctx.save_for_backward(loss.to(ear.dtype))

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        (loss,) = ctx.saved_tensors
        return torch.stack([loss, (scale * ctx.share).expand_as(loss), torch.ones_like(loss)]), None, None
