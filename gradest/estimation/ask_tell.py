"""ask and tell: the two halves of every gradient, with checks of all that passes between caller, plugins and loss."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Binary, Neuron, event_shape
from gradest.contract.objective import Loss, Objective
from gradest.contract.plugin import Plugin
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import Incompatible, InvalidInput, PluginFault
from gradest.estimation.distributed import joined_state, world_size
from gradest.kernels import plain_saved_tensors, select, transformed
from gradest.kernels.reference import all_finite
from gradest.kernels.stable import cast, widen
from gradest.random import Key, to_key

__all__ = [
    "CHUNK",
    "ask",
    "at_least_float32",
    "check_count",
    "check_form",
    "check_pre_activations",
    "evaluate",
    "first_non_finite",
    "first_state",
    "losses_at",
    "losses_in_progress",
    "sample_checked",
    "tell",
    "value_of",
]

_MANY = 1 << 16  # elements that a kernel looks at faster than torch


def check_pre_activations(a: Tensor, neuron: Neuron) -> Tensor:
    """Return `a`, detached and widened to at least float32.

    Raises InvalidInput with the reason, or with the index of the first entry that is not finite.
    """
    wide = check_form(a, neuron)
    index = None if transformed() else first_non_finite(wide)  # a transform does not allow reading values
    if index is not None:
        raise InvalidInput(
            f"pre-activations must be finite, but a[{', '.join(map(str, index))}] is {a.detach()[tuple(index)]}"
        )
    return wide


def check_form(a: Tensor, neuron: Neuron) -> Tensor:
    """Do what `check_pre_activations` does, for pre-activations that are known to be finite."""
    if not isinstance(a, Tensor):
        raise InvalidInput(f"pre-activations must be a torch tensor, not {type(a).__name__}; use torch.tensor(a)")
    if not a.is_floating_point():
        raise InvalidInput(f"pre-activations must be floating point, not {a.dtype}; use a.float()")
    if a.ndim < neuron.event_ndim:
        raise InvalidInput(
            f"{neuron.name} takes [*batch, *event] with {neuron.event_ndim} event dim(s) last; this tensor has {a.ndim} dims"
        )
    return widen(a.detach())


def first_non_finite(x: Tensor) -> list[int] | None:
    """Return the index of the first entry that is infinite or NaN, or None if all are finite."""
    look = (
        all_finite if x.numel() < _MANY else select("all_finite", x.device)
    )  # finding a kernel takes as long as a small sum
    if look(x):
        return None
    bad = (~torch.isfinite(x)).nonzero()
    return [int(place) for place in bad[0]] if len(bad) else None


def sample_checked(neuron: Neuron, wide: Tensor, samples: int, key: Key, dtype: torch.dtype | None = None) -> Tensor:
    """Draw outputs for `wide`, the result of `check_pre_activations`; see `gradest.sample`."""
    h = None
    if dtype is not None:
        if dtype not in (torch.uint8, torch.bool) or not isinstance(neuron, Binary) or not neuron.fits(dtype):
            raise InvalidInput(
                f"{neuron.name} cannot return {dtype}: its outputs must be two values that {dtype} represents. Omit `dtype` and "
                "convert the result"
            )
        h = neuron.sample_as(key, wide, samples, dtype)
    if h is None:
        h = neuron.sample(key, wide, samples)
        _check_result(neuron, "sample", h, (samples, *wide.shape))
    return h


def ask(
    neuron: NeuronSpec,
    estimator: EstimatorSpec,
    a: Tensor,
    seed: int | Key | None = None,
    state: State | None = None,
) -> tuple[Draw, State]:
    """Ask the estimator for its points: the first half of a gradient, for a loss that is not a torch function.

        draw, state = gradest.ask("bernoulli", "rloo", a)
        loss = run_simulator(draw.points)                                          # [K, *batch]
        gradient, state = gradest.tell("rloo", draw, gradest.Feedback(loss), state)

    a: pre-activations `[*batch, *event]`. seed: as for `gradest.sample`. state: the state of the previous step; None for the
        first. Returns the draw, with `draw.points` `[K, *batch, *event]`, and the state to pass to `tell`. Raises Incompatible if
        the estimator does not fit the neuron, InvalidInput, UnknownPlugin, InvalidOptions.
    """
    neuron, estimator, key = registry.neuron(neuron), registry.estimator(estimator), to_key(seed)
    registry.check_fit(neuron, estimator)
    wide = check_pre_activations(a, neuron)
    state = first_state(estimator, neuron, wide) if state is None else state
    with torch.set_grad_enabled(False), plain_saved_tensors():  # cheaper than no_grad
        draw = estimator.forward(neuron, wide, key, state)
        _check_draw(estimator, neuron, wide, key, draw)
    return draw, state


def tell(estimator: EstimatorSpec, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
    """Tell the estimator the losses at its points: the second half of a gradient.

    estimator: the one that was asked. draw, state: what `ask` returned. feedback: `gradest.Feedback(loss, grad)`, with loss
    `[K, *batch]` and, if `estimator.needs` contains "grad", grad = dloss/dh `[K, *batch, *event]`.
    Returns the gradient `[*batch, *event]` and the state of the next step. Raises InvalidInput if the feedback lacks something or
    has a wrong shape.
    """
    estimator = registry.estimator(estimator)
    if not isinstance(draw, Draw) or not isinstance(feedback, Feedback):
        raise InvalidInput(
            "tell takes the draw that gradest.ask returned and gradest.Feedback(loss, grad), not "
            f"{type(draw).__name__} and {type(feedback).__name__}"
        )
    shape, dtype = draw.points.shape, draw.a.dtype
    loss = _check_feedback(estimator, "loss", feedback.loss, shape[: len(shape) - draw.neuron.event_ndim], dtype)
    widened = Feedback(loss, _check_feedback(estimator, "grad", feedback.grad, shape, dtype))
    try:
        with torch.set_grad_enabled(False), plain_saved_tensors():
            told = estimator.backward(draw, widened, state)
    except RuntimeError as error:
        if transformed():
            raise Incompatible(f"{estimator.label()} does not run inside a transform of torch.func: {error}") from error
        raise
    if not isinstance(told, tuple) or len(told) != 2:
        raise PluginFault(f"{estimator.name}.backward must return a gradient and a state")
    _check_result(estimator, "backward", told[0], draw.a.shape)
    _check_state(estimator, "backward", told[1])
    if draw.key.shared and state and world_size() > 1:
        with torch.set_grad_enabled(False):
            return told[0], joined_state(estimator, draw, widened, state)
    return told


def _check_feedback(
    estimator: Estimator, name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """Check the loss or the grad that the caller gave, and convert it to the dtype of the draw."""
    if given is None:
        if name in estimator.needs:
            raise InvalidInput(f"{estimator.label()} needs the {name} at its points, of shape {list(shape)}")
        return None
    if not isinstance(given, Tensor):
        raise InvalidInput(f"{name} must be a torch tensor of shape {list(shape)}, not {type(given).__name__}")
    if given.shape != shape:
        raise InvalidInput(f"{name} must have shape {list(shape)}, not {list(given.shape)}")
    return cast(given.detach(), dtype)


def first_state(estimator: Estimator, neuron: Neuron, a: Tensor) -> State:
    """Return the initial state of the estimator, checked."""
    state = estimator.init(neuron, a)
    _check_state(estimator, "init", state)
    return state


def value_of(estimator: Estimator, draw: Draw, loss: Tensor) -> Tensor:
    """Return `estimator.value`, checked."""
    value = estimator.value(draw, loss)
    _check_result(estimator, "value", value, loss.shape[1:])
    return value


class _InProgress(threading.local):
    """How many functions f, each inside the other, are being evaluated in this thread."""

    losses = 0


_in_progress = _InProgress()


def losses_in_progress() -> int:
    """Return how many functions f, each inside the other, this code runs in. It is 0 outside of `expect` and its like."""
    return _in_progress.losses


def losses_at(f: Loss, points: Tensor, event_ndim: int) -> Tensor:
    """Return f(points), checked."""
    _in_progress.losses += 1
    try:
        loss = f(points)
    finally:
        _in_progress.losses -= 1
    wanted = points.shape[: points.ndim - event_ndim]
    if not isinstance(loss, Tensor) or loss.shape != wanted:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        name = f"{f.name}.__call__" if isinstance(f, Objective) else "f"
        raise InvalidInput(
            f"{name} must map points {list(points.shape)} to losses {list(wanted)} [K, *batch], but it returned {got}"
        )
    return loss


def evaluate(
    f: Loss, points: Tensor, neuron: Neuron, estimator: Estimator, keep_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the losses at the points and, if the estimator needs it, their gradient in the points."""
    if "grad" not in estimator.needs:
        return losses_at(f, points.detach(), neuron.event_ndim), None
    if transformed():
        loss, pull, *_ = torch.func.vjp(lambda points: losses_at(f, points, neuron.event_ndim), points.detach())
        return loss, pull(torch.ones_like(loss))[0].detach()
    points = points.detach().requires_grad_()
    with torch.set_grad_enabled(True), plain_saved_tensors():
        loss = losses_at(f, points, neuron.event_ndim)
        if not loss.requires_grad:
            raise InvalidInput(f"{estimator.label()} needs dL/dh, but f is not differentiable in its points")
        (grad,) = torch.autograd.grad(loss, points, torch.ones_like(loss), retain_graph=keep_graph, allow_unused=True)
    if not (keep_graph and _depends_on_more(loss, points)):
        loss = loss.detach()  # otherwise backward would traverse f once more without use
    return loss, torch.zeros_like(points) if grad is None else grad


