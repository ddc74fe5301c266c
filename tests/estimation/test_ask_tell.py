"""ask and tell as a user's own loop: the gradient of `expect`, for a loss that autograd does not see."""

from __future__ import annotations

import pytest
import torch

import gradest
from gradest.errors import Incompatible, InvalidInput, UnknownPlugin

A = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.5, -0.2]])


def simulate(points: torch.Tensor) -> torch.Tensor:
    """A loss outside torch, [K, batch]."""
    return torch.tensor([[sum(x**2 for x in row) - 0.3 * row[0] for row in sample] for sample in points.tolist()])


@pytest.mark.parametrize("estimator", ["rloo", {"name": "rloo", "samples": 4}, "disarm", "reinforce_average"])
def test_the_loop_gives_the_gradient_of_expect(estimator) -> None:
    """With a state, over several steps; specs and seeds are taken as `expect` takes them."""
    state = told = None
    for step in range(3):
        a = A.clone().requires_grad_()
        loss, state = gradest.expect(simulate, a, "bernoulli", estimator, seed=step, state=state)
        loss.sum().backward()
        draw, told = gradest.ask("bernoulli", estimator, A, seed=step, state=told)
        gradient, told = gradest.tell(estimator, draw, gradest.Feedback(simulate(draw.points)), told)
        assert torch.equal(gradient, a.grad)
        assert state.keys() == told.keys()
        assert all(torch.equal(state[name], told[name]) for name in state)


def test_an_estimator_that_needs_it_is_told_dl_dh() -> None:
    draw, state = gradest.ask("bernoulli", "straight_through", A, seed=1)
    gradient, _ = gradest.tell("straight_through", draw, gradest.Feedback(None, 2 * draw.points), state)
    assert torch.equal(gradient, 2 * draw.points[0])
    with pytest.raises(InvalidInput, match=r"straight_through needs the grad at its points, of shape \[1, 2, 3\]"):
        gradest.tell("straight_through", draw, gradest.Feedback(torch.zeros(1, 2)), state)


def test_without_a_seed_torch_s_generator_rules() -> None:
    torch.manual_seed(5)
    first, _ = gradest.ask("bernoulli", "rloo", A)
    second, _ = gradest.ask("bernoulli", "rloo", A)
    torch.manual_seed(5)
    again, _ = gradest.ask("bernoulli", "rloo", A)
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.key.fold_in(0).uniform((2,), (3,)), second.key.fold_in(0).uniform((2,), (3,)))


@pytest.mark.parametrize(
    ("feedback", "message"),
    [
        (torch.zeros(2, 2), r"tell takes the draw .* gradest.Feedback\(loss, grad\), not Draw and Tensor"),
        (gradest.Feedback([[0.0, 0.0]] * 2), r"loss must be a torch tensor of shape \[2, 2\], not list"),  # type: ignore[arg-type]
        (gradest.Feedback(torch.zeros(2)), r"loss must have shape \[2, 2\], not \[2\]"),
        (gradest.Feedback(torch.zeros(1, 2)), r"loss must have shape \[2, 2\], not \[1, 2\]"),
        (gradest.Feedback(None), r"rloo needs the loss at its points, of shape \[2, 2\]"),
        (gradest.Feedback(torch.zeros(2, 2), torch.zeros(2)), r"grad must have shape \[2, 2, 3\], not \[2\]"),
    ],
)
def test_feedback_that_does_not_fit_is_named(feedback, message) -> None:
    draw, state = gradest.ask("bernoulli", "rloo", A, seed=0)
    with pytest.raises(InvalidInput, match=message):
        gradest.tell("rloo", draw, feedback, state)


def test_a_bad_question_is_refused_before_anything_is_drawn() -> None:
    with pytest.raises(UnknownPlugin, match="rlo"):
        gradest.ask("bernoulli", "rlo", A)
    with pytest.raises(Incompatible, match="disarm does not fit poisson"):
        gradest.ask("poisson", "disarm", A)
    with pytest.raises(InvalidInput, match="a seed must be"):
        gradest.ask("bernoulli", "rloo", A, seed=-1)
    with pytest.raises(InvalidInput, match=r"a\[0, 1\] is nan"):
        gradest.ask("bernoulli", "rloo", torch.tensor([[0.0, torch.nan]]))


@pytest.mark.parametrize("samples", [2, 3, 4])
def test_the_value_of_large_losses_does_not_overflow(samples) -> None:
    largest = torch.finfo(torch.float16).max

    def loss(h: torch.Tensor) -> torch.Tensor:
        return torch.full(h.shape[:-1], largest, dtype=h.dtype)

    with torch.no_grad():
        value, _ = gradest.expect(loss, A.half(), "bernoulli", {"name": "reinforce", "samples": samples}, seed=1)
    assert value.isfinite().all()
    assert (value >= 0.999 * largest).all()


@pytest.mark.parametrize("samples", [2, 3])
def test_weights_that_were_written_to_count(samples) -> None:
    estimator = gradest.estimator("reinforce", samples=samples)
    draw, _ = gradest.ask("bernoulli", estimator, A, seed=1)
    loss = torch.arange(2.0 * samples, requires_grad=True).reshape(samples, 2)
    expected = 2 * estimator.value(draw, loss)
    with torch.inference_mode():
        draw.weights.mul_(2)
    value = estimator.value(draw, loss)
    torch.testing.assert_close(value, expected)
    value.sum().backward()
