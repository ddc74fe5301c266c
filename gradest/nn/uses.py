"""One use of a stochastic layer: the sample it emits, and the gradient it computes once its loss is known."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Neuron
from gradest.errors import InvalidInput, MissingLoss
from gradest.estimation.ask_tell import ask, tell
from gradest.estimation.distributed import fresh_key
from gradest.kernels.stable import widen
from gradest.nn.loss_channel import loss_channel

__all__ = ["Emit", "EmitTransformed", "KeepAlive", "LivenessToken", "Use", "spread_loss"]


class StochasticLayer(Protocol):
    """What a use needs of its layer, which is a `gradest.nn.Stochastic`."""

    neuron: Neuron
    estimator: Estimator

    def _advance(self, state: State, since: int) -> None: ...

    def _tell(
        self, a: Tensor, state: list[Tensor], seed: int | Tensor, step: int, grad_h: Tensor, loss_gradient: Tensor
    ) -> Tensor: ...


def spread_loss(loss: Tensor, batch: tuple[int, ...], neuron: Neuron) -> Tensor:
    """Expand a loss whose dims are the leading batch dims of a layer to all of its batch dims, `[*batch]`."""
    if loss.shape != batch[: loss.ndim]:
        raise InvalidInput(
            f"the loss is one number an example, so its shape must be, or begin, the batch {list(batch)} of the layer "
            f"{neuron.label()}; it is {list(loss.shape)}. Reduce the loss over its other dims, not over the batch"
        )
    return loss.detach()[(..., *[None] * (len(batch) - loss.ndim))].expand(batch)


class LivenessToken:
    """Token kept alive by the autograd graph. When it is garbage-collected, no backward pass can reach this use."""

    __slots__ = ("__weakref__",)


class Use:
    """What backward needs of one use of a layer, and the loss once it is known."""

    def __init__(self, layer: StochasticLayer, draw: Draw, state: State, step: int) -> None:
        self.layer, self.draw, self.state, self.step = layer, draw, state, step
        self.loss: Tensor | None = None
        self.share = 1.0
        self.emitted = draw.points

    def set_loss(self, loss: Tensor, share: float) -> None:
        """Record the loss, of which the scalar that backward starts from contains `share` times its own value."""
        neuron = self.layer.neuron
        self.loss = spread_loss(loss, self.draw.points.shape[1 : self.draw.points.ndim - neuron.event_ndim], neuron)
        self.share = share

    def gradient(self, grad_h: Tensor, scale: Tensor) -> Tensor:
        """Tell the estimator what came back, and move the layer's state on.

        grad_h: dL/dh `[*batch, *event]`, times the factor by which the scalar was scaled. scale: that factor.
        Raises MissingLoss if the estimator needs the loss and none was recorded.
        """
        estimator = self.layer.estimator
        if self.emitted._version:  # the caller has written to h, which shares memory with the points
            with torch.no_grad():
                self.draw = estimator.forward(self.draw.neuron, self.draw.a, self.draw.key, self.state)
        grad = grad_h[None] if "grad" in estimator.needs else None
        if "loss" not in estimator.needs:
            gradient, state = tell(estimator, self.draw, Feedback(None, grad), self.state)
        else:
            if self.loss is None:
                raise MissingLoss(
                    f"{estimator.label()} needs the loss of each example: call backward on "
                    "gradest.nn.broadcast_loss(model, loss), with loss [*batch], instead of on the reduced loss"
                )
            # backward started from a scalar that contains each example's loss times this factor
            factor = widen(scale * self.share)
            if grad is not None:
                grad = grad / torch.where(factor == 0, 1, factor)
            gradient, state = tell(estimator, self.draw, Feedback(self.loss[None], grad), self.state)
            gradient = gradient * factor
        self.layer._advance(state, self.step)
        return gradient


class Emit(torch.autograd.Function):
    """Emits the sample, and a zero whose gradient is the factor by which backward's scalar was scaled."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, use: Use) -> tuple[Tensor, Tensor]:
        """Return the sample and the zero."""
        ctx.use, ctx.dtype = use, a.dtype
        points, given = use.draw.points, use.draw.a
        if points.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
            points = points.clone()  # a neuron may emit `a` itself
        h = points[0].to(a.dtype).data  # shares memory with the points but is no view, so callers may write to h
        use.emitted = h.detach()  # its version counter counts those writes
        return h, a.new_zeros((), dtype=use.draw.a.dtype)

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor, grad_anchor: Tensor) -> tuple[Tensor, None]:
        """Return the gradient in `a`."""
        return ctx.use.gradient(grad_h, grad_anchor).to(ctx.dtype), None


class KeepAlive(torch.autograd.Function):
    """The identity, whose node keeps the token alive for as long as any graph leads back to this use."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, token: LivenessToken) -> Tensor:
        """Return h."""
        ctx.token = token
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Return the gradient as it is."""
        return grad, None


class EmitTransformed(torch.autograd.Function):
    """The operator `emit` for torch.func and a layer without state, in plain torch, so that torch can map over it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, seed: Tensor, layer: StochasticLayer) -> tuple[Tensor, Tensor]:
        """Return the sample and the loss channel."""
        neuron = layer.neuron
        draw, _ = ask(neuron, layer.estimator, a, fresh_key(a, neuron.event_ndim, seed), {})
        return draw.points[0].to(a.dtype, copy=True), loss_channel(
            a, "loss" in layer.estimator.needs, neuron.event_ndim
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what backward needs to draw again."""
        a, seed, ctx.layer = inputs
        ctx.save_for_backward(a, seed)
        ctx.set_materialize_grads(False)  # an output that received no gradient gets None

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, loss_gradient: Tensor | None) -> tuple[Tensor, None, None]:
        """Return the gradient in `a`."""
        a, seed = ctx.saved_tensors
        grad_h = torch.zeros_like(a) if grad_h is None else grad_h
        loss_gradient = a.new_zeros(3, 0) if loss_gradient is None else loss_gradient
        return ctx.layer._tell(a, [], seed, 0, grad_h, loss_gradient), None, None
