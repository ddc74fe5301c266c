"""A loss f at the points of a draw: f is called, its result is checked, and dL/dh is taken where an estimator needs it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.objective import Loss, Objective
from gradest.errors import Incompatible, InvalidInput, NotDifferentiable
from gradest.kernels import plain_saved_tensors, transformed
from gradest.kernels.stable import widen
from gradest.random import Key

__all__ = [
    "CHUNK",
    "Flattened",
    "evaluate",
    "event_misfit",
    "expect_led",
    "flattened",
    "leads_to",
    "losses_at",
    "losses_in_progress",
    "points_of",
    "refuse_noise_of_points",
    "slope_at",
]

CHUNK = 1 << 20  # elements of points that are held at once


class Flattened:
    """The loss f with K and the batch in one dim: f takes `[K·batch, ...]`, and its losses are folded back to `[K, batch, ...]`.

    Networks with one batch dim, such as those with convolutions or BatchNorm, take points of that form. Row k·batch + i is
    point k of example i, so `labels.repeat(len(h) // len(labels))` are the labels of the rows. Points without a batch dim stay
    `[K, *event]`.
    """

    def __init__(self, f: Loss, event_ndim: int) -> None:
        self.f, self.event_ndim = f, event_ndim

    def __call__(self, points: Tensor) -> Tensor:
        """Return the losses, `[K, *batch]`, at points `[K, *batch, *event']`."""
        lead = points.shape[: points.ndim - self.event_ndim][:2]
        rows = points.flatten(0, len(lead) - 1)
        try:
            loss = self.f(rows)
        except Exception as error:
            _add_note(error, f"{list(rows.shape)}, [K·batch, *event], as flatten=True asks")
            raise
        wanted = rows.shape[: rows.ndim - self.event_ndim]
        if not isinstance(loss, Tensor) or loss.shape != wanted:
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InvalidInput(
                f"with flatten=True f must map points {list(rows.shape)} to losses {list(wanted)} [K·batch], but it "
                f"returned {got}{_event_hint(rows, wanted, loss)}"
            )
        return loss.reshape(*lead, *loss.shape[1:])


def flattened(f: Loss, event_ndim: int, flatten: bool) -> Loss:
    """Return f, or Flattened(f) if `flatten` says so. An Objective takes points of any form as they are."""
    return Flattened(f, event_ndim) if flatten and not isinstance(f, Objective) else f


def _add_note(error: Exception, shape: str) -> None:
    """Say in a note to an exception of f which points f was given, unless a function that f contains has said so."""
    opening = "gradest gave f points of the shape "
    if any(note.startswith(opening) for note in getattr(error, "__notes__", ())):
        return
    error.add_note(opening + shape)
    if "leaf Variable" in str(error) and "in-place" in str(error):
        error.add_note(
            "the estimator needs dL/dh, so f must write to a copy of its points: h = h - 1 instead of h -= 1"
        )


_READS = ("have storage", ".item()", "data-dependent", "dynamic shape")  # in torch's errors for what reads values


def _explain_transform(f: Loss, error: Exception) -> None:
    """Raise Incompatible if f read the values of its points, which a transform of torch.func hides."""
    if not (transformed() and isinstance(error, RuntimeError) and any(words in str(error) for words in _READS)):
        return
    name = f.name if isinstance(f, Objective) else "f"
    raise Incompatible(
        f"{name} reads the values of its points, as numpy, .item(), an if and a boolean mask do, which is impossible inside a "
        "transform of torch.func, such as vmap or grad. Call gradest.expect outside of it, with all examples in one batch, and "
        f"backward() on its value; or compute {name} by operations of torch alone. torch says: {str(error).splitlines()[0]}"
    ) from error


_Check = Callable[[list[Any], Tensor], None]


class _InProgress(threading.local):
    """How many functions f, each inside the other, are being evaluated in this thread.

    It is not a ContextVar, because torch.compile does not trace a function that reads one.
    """

    losses = 0
    uses: dict[_Check, list[Any]] | None = None  # by f, where its parameters are to be trained
    keys: tuple[Key, ...] = ()  # of the points at which they are evaluated


_in_progress = _InProgress()


def losses_in_progress() -> int:
    """Return how many functions f, each inside the other, this code runs in. It is 0 outside of `expect` and its like."""
    return _in_progress.losses


class points_of:  # noqa: N801  # it is called as a function; one of contextlib takes three times as long
    """A context in which f is evaluated at the points that this key drew."""

    __slots__ = ("_key", "_outer")

    def __init__(self, key: Key) -> None:
        self._key = key

    def __enter__(self) -> None:
        self._outer = _in_progress.keys
        _in_progress.keys = (*self._outer, self._key)

    def __exit__(self, *error: object) -> None:
        _in_progress.keys = self._outer


def refuse_noise_of_points(key: Key) -> None:
    """Raise InvalidInput if this code runs in an f, and the points that f was given were drawn from this same key.

    Noise is a function of the key, so that what f draws would not be independent of its points.
    """
    for other in _in_progress.keys:
        same = key.seed is other.seed or (isinstance(key.seed, int) and key.seed == other.seed)
        if same and key.stream == other.stream:
            raise InvalidInput(
                f"f draws from the seed {key.seed}, as its own points were drawn, so that the noise would be the same, and the "
                "expectation wrong. Leave the seed out in f, give it another, or fold a number in: gradest.Key(seed).fold_in(1)"
            )


def expect_led(use: object, check: _Check) -> None:
    """Have `check(uses, loss)` look at the losses that f returns, if this code runs in an f whose parameters are to be trained.

    uses: all that were given together with this check in the same evaluation of f.
    """
    if _in_progress.uses is not None:
        _in_progress.uses.setdefault(check, []).append(use)


def losses_at(f: Loss, points: Tensor, event_ndim: int) -> Tensor:
    """Return f(points), checked; a pointwise objective is called for each point.

    An exception of f gets a note that says which shape f was given. Raises Incompatible if f reads values inside a transform of
    torch.func.
    """
    _in_progress.losses += 1
    try:
        if isinstance(f, Objective) and f.pointwise:
            return _point_by_point(f, points, event_ndim)
        loss = f(points)
    except Exception as error:
        _explain_transform(f, error)
        _add_note(
            error,
            f"{list(points.shape)}, [K, *batch, *event], with {points.shape[0]} point(s) for each example. A network that takes "
            "a single batch dim gets it by h.flatten(0, 1), or by flatten=True, which folds the losses back",
        )
        raise
    finally:
        _in_progress.losses -= 1
    wanted = points.shape[: points.ndim - event_ndim]
    if not isinstance(loss, Tensor) or loss.shape != wanted:
        got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        name = f"{f.name}.__call__" if isinstance(f, Objective) else "f"
        hint = _hint(f, points, event_ndim, loss)
        raise InvalidInput(
            f"{name} must map points {list(points.shape)} to losses {list(wanted)} [K, *batch], but it returned {got}{hint}"
        )
    return loss


def _hint(f: Loss, points: Tensor, event_ndim: int, loss: object) -> str:
    """Return what may be the cause of a loss of a wrong shape, or an empty string."""
    if isinstance(f, Objective) and (misfit := event_misfit(f, event_ndim)):
        return f". {misfit}"
    units = points.ndim - event_ndim
    if event_ndim > 1 and isinstance(loss, Tensor) and loss.shape == points.shape[: units + 1]:
        # the shape in which torch.distributions and torch.nn.functional.gumbel_softmax take logits
        rest = "classes" if event_ndim == 2 else "n, n"
        return (
            f". The points are [K, *batch, units, {rest}], so these {points.shape[units]} rows are units of one event, with "
            "one loss together. If each row is an example of its own, with one unit, pass a[..., None, :] (a[:, None] for "
            "[batch, classes]), and sum the loss over the units too"
        )
    if isinstance(f, Objective) or (isinstance(loss, Tensor) and loss.ndim < 2):
        return ""
    return _event_hint(points, points.shape[:units], loss)


def event_misfit(f: Objective, output_ndim: int) -> str:
    """Return why an objective that states the dims of an event does not take outputs of so many, or an empty string."""
    takes = getattr(f, "event_ndim", output_ndim)
    if takes == output_ndim:
        return ""
    remedy = "use another neuron"
    if "event_ndim" in type(f).model_fields:
        remedy = f"set its option event_ndim={output_ndim}"
    elif isinstance(getattr(type(f), "event_ndim", None), property):
        remedy = "give it options for such outputs"
    return (
        f"{f.name} takes outputs with {takes} dim(s) an event ({_DIMS.get(takes, 'more')}), but those of this neuron have "
        f"{output_ndim} ({_DIMS.get(output_ndim, 'more')}); {remedy}"
    )


def _event_hint(points: Tensor, wanted: torch.Size, loss: object) -> str:
    """Return which event_dims would fit a loss that lacks the last dims of the wanted shape, or an empty string."""
    if not isinstance(loss, Tensor) or not 0 < loss.ndim < len(wanted) or loss.shape != wanted[: loss.ndim]:
        return ""
    return f". If that is one loss for each example, give event_dims={points.ndim - loss.ndim}"


_DIMS = {1: "[units]", 2: "[units, classes], as of categorical", 3: "[units, n, n], as of plackett_luce"}


def _point_by_point(f: Objective, points: Tensor, event_ndim: int) -> Tensor:
    """Return the losses `[K, *batch]` of a pointwise objective, at points in at least float32, which numpy has."""
    leading = points.shape[: points.ndim - event_ndim]
    losses: list[Tensor] = []
    for point in widen(points).reshape(leading.numel(), *points.shape[len(leading) :]).unbind(0):
        try:
            loss: Any = f(point)
        except Exception as error:
            _add_note(error, f"{list(point.shape)}, [*event'], one at a time, since {f.name} is pointwise")
            raise
        if isinstance(loss, Real):
            loss = torch.tensor(float(loss), dtype=torch.float64, device=points.device)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InvalidInput(
                f"{f.name} is pointwise, so {f.name}.__call__ must map one point {list(point.shape)} to one number, but it "
                f"returned {got}"
            )
        losses.append(loss.reshape(()))
    return torch.stack(losses).reshape(leading) if losses else points.new_zeros(leading)


def _check_differentiable(f: Loss, estimator: Estimator) -> None:
    """Raise NotDifferentiable if f is an objective that states that it has no dL/dh."""
    if isinstance(f, Objective) and not f.differentiable:
        raise NotDifferentiable(
            f"{estimator.label()} needs dL/dh, but {f.name} states that it is not differentiable; {_LOSS_ALONE}"
        )


_LOSS_ALONE = 'use an estimator that needs the loss alone: gradest.recommend(neuron, bring=["loss"]) ranks them'


def evaluate(
    f: Loss, points: Tensor, neuron: Neuron, estimator: Estimator, keep_graph: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the losses at the points and, if the estimator needs it, their gradient in the points.

    keep_graph: whether the graph of the losses is kept, which trains the parameters of f.
    """
    outer, _in_progress.uses = _in_progress.uses, {} if keep_graph else None
    try:
        return _evaluated(f, points, neuron, estimator, keep_graph)
    finally:
        _in_progress.uses = outer


