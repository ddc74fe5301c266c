"""Stochastic rounding against its two outcomes, exact to the digits in the tails, and at grid points, where E[L] has a kink."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import gradest
from gradest.errors import GradestWarning, InvalidInput, InvalidOptions

A = torch.tensor([[0.3, -1.7], [2.0, -0.25]], dtype=torch.float64)


def cubic(h: torch.Tensor) -> torch.Tensor:
    return (h[..., 0] - 0.4 * h[..., 1] + 0.2) ** 3


def by_hand(a: torch.Tensor, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """E[L] of `cubic` over the four outcomes of two units, and its derivative from the right."""
    down = step * np.floor(a.numpy() / step)
    p = (a.numpy() - down) / step
    value, slope = np.zeros(len(a)), np.zeros(a.shape)
    for i in (0, 1):
        for j in (0, 1):
            loss = cubic(torch.tensor(down + step * np.array([i, j]))).numpy()
            x, y = (p[:, 0] if i else 1 - p[:, 0]), (p[:, 1] if j else 1 - p[:, 1])
            value += x * y * loss
            slope[:, 0] += (2 * i - 1) / step * y * loss
            slope[:, 1] += (2 * j - 1) / step * x * loss
    return torch.tensor(value), torch.tensor(slope)


@pytest.mark.parametrize("step", [1.0, 0.5, 0.3])
def test_exact_and_enumeration_are_the_sum_over_outcomes(step: float) -> None:
    """At 2 and at -0.25 with a step of 0.5, a is on the grid or half-way; on it the derivative is that from the right."""
    neuron = gradest.neuron("stochastic_rounding", step=step)
    value, slope = by_hand(A, step)
    loss, gradient = gradest.exact(cubic, A, neuron)
    torch.testing.assert_close(loss, value)
    torch.testing.assert_close(gradient, slope)
    found = gradest.estimate(cubic, A, neuron, "enumeration", draws=2, seed=1)
    torch.testing.assert_close(found.gradient, slope)


def test_outputs_are_the_neighbours_with_mean_a() -> None:
    """40,000 draws; a mean is beyond 5 standard errors with probability 6e-7."""
    neuron, draws = gradest.neuron("stochastic_rounding", step=0.25), 40_000
    a = torch.tensor([[0.3, -0.3, 7.9, -12.01]])
    h = gradest.sample(neuron, a.expand(draws, 4), seed=2)[0]
    down = 0.25 * torch.floor(a / 0.25)
    assert bool(((h == down) | (h == down + 0.25)).all())
    p = (a - down) / 0.25
    error = 0.25 * (p * (1 - p) / draws).sqrt()
    assert bool(((h.mean(0) - a).abs() < 5 * error).all())
    assert torch.equal(neuron.mean(a), a)


def test_probability_and_score_keep_their_digits_near_grid_points() -> None:
    neuron = gradest.neuron("stochastic_rounding")
    for a in (1e-12, -1e-12):
        x = torch.tensor([a], dtype=torch.float64)
        near, far = torch.zeros(1, dtype=torch.float64), torch.full((1,), np.sign(a), dtype=torch.float64)
        np.testing.assert_allclose(neuron.log_prob(far, x), np.log(1e-12), rtol=1e-12)
        np.testing.assert_allclose(neuron.log_prob(near, x), -1e-12, rtol=1e-3)
        np.testing.assert_allclose(neuron.score(far, x), 1 / a, rtol=1e-12)
        np.testing.assert_allclose(neuron.score(near, x), -np.sign(a), rtol=1e-9)
    tiny = torch.tensor([-1e-30])  # float32 rounds its distance from -1 to 1
    assert neuron.forward(tiny, torch.tensor([1 - 2.0**-24])).item() == 0
    values, weights = neuron.law(tiny)
    assert values.flatten().tolist() == [-1, 0]
    assert weights.flatten().tolist() == pytest.approx([1e-30, 1])


def test_a_value_that_is_no_neighbour_has_no_probability() -> None:
    neuron, a = gradest.neuron("stochastic_rounding"), torch.tensor([0.4])
    for h in (-1.0, 0.5, 2.0):
        assert neuron.log_prob(torch.tensor([h]), a).item() == -np.inf
        assert neuron.score(torch.tensor([h]), a).item() == 0


@pytest.mark.filterwarnings("ignore:.*exactly on the grid:gradest.errors.GradestWarning")
@pytest.mark.parametrize("a", [3.0, 1e4, 3e7, 1e30, -3e7])
def test_a_number_on_the_grid_stays(a: float) -> None:
    neuron, x = gradest.neuron("stochastic_rounding"), torch.full((1, 1), a)
    assert gradest.sample(neuron, x.expand(64, 1), seed=1).eq(x).all()
    assert neuron.log_prob(x, x).item() == 0
    assert neuron.score(x, x).item() == (-1 if abs(a) < 2**24 else 0)  # above, both neighbours are the same number


@pytest.mark.parametrize("estimator", ["reinforce", "rloo", "reinforce_centered", "nvil"])
def test_an_estimator_that_uses_the_score_warns_on_the_grid(estimator: str) -> None:
    """It gave 0, or -E[L]/step, for a derivative between 0.4 and 3.4, without a word; a claim of no bias stands beside it."""

    def loss(h: torch.Tensor) -> torch.Tensor:
        return (h.sum(-1) - 0.3) ** 2 + h[..., 0]

    for on_grid in (torch.zeros(1, 2), torch.tensor([[0.4, -2.0]])):
        a = on_grid.requires_grad_()
        with pytest.warns(GradestWarning, match="exactly on the grid"):
            gradest.expect(loss, a, "stochastic_rounding", estimator, seed=0)
        layer = gradest.nn.Expectation("stochastic_rounding", estimator)
        with pytest.warns(GradestWarning, match="Use enumeration or straight_through"):
            layer(loss, a)
        for right in ("enumeration", "straight_through"):
            gradest.expect(loss, a, "stochastic_rounding", right, seed=0)
    gradest.expect(loss, torch.tensor([[0.4, -2.1]], requires_grad=True), "stochastic_rounding", estimator, seed=0)


@pytest.mark.filterwarnings("ignore:.*exactly on the grid:gradest.errors.GradestWarning")
def test_16_bits_may_round_both_neighbours_to_one_number() -> None:
    neuron = gradest.neuron("stochastic_rounding", step=0.01)
    a = torch.tensor([30.125], dtype=torch.bfloat16)
    h = neuron.forward(a, torch.tensor([0.5]))
    assert h.item() == 30.125
    assert neuron.log_prob(h, a).item() == 0
    assert neuron.score(h, a).item() == 0


def test_straight_through_is_exact_for_a_loss_linear_in_each_unit() -> None:
    """E[dL/dh] of h0 · h1 is what exact returns; 40,000 draws within 5 standard errors (6e-7). Off the grid: at 2 it is not."""

    def product(h: torch.Tensor) -> torch.Tensor:
        return h[..., 0] * (3 + h[..., 1])

    a = torch.tensor([[0.3, -1.7]])
    _, gradient = gradest.exact(product, a, "stochastic_rounding")
    torch.testing.assert_close(gradient, torch.tensor([[1.3, 0.3]]))
    found = gradest.estimate(product, a, "stochastic_rounding", "straight_through", draws=40_000, seed=4)
    assert bool(((found.gradient - gradient).abs() < 5 * found.standard_error).all())
    claim = gradest.estimator("straight_through").bias(gradest.neuron("stochastic_rounding"))
    assert str(claim) == "exact to order 1"
    assert not gradest.estimator("straight_through", derivative="sigmoid").accepts(
        gradest.neuron("stochastic_rounding")
    )
    assert not gradest.estimator("straight_through", derivative="clipped").accepts(
        gradest.neuron("stochastic_rounding")
    )


def test_evaluation_rounds_to_the_nearest() -> None:
    neuron = gradest.neuron("stochastic_rounding", step=0.5)
    a = torch.tensor([0.2, 0.3, -0.2, -0.3, 1.0])
    assert neuron.threshold(a, 0.5).tolist() == [0, 0.5, 0, -0.5, 1]
    assert neuron.threshold(a, 0.9).tolist() == [0, 0, -0.5, -0.5, 1]
    assert neuron.active_probability(a).tolist() == pytest.approx([0.4, 0.6, 0, 0, 1])


def test_what_is_refused() -> None:
    for step in (0.0, -1.0, 1e-9, float("inf")):
        with pytest.raises(InvalidOptions, match="step"):
            gradest.neuron("stochastic_rounding", step=step)
    with pytest.raises(InvalidInput, match="stochastic_rounding"):
        gradest.sample({"name": "stochastic_rounding", "step": 1e-6}, torch.full((1, 1), 1e36))
