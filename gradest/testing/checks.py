"""The conformance kit: what every neuron, estimator and objective must hold to, for the built-in ones and for anybody's.

    import pytest
    from gradest.testing import checks as testing

    @pytest.mark.parametrize("check", testing.ESTIMATOR_CHECKS, ids=lambda check: check.__name__)
    def test_my_estimator(check):
        check(MyEstimator(), gradest.neuron("bernoulli"))

A check is a function that raises AssertionError with a diagnosis. Statistical checks are seeded, so they either pass always or
fail always; for a right implementation and a new seed, each compared number fails with probability below 6e-7 (five standard
errors). `measure_bias` draws until a wrong sign or a factor of two would show as at least ten standard errors.

`gradest.conformance` runs all of them on a whole plugin, for `gradest check` and `pytest --gradest-plugin`.
(To pytest: PYTEST_DONT_REWRITE, a diagnosis is all that a failing assertion should say.)
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
    linear,
    measure_bias,
    quadratic,
)
from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Binary, Discrete, Neuron, Scored
from gradest.contract.objective import Objective
from gradest.discovery.registry import Registry
from gradest.random import Key

__all__ = [
    "ESTIMATOR_CHECKS",
    "NEURON_CHECKS",
    "OBJECTIVE_CHECKS",
    "BiasRecord",
    "measure_bias",
    "neurons",
    "objectives",
    "pairs",
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
BATCHES: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (0,))


def neurons(registry: Registry) -> list[Neuron]:
    """Every registered neuron, in each of its `examples`."""
    return [cls.build(**options) for cls in registry.neurons.values() for options in cls.examples]


def pairs(registry: Registry) -> list[tuple[Estimator, Neuron]]:
    """Every registered estimator with every neuron that it accepts, in each of their `examples`."""
    built = [cls.build(**options) for cls in registry.estimators.values() for options in cls.examples]
    return [(estimator, neuron) for estimator in built for neuron in neurons(registry) if estimator.accepts(neuron)]


def objectives(registry: Registry) -> list[Objective]:
    """Every registered objective, in each of its `examples`."""
    return [cls.build(**options) for cls in registry.objectives.values() for options in cls.examples]


# --- neurons -----------------------------------------------------------------------------------------------------------------


def neuron_shapes_and_dtypes(neuron: Neuron) -> None:
    """Every method keeps the dtype of `a` and gives the shapes of the contract, zero-sized batches included."""
    for a in _inputs(neuron):
        noise = neuron.noise(Key(1), a, 4)
        _expect_shape("noise", noise, (4, *a.shape))
        h = neuron.forward(a, noise)
        _expect_like("forward", h, (4, *a.shape), a)
        _expect_like("backward", neuron.backward(a, noise, torch.ones_like(h)), (4, *a.shape), a)
        _expect_like("mean", neuron.mean(a), a.shape, a)
        _expect_like("threshold", neuron.threshold(a, 0.5), a.shape, a)
        active = neuron.active_probability(a)
        _expect_like("active_probability", active, a.shape, a)
        assert bool(((active >= 0) & (active <= 1)).all()), "active_probability leaves [0, 1]"
        if isinstance(neuron, Scored):
            _expect_like("score", neuron.score(h, a), (4, *a.shape), a)
        if isinstance(neuron, Discrete):
            _expect_like("log_prob", neuron.log_prob(h, a), (4, *a.shape[: a.ndim - neuron.event_ndim + 1]), a)


def neuron_is_pure(neuron: Neuron) -> None:
    """No method changes an argument or touches torch's global generator; the same key gives the same bits."""
    a = _pre_activations(neuron, (5,))
    with _Untouched(a):
        first = neuron.forward(a, neuron.noise(Key(3), a, 2))
    torch.manual_seed(99)
    again = neuron.forward(a, neuron.noise(Key(3), a, 2))
    _expect_bits("the same key gave other outputs", first, again)
    noise, grad = neuron.noise(Key(3), a, 2), torch.ones_like(first)
    with _Untouched(a, noise, grad, first):
        neuron.forward(a, noise)
        neuron.backward(a, noise, grad)
        if isinstance(neuron, Scored):
            neuron.score(first, a)