def _evaluated(
    f: Loss, points: Tensor, neuron: Neuron, estimator: Estimator, keep_graph: bool
) -> tuple[Tensor, Tensor | None]:
    if transformed() or points.is_inference():
        points = points.clone()  # where writes are not counted, f writes to a copy
    if "grad" not in estimator.needs:
        return _with_its_uses(losses_at(f, points.detach(), neuron.output_ndim)), None
    _check_differentiable(f, estimator)
    if transformed():

        def tracked(points: Tensor) -> Tensor:
            loss = losses_at(f, points, neuron.output_ndim)
            if not loss.requires_grad and points.numel():  # here only of a graph that leads to the points
                raise _no_slope(estimator.label())
            return loss

        loss, pull, *_ = torch.func.vjp(tracked, points.detach())
        return loss, pull(torch.ones_like(loss))[0].detach()
    points = points.detach().requires_grad_()
    with torch.set_grad_enabled(True), plain_saved_tensors():
        loss = _with_its_uses(losses_at(f, points, neuron.output_ndim))
        grad = slope_at(points, loss, estimator.label, keep_graph)
    if not (keep_graph and _depends_on_more(loss, points)):
        loss = loss.detach()  # otherwise backward would traverse f once more without use
    return loss, grad


def _with_its_uses(loss: Tensor) -> Tensor:
    """Return the losses of f, which what f used has looked at."""
    for check, uses in (_in_progress.uses or {}).items():
        check(uses, loss)
    return loss


