"""Losses that are no function of each point: random ones, those that mix points, and those that mix rows."""

import contextlib
import functools
import warnings

import pytest
import torch
from torch import nn

import gradest
from gradest.errors import GradestWarning, InvalidInput
from gradest.estimation.losses.checks import modules_of

A = torch.tensor([[0.3, -0.5, 0.2], [0.8, 0.1, -1.0], [0.0, 0.4, 1.1]])
W = torch.tensor([1.0, 2.0, -1.0])


def plain(h):
    return (h * W).sum(-1) ** 2


def shared(h):
    return ((h.sum((-1, -2)) - 1.3) ** 2)[:, None].expand(h.shape[:2])


def attention(h):
    return (torch.softmax(h @ h.mT, -1) @ h * W).sum(-1)


def neighbours(h):
    return plain(h) + h[..., 0].roll(1, -1)


class Noisy:
    """A loss with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(1)

    def __call__(self, h):
        return plain(h + torch.rand(h.shape, generator=self.generator))


def normalised():
    norm = nn.BatchNorm1d(3)
    return norm, lambda h: plain(norm(h.flatten(0, 1)).unflatten(0, h.shape[:2]))


def dropped():
    drop = nn.Dropout()
    return drop, lambda h: plain(drop(h))


@pytest.mark.parametrize("f", [shared, attention, neighbours])
def test_rows_that_share_a_loss_are_refused_with_the_remedy(f):
    for a in (A, A + 9, torch.zeros(2, 3)):  # the units that hardly ever vary are seen too
        for run in (gradest.exact, gradest.estimate, gradest.compare):
            with pytest.raises(InvalidInput, match="event_dims="):
                run(f, a)


def test_rows_are_told_apart_in_large_batches_and_one_unit():
    with pytest.raises(InvalidInput, match="event_dims="):
        gradest.estimate(lambda h: h[..., 0] + 0.01 * h[..., 0].roll(128, -1), torch.zeros(256, 1))
    with pytest.raises(InvalidInput, match="event_dims="):
        gradest.exact(lambda h: (h[..., 0].prod(-1, keepdim=True)).expand(-1, 2), torch.zeros(2, 1))


@pytest.mark.parametrize(
    ("neuron", "estimator"),
    [("bernoulli", "reinforce"), ("gaussian", "pathwise"), ("categorical", "reinforce"), ("poisson", "reinforce")],
)
def test_a_loss_of_each_point_is_left_alone(neuron, estimator):
    a = torch.randn(4, 2, 3) if neuron == "categorical" else A[:, :2]
    seen = []

    def f(h):
        seen.append(h.shape)
        return h.sum(tuple(range(2, h.ndim))).square() + 1e6 + torch.arange(h.shape[1])

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradest.compare(f, a, neuron, [estimator], draws=4, seed=0)
        seen.clear()
        gradest.estimate(f, a, neuron, estimator, draws=4, seed=0)
    assert len(seen) == 5  # four times to check it


@pytest.mark.parametrize("make", [dropped, normalised, lambda: (nn.Identity(), Noisy())])
def test_exact_refuses_and_estimate_and_compare_say_so(make):
    module, f = make()
    with pytest.raises(InvalidInput, match=r"no exact expectation.*\.eval\(\)"):
        gradest.exact(f, A)
    with pytest.warns(GradestWarning, match="part of the loss"):
        gradest.estimate(f, A, draws=10, seed=0)
    with pytest.warns(GradestWarning, match="part of the loss"):
        table = gradest.compare(f, A, estimators=["rloo"], draws=10, seed=0)
    assert table.exact is None
    assert table.rows[0].bias is None
    module.eval()
    if not isinstance(f, Noisy):
        assert gradest.exact(f, A)[1].shape == A.shape


def test_rows_that_share_a_loss_are_seen_through_dropout():
    drop = nn.Dropout()
    with pytest.raises(InvalidInput, match="event_dims="):
        gradest.estimate(lambda h: shared(drop(h)), A)


@pytest.mark.parametrize(
    "run",
    [
        lambda f: gradest.estimate(f, A, draws=10, seed=0),
        lambda f: gradest.compare(f, A, estimators=["rloo"], draws=10, seed=0),
        lambda f: gradest.exact(f, A),
    ],
)
@pytest.mark.filterwarnings("ignore::gradest.errors.GradestWarning")
def test_buffers_and_generators_are_left_as_they_were(run):
    norm, f = normalised()
    before = {name: (value, value.clone()) for name, value in norm.named_buffers()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    with contextlib.suppress(InvalidInput):  # which exact raises
        run(f)
    for name, value in norm.named_buffers():
        assert value is before[name][0]
        assert torch.equal(value, before[name][1])
    assert torch.equal(torch.get_rng_state(), state)


NET = nn.Linear(3, 1)


class Holder:
    """A loss that holds its modules in a list."""

    def __init__(self, module):
        self.modules = {"all": [module]}

    def __call__(self, h):
        return self.modules["all"][0](h)[..., 0]

    def method(self, h):
        return self(h)


def test_modules_are_found_wherever_a_loss_may_keep_them():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    holder, nested = Holder(net), functools.partial(lambda f, h: f(h), lambda h: net(h) + 1)
    wrapped = functools.wraps(net.forward)(lambda h: h)
    for f in (net, net.forward, lambda h: net(h) + 1, holder, holder.method, nested, lambda h, m=net: m(h), wrapped):
        assert {*net.modules()} <= {*modules_of(f)}
    assert NET in modules_of(lambda h: [NET(x) for x in h])
    assert modules_of(plain) == []


def test_a_loss_is_given_as_much_as_fits():
    a, most = torch.zeros(1, 1 << 19), []

    def f(h):
        most.append(h.shape[0])
        return h.mean(-1)

    gradest.estimate(f, a, draws=1, estimator="reinforce", seed=0)
    assert max(most) <= 2