def neuron_samples_are_forward(neuron: Neuron) -> None:
    """`sample` has the bits of `forward` at the noise of the key, whatever kernel draws it."""
    for a in chain(_inputs(neuron), _saturated(neuron), [_pre_activations(neuron, (700,)) * 3]):
        for draws in (0, 1, 3):
            wanted = neuron.forward(a, neuron.noise(Key(17), a, draws))
            drawn = neuron.sample(Key(17), a, draws)
            _expect_like("sample", drawn, wanted.shape, a)
            _expect_bits("sample differs from forward at the same noise", drawn, wanted)


def neuron_rows_are_independent(neuron: Neuron) -> None:
    """A row's bits are the same alone, in the middle of 1,000 others, and after a permutation of the batch."""

    def run(a: Tensor, rows: Tensor) -> Tensor:
        noise = neuron.noise(Key(5, rows), a, 3)
        h = neuron.forward(a, noise)
        return torch.cat([h, neuron.backward(a, noise, torch.ones_like(h)), neuron.mean(a)[None]])

    _check_rows(neuron, run)


def neuron_survives_saturation(neuron: Neuron) -> None:
    """At pre-activations of ±40 and ±10,000 nothing is NaN or infinite, in float32 and bfloat16."""
    for a in _saturated(neuron):
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
    """`law`, `mean`, `active_probability` and 40,000 samples tell of the same distribution."""
    draws = 40_000
    a = _pre_activations(neuron, (4,), torch.float64) * 1.5
    values, weights = neuron.law(a)
    if isinstance(neuron, Discrete):
        _expect_close("log_prob, against law,", neuron.log_prob(values, a).exp(), weights, 1e-9)
    weights = _per_event(neuron, weights)
    _expect_close("the weights of law sum to", weights.sum(0), torch.ones_like(weights[0]), 1e-7)
    _expect_close("mean, against law,", neuron.mean(a), (weights * values).sum(0), 1e-6)
    positive = (weights * (values > 0)).sum(0)
    _expect_close("active_probability, against law,", neuron.active_probability(a), positive.expand_as(a), 1e-6)
    h = neuron.forward(a, neuron.noise(Key(11), a, draws))
    active = neuron.active_probability(a)
    for name, sampled, wanted, variance in (
        ("the mean of samples", h, neuron.mean(a), h.var(0)),
        ("the share of positive samples", (h > 0).double(), active, active * (1 - active)),
    ):
        error = (variance / draws).sqrt() + 1e-9
        worst = float(((sampled.mean(0) - wanted) / error).abs().max())
        assert worst < SIGNIFICANCE_SE, f"{name} is {worst:.1f} standard errors off what the neuron says it is"


def neuron_derivatives_agree(neuron: Neuron) -> None:
    """`backward` is the finite difference of `forward` where forward does not jump; `score` that of `log_prob`, with mean 0."""
    a, size = _pre_activations(neuron, (200,), torch.float64) * 2, 1e-6
    noise = neuron.noise(Key(13), a, 1)
    step, grad = a.roll(1, 0).cos() + 1.5, a.roll(2, 0).cos() + 1.5
    upper, lower = neuron.forward(a + size * step, noise), neuron.forward(a - size * step, noise)
    slope = _over_classes(neuron, grad * (upper - lower) / (2 * size))
    given = _over_classes(neuron, neuron.backward(a, noise, grad.expand_as(upper)) * step)
    smooth = (slope - given).abs() < 1e-4 * (1 + slope.abs())
    assert float(smooth.double().mean()) > 0.99, "backward is not the derivative of forward at fixed noise"
    if isinstance(neuron, Scored):
        h = neuron.forward(a, noise)
        values, weights = neuron.law(a)
        centre = (_per_event(neuron, weights) * neuron.score(values, a)).sum(0)
        _expect_close("E[score]", centre, torch.zeros_like(centre), 1e-9)
        if isinstance(neuron, Discrete):
            moved = a.clone().requires_grad_()
            (wanted,) = torch.autograd.grad(neuron.log_prob(h, moved).sum(), moved)
            _expect_close("score, against the derivative of log_prob,", neuron.score(h, a)[0], wanted, 1e-9)
    if isinstance(neuron, Binary):
        p = neuron.probability(a)
        _expect_close("mean, against probability,", neuron.mean(a), neuron.low + (neuron.high - neuron.low) * p, 1e-9)


