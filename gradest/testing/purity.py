"""Checks of purity: does a result follow from the arguments alone, bit for bit, and is no argument written to?

So it may depend on the key, but neither on torch's global generator, nor on the other rows of a batch, nor on an earlier call.

The word PYTEST_DONT_REWRITE keeps pytest from adding its own explanation to a failing assertion.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from itertools import chain

import torch
from torch import Tensor

from gradest.analysis.bias import quadratic_loss
from gradest.contract.estimator import Estimator
from gradest.contract.modules import module_state
from gradest.contract.neuron import Neuron
from gradest.contract.score_function import ScoreFunction
from gradest.random import Key
from gradest.testing.assertions import ExpectUnchanged, expect_close, expect_like, expect_own_memory, expect_same_bits
from gradest.testing.inputs import (
    OF_DRAWS,
    all_pre_activations,
    make_feedback,
    number_per_row,
    random_normal,
    random_pre_activations,
    saturated_pre_activations,
    state_after_steps,
    tensor_methods,
)

__all__ = [
    "estimator_is_pure",
    "estimator_regenerates",
    "estimator_rows_are_independent",
    "estimator_uses_the_key",
    "neuron_is_pure",
    "neuron_kernels_agree",
    "neuron_rows_are_independent",
    "neuron_samples_are_forward",
]


def neuron_is_pure(neuron: Neuron) -> None:
    """Check that no method writes to an argument or uses torch's global generator, and the same key gives the same bits.

    A write counts even if it leaves the values as they were: torch counts the writes to a tensor.
    """
    a = random_pre_activations(neuron, (5,))
    with ExpectUnchanged("noise, then forward", a):
        first = neuron.forward(a, neuron.noise(Key(3), a, 2))
    torch.manual_seed(99)
    again = neuron.forward(a, neuron.noise(Key(3), a, 2))
    expect_same_bits("the same key gave different outputs", first, again)
    noise, grad, weights = neuron.noise(Key(3), a, 2), torch.ones_like(first), torch.ones(2, 5)
    h = first.clone()
    for name, method in (*tensor_methods(neuron, Key(3), a, noise, h, grad, weights), ("law", lambda: neuron.law(a))):
        with ExpectUnchanged(name, a, noise, grad, h, weights):
            method()


def neuron_samples_are_forward(neuron: Neuron) -> None:
    """Check that `sample(key, a, draws)` has the bits of `forward(a, noise(key, a, draws))`, whichever kernel computes it.

    It is tried on the CPU, and on those of the neuron's `kernel_devices` that this machine has: with all dtypes, batches and
    numbers of draws, and with keys of other streams, row numbers and seeds. Where `forward` is differentiable in `a`, `sample`
    must be, with the same derivative.
    """
    for device in _devices(neuron):
        for a in chain(
            all_pre_activations(neuron), saturated_pre_activations(neuron), [random_pre_activations(neuron, (700,)) * 3]
        ):
            for draws in (0, 1, 3):
                _expect_forward(neuron, Key(17), a.to(device), draws)
        for batch in ((), (5,), (2, 3)):
            a = random_pre_activations(neuron, batch).to(device)
            for key in _keys(batch):
                _expect_forward(neuron, key, a, 2)
        _expect_derivative_of_forward(neuron, random_pre_activations(neuron, (5,)).to(device))


def _devices(neuron: Neuron) -> Iterator[torch.device]:
    """Yield the CPU and the devices for which the neuron states a kernel. Warn of those that this machine does not have."""
    yield torch.device("cpu")
    for kind in neuron.kernel_devices:
        try:
            yield torch.ones(1, device=kind).device
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            warnings.warn(f"{neuron.label()}.sample was not compared with forward on {kind}: {reason}", stacklevel=2)


def _keys(batch: tuple[int, ...]) -> Iterator[Key]:
    """Yield keys of every kind for a batch: another stream, row numbers and a seed for each row, above 2^31 and 2^32 too."""
    rows = ((torch.arange(math.prod(batch)) * 7919 + 2**31 - 5) % 2**32).reshape(batch)
    yield Key(2**52 + 9, stream=5)
    yield Key(17, rows)
    yield Key(rows * 977 + 3, stream=1)
    yield Key(rows.new_tensor(4), rows).fold_in(6)


def _expect_forward(neuron: Neuron, key: Key, a: Tensor, draws: int) -> None:
    wanted, drawn = neuron.forward(a, neuron.noise(key, a, draws)), neuron.sample(key, a, draws)
    expect_like("sample", drawn, wanted.shape, a)
    given = [
        *(["row numbers"] if key.rows is not None else []),
        *(["a seed for each row"] if isinstance(key.seed, Tensor) else []),
        *([f"stream {key.stream}"] if key.stream else []),
    ]
    where = f"{a.dtype} on {a.device.type}, batch {list(a.shape[: a.ndim - neuron.event_ndim])}, {draws} draws"
    with_key = f", for a key with {' and '.join(given)}" if given else ""
    expect_same_bits(f"sample differs from forward at the same noise ({where}{with_key})", drawn, wanted)


def _expect_derivative_of_forward(neuron: Neuron, a: Tensor) -> None:
    moving = a.clone().requires_grad_()
    key = Key(23)
    wanted, drawn = neuron.forward(moving, neuron.noise(key, a, 2)), neuron.sample(key, moving, 2)
    if not wanted.requires_grad:
        return
    assert drawn.requires_grad, (
        "sample is not differentiable in a, though forward is: return super().sample(key, a, draws) where a requires a gradient"
    )
    weights = random_normal(tuple(wanted.shape), wanted.dtype).to(a.device)
    one, two = (torch.autograd.grad((h * weights).sum(), moving, materialize_grads=True)[0] for h in (wanted, drawn))
    expect_close("the derivatives of sample and of forward", two, one, 1e-4 * (1 + float(one.abs().max())))


def neuron_kernels_agree(neuron: Neuron) -> None:
    """Check that methods which a kernel may implement agree with what they are a shortcut for.

    `antithetic` must have the bits of its definition. The derivatives and scores, `pullback`, `weighted_score` and
    `leave_one_out_score`, may round in another way. It is tried on the CPU and on the neuron's `kernel_devices`.
    """
    for device in _devices(neuron):
        for dtype in (torch.float32, torch.float64):
            a = (3 * random_pre_activations(neuron, (40,), dtype)).to(device)
            key = Key(29, torch.arange(40) * 3 + 1, stream=2)
            h = neuron.sample(key, a, 4)
            grad, weights = (random_normal(tuple(x.shape), dtype).to(device) for x in (h, number_per_row(neuron, h)))
            for name, arguments in (
                ("antithetic", (key, a, 2)),
                ("pullback", (key, a, h, grad)),
                ("weighted_score", (h, a, weights)),
                ("leave_one_out_score", (h, a, weights)),
            ):
                owners = [base for base in type(neuron).__mro__ if name in vars(base)]
                if len(owners) < 2:
                    continue
                found, wanted = (vars(owner)[name](neuron, *arguments) for owner in (owners[0], owners[-1]))
                expect_like(name, found, wanted.shape, wanted)
                text = f"{name} and what it is a shortcut for, {dtype} on {device.type},"
                expect_close(text, found, wanted, 0 if name == "antithetic" else 1e-5 * (1 + float(wanted.abs().max())))


def neuron_rows_are_independent(neuron: Neuron) -> None:
    """Check that a row gives the same bits alone, among 1,000 others, and after a permutation of the batch.

    This holds for every method but `law`: also for `score`, `log_prob` and the others that capabilities add.
    """

    def run(a: Tensor, rows: Tensor) -> dict[str, Tensor]:
        key = Key(5, rows)
        noise = neuron.noise(key, a, 3)
        h = neuron.forward(a, noise)
        grad, weights = h * 0.5 + 1, number_per_row(neuron, h)
        found = {name: method() for name, method in tensor_methods(neuron, key, a, noise, h, grad, weights)}
        return {name: x.movedim(1, 0) if name in OF_DRAWS else x for name, x in found.items()}

    _expect_independent_rows(neuron, run)


def estimator_is_pure(estimator: Estimator, neuron: Neuron) -> None:
    """Check that no argument is written to, torch's global generator is not used, and equal arguments give equal bits.

    A write counts even if it leaves the values as they were. The points must not share memory with `a`, nor the next state with
    `a`, the points or the feedback: the caller may write to its own tensors afterwards. An option that is a module is an argument
    too, so that what is learned of it must be in the state.
    """
    a, f = random_pre_activations(neuron, (5,)), quadratic_loss(neuron)
    modules = {**neuron.modules(), **estimator.modules()}
    own = [tensor for module in modules.values() for tensor in (*module.parameters(), *module.buffers())]
    with ExpectUnchanged("init, forward or backward, in a module that is an option", *own):
        state = state_after_steps(estimator, neuron)
    for name, module in estimator.modules().items():
        assert module_state(name, module, a.device, trained=True).keys() <= state.keys(), (
            f"the parameters of {name} are never trained: keep them in the state, by gradest.contract.modules.module_state, or "
            "take only modules whose parameters do not require a gradient"
        )
    results = []
    for _ in range(2):
        with ExpectUnchanged("forward", a, *state.values(), state=state):
            draw = estimator.forward(neuron, a, Key(3), state)
        expect_own_memory("points", draw.points, a)
        feedback = make_feedback(estimator, draw, f)
        told = [x for x in (feedback.loss, feedback.grad, draw.points, draw.weights) if x is not None]
        with ExpectUnchanged("backward", a, *state.values(), *told, *draw.saved.values(), state=state):
            gradient, after = estimator.backward(draw, feedback, state)
        with ExpectUnchanged("value", a, *told, *draw.saved.values()):
            value = estimator.value(draw, feedback.get_loss())
        if isinstance(estimator, ScoreFunction):
            with ExpectUnchanged("features, credit or combine", a, *told, *state.values(), state=state):
                estimator.credit(feedback.get_loss(), state, estimator.features(neuron, draw.points, a))
                estimator.combine(feedback.get_loss())
        for name, tensor in after.items():
            for argument in (a, *told, *draw.saved.values()):
                expect_own_memory(f"the next state {name}", tensor, argument)
        results.append((draw.points, gradient, value, *after.values()))
        torch.manual_seed(99)
    for one, two in zip(*results, strict=True):
        expect_same_bits(
            "the same arguments gave different results: noise must come from the key, and memory from the state",
            one,
            two,
        )


def estimator_regenerates(estimator: Estimator, neuron: Neuron) -> None:
    """Check that `backward` returns the same bits for a draw that `forward` made again from (a, key, state).

    A stateless server does that: it keeps no draw between the two requests.
    """
    a, f = random_pre_activations(neuron, (5,)), quadratic_loss(neuron)
    state = estimator.init(neuron, a)
    draw = estimator.forward(neuron, a, Key(3), state)
    feedback = make_feedback(estimator, draw, f)
    again = estimator.forward(neuron, a.clone(), Key(3), dict(state))
    one, two = estimator.backward(draw, feedback, state)[0], estimator.backward(again, feedback, state)[0]
    expect_same_bits("the gradient depends on more than (a, key, state) and the feedback", one, two)


def estimator_uses_the_key(estimator: Estimator, neuron: Neuron) -> None:
    """Check that another seed gives other gradients, unless 64 equal rows all get the same gradient.

    If they all get the same one, the estimator is deterministic at these pre-activations, and the seed need not matter.
    """
    row = random_pre_activations(neuron, ())
    a, f = row.expand(64, *row.shape), quadratic_loss(neuron)
    state = estimator.init(neuron, a)

    def gradient(seed: int) -> Tensor:
        draw = estimator.forward(neuron, a, Key(seed), state)
        return estimator.backward(draw, make_feedback(estimator, draw, f), state)[0]

    first = gradient(3)
    if not torch.equal(first, first[:1].expand_as(first)):
        assert not torch.equal(first, gradient(4)), "another seed gave the same gradients: noise must come from the key"


def estimator_rows_are_independent(estimator: Estimator, neuron: Neuron) -> None:
    """Check that a row gets the same points, gradient and value, bit for bit, alone, among 1,000 others, and permuted."""
    state = state_after_steps(estimator, neuron)

    def run(a: Tensor, rows: Tensor) -> dict[str, Tensor]:
        draw = estimator.forward(neuron, a, Key(5, rows), state)
        feedback = make_feedback(estimator, draw, quadratic_loss(neuron))
        gradient, _ = estimator.backward(draw, feedback, state)
        value = estimator.value(draw, feedback.get_loss())
        return {"points": draw.points.movedim(1, 0), "gradient": gradient, "value": value}

    _expect_independent_rows(neuron, run)


def _expect_independent_rows(neuron: Neuron, run: Callable[[Tensor, Tensor], dict[str, Tensor]]) -> None:
    """Compare run(a, rows), results `[len(rows), ...]` by name, on 1,001 rows with run on slices and on a permutation of them."""
    a, rows = random_pre_activations(neuron, (1001,)), torch.arange(1001)
    whole = run(a, rows)
    # torch computes the tail of a tensor with other instructions, so slices of several lengths are tried.
    for start in range(0, 1001, 40):
        part = slice(start, start + 1 + start // 40 % 7)
        for name, alone in run(a[part].clone(), rows[part]).items():
            expect_same_bits(f"{name}: a row alone differs from the same row in a batch", alone, whole[name][part])
    order = torch.randperm(1001, generator=torch.Generator().manual_seed(4))
    for name, permuted in run(a[order], rows[order]).items():
        expect_same_bits(
            f"{name}: a permutation of the batch changed the results of its rows", permuted, whole[name][order]
        )
