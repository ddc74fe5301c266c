"""ask and tell: the two halves of every gradient, with checks of all that passes between caller, plugins and loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Binary, Discrete, Neuron, Scored, event_shape, output_shape
from gradest.contract.plugin import Plugin
from gradest.discovery.pairs import Pair, pair_of
from gradest.discovery.registry import EstimatorSpec, NeuronSpec, registry
from gradest.errors import Incompatible, InvalidInput, PluginFault
from gradest.estimation.arguments import checked_pre_activations, first_non_finite, is_surely_finite, loss_dtype
from gradest.estimation.distributed import joined_state, world_size
from gradest.estimation.losses.evaluation import refuse_noise_of_points
from gradest.kernels import plain_saved_tensors, saved_tensors_are_plain, transformed
from gradest.kernels.stable import cast, drop_impossible, widen
from gradest.random import Key, to_key

Result = TypeVar("Result")

__all__ = [
    "ask",
    "ask_pair",
    "check_feedback_finite",
    "check_scores",
    "check_state",
    "first_state",
    "is_impossible",
    "sample_checked",
    "tell",
    "tell_finite",
    "tell_pair",
    "value_of",
]


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
        _check_result(neuron, "sample", h, (samples, *output_shape(neuron, wide)))
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
        first. Returns the draw, with `draw.points` `[K, *batch, *event']`, and the state to pass to `tell`. Raises Incompatible
        if the estimator does not fit the neuron, InvalidInput (also for the state of another estimator or size), UnknownPlugin,
        InvalidOptions.

    The loss may write into the points: `tell` draws them again if torch has written into them. It does not see what is written
    through an array of `draw.points.numpy()`, which shares their memory; write to a copy of it.

    >>> import torch, gradest
    >>> draw, state = gradest.ask("bernoulli", gradest.estimator("rloo", samples=4), torch.zeros(3), seed=7)
    >>> draw.points.shape  # K points, at which the estimator wants the loss
    torch.Size([4, 3])
    """
    neuron, estimator, key = registry.neuron(neuron), registry.estimator(estimator), to_key(seed)
    refuse_noise_of_points(key)
    return ask_pair(pair_of(neuron, estimator), a, key, state)


def ask_pair(pair: Pair, a: Tensor, key: Key, state: State | None) -> tuple[Draw, State]:
    """Do what `ask` does, for a neuron and an estimator that fit."""
    neuron, estimator = pair.neuron, pair.estimator
    wide, masked = checked_pre_activations(a, neuron)
    if wide.is_inference():
        wide = wide.clone()  # else the caller could write into it, which torch does not count there
    if state is None:
        state = {} if pair.stateless else first_state(estimator, neuron, wide)
    else:
        _check_given_state(pair, wide, state)
        if state:
            state = _outside_inference(state)
    draw = _run(pair, estimator.forward, neuron, wide, key, state)
    _check_draw(pair, wide, key, draw)
    draw.remember(estimator, masked)
    return draw, state