# --- estimators --------------------------------------------------------------------------------------------------------------


def estimator_shapes_and_dtypes(estimator: Estimator, neuron: Neuron) -> None:
    """K is as stated; points, weights, value, gradient and state have the contract's shapes and the dtype of `a`."""
    for a in _inputs(neuron):
        wide = a if a.dtype != torch.bfloat16 else a.float()  # what the library gives an estimator
        batch, event = wide.shape[: wide.ndim - neuron.event_ndim], wide.shape[wide.ndim - neuron.event_ndim :]
        state = estimator.init(neuron, wide)
        draw = estimator.forward(neuron, wide, Key(1), state)
        stated = estimator.evaluations(neuron, tuple(event))
        assert draw.points.shape[0] == stated, (
            f"evaluations says K = {stated}, forward asks for {draw.points.shape[0]} points"
        )
        _expect_like("points", draw.points, (stated, *wide.shape), wide)
        assert draw.weights.shape in ((stated,), (stated, *batch)), f"weights have shape {list(draw.weights.shape)}"
        loss = torch.ones(draw.points.shape[: 1 + len(batch)], dtype=wide.dtype)
        _expect_like("value", estimator.value(draw, loss), batch, wide)
        if isinstance(neuron, Discrete) and neuron.finite and not estimator.off_support:
            same = draw.points == neuron.law(wide)[0][:, None]
            unit = same if neuron.event_ndim == 1 else same.all(-1)
            assert bool(unit.any(0).all()), "asks for the loss at points that are no outputs: state off_support = True"
        gradient, after = estimator.backward(draw, _feedback(estimator, draw, linear(neuron)), state)
        _expect_like("gradient", gradient, wide.shape, wide)
        assert after.keys() == state.keys(), f"state has {sorted(state)} before a step and {sorted(after)} after it"
        for name, tensor in after.items():
            assert name.isidentifier(), f"state name {name!r} must be an identifier, so that it can name a buffer"
            _expect_like(f"state {name}", tensor, state[name].shape, state[name])


def estimator_is_pure(estimator: Estimator, neuron: Neuron) -> None:
    """No argument is changed, torch's global generator is not touched, and the same arguments give the same bits."""
    a, f = _pre_activations(neuron, (5,)), quadratic(neuron)
    state = estimator.init(neuron, a)
    results = []
    for _ in range(2):
        with _Untouched(a, *state.values()):
            draw = estimator.forward(neuron, a, Key(3), state)
            feedback = _feedback(estimator, draw, f)
            given = [x for x in (feedback.loss, feedback.grad, draw.points, draw.weights) if x is not None]
            with _Untouched(*given):
                gradient, after = estimator.backward(draw, feedback, state)
        results.append((draw.points, gradient, *after.values()))
        torch.manual_seed(99)
    for one, two in zip(*results, strict=True):
        _expect_bits(
            "the same arguments gave other results: noise must come from the key, memory from the state", one, two
        )


def estimator_regenerates(estimator: Estimator, neuron: Neuron) -> None:
    """A draw made anew from (a, key, state), as a stateless server makes it, gives backward the same gradient."""
    a, f = _pre_activations(neuron, (5,)), quadratic(neuron)
    state = estimator.init(neuron, a)
    draw = estimator.forward(neuron, a, Key(3), state)
    feedback = _feedback(estimator, draw, f)
    anew = estimator.forward(neuron, a.clone(), Key(3), dict(state))
    one, two = estimator.backward(draw, feedback, state)[0], estimator.backward(anew, feedback, state)[0]
    _expect_bits("backward needs more than (a, key, state) and the feedback", one, two)


def estimator_uses_the_key(estimator: Estimator, neuron: Neuron) -> None:
    """Where equal rows get different gradients, and so chance plays a part, another seed gives other gradients."""
    a, f = _pre_activations(neuron, ()).expand(64, *_pre_activations(neuron, ()).shape), quadratic(neuron)
    state = estimator.init(neuron, a)

    def gradient(seed: int) -> Tensor:
        draw = estimator.forward(neuron, a, Key(seed), state)
        return estimator.backward(draw, _feedback(estimator, draw, f), state)[0]

    first = gradient(3)
    if not torch.equal(first, first[:1].expand_as(first)):
        assert not torch.equal(first, gradient(4)), "another seed gave the same gradients: noise must come from the key"


