"""The checks of the conformance kit: what every neuron, estimator and objective must do, built-in or not.

    import gradest
    import pytest
    from gradest import testing

    @pytest.mark.parametrize("check", testing.ESTIMATOR_CHECKS, ids=lambda check: check.__name__)
    def test_my_estimator(check):
        check(MyEstimator(), gradest.neuron("bernoulli"))

A check is a function that returns None, or raises AssertionError with a diagnosis of what is wrong. `NEURON_CHECKS` take a
neuron, `ESTIMATOR_CHECKS` an estimator and a neuron that it accepts, `OBJECTIVE_CHECKS` an objective.

Statistical checks use fixed seeds, so for unchanged code they always pass or always fail. For a correct implementation and a new
seed, each number that is compared would fail with probability below 6e-7 (five standard errors). `measure_bias` draws until a
wrong sign or a factor of two would show as a difference of at least ten standard errors.

`gradest.testing.suite` runs all checks on everything that a plugin provides, for `gradest check` and `pytest --gradest-plugin`.

The word PYTEST_DONT_REWRITE in this docstring keeps pytest from adding its own explanation to a failing assertion: the diagnosis
is the whole message.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor

from gradest.analysis.bias import (
    CLASSES,
    MAX_DRAWS,
    SIGNIFICANCE_SE,
    UNITS,
    BiasRecord,
    linear_loss,
    measure_bias,
    network_loss,
    pre_activations,
    quadratic_loss,
)
from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Binary, Discrete, Neuron, Relaxable, Scored
from gradest.contract.objective import Objective
from gradest.contract.score_function import ScoreFunction
from gradest.discovery.registry import Registry, registry
from gradest.estimation.estimate import estimate
from gradest.estimation.exact import exact
from gradest.random import Key

__all__ = [
    "ESTIMATOR_CHECKS",
    "NEURON_CHECKS",
    "OBJECTIVE_CHECKS",
    "BiasRecord",
    "example_neurons",
    "example_objectives",
    "example_pairs",
    "measure_bias",
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BATCH_SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (0,))


def example_neurons(registry: Registry) -> list[Neuron]:
    """Build every registered neuron with each of the option sets in its `examples`."""
    return [cls.build(**options) for cls in registry.neurons.values() for options in cls.examples]


def example_pairs(registry: Registry) -> list[tuple[Estimator, Neuron]]:
    """Pair every registered estimator with every neuron that it accepts, both built with each of their `examples`."""
    built = [cls.build(**options) for cls in registry.estimators.values() for options in cls.examples]
    return [
        (estimator, neuron) for estimator in built for neuron in example_neurons(registry) if estimator.accepts(neuron)
    ]


def example_objectives(registry: Registry) -> list[Objective]:
    """Build every registered objective with each of the option sets in its `examples`."""
    return [cls.build(**options) for cls in registry.objectives.values() for options in cls.examples]


# --- neurons -----------------------------------------------------------------------------------------------------------------


def neuron_shapes_and_dtypes(neuron: Neuron) -> None:
    """Check that every method returns the dtype of `a` and the shape that the contract states, also for an empty batch."""
    for a in _all_pre_activations(neuron):
        noise = neuron.noise(Key(1), a, 4)
        _expect_shape("noise", noise, (4, *a.shape))
        h = neuron.forward(a, noise)
        _expect_like("forward", h, (4, *a.shape), a)
        for name, method in _methods(
            neuron, Key(1), a, noise, h, torch.ones_like(h), torch.ones_like(_per_row(neuron, h))
        ):
            wanted = (4, *a.shape) if name in _OF_DRAWS else a.shape
            if name == "log_prob":
                wanted = (4, *a.shape[: a.ndim - neuron.event_ndim + 1])
            _expect_like(name, method(), wanted, a)
        active = neuron.active_probability(a)
        assert bool(((active >= 0) & (active <= 1)).all()), "active_probability has values outside [0, 1]"


def neuron_is_pure(neuron: Neuron) -> None:
    """Check that no method writes to an argument or uses torch's global generator, and the same key gives the same bits.

    A write counts even if it leaves the values as they were: torch counts the writes to a tensor.
    """
    a = _random_pre_activations(neuron, (5,))
    with _ExpectUnchanged("noise, then forward", a):
        first = neuron.forward(a, neuron.noise(Key(3), a, 2))
    torch.manual_seed(99)
    again = neuron.forward(a, neuron.noise(Key(3), a, 2))
    _expect_same_bits("the same key gave different outputs", first, again)
    noise, grad, weights = neuron.noise(Key(3), a, 2), torch.ones_like(first), torch.ones(2, 5)
    h = first.clone()
    for name, method in (*_methods(neuron, Key(3), a, noise, h, grad, weights), ("law", lambda: neuron.law(a))):
        with _ExpectUnchanged(name, a, noise, grad, h, weights):
            method()


def neuron_samples_are_forward(neuron: Neuron) -> None:
    """Check that `sample(key, a, draws)` has the bits of `forward(a, noise(key, a, draws))`, whichever kernel computes it."""
    for a in chain(
        _all_pre_activations(neuron), _saturated_pre_activations(neuron), [_random_pre_activations(neuron, (700,)) * 3]
    ):
        for draws in (0, 1, 3):
            wanted = neuron.forward(a, neuron.noise(Key(17), a, draws))
            drawn = neuron.sample(Key(17), a, draws)
            _expect_like("sample", drawn, wanted.shape, a)
            _expect_same_bits("sample differs from forward at the same noise", drawn, wanted)


def neuron_rows_are_independent(neuron: Neuron) -> None:
    """Check that a row gives the same bits alone, among 1,000 others, and after a permutation of the batch.

    This holds for every method but `law`: also for `score`, `log_prob` and the others that capabilities add.
    """

    def run(a: Tensor, rows: Tensor) -> dict[str, Tensor]:
        key = Key(5, rows)
        noise = neuron.noise(key, a, 3)
        h = neuron.forward(a, noise)
        grad, weights = h * 0.5 + 1, _per_row(neuron, h)
        found = {name: method() for name, method in _methods(neuron, key, a, noise, h, grad, weights)}
        return {name: x.movedim(1, 0) if name in _OF_DRAWS else x for name, x in found.items()}

    _expect_independent_rows(neuron, run)


def neuron_survives_saturation(neuron: Neuron) -> None:
    """Check that no result is NaN or infinite at pre-activations of ±40 and ±10,000, in float32 and bfloat16."""
    for a in _saturated_pre_activations(neuron):
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


def neuron_law_agrees(neuron: Neuron) -> None:
    """Check that `law`, `log_prob`, `mean`, `active_probability` and 40,000 samples agree with each other.

    What follows from `law` must agree within a small tolerance, and averages over samples within five standard errors.
    """
    draws = 40_000
    a = _random_pre_activations(neuron, (4,), torch.float64) * 1.5
    values, weights = neuron.law(a)
    if isinstance(neuron, Discrete):
        _expect_close("exp(log_prob) and the weights of law", neuron.log_prob(values, a).exp(), weights, 1e-9)
    weights = _broadcast_weights(neuron, weights)
    _expect_close("the sum of the weights of law and 1", weights.sum(0), torch.ones_like(weights[0]), 1e-7)
    _expect_close("mean and the mean of law", neuron.mean(a), (weights * values).sum(0), 1e-6)
    positive = (weights * (values > 0)).sum(0)
    _expect_close("active_probability and P(h > 0) of law", neuron.active_probability(a), positive.expand_as(a), 1e-6)
    h = neuron.forward(a, neuron.noise(Key(11), a, draws))
    active = neuron.active_probability(a)
    for name, sampled, wanted, variance in (
        ("the mean of samples", h, neuron.mean(a), h.var(0)),
        ("the share of positive samples", (h > 0).double(), active, active * (1 - active)),
    ):
        error = (variance / draws).sqrt() + 1e-9
        worst = float(((sampled.mean(0) - wanted) / error).abs().max())
        assert worst < SIGNIFICANCE_SE, f"{name} is {worst:.1f} standard errors off the value that the neuron states"


def neuron_exact_agrees(neuron: Neuron) -> None:
    """Check that `gradest.exact` agrees with 40,000 of the neuron's own samples, and its gradient with its value.

    Each output of a finite unit must have the probability that `law` states, as a whole vector if it is one, and there must be no
    other outputs. E[L] of a quadratic loss and of a network, in which units meet, must be the mean over samples within five
    standard errors. For the network, the gradient must be the finite difference of the value to 2 %.
    """
    draws = 40_000
    a = _random_pre_activations(neuron, (4,), torch.float64) * 1.5
    h = neuron.sample(Key(23), a, draws)
    if isinstance(neuron, Discrete):
        values, weights = neuron.law(a)
        seen = torch.zeros((), dtype=torch.float64)
        for value, weight in zip(values, weights, strict=True):
            same = h == value if neuron.event_ndim == 1 else (h == value).all(-1)
            share = same.double().mean(0)
            seen = seen + share
            # the last term allows for the skewness of rare outputs
            error = (weight * (1 - weight)).clamp(min=0).sqrt() / draws**0.5 + 3 / draws
            worst = float(((share - weight) / error).abs().max())
            assert worst < SIGNIFICANCE_SE, (
                f"the share of samples with one of the outputs of law is {worst:.1f} standard errors off its weight"
            )
        assert not neuron.finite or float(seen.min()) > 1 - 1e-9, "forward gives outputs that law does not list"
    direction = a.roll(1, 0).cos() + 1.5
    for name, f in (("squared", quadratic_loss(neuron)), ("network", network_loss(neuron))):
        value, gradient = exact(f, a, neuron)
        sampled = f(h)
        error = sampled.std(0) / draws**0.5 + 1e-6
        worst = float(((sampled.mean(0) - value) / error).abs().max())
        assert worst < SIGNIFICANCE_SE, (
            f"exact is {worst:.1f} standard errors off the mean {name} loss over samples: are units independent, as it assumes?"
        )
    # the last loss is the network
    size = 1e-3
    upper, lower = (exact(f, a + step * direction, neuron)[0] for step in (size, -size))
    slope, stated = (upper - lower) / (2 * size), (gradient * direction).flatten(1).sum(-1)
    scale = float(slope.abs().max()) + 1e-2
    _expect_close("the gradient of exact and the difference of its values", stated, slope, 0.02 * scale)


def neuron_units_are_independent(neuron: Neuron) -> None:
    """Check on 40,000 samples that the outputs of units, rows and draws are independent, as `exact` and estimators assume.

    For two units of one row or of two, and for one draw and the next, all products of their centred outputs and centred squares
    must have mean 0; for three units of a row, the products of their centred outputs. Within five standard errors.
    """
    draws, rows, units = 40_000, 2, 3
    a = _random_normal((rows, units, CLASSES)[: 1 + neuron.event_ndim], torch.float64)
    h = neuron.sample(Key(29), a, draws).double().reshape(draws, rows * units, -1)
    once = h - h.mean(0)
    both = torch.cat([once, once.square() - once.square().mean(0)], -1)
    near = [(i, j) for i in range(rows * units) for j in range(i)]
    for name, one, two, pairs in (
        ("two units", both, both, near),
        (
            "a draw and the next",
            both[:-1],
            both[1:],
            [(i, j) for i in range(rows * units) for j in range(rows * units)],
        ),
    ):
        product = torch.einsum("nic,njd->ijcd", one, two) / draws
        square = torch.einsum("nic,njd->ijcd", one.square(), two.square()) / draws
        first, second = zip(*pairs, strict=True)
        _expect_no_moment(name, product[first, second], square[first, second], draws)
    for row in range(rows):
        x, y, z = (once[:, row * units + unit] for unit in range(units))
        product = torch.einsum("nc,nd,ne->cde", x, y, z) / draws
        square = torch.einsum("nc,nd,ne->cde", x.square(), y.square(), z.square()) / draws
        _expect_no_moment("three units", product, square, draws)


def neuron_derivatives_agree(neuron: Neuron) -> None:
    """Check that `backward` is the derivative of `forward` at fixed noise, and `score` that of `log_prob`, with mean 0.

    `backward` is compared with a finite difference of `forward`. They must agree for 99 % of the units: in the others, `forward`
    may jump between the two points of the difference. `mean` of a binary neuron is compared with its `probability`.
    """
    a, size = _random_pre_activations(neuron, (200,), torch.float64) * 2, 1e-6
    noise = neuron.noise(Key(13), a, 1)
    step, grad = a.roll(1, 0).cos() + 1.5, a.roll(2, 0).cos() + 1.5
    upper, lower = neuron.forward(a + size * step, noise), neuron.forward(a - size * step, noise)
    slope = _sum_over_classes(neuron, grad * (upper - lower) / (2 * size))
    given = _sum_over_classes(neuron, neuron.backward(a, noise, grad.expand_as(upper)) * step)
    smooth = (slope - given).abs() < 1e-4 * (1 + slope.abs())
    assert float(smooth.double().mean()) > 0.99, "backward is not the derivative of forward at fixed noise"
    if isinstance(neuron, Scored):
        h = neuron.forward(a, noise)
        values, weights = neuron.law(a)
        centre = (_broadcast_weights(neuron, weights) * neuron.score(values, a)).sum(0)
        _expect_close("E[score] and 0", centre, torch.zeros_like(centre), 1e-9)
        if isinstance(neuron, Discrete):
            moved = a.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(neuron.log_prob(h, moved).sum(), moved)
            _expect_close("score and the derivative of log_prob", neuron.score(h, a)[0], wanted, 1e-9)
    if isinstance(neuron, Binary):
        p = neuron.probability(a)
        stated = neuron.low + (neuron.high - neuron.low) * p
        _expect_close("mean and low + (high - low) · probability", neuron.mean(a), stated, 1e-9)


# --- estimators --------------------------------------------------------------------------------------------------------------


def estimator_shapes_and_dtypes(estimator: Estimator, neuron: Neuron) -> None:
    """Check that `forward` returns `evaluations` points, and that every result has the contract's shape and dtype.

    A discrete neuron's points must be outputs of it, unless the estimator sets `off_support`. The state keeps its names, shapes
    and dtypes from step to step.
    """
    for a in _all_pre_activations(neuron):
        wide = a if a.dtype != torch.bfloat16 else a.float()  # the library widens bfloat16 before an estimator sees it
        batch, event = wide.shape[: wide.ndim - neuron.event_ndim], wide.shape[wide.ndim - neuron.event_ndim :]
        state = estimator.init(neuron, wide)
        draw = estimator.forward(neuron, wide, Key(1), state)
        stated = estimator.evaluations(neuron, tuple(event))
        assert draw.points.shape[0] == stated, (
            f"evaluations says K = {stated}, but forward asks for {draw.points.shape[0]} points"
        )
        _expect_like("points", draw.points, (stated, *wide.shape), wide)
        assert draw.weights.shape in ((stated,), (stated, *batch)), f"weights have shape {list(draw.weights.shape)}"
        loss = torch.ones(draw.points.shape[: 1 + len(batch)], dtype=wide.dtype)
        _expect_like("value", estimator.value(draw, loss), batch, wide)
        if isinstance(neuron, Discrete) and neuron.finite and not estimator.off_support:
            same = draw.points == neuron.law(wide)[0][:, None]
            unit = same if neuron.event_ndim == 1 else same.all(-1)
            assert bool(unit.any(0).all()), (
                "forward asks for the loss at points that are not outputs of the neuron: set off_support = True"
            )
        gradient, after = estimator.backward(draw, _make_feedback(estimator, draw, linear_loss(neuron)), state)
        _expect_like("gradient", gradient, wide.shape, wide)
        assert after.keys() == state.keys(), f"the state has {sorted(state)} before a step and {sorted(after)} after it"
        for name, tensor in after.items():
            assert name.isidentifier(), (
                f"the state name {name!r} must be an identifier, because it names a buffer of a module"
            )
            _expect_like(f"state {name}", tensor, state[name].shape, state[name])


def estimator_is_pure(estimator: Estimator, neuron: Neuron) -> None:
    """Check that no argument is written to, torch's global generator is not used, and equal arguments give equal bits.

    A write counts even if it leaves the values as they were. The points must not share memory with `a`, nor the next state with
    `a`, the points or the feedback: the caller may write to its own tensors afterwards.
    """
    a, f = _random_pre_activations(neuron, (5,)), quadratic_loss(neuron)
    state = _state_after_steps(estimator, neuron)
    results = []
    for _ in range(2):
        with _ExpectUnchanged("forward", a, *state.values(), state=state):
            draw = estimator.forward(neuron, a, Key(3), state)
        _expect_own_memory("points", draw.points, a)
        feedback = _make_feedback(estimator, draw, f)
        told = [x for x in (feedback.loss, feedback.grad, draw.points, draw.weights) if x is not None]
        with _ExpectUnchanged("backward", a, *state.values(), *told, *draw.saved.values(), state=state):
            gradient, after = estimator.backward(draw, feedback, state)
        with _ExpectUnchanged("value", a, *told, *draw.saved.values()):
            value = estimator.value(draw, feedback.get_loss())
        if isinstance(estimator, ScoreFunction):
            with _ExpectUnchanged("features, credit or combine", a, *told, *state.values(), state=state):
                estimator.credit(feedback.get_loss(), state, estimator.features(neuron, draw.points, a))
                estimator.combine(feedback.get_loss())
        for name, tensor in after.items():
            for argument in (a, *told, *draw.saved.values()):
                _expect_own_memory(f"the next state {name}", tensor, argument)
        results.append((draw.points, gradient, value, *after.values()))
        torch.manual_seed(99)
    for one, two in zip(*results, strict=True):
        _expect_same_bits(
            "the same arguments gave different results: noise must come from the key, and memory from the state",
            one,
            two,
        )


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
        state = _state_after_steps(estimator, neuron, before)
        a = _random_pre_activations(neuron, (5,), now)
        draw = estimator.forward(neuron, a, Key(3), state)
        _expect_like("points", draw.points, draw.points.shape, a)
        feedback = _make_feedback(estimator, draw, f)
        gradient, after = estimator.backward(draw, Feedback(feedback.get_loss().to(told), feedback.grad), state)
        _expect_shape("gradient", gradient, a.shape)
        if told == now:  # the library converts a gradient that a wider loss has widened
            _expect_like("gradient", gradient, a.shape, a)
        for name, tensor in after.items():
            _expect_like(
                f"the next state {name} of a {before} state at {now} with {told} losses",
                tensor,
                state[name].shape,
                state[name],
            )


def estimator_state_stays_finite(estimator: Estimator, neuron: Neuron) -> None:
    """Check that no finite feedback makes the state infinite or NaN, where it would stay for ever.

    The steps have an empty batch, a single row, the same loss everywhere, no loss at all, and losses of 1e25. The library refuses
    losses that are not finite before an estimator sees them, so that is not tried. Only an estimator without a state can be told
    infinite losses, by `allow_inf`: the infinite loss of one row must leave the gradients of the others as they were.
    """
    f = quadratic_loss(neuron)
    start = _state_after_steps(estimator, neuron)
    for name, rows, change in (
        ("an empty batch", 0, lambda x: x),
        ("a single row", 1, lambda x: x),
        ("the same loss everywhere", 6, torch.ones_like),
        ("losses of 0", 6, torch.zeros_like),
        ("losses of 1e25", 6, lambda x: 1e25 * x),
    ):
        if not start:
            break
        for first in (start, estimator.init(neuron, _random_pre_activations(neuron, (rows,)))):
            state = first
            for seed in range(2):
                draw = estimator.forward(neuron, _random_pre_activations(neuron, (rows,)), Key(seed), state)
                found = _make_feedback(estimator, draw, f)
                told = Feedback(change(found.get_loss()), None if found.grad is None else change(found.grad))
                _, state = estimator.backward(draw, told, state)
            for key, tensor in state.items():
                assert bool(torch.isfinite(tensor).all()), f"the state {key} is not finite after steps with {name}"
    if not start:
        draw = estimator.forward(neuron, _random_pre_activations(neuron, (6,)), Key(3), start)
        found = _make_feedback(estimator, draw, f)
        loss = found.get_loss().clone()
        loss[:, 2] = torch.inf
        wanted, changed = (estimator.backward(draw, Feedback(x, found.grad), start)[0] for x in (found.loss, loss))
        others = [0, 1, 3, 4, 5]
        _expect_same_bits(
            "the infinite loss of one row changed the gradient of another", changed[others], wanted[others]
        )


def estimator_regenerates(estimator: Estimator, neuron: Neuron) -> None:
    """Check that `backward` returns the same bits for a draw that `forward` made again from (a, key, state).

    A stateless server does that: it keeps no draw between the two requests.
    """
    a, f = _random_pre_activations(neuron, (5,)), quadratic_loss(neuron)
    state = estimator.init(neuron, a)
    draw = estimator.forward(neuron, a, Key(3), state)
    feedback = _make_feedback(estimator, draw, f)
    again = estimator.forward(neuron, a.clone(), Key(3), dict(state))
    one, two = estimator.backward(draw, feedback, state)[0], estimator.backward(again, feedback, state)[0]
    _expect_same_bits("the gradient depends on more than (a, key, state) and the feedback", one, two)


def estimator_uses_the_key(estimator: Estimator, neuron: Neuron) -> None:
    """Check that another seed gives other gradients, unless 64 equal rows all get the same gradient.

    If they all get the same one, the estimator is deterministic at these pre-activations, and the seed need not matter.
    """
    row = _random_pre_activations(neuron, ())
    a, f = row.expand(64, *row.shape), quadratic_loss(neuron)
    state = estimator.init(neuron, a)

    def gradient(seed: int) -> Tensor:
        draw = estimator.forward(neuron, a, Key(seed), state)
        return estimator.backward(draw, _make_feedback(estimator, draw, f), state)[0]

    first = gradient(3)
    if not torch.equal(first, first[:1].expand_as(first)):
        assert not torch.equal(first, gradient(4)), "another seed gave the same gradients: noise must come from the key"


def estimator_rows_are_independent(estimator: Estimator, neuron: Neuron) -> None:
    """Check that a row gets the same points, gradient and value, bit for bit, alone, among 1,000 others, and permuted."""
    state = _state_after_steps(estimator, neuron)

    def run(a: Tensor, rows: Tensor) -> dict[str, Tensor]:
        draw = estimator.forward(neuron, a, Key(5, rows), state)
        feedback = _make_feedback(estimator, draw, quadratic_loss(neuron))
        gradient, _ = estimator.backward(draw, feedback, state)
        value = estimator.value(draw, feedback.get_loss())
        return {"points": draw.points.movedim(1, 0), "gradient": gradient, "value": value}

    _expect_independent_rows(neuron, run)


def estimator_survives_saturation(estimator: Estimator, neuron: Neuron) -> None:
    """Check that value and gradient are finite at pre-activations of ±40 and ±10,000, in float32 and bfloat16."""
    for a in _saturated_pre_activations(neuron):
        wide = a.float()
        state = estimator.init(neuron, wide)
        for seed in range(3):
            draw = estimator.forward(neuron, wide, Key(seed), state)
            feedback = _make_feedback(estimator, draw, quadratic_loss(neuron))
            gradient, state = estimator.backward(draw, feedback, state)
            assert bool(torch.isfinite(gradient.to(a.dtype)).all()), (
                f"the gradient is not finite at saturation ({a.dtype})"
            )
            value = estimator.value(draw, feedback.get_loss())
            assert bool(torch.isfinite(value).all()), f"the value is not finite at saturation ({a.dtype})"
            for name, tensor in state.items():
                assert bool(torch.isfinite(tensor).all()), f"the state {name} is not finite at saturation ({a.dtype})"


def estimator_bias_is_as_claimed(estimator: Estimator, neuron: Neuron) -> None:
    """Check the claim `estimator.bias(neuron)` against the measured bias, on the four losses of `measure_bias`.

    There must be no significant bias on a loss for which the claim promises none. An estimator that does not claim to be unbiased
    for every loss must show a significant bias on at least one. One that uses dL/dh, and does not restrict its claim to
    continuous losses, is also tried on a loss of h rounded to quarters, whose derivative is 0.
    """
    records = list(measure_bias(estimator, neuron))
    wrong = [record for record in records if record.contradicts_claim]
    assert not wrong, f"claims bias {estimator.bias(neuron)}, but: {'; '.join(map(str, wrong))}{_likely_fault(wrong)}"
    if not estimator.bias(neuron).unbiased:
        # A small bias becomes significant only with more draws.
        closer = (record for draws in (1 << 16, MAX_DRAWS) for record in measure_bias(estimator, neuron, draws=draws))
        seen = any(not record.agrees_with_exact for record in chain(records, closer))
        assert seen, f"claims bias {estimator.bias(neuron)}, but no loss shows any; Bias.NONE may be the right claim"
    elif "grad" in estimator.needs and not estimator.bias(neuron).continuous:
        _expect_unbiased_on_jumps(estimator, neuron)


def _expect_unbiased_on_jumps(estimator: Estimator, neuron: Neuron) -> None:
    """Compare the mean gradient on a loss of h rounded to quarters with the exact one.

    For a unit with continuous output, of which a quadrature does not see the jumps, the gradient in one direction is the
    difference of the mean losses of samples, and may be off by a fifth.
    """
    a, draws, size = pre_activations(neuron, "moderate"), 1 << 15, 0.25
    inner = quadratic_loss(neuron)

    def f(h: Tensor) -> Tensor:
        return inner((4 * h).round() / 4)

    found = estimate(f, a, neuron, estimator, draws >> 2, 31)
    if isinstance(neuron, Discrete):
        gap, allowed = (found.gradient - exact(f, a, neuron)[1]).abs(), SIGNIFICANCE_SE * found.standard_error + 1e-5
    else:
        direction = a.roll(1, 0).cos() + 0.5
        noise = neuron.noise(Key(31), a, draws)  # the same on both sides, so that the difference varies less
        upper, lower = (f(neuron.forward(a + step * direction, noise)).double() for step in (size, -size))
        slopes = (upper - lower) / (2 * size)
        mean = (found.gradient * direction).flatten(1).sum(-1)
        error = (found.standard_error * direction.abs()).flatten(1).sum(-1) + slopes.std(0) / draws**0.5
        gap, allowed = (mean - slopes.mean(0)).abs(), SIGNIFICANCE_SE * error + 0.2 * slopes.mean(0).abs()
    assert bool((gap <= allowed).all()), (
        f"claims bias {estimator.bias(neuron)}, but is biased on a loss that jumps between its outputs, whose dL/dh is 0: "
        "Bias.NONE_IF_CONTINUOUS may be the right claim"
    )


def estimator_fits_layers(estimator: Estimator, neuron: Neuron) -> None:
    """Check what the layers of gradest.nn rely on, for an estimator that they use.

    One that needs loss and dL/dh at a single point is told them one after the other, so its gradient must be the sum of a term in
    the loss and a term linear in dL/dh. For a ScoreFunction, `credit` must give the gradient of `backward` and its state, and
    `combine` the number of `value`.
    """
    a, f = _random_pre_activations(neuron, (6,)), quadratic_loss(neuron)
    state = _state_after_steps(estimator, neuron)
    draw = estimator.forward(neuron, a, Key(7), state)
    feedback = _make_feedback(estimator, draw, f)
    gradient, after = estimator.backward(draw, feedback, state)
    loss, grad = feedback.get_loss(), feedback.grad
    if isinstance(estimator, ScoreFunction):
        assert isinstance(neuron, Discrete)
        weights, moved = estimator.credit(loss, state, estimator.features(neuron, draw.points, a))
        _expect_shape("credit", weights, loss.shape)
        _expect_close(
            "backward and the credited scores", neuron.weighted_score(draw.points, a, weights), gradient, 1e-4
        )
        _expect_close("value and combine", estimator.combine(loss), estimator.value(draw, loss), 1e-4)
        for name, tensor in after.items():
            _expect_close(f"the states {name} of backward and credit", moved[name], tensor, 1e-4)
    elif estimator.needs == {"loss", "grad"} and len(draw.points) == 1:
        assert grad is not None
        of_loss, _ = estimator.backward(draw, Feedback(loss, torch.zeros_like(grad)), state)
        of_grad, _ = estimator.backward(draw, Feedback(torch.zeros_like(loss), 3 * grad), state)
        _expect_close("the gradient and the sum of its parts in loss and dL/dh", of_loss + of_grad / 3, gradient, 1e-4)


def _likely_fault(wrong: Sequence[BiasRecord]) -> str:
    """A guess at the fault, from the direction of the mean gradient: a sentence to append, or an empty string."""
    if all(record.cosine < -0.98 for record in wrong):
        return ". The estimates point the other way: is a sign wrong?"
    if all(record.cosine > 0.98 for record in wrong):
        shares = [round(100 * record.bias / record.gradient) for record in wrong]
        return (
            f". The estimates point the right way, and are off by {min(shares)} to {max(shares)} % of the gradient: is there a"
            " wrong factor, or does a baseline depend on the very sample whose loss it is subtracted from?"
        )
    return ""


# --- objectives --------------------------------------------------------------------------------------------------------------


def objective_shapes_and_values(objective: Objective) -> None:
    """Check that losses are `[K, *batch]` in the dtype of the points, and that a row's loss depends on that row alone.

    The objective must not change the points.
    """
    for batch in ((), (3,), (2, 3), (0,)):
        for dtype in DTYPES:
            points = _random_points(objective, (4, *batch), dtype)
            with _ExpectUnchanged("__call__", points):
                loss = objective(points)
            _expect_like("loss", loss, (4, *batch), points)
    points = _random_points(objective, (4, 1000))
    whole = objective(points)
    for row in (0, 499, 999):
        _expect_same_bits(
            "the loss of a row depends on the rest of the batch",
            objective(points[:, row : row + 1].clone())[:, 0],
            whole[:, row],
        )


def objective_expectation_agrees(objective: Objective) -> None:
    """Check that `expectation` and its gradient, if there is a closed form, agree with a sum over all outputs of finite units."""
    event_ndim = getattr(objective, "event_ndim", 1)
    for neuron in (cls() for cls in registry.neurons.values()):
        if not isinstance(neuron, Discrete) or not neuron.finite or neuron.event_ndim != event_ndim:
            continue
        a = _random_pre_activations(neuron, (3,), torch.float64).requires_grad_()
        with _ExpectUnchanged("expectation", a):
            stated = objective.expectation(neuron, a)
        if stated is None:
            return
        wanted, gradient = exact(objective.__call__, a.detach(), neuron)
        scale = 1 + float(wanted.abs().max())
        _expect_close(
            f"expectation and the sum over the outputs of {neuron.label()}", stated.detach(), wanted, 1e-6 * scale
        )
        found = torch.autograd.grad(stated.sum(), a)[0] if stated.requires_grad else torch.zeros_like(a)
        _expect_close(f"the gradients of these two for {neuron.label()}", found, gradient, 1e-6 * scale)


# --- helpers -----------------------------------------------------------------------------------------------------------------


def _broadcast_weights(neuron: Neuron, weights: Tensor) -> Tensor:
    """The weights `[S, *batch, units]` of a law, with singleton dims so that they broadcast against its values."""
    return weights if neuron.event_ndim == 1 else weights[..., None]


def _sum_over_classes(neuron: Neuron, x: Tensor) -> Tensor:
    """Sum over the classes of each unit, because an output of a unit may depend on all of its pre-activations."""
    return x if neuron.event_ndim == 1 else x.sum(-1)


def _random_pre_activations(neuron: Neuron, batch: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random pre-activations `[*batch, *event]`, the same ones at every call."""
    return _random_normal((*batch, *_event_shape(neuron.event_ndim)), dtype)


