"""The torch operators that stand for a stochastic layer in a compiled graph.

    gradest::emit(layer, a, state, salt, ...) -> h, loss_channel, use          draws; `use` holds the seed and the layer's step
    gradest::tell(layer, a, state, use, grad_h, loss_gradient) -> grad_a       draws again from the seed, and moves the state on

torch.compile does not look inside either operator, so any plugin may run there. The layer is an opaque object to it, an input of
the graph that nothing is specialised on. The seed is drawn when the operator runs, from the generator that eager code uses.
torch merges two operators with equal arguments, but never takes two empty tensors for equal, so each use gets an empty tensor as
its salt. `gradest.nn.loss_channel` describes the channel.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._library.opaque_object import register_opaque_type
from torch._opaque_base import OpaqueBase

from gradest.nn.loss_channel import loss_channel

__all__ = ["Handle", "emit"]


class CompiledLayer(Protocol):
    """What the operators need of a layer, which is a `gradest.nn.Stochastic`."""

    def _emit(self, a: Tensor, state: list[Tensor]) -> tuple[Tensor, tuple[int, int]]: ...

    def _tell(
        self, a: Tensor, state: list[Tensor], seed: int | Tensor, step: int, grad_h: Tensor, loss_gradient: Tensor
    ) -> Tensor: ...


class Handle(OpaqueBase):
    """A layer in the form that a torch operator accepts as an argument."""

    def __init__(self, layer: CompiledLayer) -> None:
        self.layer = layer


register_opaque_type(Handle, typ="reference")


def _autograd() -> AbstractContextManager[None]:
    """Return a context in which plugins may use autograd, which torch disables inside an operator."""
    guard: AbstractContextManager[None] = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    return guard


@torch.library.custom_op("gradest::emit", mutates_args=())
def emit(
    handle: Handle, a: Tensor, state: list[Tensor], salt: Tensor, needs_loss: bool, event_ndim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one sample, the loss channel, and the pair (seed, step).

    An empty `salt` distinguishes two uses with equal arguments.
    """
    with _autograd():
        h, use = handle.layer._emit(a, state)
    return h, loss_channel(a, needs_loss, event_ndim), torch.tensor(use)


@emit.register_fake
def _(
    handle: Any, a: Tensor, state: list[Tensor], salt: Tensor, needs_loss: bool, event_ndim: int
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), loss_channel(a, needs_loss, event_ndim), torch.empty(2, dtype=torch.int64)


@torch.library.custom_op("gradest::tell", mutates_args=())
def _tell(handle: Handle, a: Tensor, state: list[Tensor], use: Tensor, grad_h: Tensor, loss_gradient: Tensor) -> Tensor:
    seed, step = use.tolist()
    with _autograd():
        gradient = handle.layer._tell(a, state, seed, step, grad_h, loss_gradient)
    # an estimator may return its argument; an operator must not return memory that it was given
    shares_memory = gradient.untyped_storage().data_ptr() == grad_h.untyped_storage().data_ptr()
    return gradient.clone() if shares_memory else gradient


@_tell.register_fake
def _(handle: Any, a: Tensor, state: list[Tensor], use: Tensor, grad_h: Tensor, loss_gradient: Tensor) -> Tensor:
    return a.new_empty(a.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.handle, a, state, *_ = inputs
    ctx.save_for_backward(output[2], a, *state)


def _backward(ctx: Any, grad_h: Tensor, loss_gradient: Tensor, _: Any) -> tuple[Any, ...]:
    use, a, *state = ctx.saved_tensors
    return None, _tell(ctx.handle, a, state, use, grad_h, loss_gradient), [None] * len(state), None, None, None


emit.register_autograd(_backward, setup_context=_keep)
