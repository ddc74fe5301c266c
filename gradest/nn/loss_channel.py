"""The loss channel: how a loss reaches a layer inside a compiled graph or a transform of torch.func.

There no Python object can be attached to the graph, so a layer emits, beside its sample, zeros `[3, *batch]`. `send_loss` makes
the gradient of these zeros carry three numbers for each example: the loss, the factor by which backward's scalar contains that
loss, and 1, which says that a loss was sent. The channel is `[0]` where the estimator needs no loss.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradest.kernels.stable import widen

__all__ = ["loss_channel", "send_loss"]


def loss_channel(a: Tensor, needs_loss: bool, event_ndim: int) -> Tensor:
    """Return the channel of a layer with input `a`, `[*batch, *event]`: zeros `[3, *batch]`, or `[0]` if no loss is needed."""
    return widen(a).new_zeros((3, *a.shape[: a.ndim - event_ndim]) if needs_loss else (0,))


def send_loss(channel: Tensor, loss: Tensor, share: float) -> Tensor:
    """Return a zero whose backward sends `loss`, `[*batch]`, to the channel.

    The scalar that the zero is added to contains `share` times the loss.
    """
    zero: Tensor = _SendLoss.apply(channel, loss, share)  # type: ignore[no-untyped-call]
    return zero


class _SendLoss(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(channel: Tensor, loss: Tensor, share: float) -> Tensor:
        return channel.new_zeros(())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        channel, loss, ctx.share = inputs
        ctx.save_for_backward(loss.to(channel.dtype))

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        (loss,) = ctx.saved_tensors
        return torch.stack([loss, (scale * ctx.share).expand_as(loss), torch.ones_like(loss)]), None, None
