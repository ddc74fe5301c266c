"""event_dims: which trailing dims of `a` are one event, against sums over all outputs that the test makes itself."""

import itertools
import math
import pickle

import pytest
import torch

import gradest
from gradest.errors import InvalidInput
from gradest.estimation.events import EventLayout

CASES = [  # neuron, shape of a, event_dims, number of batch dims
    ("bernoulli", (2, 3, 2), 2, 1),
    ("bernoulli", (2, 2, 1, 2), 3, 1),
    ("bernoulli", (2, 3), 0, 2),
    ("bernoulli", (2, 1, 2), "all", 0),
    ("categorical", (2, 2, 2, 3), 3, 1),
    ("categorical", (2, 3, 3), 1, 2),
    ("categorical", (2, 3), 1, 1),
    ("categorical", (2, 2, 2), "all", 0),
]


def case(shape, batch_dims):
    """Return pre-activations, and a loss whose terms join all units of an event."""
    torch.manual_seed(3)
    a = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(shape[batch_dims:], dtype=torch.float64)

    def f(h):
        assert h.shape[h.ndim - len(shape) :] == a.shape
        inner = (h * weight).reshape(*h.shape[: h.ndim - weight.ndim], -1).sum(-1) - 0.4
        return inner**2 + inner**3 / 3

    return a, f


def truth(neuron, a, f, batch_dims):
    """Return E[f(h)] and its gradient: a sum over all outputs of the units that share a loss."""
    a = a.clone().requires_grad_()
    dims = a.ndim - batch_dims
    if neuron == "bernoulli":
        log_p = torch.stack([torch.nn.functional.logsigmoid(-a), torch.nn.functional.logsigmoid(a)], -1)
        outputs = torch.tensor([0.0, 1.0], dtype=a.dtype)
    else:
        log_p, outputs, dims = torch.log_softmax(a, -1), torch.eye(a.shape[-1], dtype=a.dtype), dims - 1
    event = log_p.shape[batch_dims : batch_dims + dims]
    value = torch.zeros(a.shape[:batch_dims], dtype=a.dtype)
    for choice in itertools.product(range(len(outputs)), repeat=math.prod(event)):
        index = torch.tensor(choice).reshape(event).expand(*a.shape[:batch_dims], *event)
        log_of_all = log_p.gather(-1, index[..., None])[..., 0].reshape(*value.shape, -1).sum(-1)
        value = value + log_of_all.exp() * f(outputs[index][None])[0]
    (gradient,) = torch.autograd.grad(value.sum(), a)
    return value.detach(), gradient


@pytest.mark.parametrize(("neuron", "shape", "event_dims", "batch_dims"), CASES)
def test_expect_exact_estimate_and_compare_agree_with_enumeration(neuron, shape, event_dims, batch_dims):
    a, f = case(shape, batch_dims)
    value, gradient = truth(neuron, a, f, batch_dims)
    found, slope = gradest.exact(f, a, neuron, event_dims=event_dims)
    torch.testing.assert_close(found, value)
    torch.testing.assert_close(slope, gradient)
    given = a.clone().requires_grad_()
    loss, _ = gradest.expect(f, given, neuron, "enumeration", event_dims=event_dims)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), value)
    torch.testing.assert_close(given.grad, gradient)
    table = gradest.compare(f, a, neuron, ["enumeration"], draws=2, seed=0, event_dims=event_dims)
    torch.testing.assert_close(table.exact, gradient)
    assert table.rows[0].bias < 1e-12
    # 4000 draws; |z| > 5 in one of at most 18 coordinates has probability 1e-5
    estimate = gradest.estimate(f, a, neuron, "rloo", 4000, seed=5, event_dims=event_dims)
    assert ((estimate.gradient - gradient) / estimate.standard_error).abs().max() < 5
    assert estimate.standard_error.max() < gradient.abs().max() / 5  # so that a gradient of 0 would be seen
    assert estimate.variance.shape == a.shape
    assert estimate.loss.shape == value.shape


