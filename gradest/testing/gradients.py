"""Checks of an estimator's gradient: is it as biased as claimed, and do the layers of gradest.nn find the parts that they use?

The word PYTEST_DONT_REWRITE keeps pytest from adding its own explanation to a failing assertion.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from gradest.analysis.bias import MAX_DRAWS, SIGNIFICANCE_SE, BiasRecord, measure_bias, pre_activations, quadratic_loss
from gradest.contract.estimator import Estimator, Feedback
from gradest.contract.neuron import Discrete, Neuron
from gradest.contract.score_function import ScoreFunction
from gradest.contract.target import Target
from gradest.estimation.estimate import DrawBlock, estimate
from gradest.estimation.exact import exact
from gradest.random import Key
from gradest.testing.assertions import expect_close, expect_shape
from gradest.testing.inputs import make_feedback, random_pre_activations, state_after_steps

__all__ = ["estimator_bias_is_as_claimed", "estimator_fits_layers"]


def estimator_bias_is_as_claimed(estimator: Estimator, neuron: Neuron) -> None:
    """Check the claim `estimator.bias(neuron)` against the measured bias, on the four losses of `measure_bias`.

    There must be no significant bias on a loss for which the claim promises none. An estimator that does not claim to be unbiased
    for every loss must show a significant bias on at least one. One that uses dL/dh, and does not restrict its claim to
    continuous losses, is also tried on a loss of h rounded to quarters, whose derivative is 0. The exact gradient is that of
    `estimator.target()`. If that is not E[L], the mean of `value` must be the target too, for an estimator without bias.
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
    if estimator.bias(neuron).unbiased and estimator.target() != Target():
        _expect_value_of_target(estimator, neuron)


def _expect_value_of_target(estimator: Estimator, neuron: Neuron) -> None:
    """Compare the mean of `value` with the exact target, on a quadratic loss. One that is no mean has no unbiased value."""
    target = estimator.target()
    if not target.is_mean:
        return
    a, f = pre_activations(neuron, "moderate"), quadratic_loss(neuron)
    wanted, _ = exact(f, a, neuron, target)
    _, values = DrawBlock(f, a, neuron, estimator, Key(31), estimator.init(neuron, a))(0, 1 << 12)
    allowed = SIGNIFICANCE_SE * (values.variance() / values.count).sqrt() + 1e-5 * (1 + wanted.abs())
    gap = (values.mean - wanted).abs()
    assert bool((gap <= allowed).all()), (
        f"estimates the gradient of {target}, but the mean of `value` differs from it by up to {float(gap.max()):.2g}, more than "
        "chance explains: override `value`, and `combine` of a ScoreFunction"
    )


def _expect_unbiased_on_jumps(estimator: Estimator, neuron: Neuron) -> None:
    """Compare the mean gradient on a loss of h rounded to quarters with the exact one.

    For a unit with continuous output, of which a quadrature does not see the jumps, the gradient in one direction is the
    difference of the mean losses of samples, and may be off by a fifth.
    """
    a, draws, size, target = pre_activations(neuron, "moderate"), 1 << 15, 0.25, estimator.target()
    if not (isinstance(neuron, Discrete) or target.is_mean):
        return  # a mean over samples does not estimate it
    inner = quadratic_loss(neuron)

    def f(h: Tensor) -> Tensor:
        return inner((4 * h).round() / 4)

    found = estimate(f, a, neuron, estimator, draws >> 2, 31)
    if isinstance(neuron, Discrete):
        gap, allowed = (
            (found.gradient - exact(f, a, neuron, target)[1]).abs(),
            SIGNIFICANCE_SE * found.standard_error + 1e-5,
        )
    else:
        direction = a.roll(1, 0).cos() + 0.5
        noise = neuron.noise(Key(31), a, draws)  # the same on both sides, so that the difference varies less
        losses = (f(neuron.forward(a + step * direction, noise)).double() for step in (size, -size))
        whole = draws // target.samples * target.samples
        upper, lower = (target.combine(loss[:whole].reshape(target.samples, -1, *loss.shape[1:])) for loss in losses)
        slopes = (upper - lower) / (2 * size)
        mean = (found.gradient * direction).flatten(1).sum(-1)
        error = (found.standard_error * direction.abs()).flatten(1).sum(-1) + slopes.std(0) / len(slopes) ** 0.5
        gap, allowed = (mean - slopes.mean(0)).abs(), SIGNIFICANCE_SE * error + 0.2 * slopes.mean(0).abs()
    assert bool((gap <= allowed).all()), (
        f"claims bias {estimator.bias(neuron)}, but is biased on a loss that jumps between its outputs, whose dL/dh is 0: "
        "Bias.NONE_IF_CONTINUOUS may be the right claim"
    )


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


def estimator_fits_layers(estimator: Estimator, neuron: Neuron) -> None:
    """Check what the layers of gradest.nn rely on, for an estimator that they use.

    dL/dh may come to a layer scaled and summed, so `backward` must be linear in it, or the estimator say that it is not `linear`.
    One that needs loss and dL/dh at a single point is told them one after the other, so its gradient must be the sum of a term in
    the loss and a term linear in dL/dh. For a ScoreFunction, `credit` must give the gradient of `backward` and its state, and
    `combine` the number of `value`.
    """
    a, f = random_pre_activations(neuron, (6,)), quadratic_loss(neuron)
    state = state_after_steps(estimator, neuron)
    draw = estimator.forward(neuron, a, Key(7), state)
    feedback = make_feedback(estimator, draw, f)
    gradient, after = estimator.backward(draw, feedback, state)
    loss, grad = feedback.get_loss(), feedback.grad
    if isinstance(estimator, ScoreFunction):
        assert isinstance(neuron, Discrete)
        weights, moved = estimator.credit(loss, state, estimator.features(neuron, draw.points, a))
        expect_shape("credit", weights, loss.shape)
        expect_close("backward and the credited scores", neuron.weighted_score(draw.points, a, weights), gradient, 1e-4)
        expect_close("value and combine", estimator.combine(loss), estimator.value(draw, loss), 1e-4)
        for name, tensor in after.items():
            expect_close(f"the states {name} of backward and credit", moved[name], tensor, 1e-4)
    elif estimator.needs == {"loss", "grad"} and len(draw.points) == 1:
        assert grad is not None
        of_loss, _ = estimator.backward(draw, Feedback(loss, torch.zeros_like(grad)), state)
        of_grad, _ = estimator.backward(draw, Feedback(torch.zeros_like(loss), 3 * grad), state)
        expect_close("the gradient and the sum of its parts in loss and dL/dh", of_loss + of_grad / 3, gradient, 1e-4)
    elif estimator.needs == {"grad"} and estimator.linear and len(draw.points) == 1:
        assert grad is not None
        of_more, _ = estimator.backward(draw, Feedback(loss, 3 * grad), state)
        expect_close(
            "a third of the gradient for three times dL/dh, unless linear = False,", of_more / 3, gradient, 1e-4
        )
