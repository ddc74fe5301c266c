"""The torch operators that stand for a stochastic layer in a compiled graph.

    gradest::emit(layer, a, state, salt, ...) -> h, ear, use            draws; `use` is the seed it drew at, and the layer's step
    gradest::tell(layer, a, state, use, grad_h, grad_ear) -> grad_a     draws again from the seed, and moves the state on

torch.compile looks into neither, so any plugin may be inside. To it the layer is an opaque object, an input of the graph that
nothing is specialised on. The seed is taken as the operator runs, from the generator that eager code takes it from. torch would
merge two operators with equal arguments; it never takes two empty tensors for equal, and so each use is given one as its salt.
For the ear see `gradest.ears`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._library.opaque_object import register_opaque_type
from torch._opaque_base import OpaqueBase

from gradest.ears import ear

if TYPE_CHECKING:
    from gradest.nn import Stochastic

__all__ = ["Handle", "emit"]


class Handle(OpaqueBase):
    """A layer, as the operators take it."""

    def __init__(self, layer: Stochastic) -> None:
        self.layer = layer


register_opaque_type(Handle, typ="reference")


def _autograd() -> AbstractContextManager[None]:
    """Lets plugins use autograd, which torch puts out of an operator's reach."""
    guard: AbstractContextManager[None] = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    return guard


@torch.library.custom_op("gradest::emit", mutates_args=())
def emit(
    handle: Handle, a: Tensor, state: list[Tensor], salt: Tensor, hears: bool, event_ndim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One sample; an ear; the seed and the step. An empty salt tells two uses apart that look alike."""
    with _autograd():
        h, use = handle.layer._emit(a, state)
    return h, ear(a, hears, event_ndim), torch.tensor(use)


@emit.register_fake
def _(
    handle: Any, a: Tensor, state: list[Tensor], salt: Tensor, hears: bool, event_ndim: int
) -> tuple[Tensor, Tensor, Tensor]:
    return a.new_empty(a.shape), ear(a, hears, event_ndim), torch.empty(2, dtype=torch.int64)


@torch.library.custom_op("gradest::tell", mutates_args=())
def _tell(handle: Handle, a: Tensor, state: list[Tensor], use: Tensor, grad_h: Tensor, grad_ear: Tensor) -> Tensor:
    seed, step = use.tolist()
    with _autograd():
        gradient = handle.layer._tell(a, state, seed, step, grad_h, grad_ear)
    # an estimator may hand on what it was given, which an operator must not
    lent = gradient.untyped_storage().data_ptr() == grad_h.untyped_storage().data_ptr()
    return gradient.clone() if lent else gradient


@_tell.register_fake
def _(handle: Any, a: Tensor, state: list[Tensor], use: Tensor, grad_h: Tensor, grad_ear: Tensor) -> Tensor:
    return a.new_empty(a.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.handle, a, state, *_ = inputs
    ctx.save_for_backward(output[2], a, *state)


def _backward(ctx: Any, grad_h: Tensor, grad_ear: Tensor, _: Any) -> tuple[Any, ...]:
    use, a, *state = ctx.saved_tensors
    return None, _tell(ctx.handle, a, state, use, grad_h, grad_ear), [None] * len(state), None, None, None


emit.register_autograd(_backward, setup_context=_keep)
