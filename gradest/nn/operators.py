"""The torch operators that stand for a stochastic layer in a compiled graph.

    gradest::draw(layer, a, state, salt, ...) -> sample, flag, drawn
    gradest::tell(layer, a, state, drawn, sample, loss, ...) -> gradient          moves the state on
    gradest::pull(layer, a, state, drawn, sample, grad, flag, ...) -> gradient    the backward of `draw`

torch.compile does not look inside an operator, so any plugin may run there. The layer is an opaque object to it, an input of the
graph that nothing is specialised on. The seed is drawn when the operator runs, from the generator that eager code uses. torch
merges two operators with equal arguments, but never takes two empty tensors for equal, so each use gets an empty tensor as its
salt. `drawn` is the seed, with the layer's steps and changes. `tell` and `pull` are given the sample if a draw holds nothing
else, and otherwise draw again. h is then a copy of it, in the graph, because the caller may write to h; the compiler leaves the
copy out where nobody can. The flag is a zero, to which the scalar of a told loss sends a 1 in backward; without it `pull`
raises MissingLoss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch._library.opaque_object import register_opaque_type
from torch._opaque_base import OpaqueBase

from gradest.contract.estimator import Feedback, State
from gradest.errors import InvalidInput
from gradest.estimation.ask_tell import check_feedback_finite
from gradest.estimation.losses.repetition import is_recomputed
from gradest.estimation.second_derivative import DifferentiateOnce
from gradest.kernels.stable import widen
from gradest.nn.sampler import Paths, Sampler
from gradest.nn.slopes import unreached
from gradest.nn.uses import Recorded, StatefulLayer, Use, missing_loss

__all__ = ["Handle", "RecordedInGraph", "draw"]


class CompiledLayer(StatefulLayer, Protocol):
    """What the operators need of a layer, which is a `gradest.nn.Stochastic`.

    changes counts how often the layer was given other options.
    """

    steps: int
    changes: int

    @property
    def sampler(self) -> Sampler:
        """The neuron and the estimator, with their options of now."""

    @property
    def state(self) -> State:
        """The estimator's state."""

    def await_slope(self, seed: int) -> None:
        """Expect dL/dh to reach the sample drawn from this seed."""

    def slope_reached(self, seed: int) -> None:
        """Note that dL/dh has reached the sample drawn from this seed."""

    def fitted(self, state: State, a: Tensor) -> State:
        """Return the state in the form for a use at `a`. Raises InvalidInput if it was made for another event."""


class Handle(OpaqueBase):
    """A layer in the form that a torch operator accepts as an argument."""

    def __init__(self, layer: CompiledLayer) -> None:
        self.layer = layer

    def sampler_of(self, changes: int) -> Sampler:
        """Return the layer's sampler. Raises InvalidInput if it is no longer the one that drew, after so many changes."""
        sampler = self.layer.sampler
        if changes != self.layer.changes:
            raise InvalidInput(
                f"the layer {sampler.neuron.label()}, {sampler.estimator.label()} was given other options between the forward "
                "and the backward pass of a compiled function, which draws its sample again in backward; change options after "
                "backward"
            )
        return sampler

    def use(
        self, a: Tensor, state: list[Tensor], drawn: list[int], sample: Tensor | None, paths: int, flat: bool
    ) -> Use:
        """Return the use that `draw` drew."""
        seed, step, changes = drawn
        sampler, named, how = self.sampler_of(changes), self.named(state, a), Paths(paths, flat)
        draw = sampler.draw(a, named, how, seed) if sample is None else sampler.draw_of(sample[None], a, how, seed)
        return Use(self.layer, sampler, draw, named, step, how)

    def named(self, state: list[Tensor], a: Tensor) -> State:
        """Return the state with its names, for a use at `a`."""
        return self.layer.fitted(dict(zip(self.layer.state, state, strict=True)), a) if state else {}


register_opaque_type(Handle, typ="reference")


class RecordedInGraph(Recorded):
    """A use in a compiled graph."""

    def __init__(
        self,
        sampler: Sampler,
        handle: Handle,
        port: Tensor,
        baseline: Tensor | None,
        flag: Tensor,
        a: Tensor,
        state: list[Tensor],
        drawn: Tensor,
        sample: Tensor | None,
        paths: Paths,
    ) -> None:
        super().__init__(sampler, port, baseline, paths, flag)
        self.handle, self.a, self.state, self.drawn, self.sample, self.paths = handle, a, state, drawn, sample, paths

    def _gradient(self, loss: Tensor) -> Tensor:
        gradient: Tensor = _tell(
            self.handle, self.a, self.state, self.drawn, self.sample, loss, self.paths.samples, self.paths.flat
        )
        return gradient


def _autograd() -> AbstractContextManager[None]:
    """Return a context in which plugins may use autograd, which torch disables inside an operator."""
    guard: AbstractContextManager[None] = torch._C._SetExcludeDispatchKeyGuard(
        torch._C.DispatchKey.AutogradFunctionality, False
    )
    return guard


def _own(result: Tensor, *given: Tensor | None) -> Tensor:
    """Return the result in memory of its own: a plugin may return its argument, an operator must not."""
    memory = result.untyped_storage().data_ptr()
    return result.clone() if any(x is not None and memory == x.untyped_storage().data_ptr() for x in given) else result