def slope_at(points: Tensor, loss: Tensor, label: Callable[[], str], keep_graph: bool) -> Tensor:
    """Return dL/dh at the points, from which the losses were computed with a graph. `label` names the estimator in an error.

    Raises NotDifferentiable if no graph leads from the losses to the points. Losses may have a graph nevertheless, which leads to
    parameters of f.
    """
    grad = None
    if loss.requires_grad:
        ones = torch.ones_like(loss)
        (grad,) = torch.autograd.grad(loss, points, ones, retain_graph=keep_graph, allow_unused=True)
    if grad is None and points.numel():
        raise _no_slope(label())
    return torch.zeros_like(points) if grad is None else grad


def _no_slope(of: str) -> NotDifferentiable:
    return NotDifferentiable(
        f"{of} needs dL/dh, but f is not differentiable in its points: it detaches them, turns them into integers, as for an "
        f"index, only compares them, or does not use them; {_LOSS_ALONE}"
    )


def leads_to(loss: Tensor, source: object) -> bool:
    """Tell whether the graph of the losses contains the node `source`, the `grad_fn` that the points had before f saw them."""
    return any(node is source for node in _graph(loss))


def _graph(loss: Tensor) -> Iterator[Any]:
    """Yield the nodes of the graph of `loss`, each once."""
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            nodes += [before for before, _ in node.next_functions]


def _depends_on_more(loss: Tensor, points: Tensor) -> bool:
    """Return whether `loss` is, or its graph contains, another leaf than `points`, such as a parameter of f.

    A custom autograd function may depend on parameters that its node does not show, as a checkpoint does; it counts as one.
    """
    if loss.is_leaf:
        return True
    return any(
        isinstance(node, BackwardCFunction) or getattr(node, "variable", points) is not points for node in _graph(loss)
    )
