"""Checks of robustness: do results and states stay finite at extreme pre-activations and losses?

The word PYTEST_DONT_REWRITE keeps pytest from adding its own explanation to a failing assertion.
"""

from __future__ import annotations

import torch

from gradest.analysis.bias import quadratic_loss
from gradest.contract.estimator import Estimator, Feedback
from gradest.contract.neuron import Neuron, Scored
from gradest.random import Key
from gradest.testing.assertions import expect_same_bits
from gradest.testing.inputs import make_feedback, random_pre_activations, saturated_pre_activations, state_after_steps

__all__ = ["estimator_state_stays_finite", "estimator_survives_saturation", "neuron_survives_saturation"]


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
