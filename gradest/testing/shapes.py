"""Checks of form: does every result have the shape and the dtype that the contract states?

The word PYTEST_DONT_REWRITE keeps pytest from adding its own explanation to a failing assertion.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradest.analysis.bias import linear_loss, quadratic_loss
from gradest.contract.estimator import Estimator, Feedback
from gradest.contract.neuron import Discrete, Neuron, keeps_event, output_shape
from gradest.random import Key
from gradest.testing.assertions import expect_like, expect_shape
from gradest.testing.inputs import (
    OF_DRAWS,
    OF_PRE_ACTIVATIONS,
    all_of_unit,
    all_pre_activations,
    make_feedback,
    number_per_row,
    random_pre_activations,
    state_after_steps,
    tensor_methods,
)

__all__ = ["estimator_keeps_dtypes", "estimator_shapes_and_dtypes", "neuron_shapes_and_dtypes"]


def neuron_shapes_and_dtypes(neuron: Neuron) -> None:
    """Check that every method returns the dtype of `a` and the shape that the contract states, also for an empty batch.

    The shapes follow from `output_event`, and are checked for each of the `example_events`, as is the number of `atoms`.
    """
    for event in neuron.example_events:
        _expect_consistent_events(neuron, event)
    for a in all_pre_activations(neuron):
        noise, batch, shape = neuron.noise(Key(1), a, 4), a.shape[: a.ndim - neuron.event_ndim], output_shape(neuron, a)
        if keeps_event(neuron):
            expect_shape("noise", noise, (4, *a.shape))
        else:
            expect_shape("the leading dims of noise", noise.new_empty(noise.shape[: 1 + len(batch)]), (4, *batch))
        h = neuron.forward(a, noise)
        expect_like("forward", h, (4, *shape), a)
        for name, method in tensor_methods(
            neuron, Key(1), a, noise, h, torch.ones_like(h), torch.ones_like(number_per_row(neuron, h))
        ):
            of_one: Sequence[int] = a.shape if name in OF_PRE_ACTIVATIONS else shape
            if name == "log_prob":
                of_one = shape[: len(batch) + 1]
            wanted = (4, *of_one) if name in OF_DRAWS else of_one
            expect_like(name, method(), wanted, a)
        active = neuron.active_probability(a)
        assert bool(((active >= 0) & (active <= 1)).all()), "active_probability has values outside [0, 1]"


def _expect_consistent_events(neuron: Neuron, event: tuple[int, ...]) -> None:
    """Expect an example event to have `event_ndim` dims, and its output and its law the shapes and the atoms that are stated."""
    assert len(event) == neuron.event_ndim, (
        f"example_events has {event}, of {len(event)} dim(s), but event_ndim is {neuron.event_ndim}"
    )
    output = neuron.output_event(event)
    assert len(output) == neuron.output_ndim, (
        f"output_event gives {len(output)} dim(s) for {event} and {neuron.output_ndim} for {neuron.example_events[0]}"
    )
    values, weights = neuron.law(random_pre_activations(neuron, (3,), torch.float64, event))
    atoms, stated = len(values), neuron.atoms(event)
    expect_shape("the values of law", values, (atoms, 3, *output))
    expect_shape("the weights of law", weights, (atoms, 3, output[0]))
    least = type(neuron).atoms in (Neuron.atoms, Discrete.atoms)  # the defaults state no more than they know
    assert stated == atoms or (least and stated < atoms), f"atoms says {stated} for {event}, but law has {atoms}"


def estimator_shapes_and_dtypes(estimator: Estimator, neuron: Neuron) -> None:
    """Check that `forward` returns `evaluations` points, and that every result has the contract's shape and dtype.

    A discrete neuron's points must be outputs of it, unless the estimator sets `off_support`, or the outputs move with `a`. The
    state keeps its names, shapes and dtypes from step to step.
    """
    for a in all_pre_activations(neuron):
        wide = a if a.dtype != torch.bfloat16 else a.float()  # the library widens bfloat16 before an estimator sees it
        batch, event = wide.shape[: wide.ndim - neuron.event_ndim], wide.shape[wide.ndim - neuron.event_ndim :]
        state = estimator.init(neuron, wide)
        draw = estimator.forward(neuron, wide, Key(1), state)
        stated = estimator.evaluations(neuron, tuple(event))
        assert draw.points.shape[0] == stated, (
            f"evaluations says K = {stated}, but forward asks for {draw.points.shape[0]} points"
        )
        expect_like("points", draw.points, (stated, *output_shape(neuron, wide)), wide)
        assert draw.weights.shape in ((stated,), (stated, *batch)), f"weights have shape {list(draw.weights.shape)}"
        loss = torch.ones(draw.points.shape[: 1 + len(batch)], dtype=wide.dtype)
        expect_like("value", estimator.value(draw, loss), batch, wide)
        if isinstance(neuron, Discrete) and neuron.finite and not estimator.off_support:
            outputs = neuron.law(wide)[0]
            move = not torch.equal(
                outputs, neuron.law(wide + 1)[0]
            )  # so a point may be an output at other pre-activations
            unit = all_of_unit(neuron, draw.points == outputs[:, None])
            assert move or bool(unit.any(0).all()), (
                "forward asks for the loss at points that are not outputs of the neuron: set off_support = True"
            )
        gradient, after = estimator.backward(draw, make_feedback(estimator, draw, linear_loss(neuron)), state)
        expect_like("gradient", gradient, wide.shape, wide)
        assert after.keys() == state.keys(), f"the state has {sorted(state)} before a step and {sorted(after)} after it"
        for name, tensor in after.items():
            assert name.isidentifier(), (
                f"the state name {name!r} must be an identifier, because it names a buffer of a module"
            )
            expect_like(f"state {name}", tensor, state[name].shape, state[name])


def estimator_keeps_dtypes(estimator: Estimator, neuron: Neuron) -> None:
    """Check that the state keeps its dtypes and shapes in a step at another precision, and the gradient has that of `a`.

    A float32 state meets float64 pre-activations, as after `module.double()`, and the reverse. A float32 step may also be told
    float64 losses, which the library passes on as they are.
    """
    f = quadratic_loss(neuron)
    for before, now, told in (
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.float64),
    ):
        state = state_after_steps(estimator, neuron, before)
        a = random_pre_activations(neuron, (5,), now)
        draw = estimator.forward(neuron, a, Key(3), state)
        expect_like("points", draw.points, draw.points.shape, a)
        feedback = make_feedback(estimator, draw, f)
        gradient, after = estimator.backward(draw, Feedback(feedback.get_loss().to(told), feedback.grad), state)
        expect_shape("gradient", gradient, a.shape)
        if told == now:  # the library converts a gradient that a wider loss has widened
            expect_like("gradient", gradient, a.shape, a)
        for name, tensor in after.items():
            expect_like(
                f"the next state {name} of a {before} state at {now} with {told} losses",
                tensor,
                state[name].shape,
                state[name],
            )