def estimator_rows_are_independent(estimator: Estimator, neuron: Neuron) -> None:
    """A row's gradient has the same bits alone, in the middle of 1,000 others, and after a permutation of the batch."""
    state = _moved_state(estimator, neuron)

    def run(a: Tensor, rows: Tensor) -> Tensor:
        draw = estimator.forward(neuron, a, Key(5, rows), state)
        gradient, _ = estimator.backward(draw, _feedback(estimator, draw, quadratic(neuron)), state)
        return torch.cat([draw.points, gradient[None]])

    _check_rows(neuron, run)


def estimator_survives_saturation(estimator: Estimator, neuron: Neuron) -> None:
    """At pre-activations of ±40 and ±10,000 value and gradient are finite, in float32 and bfloat16."""
    for a in _saturated(neuron):
        wide = a.float()
        state = estimator.init(neuron, wide)
        for seed in range(3):
            draw = estimator.forward(neuron, wide, Key(seed), state)
            feedback = _feedback(estimator, draw, quadratic(neuron))
            gradient, state = estimator.backward(draw, feedback, state)
            assert bool(torch.isfinite(gradient.to(a.dtype)).all()), (
                f"the gradient is not finite at saturation ({a.dtype})"
            )
            value = estimator.value(draw, feedback.get_loss())
            assert bool(torch.isfinite(value).all()), f"the value is not finite at saturation ({a.dtype})"


def estimator_bias_is_as_claimed(estimator: Estimator, neuron: Neuron) -> None:
    """Unbiased where it claims to be, on a linear, a quadratic, a cubic and a two-layer network loss; biased where it must."""
    records = list(measure_bias(estimator, neuron))
    wrong = [record for record in records if record.promised and not record.agrees]
    assert not wrong, f"claims bias {estimator.bias(neuron)}, but: {'; '.join(map(str, wrong))}{_guess(wrong)}"
    if not estimator.bias(neuron).unbiased:
        # a small bias needs more draws to be seen
        closer = (record for draws in (1 << 16, MAX_DRAWS) for record in measure_bias(estimator, neuron, draws=draws))
        seen = any(not record.agrees for record in chain(records, closer))
        assert seen, f"claims bias {estimator.bias(neuron)}, but no loss shows any; Bias.NONE may be the right claim"


def _guess(wrong: Sequence[BiasRecord]) -> str:
    """What the direction of the estimates says of the fault."""
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
    """Losses are `[K, *batch]` in the dtype of the points, each from its own point alone; the points are not changed."""
    for batch in ((), (3,), (2, 3), (0,)):
        for dtype in DTYPES:
            points = _points(objective, (4, *batch), dtype)
            with _Untouched(points):
                loss = objective(points)
            _expect_like("loss", loss, (4, *batch), points)
    points = _points(objective, (4, 1000))
    whole = objective(points)
    for row in (0, 499, 999):
        _expect_bits(
            "a row's loss depends on the batch", objective(points[:, row : row + 1].clone())[:, 0], whole[:, row]
        )


# --- what the checks share -----------------------------------------------------------------------------------------------------


def _per_event(neuron: Neuron, weights: Tensor) -> Tensor:
    """The weights of a law, broadcast against its values."""
    return weights if neuron.event_ndim == 1 else weights[..., None]


def _over_classes(neuron: Neuron, x: Tensor) -> Tensor:
    """What belongs to a unit, added up: units are independent of each other, the classes of a unit are not."""
    return x if neuron.event_ndim == 1 else x.sum(-1)


