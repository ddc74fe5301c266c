"""broadcast_loss: one loss for every stochastic layer of a model."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from gradest.errors import InvalidInput
from gradest.nn.layers import Stochastic
from gradest.nn.loss_channel import send_loss
from gradest.nn.uses import spread_loss

__all__ = ["broadcast_loss"]


def broadcast_loss(model: nn.Module, loss: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Return the scalar to call backward on: the mean (or sum) of `loss`. Its backward pass gives each stochastic layer its loss.

    loss: `[*batch]`, one number an example, its dims leading in each layer's batch dims (a layer may have more of them, such
    as positions in an image, which then share their example's loss). It need not be differentiable. The scalar may be scaled,
    as gradient accumulation and loss scaling do. The loss goes to every use of a layer since the last call whose output is still
    alive. In compiled code and inside transforms of torch.func it goes to every use, alive or not; run under torch.no_grad() what
    is not to receive it there. A use inside such a transform receives its loss inside the same transform.
    """
    if reduction not in ("mean", "sum"):
        raise InvalidInput(f'reduction must be "mean" or "sum", not {reduction!r}')
    total = loss.mean() if reduction == "mean" else loss.sum()
    share = 1 / max(1, loss.numel()) if reduction == "mean" else 1.0
    for layer in model.modules():
        if isinstance(layer, Stochastic):
            for channel in layer._take_loss_channels():
                spread = spread_loss(loss, channel.shape[1:], layer.neuron)
                total = total + send_loss(channel, spread, share)
            if torch.compiler.is_compiling():
                continue
            for use, anchor in layer._take_waiting_uses():
                use.set_loss(loss, share)
                total = total + anchor
    return total