def _depends_on_more(loss: Tensor, points: Tensor) -> bool:
    """Return whether `loss` is, or its graph contains, another leaf than `points`, such as a parameter of f.

    A custom autograd function may depend on parameters that its node does not show, as a checkpoint does; it counts as one.
    """
    if loss.is_leaf:
        return True
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            before = node.next_functions
            if not before and getattr(node, "variable", points) is not points:
                return True
            if isinstance(node, BackwardCFunction):
                return True
            nodes += [node for node, _ in before]
    return False


def _check_draw(estimator: Estimator, neuron: Neuron, a: Tensor, key: Key, draw: Draw) -> None:
    evaluations = estimator.evaluations(neuron, event_shape(neuron, a))
    points = draw.points if isinstance(draw, Draw) else draw
    try:
        _check_result(estimator, "forward", points, (evaluations, *a.shape))
    except PluginFault:
        _check_result(neuron, "sample", neuron.sample(key, a, 1), (1, *a.shape))  # raises if the fault is the neuron's
        raise
    batch = a.shape[: a.ndim - neuron.event_ndim]
    _check_result(estimator, "forward", draw.weights, (evaluations,), (evaluations, *batch))


def _check_result(plugin: Plugin, method: str, found: object, *shapes: tuple[int, ...]) -> None:
    if isinstance(found, Tensor) and found.is_floating_point() and found.shape in shapes:
        return
    got = f"{list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    raise PluginFault(f"{plugin.name}.{method} must return floats of shape {wanted}, not {got}")


def _check_state(estimator: Estimator, method: str, state: object) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise PluginFault(f"{estimator.name}.{method} must return a state: a mapping from names to tensors")


def at_least_float32(a: Tensor) -> torch.dtype:
    """Return the dtype of results for `a`: its own, but at least float32."""
    return torch.promote_types(a.dtype, torch.float32)


def check_count(name: str, value: int, least: int) -> None:
    """Raise InvalidInput unless `value`, the argument `name`, is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{name} must be an integer of at least {least}, not {value!r}")


CHUNK = 1 << 20  # elements of points that are held at once
