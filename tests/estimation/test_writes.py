"""What may be written: points, pre-activations, memory that a loss uses again, and copies of a draw."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import gradest
from gradest.errors import Incompatible, InvalidInput
from tests.estimation.every_estimator import CASES, SEED, A, gradient_of, loss_for
from tests.losses import mixed


@pytest.mark.parametrize(("estimator", "neuron", "a"), CASES)
def test_f_may_write_into_its_points(estimator, neuron, a):
    f = loss_for(neuron)

    def writes(h):
        loss = f(h)
        h -= 0.5
        return loss

    if "grad" in gradest.estimator(estimator).needs:
        with pytest.raises(RuntimeError, match="in-place") as caught:
            gradient_of(writes, neuron, estimator, a)
        assert "h = h - 1" in caught.value.__notes__[1]
        return
    wanted = gradient_of(f, neuron, estimator, a)
    assert torch.equal(gradient_of(writes, neuron, estimator, a), wanted)
    found, true = (gradest.estimate(g, a, neuron, estimator, 4, 3, warm_up=1).gradient for g in (writes, f))
    assert torch.equal(found, true)


def test_writes_are_seen_in_every_way_to_ask():
    def f(h):
        loss = mixed(h)
        h.zero_()
        return loss

    draw, state = gradest.ask("bernoulli", "rloo", A, SEED)
    gradient, _ = gradest.tell("rloo", draw, gradest.Feedback(f(draw.points)), state)
    assert torch.equal(gradient, gradient_of(mixed, "bernoulli", "rloo", A))
    with torch.inference_mode():
        found = gradest.estimate(f, A.clone(), "bernoulli", "rloo", 4, 3).gradient
    assert torch.equal(found, gradest.estimate(mixed, A, "bernoulli", "rloo", 4, 3).gradient)
    mapped = torch.func.vmap(torch.func.grad(lambda a: gradest.expect(f, a, "bernoulli", "rloo", 3)[0]))(A)
    assert torch.equal(
        mapped, torch.func.vmap(torch.func.grad(lambda a: gradest.expect(mixed, a, "bernoulli", "rloo", 3)[0]))(A)
    )


@pytest.mark.parametrize(("estimator", "neuron", "a"), CASES)
def test_points_that_may_have_been_written_in_inference_mode_are_drawn_again(estimator, neuron, a):
    """There torch does not count writes. Those into the pre-activations change nothing either."""
    f, told = loss_for(neuron), []
    needs_grad = "grad" in gradest.estimator(estimator).needs
    with torch.inference_mode():
        for added in (0, 1):
            given = a.clone()
            draw, state = gradest.ask(neuron, estimator, given, SEED)
            given.add_(added)
            feedback = gradest.Feedback(f(draw.points), 0.5 * draw.points + 1 if needs_grad else None)
            draw.points.add_(added)
            try:
                told.append(gradest.tell(estimator, draw, feedback, state)[0])
            except Incompatible as error:  # it has autograd of its own
                told.append(str(error))
    if isinstance(told[0], str):
        assert told[0] == told[1]
    else:
        assert torch.equal(*told)


def test_a_draw_made_in_inference_mode_can_be_copied():
    with torch.inference_mode():
        draw, state = gradest.ask("gaussian", "pathwise", A, SEED)
        feedback = gradest.Feedback(None, draw.points + 1)
        told = [
            gradest.tell("pathwise", one, feedback, state)[0]
            for one in (draw, copy.deepcopy(draw), pickle.loads(pickle.dumps(draw)))
        ]
    assert torch.equal(told[0], told[1])
    assert torch.equal(told[0], told[2])


class InPlace:
    """A loss that returns the same memory in each call, as a simulator may."""

    def __init__(self):
        self.memory = {}

    def __call__(self, points):
        loss = mixed(points)
        return self.memory.setdefault(loss.shape, torch.empty_like(loss)).copy_(loss)


@pytest.mark.parametrize("estimator", ["rloo", "reinforce", "enumeration", "nvil"])
def test_a_loss_may_use_its_memory_again(estimator):
    """estimate and exact refused it for rows that share a loss; second derivatives and values in evaluation were wrong."""
    for call in (
        lambda f: gradest.estimate(f, A, estimator=estimator, draws=300, seed=0).gradient,
        lambda f: gradest.exact(f, A)[1],
        lambda f: gradest.compare(f, A, estimators=[estimator], draws=20, seed=0).exact,
    ):
        assert torch.equal(call(InPlace()), call(mixed))

    def second(f):
        a = A.clone().requires_grad_()
        value, _ = gradest.expect(f, a, estimator=estimator, seed=1)
        gradest.expect(f, A + 1, estimator=estimator, seed=2)
        (slope,) = torch.autograd.grad(value.sum(), a, create_graph=True)
        return torch.autograd.grad(slope[:, 0].sum(), a)[0]

    def values_of(f, grad):
        with torch.set_grad_enabled(grad):
            return torch.stack([gradest.expect(f, A + step, estimator=estimator, seed=step)[0] for step in range(3)])

    def values(f, evaluation):
        layer = gradest.nn.Expectation("bernoulli", estimator, evaluation).eval()
        torch.manual_seed(0)
        return torch.stack([layer(f, A + step) for step in range(3)])

    assert torch.equal(second(InPlace()), second(mixed))
    for grad in (False, True):
        assert torch.equal(values_of(InPlace(), grad), values_of(mixed, grad))
    for evaluation in ("sample", "mean", "threshold"):
        assert torch.equal(values(InPlace(), evaluation), values(mixed, evaluation))


def test_pre_activations_that_were_written_are_refused():
    a = A.clone()
    draw, state = gradest.ask("bernoulli", "rloo", a, 3)
    again = [pickle.loads(pickle.dumps(draw)), copy.deepcopy(draw)]
    a += 1
    feedback = gradest.Feedback(mixed(draw.points))
    with pytest.raises(InvalidInput, match="pre-activations were written to in place"):
        gradest.tell("rloo", draw, feedback, state)
    for copied in again:
        gradest.tell("rloo", copied, feedback, state)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda draw: pickle.loads(pickle.dumps(draw))])
@pytest.mark.parametrize("estimator", ["muprop", "rloo", "double_cv"])
def test_writes_to_a_copy_of_a_draw_are_seen(copied, estimator):
    """A copy, as a process that evaluates the loss receives, counted no writes: muprop had a wrong gradient."""

    def told(draw, state, points):
        slope = 2 * points if "grad" in gradest.estimator(estimator).needs else None
        return gradest.tell(estimator, draw, gradest.Feedback(points.square().sum(-1), slope), state)[0]

    draw, state = gradest.ask("bernoulli", estimator, A, 3)
    points = draw.points.clone()
    right = told(draw, state, points)
    for write_first in (False, True):
        draw, state = gradest.ask("bernoulli", estimator, A.clone(), 3)
        if write_first:
            draw.points.mul_(-2).add_(3)
        other = copied(draw)
        assert other.asked_by.is_same(gradest.estimator(estimator))
        if not write_first:
            other.points.mul_(-2).add_(3)
        assert torch.equal(told(other, state, points), right)
        other.a.add_(1)
        with pytest.raises(InvalidInput, match="pre-activations were written to in place"):
            told(other, state, points)
