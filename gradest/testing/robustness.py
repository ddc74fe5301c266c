"""Checks of robustness: do results and states stay finite at extreme inputs, and does a draw take no more than it states?

The word PYTEST_DONT_REWRITE keeps pytest from adding its own explanation to a failing assertion.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gradest.analysis.bias import quadratic_loss
from gradest.contract.cost import Cost
from gradest.contract.estimator import Estimator, Feedback
from gradest.contract.neuron import Neuron, Scored
from gradest.errors import Inexact, InvalidInput, InvalidOptions, TooManyPoints
from gradest.random import Key
from gradest.testing.assertions import expect_same_bits
from gradest.testing.inputs import make_feedback, random_pre_activations, saturated_pre_activations, state_after_steps

__all__ = [
    "estimator_cost_is_as_stated",
    "estimator_state_stays_finite",
    "estimator_survives_saturation",
    "neuron_costs_are_as_stated",
    "neuron_survives_saturation",
]

_LARGER = 4  # times the sizes of an event at which a cost is measured a second time
_MOST_STATED = 1 << 20  # elements of a draw that is measured
_SLACK = 1024  # elements that a draw may take whatever its size


def neuron_survives_saturation(neuron: Neuron) -> None:
    """Check that no result is NaN or infinite at pre-activations of ±40 and ±10,000, in float32 and bfloat16."""
    for a in saturated_pre_activations(neuron):
        noise = neuron.noise(Key(1), a, 8)
        h = neuron.forward(a, noise)
        results = {
            "forward": h,
            "backward": neuron.backward(a, noise, torch.ones_like(h)),
            "mean": neuron.mean(a),
            "active_probability": neuron.active_probability(a),
        }
        if isinstance(neuron, Scored):
            results["score"] = neuron.score(h, a)
        for name, result in results.items():
            assert bool(torch.isfinite(result).all()), f"{name} is not finite at saturation ({a.dtype})"


def estimator_survives_saturation(estimator: Estimator, neuron: Neuron) -> None:
    """Check that value and gradient are finite at pre-activations of ±40 and ±10,000, in float32 and bfloat16."""
    for a in saturated_pre_activations(neuron):
        wide = a.float()
        state = estimator.init(neuron, wide)
        for seed in range(3):
            draw = estimator.forward(neuron, wide, Key(seed), state)
            feedback = make_feedback(estimator, draw, quadratic_loss(neuron))
            gradient, state = estimator.backward(draw, feedback, state)
            assert bool(torch.isfinite(gradient.to(a.dtype)).all()), (
                f"the gradient is not finite at saturation ({a.dtype})"
            )
            value = estimator.value(draw, feedback.get_loss())
            assert bool(torch.isfinite(value).all()), f"the value is not finite at saturation ({a.dtype})"
            for name, tensor in state.items():
                assert bool(torch.isfinite(tensor).all()), f"the state {name} is not finite at saturation ({a.dtype})"


def estimator_state_stays_finite(estimator: Estimator, neuron: Neuron) -> None:
    """Check that no finite feedback makes the state infinite or NaN, where it would stay for ever.

    The steps have an empty batch, a single row, the same loss everywhere, no loss at all, and losses of 1e25. The library refuses
    losses that are not finite before an estimator sees them, so that is not tried. Only an estimator without a state can be told
    infinite losses, by `allow_inf`: the infinite loss of one row must leave the gradients of the others as they were.
    """
    f = quadratic_loss(neuron)
    start = state_after_steps(estimator, neuron)
    for name, rows, change in (
        ("an empty batch", 0, lambda x: x),
        ("a single row", 1, lambda x: x),
        ("the same loss everywhere", 6, torch.ones_like),
        ("losses of 0", 6, torch.zeros_like),
        ("losses of 1e25", 6, lambda x: 1e25 * x),
    ):
        if not start:
            break
        for first in (start, estimator.init(neuron, random_pre_activations(neuron, (rows,)))):
            state = first
            for seed in range(2):
                draw = estimator.forward(neuron, random_pre_activations(neuron, (rows,)), Key(seed), state)
                found = make_feedback(estimator, draw, f)
                told = Feedback(change(found.get_loss()), None if found.grad is None else change(found.grad))
                _, state = estimator.backward(draw, told, state)
            for key, tensor in state.items():
                assert bool(torch.isfinite(tensor).all()), f"the state {key} is not finite after steps with {name}"
    if not start:
        draw = estimator.forward(neuron, random_pre_activations(neuron, (6,)), Key(3), start)
        found = make_feedback(estimator, draw, f)
        loss = found.get_loss().clone()
        loss[:, 2] = torch.inf
        wanted, changed = (estimator.backward(draw, Feedback(x, found.grad), start)[0] for x in (found.loss, loss))
        others = [0, 1, 3, 4, 5]
        expect_same_bits(
            "the infinite loss of one row changed the gradient of another", changed[others], wanted[others]
        )


def estimator_cost_is_as_stated(estimator: Estimator, neuron: Neuron) -> None:
    """Check that a draw holds and computes no more elements than `cost` states, times the factors of `Cost`.

    It is measured on the first example event, for one row and for 32, and on a larger event that the neuron takes. What torch
    does not see, as inside a compiled kernel, is not measured, nor is the evaluation of the loss.
    """
    for event, rows in _sizes(neuron):
        try:
            stated = estimator.cost(neuron, event, (rows,))
        except TooManyPoints:
            continue
        assert isinstance(stated, Cost), f"cost must return a Cost, not {type(stated).__name__}"
        if stated.held > _MOST_STATED:
            continue
        try:
            used = _measure_draw(estimator, neuron, random_pre_activations(neuron, (rows,), event=event))
        except InvalidOptions:
            if event == neuron.example_events[0]:
                raise
            continue  # options, such as a network, that are made for the example event
        shape = f"[{rows}, {', '.join(map(str, event))}]"
        _check_stated(f"a draw for {shape}", "cost", used, stated, ", or draw_size of the neuron")


def neuron_costs_are_as_stated(neuron: Neuron) -> None:
    """Check that the mean and the law take no more than `mean_cost` and `law_size` state, times the factors of `Cost`.

    It is measured as for `estimator_cost_is_as_stated`. The mean of a neuron with the default `mean_cost` may be a sum over its
    law, and is measured only where the law is small.
    """
    for event, rows in _sizes(neuron):
        a = random_pre_activations(neuron, (rows,), event=event)
        try:
            stated, law = neuron.mean_cost(event, (rows,)), neuron.law_size(a)
        except TooManyPoints:
            continue
        assert isinstance(stated, Cost), f"mean_cost must return a Cost, not {type(stated).__name__}"
        if stated.held <= _MOST_STATED and (law <= _MOST_STATED or type(neuron).mean_cost is not Neuron.mean_cost):
            used = _measure(neuron.mean, neuron.active_probability, at=a)
            _check_stated("the mean", "mean_cost", used, stated)
        if law <= _MOST_STATED:
            with suppress(TooManyPoints, Inexact):
                _check_stated("the law", "law_size", _measure(neuron.law, at=a), Cost(law, law))


def _check_stated(what: str, method: str, used: Cost, stated: Cost, remedy: str = "") -> None:
    for does, found, stated_size, factor in (
        ("holds", used.held, stated.held, Cost.HELD_PER_ELEMENT),
        ("computes", used.work, stated.work, Cost.WORK_PER_ELEMENT),
    ):
        assert found <= factor * stated_size + factor * _SLACK // Cost.HELD_PER_ELEMENT, (
            f"{what} {does} {found} elements, but {method} states {stated_size}, which allows {factor} times as many: "
            f"override {method}{remedy}"
        )


def _measure(*functions: Callable[[Tensor], object], at: Tensor) -> Cost:
    """Return the most elements that functions of `at` hold at once, and how many they compute."""
    measured = _Measure()
    with torch.no_grad(), measured:
        for function in functions:
            function(at)
    return Cost(measured.most, measured.work)


def _sizes(neuron: Neuron) -> Iterator[tuple[tuple[int, ...], int]]:
    """Yield events and numbers of rows."""
    event = tuple(neuron.example_events[0])
    yield event, 1
    yield event, 32
    larger = tuple(_LARGER * size for size in event)
    try:
        neuron.output_event(larger)
        neuron.check(random_pre_activations(neuron, (1,), event=larger))
    except InvalidInput:
        return
    yield larger, 4


def _measure_draw(estimator: Estimator, neuron: Neuron, a: Tensor) -> Cost:
    """Return the most elements that are held at once in forward and backward, and how many both compute."""
    measured = _Measure()
    with torch.no_grad(), measured:
        state = estimator.init(neuron, a)
    measured.work = 0
    with torch.no_grad(), measured:
        draw = estimator.forward(neuron, a, Key(3), state)
    feedback = make_feedback(estimator, draw, quadratic_loss(neuron))
    with torch.no_grad(), measured:
        estimator.backward(draw, feedback, state)
    return Cost(measured.most, measured.work)


class _Measure(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the elements that operations of torch return, and how many of them are alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.work = self.most = self._held = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        found = func(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor) and (memory := x.untyped_storage())._cdata not in given:
                self.work += x.numel()
                if memory._cdata not in self._alive:
                    size = memory.nbytes() // x.element_size()
                    self._alive.add(memory._cdata)
                    self._held += size
                    self.most = max(self.most, self._held)
                    weakref.finalize(memory, self._release, memory._cdata, size)
        return found

    def _release(self, memory: int, size: int) -> None:
        self._alive.discard(memory)
        self._held -= size