@pytest.mark.parametrize("estimator", ["rloo", "nvil", "disarm", "straight_through"])
def test_the_noise_and_the_state_are_those_of_the_flattened_event(estimator):
    a, f = case((2, 3, 2), 1)
    flat = a.flatten(1)
    one, state = gradest.expect(f, a, "bernoulli", estimator, 7, event_dims=2)
    other, same = gradest.expect(lambda h: f(h.unflatten(-1, (3, 2))), flat, "bernoulli", estimator, 7)
    assert torch.equal(one, other)
    assert all(torch.equal(state[name], same[name]) for name in same)
    again, _ = gradest.expect(f, a, "bernoulli", estimator, 8, state, event_dims=2)
    assert again.shape == (2,)


def test_an_objective_sees_the_events_of_the_neuron():
    a, _ = case((2, 3, 2), 1)
    objective = gradest.objective("quadratic", target=0.3)
    value, slope = gradest.exact(objective, a, event_dims=2)
    flat, flat_slope = gradest.exact(objective, a.flatten(1))
    torch.testing.assert_close(value, flat)
    torch.testing.assert_close(slope.flatten(1), flat_slope)
    wide = torch.randn(2, 30, 2)  # beyond enumeration: by the closed form alone
    assert (
        gradest.compare(objective, wide, estimators=["rloo"], draws=4, seed=0, event_dims=2).exact.shape == wide.shape
    )


@pytest.mark.parametrize("event_dims", [-1, 3, True, 1.5, "some"])
def test_event_dims_that_do_not_fit_are_refused(event_dims):
    with pytest.raises(InvalidInput, match="event_dims"):
        gradest.expect(lambda h: h.sum(-1), torch.zeros(2, 3), event_dims=event_dims)


def test_classes_belong_to_their_unit():
    with pytest.raises(InvalidInput, match="at least 1"):
        gradest.exact(lambda h: h.sum(-1), torch.zeros(2, 3), "categorical", event_dims=0)
    with pytest.raises(InvalidInput, match="more dims than"):
        gradest.exact(lambda h: h, torch.zeros(()), "categorical", event_dims="all")


def test_a_loss_of_a_wrong_shape_is_told_the_shape_it_got():
    with pytest.raises(InvalidInput, match=r"points \[2, 4, 3, 2\] to losses \[2, 4\]"):
        gradest.expect(lambda h: h.sum(-1), torch.zeros(4, 3, 2), event_dims=2)


def test_a_single_number_is_an_event_without_dims():
    quadratic = gradest.objective("quadratic", target=0.3)
    single, row = (
        gradest.estimate(quadratic, torch.full(shape, 0.5), draws=10, seed=1, event_dims=len(shape))
        for shape in ((), (1,))
    )
    assert torch.equal(single.gradient, row.gradient[0])
    assert gradest.compare(quadratic, torch.tensor(0.5), estimators=["rloo"], draws=3, event_dims=0).exact.shape == ()


def test_a_wrapped_loss_can_be_pickled():
    layout = EventLayout.of(gradest.neuron("bernoulli"), torch.zeros(4, 3, 2), 2)
    f = pickle.loads(pickle.dumps(layout.loss(_total)))
    assert torch.equal(f(torch.ones(5, 4, 6)), torch.full((5, 4), 6.0))


def _total(h):
    return h.sum((-1, -2))


def test_under_vmap():
    a, f = case((2, 3, 2), 1)

    def value(row):
        return gradest.expect(
            lambda h: f(h[:, None].expand(-1, 2, -1, -1))[:, 0], row, "bernoulli", "rloo", 3, event_dims=2
        )[0]

    slopes = torch.func.vmap(torch.func.grad(value))(a)
    for row, slope in zip(a, slopes, strict=True):
        torch.testing.assert_close(torch.func.grad(value)(row), slope)
