"""What f may do and return: write into its points, large offsets, numbers that are not finite, flattened batches; and states."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import gradest
from gradest.errors import InvalidInput
from tests.estimation.every_estimator import BAD, CASES, LOGITS, A, gradient_of, loss_for
from tests.losses import mixed

WITHOUT_BASELINE = {"lax", "reinforce", "relax", "pathwise_score"}


def test_a_seed_serves_once_in_nested_expectations():
    """With the seed of the outer points the inner ones had the same noise, and the gradient was 170 standard errors off."""
    key = gradest.Key(5, rows=torch.arange(2))

    def nested(outer, inner, draw=gradest.expect):
        def f(h):
            if draw is gradest.sample:
                return (gradest.sample("bernoulli", h, 1, seed=inner)[0] * h).sum(-1)
            return draw(lambda g: (g * h).sum(-1), h, seed=inner)[0]

        return gradest.expect(f, A.clone().requires_grad_(), seed=outer)[0]

    of_tensor = gradest.Key(torch.tensor(5))
    for outer, inner in ((5, 5), (key, 5), (of_tensor, of_tensor), (5, gradest.Key(5))):
        for draw in (gradest.expect, gradest.sample):
            with pytest.raises(InvalidInput, match="f draws from the seed"):
                nested(outer, inner, draw)
            with torch.no_grad(), pytest.raises(InvalidInput, match="f draws from the seed"):
                nested(outer, inner, draw)
    with pytest.raises(InvalidInput, match="f draws from the seed 5"):  # two levels up
        gradest.expect(lambda h: nested(6, 5)[0].expand(h.shape[:-1]), A, seed=5)
    for outer, inner in (
        (5, 6),
        (5, None),
        (None, 5),
        (5, gradest.Key(5).fold_in(1)),
        (5, gradest.Key(5).with_stream(7)),
    ):
        nested(outer, inner)
    nested(5, 6)
    gradest.sample("bernoulli", A, 1, seed=5)  # nothing is in progress any more


@pytest.mark.parametrize("how", [lambda draw: draw, copy.copy, lambda draw: pickle.loads(pickle.dumps(draw))])
def test_only_the_estimator_that_asked_is_told(how):
    draw, state = gradest.ask("bernoulli", "rloo", A, 3)
    draw = how(draw)
    feedback = gradest.Feedback(mixed(draw.points))
    with pytest.raises(InvalidInput, match="rloo asked for the loss at the points of this draw, so disarm cannot"):
        gradest.tell("disarm", draw, feedback, state)
    with pytest.raises(InvalidInput, match=r"pass the estimator that was asked, with the same options"):
        gradest.tell({"name": "rloo", "samples": 3}, draw, feedback, state)
    gradest.tell({"name": "rloo"}, draw, feedback, state)


@pytest.mark.parametrize(("estimator", "neuron", "a"), CASES)
def test_differences_are_taken_in_the_precision_of_the_loss(estimator, neuron, a):
    """A float64 loss with an offset of 10^9, of which float32 holds no digit of the loss itself.

    An estimator with a moving baseline has it from the step before; one without has the offset times the score as its variance.
    """
    if estimator in WITHOUT_BASELINE:
        pytest.skip("has no baseline, so the offset is part of its variance")
    found = []
    for offset in (0.0, 1e9):

        def f(h, offset=offset):
            return loss_for(neuron)(h).double() + offset

        state = None
        if estimator in {"nvil", "reinforce_average", "reinforce_centered"}:
            _, state = gradest.expect(f, a, neuron, estimator, 4)
        found.append(gradient_of(f, neuron, {"name": estimator}, a, state=state))
    size = found[0].abs().max()
    assert size > 0
    # nvil: a learned function of a, which after one step is 0.01 times its inputs whatever the loss
    assert torch.allclose(found[1], found[0], atol=float(size) * 1e-4)


def test_integer_losses_keep_their_digits():
    found = gradient_of(lambda h: h.sum(-1).long() + 10**9, "bernoulli", "rloo", A)
    assert torch.equal(found, gradient_of(lambda h: h.sum(-1), "bernoulli", "rloo", A))
    with pytest.raises(InvalidInput, match=r"loss must be real numbers, not torch\.complex64"):
        gradient_of(lambda h: h.sum(-1) + 0j, "bernoulli", "disarm", A)


def test_a_layer_is_told_differences_in_the_precision_of_the_loss():
    found = []
    for offset in (0.0, 1e9):
        torch.manual_seed(0)
        layer = gradest.nn.Stochastic("bernoulli", "reinforce_average")
        for _ in range(2):
            a = A.clone().requires_grad_()
            gradest.nn.broadcast_loss(layer, mixed(layer(a)).double() + offset).backward()
        found.append(a.grad)
    assert found[0].abs().max() > 0
    assert torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_losses_that_are_not_finite_are_refused(bad):
    def f(h):
        loss = mixed(h)
        loss[-1, 1] = bad
        return loss

    calls = [
        lambda: gradest.expect(f, A.clone().requires_grad_(), "bernoulli", "rloo", 3),
        lambda: torch.no_grad()(gradest.expect)(f, A, "bernoulli", "rloo", 3),
        lambda: gradest.expect(f, A.clone().requires_grad_(), "bernoulli", "disarm", 3),
        lambda: gradest.nn.Expectation("bernoulli", "rloo")(f, A.clone().requires_grad_()),
        lambda: gradest.exact(f, A),
    ]
    for call in calls:
        with pytest.raises(InvalidInput, match=rf"loss\[\d, 1\] of \[\d, 2\] is {bad}"):
            call()
    for call in (gradest.estimate, gradest.compare):
        with pytest.raises(InvalidInput, match="must be finite"):
            call(f, A, draws=2, seed=1)
    with pytest.raises(InvalidInput, match=r"dloss/dh must be finite, but grad\[0, 0, 0\]"):
        gradest.expect(lambda h: (h - h).sqrt().sum(-1), A.clone().requires_grad_(), "bernoulli", "straight_through")


def test_infinite_losses_are_let_through_where_they_are_allowed():
    """exp(-inf) = 0: to vimco such a sample has no weight."""
    target = gradest.estimator("vimco").target()

    def f(h):
        return torch.where(h[..., 0] > h[..., 1], torch.inf, h.sum(-1))

    value, _ = gradest.exact(f, A[:, :2].double(), "bernoulli", target, allow_inf=True)
    assert not torch.isnan(value).any()
    loss, _ = gradest.expect(f, A, "bernoulli", "vimco", 3, allow_inf=True)
    assert not torch.isnan(loss).any()
    with pytest.raises(InvalidInput, match="is nan"):
        gradest.expect(lambda h: h.sum(-1) * torch.nan, A, "bernoulli", "vimco", 3, allow_inf=True)
    _, state = gradest.ask("bernoulli", "nvil", A)
    with pytest.raises(InvalidInput, match="nvil has a state"):
        gradest.expect(f, A.clone().requires_grad_(), "bernoulli", "nvil", 3, state, allow_inf=True)


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_layer_refuses_a_loss_that_is_not_finite(bad):
    layer = gradest.nn.Stochastic("bernoulli", "reinforce_average")
    gradest.nn.broadcast_loss(layer, mixed(layer(A.clone().requires_grad_()))).backward()
    state = layer.state
    a = A.clone().requires_grad_()
    h = layer(a)
    with pytest.raises(InvalidInput, match=rf"loss\[1\] of \[2\] is {bad}"):
        gradest.nn.broadcast_loss(layer, mixed(h) * torch.tensor([1.0, 0.0]) + torch.tensor([0.0, bad]))
    assert all(torch.equal(layer.state[name], value) for name, value in state.items())
    b = A.clone().requires_grad_()  # the step that failed is over, although its output is alive
    gradest.nn.broadcast_loss(layer, mixed(layer(b))).backward()
    assert torch.isfinite(b.grad).all()
    assert h.requires_grad
    assert a.grad is None, "the loss of the next step is not told to the sample of this one"


@pytest.mark.parametrize("estimator", ["rloo", "straight_through", "rebar", "enumeration"])
@pytest.mark.parametrize("neuron", ["bernoulli", "categorical"])
def test_flatten_gives_f_one_batch_dim(estimator, neuron):
    a = A if neuron == "bernoulli" else LOGITS.expand(2, 2, 3)
    if not gradest.estimator(estimator).accepts(gradest.neuron(neuron)):
        estimator = "gumbel_softmax"
    labels, seen = torch.tensor([1.0, -2.0]), []

    def f(h):
        seen.append(h.shape)
        return loss_for(neuron)(h) * labels.repeat(len(h) // 2)

    def whole(h):
        return loss_for(neuron)(h) * labels

    assert torch.equal(gradient_of(f, neuron, estimator, a, flatten=True), gradient_of(whole, neuron, estimator, a))
    assert all(shape[1:] == a.shape[1:] for shape in seen)


def test_flatten_everywhere():
    """A network that takes one batch dim only, in every function that takes a loss."""
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 2), torch.nn.Flatten(), torch.nn.BatchNorm1d(4)).double().eval()
    a = A.double()

    def flat(h):
        return network(h[:, None]).sum(-1)

    def whole(h):
        return flat(h.flatten(0, 1)).unflatten(0, h.shape[:2])

    with torch.no_grad():
        for one, two in zip(gradest.exact(flat, a, flatten=True), gradest.exact(whole, a), strict=True):
            assert torch.allclose(one, two, atol=1e-12)
        one, two = (gradest.estimate(f, a, draws=4, seed=1, flatten=f is flat).gradient for f in (flat, whole))
        assert torch.allclose(one, two, atol=1e-12)
        assert gradest.compare(flat, a, estimators=["rloo"], draws=4, seed=1, flatten=True).rows[0].bias is not None
    layer = gradest.nn.Expectation("bernoulli", "rloo")
    assert layer(flat, a, flatten=True).shape == (2,)
    assert layer.eval()(flat, a, flatten=True).shape == (2,)
    images = a[:, None, :].expand(2, 2, 3)
    value, _ = gradest.expect(lambda h: flat(h.sum(-2)), images, flatten=True, event_dims=2)
    assert value.shape == (2,)


def test_an_exception_of_f_says_which_points_it_was_given():
    convolution = torch.nn.Conv2d(1, 2, 1)
    for call in (gradest.expect, gradest.exact, gradest.estimate):
        with pytest.raises(RuntimeError) as caught:
            call(lambda h: convolution(h).sum((-1, -2, -3)), A)
        (note,) = caught.value.__notes__
        assert "h.flatten(0, 1)" in note
        assert "[K, *batch, *event]" in note
    with pytest.raises(RuntimeError) as caught:
        gradest.expect(lambda h: convolution(h).sum(), A, flatten=True)
    assert "[4, 3]" in caught.value.__notes__[0]
    with pytest.raises(InvalidInput, match=r"with flatten=True f must map points \[4, 3\] to losses \[4\]"):
        gradest.expect(lambda h: h.sum(), A, flatten=True)


@pytest.mark.parametrize("flatten", [False, True])
def test_one_loss_for_each_example_of_more_dims_is_told_of_event_dims(flatten):
    images = torch.zeros(8, 2, 2, 3)
    for neuron in ("bernoulli", "categorical"):
        with pytest.raises(InvalidInput, match="one loss for each example, give event_dims=3"):
            gradest.expect(lambda h: h.sum((-1, -2, -3)), images, neuron, "rloo", flatten=flatten)
        gradest.expect(lambda h: h.sum((-1, -2, -3)), images, neuron, "rloo", flatten=flatten, event_dims=3)


def test_counts_of_nothing_are_refused():
    for samples in (0, -1, True, 1.5):
        with pytest.raises(InvalidInput, match="a target is of at least 1 sample"):
            gradest.Target(samples)
    with pytest.raises(InvalidInput, match="warm_up"):
        gradest.estimate(mixed, A, warm_up=-1)
    with pytest.raises(InvalidInput, match="K at least 1"):
        gradest.credit("rloo", torch.zeros(0, 2))