_LIBRARY = torch.library.Library("gradest", "FRAGMENT")  # type: ignore[no-untyped-call]


def _operator(function: Callable[..., Any]) -> Any:
    """Define the operator of the function, as torch.library.custom_op does, with less Python around each call.

    A custom_op looks at each call whether the results share memory with the arguments, which `_own` prevents, and runs Python
    for autograd even if it has no derivative.
    """
    name = function.__name__.strip("_")
    schema = torch.library.infer_schema(function, mutates_args=())
    _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    outside = torch._disable_dynamo(function)  # type: ignore[attr-defined]
    _LIBRARY.impl(name, outside, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return getattr(torch.ops.gradest, name).default


@_operator
def draw(
    handle: Handle,
    a: Tensor,
    state: list[Tensor],
    salt: Tensor,
    shape: Sequence[int],
    paths: int,
    flat: bool,
    needs_slope: bool,
    keeps_sample: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one sample, of this shape in at least float32, the flag, and (seed, step, changes of options).

    An empty `salt` distinguishes two uses with equal arguments. needs_slope: whether the estimator needs dL/dh, in training.
    keeps_sample: whether backward is given the sample, instead of drawing it again.
    """
    with _autograd(), torch.no_grad():
        drawn = handle.layer.sampler.draw(a, handle.named(state, a), Paths(paths, flat))
    if needs_slope and not is_recomputed():
        handle.layer.await_slope(int(drawn.key.seed))
    seed = torch.tensor((int(drawn.key.seed), handle.layer.steps, handle.layer.changes))
    return _own(drawn.points[0].contiguous(), a), a.new_zeros(()), seed


def _shapes_of_draw(handle: Any, a: Tensor, state: Any, salt: Any, shape: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    return widen(a).new_empty(shape), a.new_zeros(()), torch.empty(3, dtype=torch.int64)


torch.library.register_fake("gradest::draw", _shapes_of_draw, lib=_LIBRARY)


@_operator
def _tell(
    handle: Handle,
    a: Tensor,
    state: list[Tensor],
    drawn: Tensor,
    sample: Tensor | None,
    loss: Tensor,
    paths: int,
    flat: bool,
) -> Tensor:
    check_feedback_finite(Feedback(loss))
    with _autograd():
        gradient = handle.use(a, state, drawn.tolist(), sample, paths, flat).gradient_of_loss(loss.detach())
    return _own(gradient, a, sample, loss)


def _shape_of_tell(handle: Any, a: Tensor, *_: Any) -> Tensor:
    return widen(a).new_empty(a.shape)


torch.library.register_fake("gradest::tell", _shape_of_tell, lib=_LIBRARY)


@_operator
def _pull(
    handle: Handle,
    a: Tensor,
    state: list[Tensor],
    drawn: Tensor,
    sample: Tensor | None,
    grad: Tensor,
    flag: Tensor,
    paths: int,
    flat: bool,
) -> Tensor:
    seed, _, changes = numbers = drawn.tolist()
    estimator = handle.sampler_of(changes).estimator
    handle.layer.slope_reached(seed)
    if "loss" in estimator.needs and not bool(flag):
        raise missing_loss(estimator)
    if "grad" not in estimator.needs:
        return torch.zeros_like(a)
    with _autograd():
        gradient = handle.use(a, state, numbers, sample, paths, flat).gradient_of_grad(grad).to(a.dtype)
    return _own(gradient, a, sample, grad)


def _shape_of_pull(handle: Any, a: Tensor, *_: Any) -> Tensor:
    return a.new_empty(a.shape)


torch.library.register_fake("gradest::pull", _shape_of_pull, lib=_LIBRARY)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.handle, a, state, _, _, ctx.paths, ctx.flat, ctx.needs_slope, keeps_sample = inputs
    sample, _, drawn = output
    ctx.save_for_backward(drawn, sample if keeps_sample else None, a, *state)
    ctx.set_materialize_grads(False)  # an output that received no gradient gets None


def _backward(ctx: Any, grad: Tensor | None, flag: Tensor | None, *_: Any) -> tuple[Any, ...]:
    drawn, sample, a, *state = ctx.saved_tensors
    gradient = None
    if grad is None and flag is not None and ctx.needs_slope:  # the loss was told, but no graph leads to h
        handle = getattr(ctx.handle, "real_obj", ctx.handle)  # torch.compile traces with a stand-in
        raise unreached(handle.layer.sampler)
    if grad is not None:
        flag = a.new_zeros(()) if flag is None else flag
        with torch.no_grad():
            gradient = _pull(ctx.handle, a, state, drawn, sample, grad, flag, ctx.paths, ctx.flat)
        if torch.is_grad_enabled():  # a graph of the gradient is created, as the backend "eager" can
            gradient = DifferentiateOnce.apply(gradient, a, grad)  # type: ignore[no-untyped-call]
    return None, gradient, [None] * len(state), *[None] * 6


torch.library.register_autograd("gradest::draw", _backward, setup_context=_keep, lib=_LIBRARY)