def _pre_activations(neuron: Neuron, batch: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    return _normal((*batch, *_event(neuron.event_ndim)), dtype)


def _points(objective: Objective, leading: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Points for an objective; one that reads events of 2 dims says so in an attribute or option `event_ndim`."""
    return _normal((*leading, *_event(getattr(objective, "event_ndim", 1))), dtype)


def _event(event_ndim: int) -> tuple[int, ...]:
    return (UNITS, CLASSES)[:event_ndim]


def _normal(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)


def _inputs(neuron: Neuron) -> Iterator[Tensor]:
    for dtype in DTYPES:
        for batch in BATCHES:
            yield _pre_activations(neuron, batch, dtype)
        yield _pre_activations(neuron, (3, 2), dtype).transpose(0, 1)  # non-contiguous


def _saturated(neuron: Neuron) -> Iterator[Tensor]:
    for dtype in (torch.float32, torch.bfloat16):
        for size in (40.0, 1e4):
            sign = torch.sign(_pre_activations(neuron, (6,)))
            yield (size * sign).to(dtype)


def _feedback(estimator: Estimator, draw: Draw, f: Callable[[Tensor], Tensor]) -> Feedback:
    points = draw.points.detach().clone().requires_grad_()
    loss = f(points)
    grad = torch.autograd.grad(loss.sum(), points)[0] if "grad" in estimator.needs else None
    return Feedback(loss.detach(), grad)


def _moved_state(estimator: Estimator, neuron: Neuron) -> State:
    """The state after three steps, so that a baseline is not zero."""
    a = _pre_activations(neuron, (8,))
    state = estimator.init(neuron, a)
    for seed in range(3):
        draw = estimator.forward(neuron, a, Key(seed), state)
        _, state = estimator.backward(draw, _feedback(estimator, draw, quadratic(neuron)), state)
    return state


def _check_rows(neuron: Neuron, run: Callable[[Tensor, Tensor], Tensor]) -> None:
    a, rows = _pre_activations(neuron, (1001,)), torch.arange(1001)
    whole = run(a, rows)
    for start in range(
        0, 1001, 40
    ):  # torch computes the tail of a tensor with other instructions: try tails of many lengths
        part = slice(start, start + 1 + start // 40 % 7)
        alone = run(a[part].clone(), rows[part])
        _expect_bits("a row alone differs from the same row in a batch", alone, whole[:, part])
    order = torch.randperm(1001, generator=torch.Generator().manual_seed(4))
    _expect_bits("a permutation of the batch changed its rows", run(a[order], rows[order]), whole[:, order])


class _Untouched:
    """Asserts at exit that these tensors and torch's global generator are as they were."""

    def __init__(self, *tensors: Tensor) -> None:
        self._before = [(tensor, tensor.clone()) for tensor in tensors]

    def __enter__(self) -> None:
        self._generator = torch.get_rng_state()

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            return
        for tensor, before in self._before:
            _expect_bits("an argument was changed in place", tensor, before)
        _expect_bits("noise was taken from torch's global generator", torch.get_rng_state(), self._generator)


def _expect_shape(name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    assert tensor.shape == torch.Size(shape), f"{name} has shape {list(tensor.shape)}, not {list(shape)}"


def _expect_like(name: str, tensor: Tensor, shape: Sequence[int], a: Tensor) -> None:
    _expect_shape(name, tensor, shape)
    assert tensor.dtype == a.dtype, f"{name} is {tensor.dtype} for an input of {a.dtype}"
    assert tensor.device == a.device, f"{name} is on {tensor.device} for an input on {a.device}"


def _expect_bits(complaint: str, one: Tensor, two: Tensor) -> None:
    assert torch.equal(one, two), complaint


def _expect_close(name: str, given: Tensor, wanted: Tensor, tolerance: float) -> None:
    worst = float((given - wanted).abs().max())
    assert worst <= tolerance, f"{name} is off by {worst:.2e}"


NEURON_CHECKS: tuple[Callable[[Neuron], None], ...] = (
    neuron_shapes_and_dtypes,
    neuron_is_pure,
    neuron_samples_are_forward,
    neuron_rows_are_independent,
    neuron_survives_saturation,
    neuron_law_agrees,
    neuron_derivatives_agree,
)
ESTIMATOR_CHECKS: tuple[Callable[[Estimator, Neuron], None], ...] = (
    estimator_shapes_and_dtypes,
    estimator_is_pure,
    estimator_regenerates,
    estimator_uses_the_key,
    estimator_rows_are_independent,
    estimator_survives_saturation,
    estimator_bias_is_as_claimed,
)
OBJECTIVE_CHECKS: tuple[Callable[[Objective], None], ...] = (objective_shapes_and_values,)