def _run(pair: Pair, function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a method of the estimator, or a function that calls one, without a graph."""
    recording = torch.is_grad_enabled()
    torch._C._set_grad_enabled(False)  # a context manager takes longer
    try:
        if saved_tensors_are_plain():
            return function(*arguments)
        with plain_saved_tensors():
            return function(*arguments)
    except RuntimeError as error:
        _explain_mode(f"{pair.estimator.label()} on {pair.neuron.label()}", error)
        raise
    finally:
        torch._C._set_grad_enabled(recording)


def _explain_mode(label: str, error: RuntimeError) -> None:
    """Raise Incompatible for an error of a plugin that torch.func or inference mode does not let run."""
    if transformed():
        raise Incompatible(
            f"{label} does not run inside a transform of torch.func, such as vmap or grad. Use it outside of the transform, with "
            "all examples in one batch, and call backward() on the value; or use an estimator without a state and without "
            f"autograd of its own. torch says: {error}"
        ) from error
    if torch.is_inference_mode_enabled():
        raise Incompatible(
            f"{label} uses autograd, which inference mode turns off; use torch.no_grad() instead: {error}"
        ) from error


def tell(
    estimator: EstimatorSpec, draw: Draw, feedback: Feedback, state: State, *, allow_inf: bool = False
) -> tuple[Tensor, State]:
    """Tell the estimator the losses at its points: the second half of a gradient.

    estimator: the one that was asked. draw, state: what `ask` returned. feedback: `gradest.Feedback(loss, grad)`, with loss
    `[K, *batch]` and, if `estimator.needs` contains "grad", grad = dloss/dh `[K, *batch, *event']`. Differences of losses are
    taken in the precision of the loss, so give losses with a large offset in float64.
    allow_inf: whether infinite losses are passed to the estimator, which must have no state. NaN never is.

    Returns the gradient `[*batch, *event]` in the dtype of `draw.a`, and the state of the next step. Raises InvalidInput if the
    feedback lacks something, has a wrong shape or is not finite, if the state is that of another estimator or event shape, or if
    the pre-activations were written to since `ask`. Inside a transform of torch.func values cannot be read: a loss that is not
    finite there leaves the state as it was.

    >>> import torch, gradest
    >>> estimator = gradest.estimator("rloo", samples=4)
    >>> draw, state = gradest.ask("bernoulli", estimator, torch.zeros(3), seed=7)
    >>> losses = (draw.points.sum(-1) - 1) ** 2  # by any program
    >>> gradient, state = gradest.tell(estimator, draw, gradest.Feedback(losses), state)
    >>> gradient.shape
    torch.Size([3])
    """
    estimator = registry.estimator(estimator)
    if not isinstance(draw, Draw) or not isinstance(feedback, Feedback):
        raise InvalidInput(
            "tell takes the draw that gradest.ask returned and gradest.Feedback(loss, grad), not "
            f"{type(draw).__name__} and {type(feedback).__name__}"
        )
    asked = draw.asked_by
    if asked is not None and not asked.is_same(estimator):
        raise InvalidInput(
            f"{asked.label()} asked for the loss at the points of this draw, so {estimator.label()} cannot be told it; pass the "
            "estimator that was asked, with the same options"
        )
    pair = pair_of(draw.neuron, estimator)
    _check_given_state(pair, draw.a, state)
    return tell_pair(pair, draw, feedback, state, allow_inf)


def tell_pair(
    pair: Pair, draw: Draw, feedback: Feedback, state: State, allow_inf: bool = False
) -> tuple[Tensor, State]:
    """Do what `tell` does, for a state that is known to be one of the estimator."""
    check_feedback_finite(feedback, allow_inf, partial(is_impossible, draw) if pair.on_support else None)
    if allow_inf and state:
        raise InvalidInput(
            f"{pair.estimator.label()} has a state, which one infinite loss would spoil for all later steps; omit allow_inf, or "
            "use an estimator without a state"
        )
    return tell_finite(pair, draw, feedback, state)


def tell_finite(pair: Pair, draw: Draw, feedback: Feedback, state: State) -> tuple[Tensor, State]:
    """Do what `tell_pair` does, for a feedback that is known to be finite, or need not be."""
    estimator, shape, dtype = pair.estimator, draw.points.shape, draw.a.dtype
    loss = _check_feedback(estimator, "loss", feedback.loss, shape[: len(shape) - pair.output_ndim], dtype)
    grad = _check_feedback(estimator, "grad", feedback.grad, shape, dtype)
    widened = feedback if loss is feedback.loss and grad is feedback.grad else Feedback(loss, grad)
    if state:
        state = _outside_inference(state)
    if draw.pre_activations_written:
        raise InvalidInput(
            "the pre-activations were written to in place after the points were drawn, so the gradient at them cannot be "
            "computed; write to a copy, as in a = a + step"
        )
    draw, told = _run(pair, _told, pair, draw, widened, state)
    if not isinstance(told, tuple) or len(told) != 2:
        raise PluginFault(f"{estimator.name}.backward must return a gradient and a state")
    gradient, after = told
    _check_result(estimator, "backward", gradient, draw.a.shape)
    if draw.neuron.maskable and draw.masked:
        # no estimator moves a class that is never drawn; noise, or a substituted derivative, would move it nevertheless
        gradient = torch.where(draw.a == -math.inf, 0, gradient)
    if after is not state:
        _check_state(estimator, "backward", after)
    if after:
        with torch.set_grad_enabled(False):
            if draw.key.shared and state and world_size() > 1:
                after = joined_state(estimator, draw, widened, state)
            if transformed():
                finite = _all_finite_there(widened)
                after = {name: torch.where(finite, new, state[name]) for name, new in after.items()}
    return gradient if gradient.dtype == dtype else gradient.detach().to(dtype), after


def _told(pair: Pair, draw: Draw, feedback: Feedback, state: State) -> tuple[Draw, Any]:
    if draw.points_written:  # by f: the same key draws the same points again
        draw = pair.estimator.forward(draw.neuron, draw.a, draw.key, state)
    if pair.looks_at_scores:
        check_scores(pair, draw)
    return draw, pair.estimator.backward(draw, feedback, state)


def check_scores(pair: Pair, draw: Draw) -> None:
    """Have the neuron of a draw look at the outputs whose scores the estimator uses, where values can be read."""
    if pair.looks_at_scores and not transformed():
        assert isinstance(pair.neuron, Scored)
        pair.neuron.check_scores(draw.points, draw.a)


def _outside_inference(state: State) -> State:
    """Return the state, as ordinary tensors if a step in inference mode has left inference tensors, which cannot be learned."""
    if torch.is_inference_mode_enabled() or not any(x.is_inference() for x in state.values()):
        return state
    return {name: x.clone() for name, x in state.items()}


def _check_feedback(
    estimator: Estimator, name: str, given: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype
) -> Tensor | None:
    """Check the loss or the grad that the caller gave, and convert it: a grad to the draw's dtype, a loss to that at least."""
    if given is None:
        if name in estimator.needs:
            remedy = (
                ""
                if name == "loss"
                else ": the derivative of each loss in its point. An estimator whose needs are loss takes none"
            )
            raise InvalidInput(f"{estimator.label()} needs the {name} at its points, of shape {list(shape)}{remedy}")
        return None
    if not isinstance(given, Tensor):
        raise InvalidInput(f"{name} must be a torch tensor of shape {list(shape)}, not {type(given).__name__}")
    if given.is_complex():
        raise InvalidInput(f"{name} must be real numbers, not {given.dtype}")
    if given.shape != shape:
        raise InvalidInput(f"{name} must have shape {list(shape)}, not {list(given.shape)}")
    if name == "loss" and given.dtype != dtype:
        dtype = loss_dtype(given.dtype, dtype)
    if given.requires_grad:
        given = given.detach()
    return cast(given.resolve_neg() if given.is_neg() else given, dtype)


def is_impossible(draw: Draw, index: Sequence[int]) -> bool:
    """Return whether a point of the draw, which is an output of the neuron, has probability 0."""
    if not isinstance(draw.neuron, Discrete):
        return False
    with torch.no_grad():
        probability = draw.neuron.log_prob(draw.points, draw.a).exp()
    return bool((probability[tuple(index)] == 0).any())


def check_feedback_finite(
    feedback: Feedback, allow_inf: bool = False, impossible: Callable[[Sequence[int]], bool] | None = None
) -> None:
    """Raise InvalidInput with the index of the first loss, or dloss/dh, that is not finite. Infinite ones may be allowed.

    impossible: tells of an index whether its output has probability 0, if that is known; the error then says so.
    Inside a transform of torch.func, which does not allow reading values, it does nothing.
    """
    if transformed() or (_is_surely_finite(feedback.loss) and _is_surely_finite(feedback.grad)):
        return
    given = [
        (name, x.detach())
        for name, x in (("loss", feedback.loss), ("grad", feedback.grad))
        if isinstance(x, Tensor) and x.is_floating_point()
    ]
    on_device = len(given) == 2 and given[0][1].device.type != "cpu"
    if on_device and math.isfinite(sum(widen(x).sum() for _, x in given)):  # one transfer to the host instead of two
        return
    for name, x in given:
        index = first_non_finite(x)
        if index is not None and allow_inf:
            bad = x.isnan().nonzero()
            index = [int(place) for place in bad[0]] if len(bad) else None
        if index is not None:
            what, remedy = (
                ("losses", "Give f a finite loss there, or skip this step")
                if name == "loss"
                else ("derivatives dloss/dh", "Make f differentiable there, or skip this step")
            )
            if name == "loss" and impossible is not None and x.shape and impossible(index):
                remedy = _REMEDY_IF_IMPOSSIBLE
            raise InvalidInput(
                f"{what} must be finite, but {name}[{', '.join(map(str, index))}] of {list(x.shape)} is {x[tuple(index)]}. "
                f"{remedy}. The state of the estimator is as it was. allow_inf=True lets infinite ones through, to estimators "
                "without a state"
            )


def _is_surely_finite(x: Tensor | None) -> bool:
    """Tell quickly whether a part of a feedback holds no infinity and no NaN; False is no answer."""
    if not isinstance(x, Tensor):
        return x is None
    return x.device.type == "cpu" and is_surely_finite(x.detach() if x.requires_grad else x)


_REMEDY_IF_IMPOSSIBLE = (
    "That output has probability 0, as of a masked class or a saturated unit, so its loss is no part of the expectation: give it "
    "any finite one, use an estimator that never evaluates such outputs (sparse_enumeration, or one that draws samples, such as "
    "rloo), or pass allow_inf=True to expect, estimate, exact or tell, which leaves it out"
)


def _all_finite_there(feedback: Feedback) -> Tensor:
    """Return whether all of the feedback is finite, as a tensor, which transforms of torch.func can compute."""
    given = [x for x in (feedback.loss, feedback.grad) if x is not None]
    return torch.stack([torch.isfinite(x).all() for x in given]).all()


def _check_given_state(pair: Pair, a: Tensor, state: object) -> None:
    """Raise InvalidInput if the state is not one of this estimator for events of this shape."""
    if state or not pair.stateless or not isinstance(state, (dict, Mapping)):
        check_state(pair.estimator, state, _state_shapes(pair.estimator, pair.neuron, event_shape(pair.neuron, a)))


@lru_cache(maxsize=256)
def _state_shapes(estimator: Estimator, neuron: Neuron, event: tuple[int, ...]) -> Mapping[str, list[int]]:
    """Return the shapes of the estimator's state for events of this shape. An initial state may take longer than a step."""
    state = first_state(estimator, neuron, torch.zeros(event, dtype=torch.float32, device="cpu"))
    return {name: list(x.shape) for name, x in state.items()}


def check_state(estimator: Estimator, state: object, shapes: Mapping[str, list[int]]) -> None:
    """Raise InvalidInput unless the state is a mapping to tensors of these names and shapes."""
    if not isinstance(state, Mapping):
        raise InvalidInput(
            f"the state of {estimator.label()} must be the dict that was returned with the draw or by the previous step, not "
            f"{type(state).__name__}"
        )
    found = {name: list(x.shape) if isinstance(x, Tensor) else type(x).__name__ for name, x in state.items()}
    if found != shapes:
        wanted = f"have tensors of the shapes {shapes}" if shapes else "be {}, because it keeps none"
        raise InvalidInput(
            f"the state of {estimator.label()} must {wanted}; this one is that of another estimator or of another event shape: "
            f"{found}. Pass on the state that the previous call returned, and None at the first"
        )


def first_state(estimator: Estimator, neuron: Neuron, a: Tensor) -> State:
    """Return the initial state of the estimator, checked."""
    if type(estimator).init is Estimator.init:
        return {}
    try:
        with torch.inference_mode(False):  # a state that is made in inference mode could not be learned outside of it
            state = estimator.init(neuron, a)
    except RuntimeError as error:
        if transformed():
            _explain_mode(f"{estimator.label()} on {neuron.label()}", error)
        raise
    _check_state(estimator, "init", state)
    return state


def value_of(estimator: Estimator, draw: Draw, loss: Tensor, allow_inf: bool = False) -> Tensor:
    """Return `estimator.value`, checked. Where losses may be infinite, those of weight 0 do not count.

    It may share the memory of the losses, which f may use again.
    """
    if (allow_inf or transformed()) and not draw.equal and type(estimator).value is Estimator.value:
        loss = drop_impossible(loss, draw.weights[(..., *[None] * (loss.ndim - draw.weights.ndim))])
    value = estimator.value(draw, loss)
    _check_result(estimator, "value", value, loss.shape[1:])
    return value


def _check_draw(pair: Pair, a: Tensor, key: Key, draw: Draw) -> None:
    form = pair.form(a)
    if form.evaluations < 1:
        raise PluginFault(
            f"{pair.estimator.name}.evaluations must be at least 1, not {form.evaluations}: it has no loss to learn from"
        )
    weighted = type(draw) is Draw and (draw.equal or _is_result(draw.weights, form.weights))
    if weighted and _is_result(draw.points, form.points):
        return
    estimator, neuron = pair.estimator, pair.neuron
    points = draw.points if isinstance(draw, Draw) else draw
    try:
        _check_result(estimator, "forward", points, form.points)
    except PluginFault:
        sampled = neuron.sample(key, a, 1)
        _check_result(neuron, "sample", sampled, (1, *form.points[1:]))  # raises if the fault is the neuron's
        raise
    _check_result(estimator, "forward", draw.weights, form.weights, form.losses)


def _is_result(found: object, shape: tuple[int, ...]) -> bool:
    return type(found) is Tensor and found.shape == shape and found.is_floating_point()


def _check_result(plugin: Plugin, method: str, found: object, *shapes: tuple[int, ...]) -> None:
    if isinstance(found, Tensor) and found.is_floating_point() and found.shape in shapes:
        return
    got = f"{list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
    wanted = " or ".join(str(list(shape)) for shape in shapes)
    raise PluginFault(f"{plugin.name}.{method} must return floats of shape {wanted}, not {got}")


def _check_state(estimator: Estimator, method: str, state: object) -> None:
    if not isinstance(state, Mapping) or not all(isinstance(x, Tensor) for x in state.values()):
        raise PluginFault(f"{estimator.name}.{method} must return a state: a mapping from names to tensors")