def _random_points(objective: Objective, leading: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Random points `[*leading, *event]`; an objective without an attribute `event_ndim` takes events of one dim."""
    return _random_normal((*leading, *_event_shape(getattr(objective, "event_ndim", 1))), dtype)


def _event_shape(event_ndim: int) -> tuple[int, ...]:
    return (UNITS, CLASSES)[:event_ndim]


def _random_normal(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def _all_pre_activations(neuron: Neuron) -> Iterator[Tensor]:
    """Pre-activations of every dtype and batch shape that the contract names, and non-contiguous ones."""
    for dtype in DTYPES:
        for batch in BATCH_SHAPES:
            yield _random_pre_activations(neuron, batch, dtype)
        yield _random_pre_activations(neuron, (3, 2), dtype).transpose(0, 1)


def _saturated_pre_activations(neuron: Neuron) -> Iterator[Tensor]:
    for dtype in (torch.float32, torch.bfloat16):
        for size in (40.0, 1e4):
            sign = torch.sign(_random_pre_activations(neuron, (6,)))
            yield (size * sign).to(dtype)


def _make_feedback(estimator: Estimator, draw: Draw, f: Callable[[Tensor], Tensor]) -> Feedback:
    """Evaluate f at the points of the draw, and its gradient there if the estimator needs it."""
    points = draw.points.detach().clone().requires_grad_()
    loss = f(points)
    grad = torch.autograd.grad(loss.sum(), points)[0] if "grad" in estimator.needs else None
    return Feedback(loss.detach(), grad)


def _state_after_steps(estimator: Estimator, neuron: Neuron, dtype: torch.dtype = torch.float32) -> State:
    """The state after three steps, so that a running baseline is not zero."""
    a = _random_pre_activations(neuron, (8,), dtype)
    state = estimator.init(neuron, a)
    for seed in range(3):
        draw = estimator.forward(neuron, a, Key(seed), state)
        _, state = estimator.backward(draw, _make_feedback(estimator, draw, quadratic_loss(neuron)), state)
    return state


_OF_DRAWS = {
    *("sample", "forward", "backward", "pullback", "score", "log_prob", "relax", "conditional_relax"),
    "antithetic",
}
"""The methods whose results begin with a dim of draws."""


def _methods(
    neuron: Neuron, key: Key, a: Tensor, noise: Tensor, h: Tensor, grad: Tensor, weights: Tensor
) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    """The methods that the neuron's capabilities state and that return a tensor, by name, as calls with these arguments.

    noise, h, grad: `[draws, *a.shape]`. weights: `[draws, *batch]`. Not `law`, whose number of outputs may depend on the batch.
    """
    draws = len(h)
    yield "sample", lambda: neuron.sample(key, a, draws)
    yield "forward", lambda: neuron.forward(a, noise)
    yield "backward", lambda: neuron.backward(a, noise, grad)
    yield "pullback", lambda: neuron.pullback(key, a, h, grad)
    yield "mean", lambda: neuron.mean(a)
    yield "threshold", lambda: neuron.threshold(a, 0.5)
    yield "active_probability", lambda: neuron.active_probability(a)
    if isinstance(neuron, Scored):
        yield "score", lambda: neuron.score(h, a)
        yield "weighted_score", lambda: neuron.weighted_score(h, a, weights)
        yield "leave_one_out_score", lambda: neuron.leave_one_out_score(h, a, weights)
    if isinstance(neuron, Discrete):
        yield "log_prob", lambda: neuron.log_prob(h, a)
    if isinstance(neuron, Relaxable):
        yield "relax", lambda: neuron.relax(a, noise, 0.7)
        yield "conditional_relax", lambda: neuron.conditional_relax(a, h, noise, 0.7)
    if isinstance(neuron, Binary):
        yield "probability", lambda: neuron.probability(a)
        yield "antithetic", lambda: neuron.antithetic(key, a, draws // 2)


def _per_row(neuron: Neuron, h: Tensor) -> Tensor:
    """A number `[draws, *batch]` for each sample of each row, which depends on no other."""
    return linear_loss(neuron)(h)


def _expect_independent_rows(neuron: Neuron, run: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> None:
    """Compare run(a, rows), results `[len(rows), ...]` by name, on 1,001 rows with run on slices and on a permutation of them."""
    a, rows = _random_pre_activations(neuron, (1001,)), torch.arange(1001)
    whole = run(a, rows)
    # torch computes the tail of a tensor with other instructions, so slices of several lengths are tried.
    for start in range(0, 1001, 40):
        part = slice(start, start + 1 + start // 40 % 7)
        for name, alone in run(a[part].clone(), rows[part]).items():
            _expect_same_bits(f"{name}: a row alone differs from the same row in a batch", alone, whole[name][part])
    order = torch.randperm(1001, generator=torch.Generator().manual_seed(4))
    for name, permuted in run(a[order], rows[order]).items():
        _expect_same_bits(
            f"{name}: a permutation of the batch changed the results of its rows", permuted, whole[name][order]
        )


def _expect_no_moment(name: str, product: Tensor, square: Tensor, draws: int) -> None:
    """Expect the means of products to be 0 within five standard errors, which their mean squares give."""
    worst = float((product / ((square / draws).sqrt() + 1e-9)).abs().max())
    assert worst < SIGNIFICANCE_SE, (
        f"the outputs of {name} are not independent: a moment is {worst:.1f} standard errors off 0"
    )


class _ExpectUnchanged:
    """A context manager that asserts, at exit, that nothing was written to the tensors, the state or torch's global generator.

    method: the name of what runs inside.
    """

    def __init__(self, method: str, *tensors: Tensor, state: State | None = None) -> None:
        self._method = method
        self._before = [(tensor, tensor.clone(), tensor._version) for tensor in tensors]
        self._state, self._items = state, None if state is None else list(state.items())

    def __enter__(self) -> None:
        self._generator = torch.get_rng_state()

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            return
        for tensor, before, writes in self._before:
            assert tensor._version == writes, f"an argument was changed in place by {self._method}"
            _expect_same_bits(f"an argument was changed in place by {self._method}", tensor, before)
        if self._state is not None and self._items is not None:
            now = list(self._state.items())
            same = [(name, id(x)) for name, x in now] == [(name, id(x)) for name, x in self._items]
            assert same, f"the mapping of the state was changed in place by {self._method}: return a new one"
        _expect_same_bits("noise was taken from torch's global generator", torch.get_rng_state(), self._generator)


def _expect_own_memory(name: str, tensor: Tensor, argument: Tensor) -> None:
    shared = tensor.numel() and tensor.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr()
    assert not shared, f"{name} shares memory with an argument, which the caller may write to: return a copy"


def _expect_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    assert tensor.shape == torch.Size(shape), f"{name} has shape {list(tensor.shape)}, not {list(shape)}"


def _expect_like(name: str, tensor: Tensor, shape: Sequence[int], a: Tensor) -> None:
    _expect_shape(name, tensor, shape)
    assert tensor.dtype == a.dtype, f"{name} is {tensor.dtype} for an input of {a.dtype}"
    assert tensor.device == a.device, f"{name} is on {tensor.device} for an input on {a.device}"


def _expect_same_bits(diagnosis: str, one: Tensor, two: Tensor) -> None:
    assert torch.equal(one, two), diagnosis


def _expect_close(names: str, given: Tensor, wanted: Tensor, tolerance: float) -> None:
    worst = float((given - wanted).abs().max())
    assert worst <= tolerance, f"{names} differ by up to {worst:.2e}"


NEURON_CHECKS: tuple[Callable[[Neuron], None], ...] = (
    neuron_shapes_and_dtypes,
    neuron_is_pure,
    neuron_samples_are_forward,
    neuron_rows_are_independent,
    neuron_survives_saturation,
    neuron_law_agrees,
    neuron_exact_agrees,
    neuron_units_are_independent,
    neuron_derivatives_agree,
)
ESTIMATOR_CHECKS: tuple[Callable[[Estimator, Neuron], None], ...] = (
    estimator_shapes_and_dtypes,
    estimator_is_pure,
    estimator_keeps_dtypes,
    estimator_state_stays_finite,
    estimator_regenerates,
    estimator_uses_the_key,
    estimator_rows_are_independent,
    estimator_survives_saturation,
    estimator_fits_layers,
    estimator_bias_is_as_claimed,
)
OBJECTIVE_CHECKS: tuple[Callable[[Objective], None], ...] = (
    objective_shapes_and_values,
    objective_expectation_agrees,
)
