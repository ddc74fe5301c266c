"""What f may do and return: write into its points, large offsets, numbers that are not finite, flattened batches; and states."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import gradest
from gradest.errors import Incompatible, InvalidInput, NotDifferentiable
from tests.losses import mixed

A = torch.tensor([[0.3, -0.5, 1.1], [1.0, 0.2, -0.7]])
LOGITS = torch.tensor([[[0.3, -0.5, 0.1], [1.0, 0.2, -0.3]]])
SEED = 14  # at which no estimator has a gradient of 0, as those that perturb may have
WITHOUT_BASELINE = {"lax", "reinforce", "relax", "pathwise_score"}


def _cases():
    """Every estimator once, with a neuron that it fits and pre-activations."""
    for name in sorted(gradest.registry.estimators):
        for neuron, a in (("bernoulli", A), ("categorical", LOGITS), ("gaussian", A)):
            if gradest.estimator(name).accepts(gradest.neuron(neuron)):
                yield pytest.param(name, neuron, a, id=name)
                break


def _loss(neuron):
    return mixed if gradest.neuron(neuron).event_ndim == 1 else lambda h: mixed(h.flatten(-2)[..., [0, 1, 4]])


def _gradient(f, neuron, estimator, a, **options):
    a = a.clone().requires_grad_()
    value, _ = gradest.expect(f, a, neuron, estimator, SEED, **options)
    value.sum().backward()
    return a.grad


def _stateful():
    for case in _cases():
        name, neuron, a = case.values
        if gradest.estimator(name).init(gradest.neuron(neuron), a):
            yield case


CASES = list(_cases())
STATEFUL = list(_stateful())


@pytest.mark.parametrize(("estimator", "neuron", "a"), CASES)
def test_f_may_write_into_its_points(estimator, neuron, a):
    f = _loss(neuron)

    def writes(h):
        loss = f(h)
        h -= 0.5
        return loss

    if "grad" in gradest.estimator(estimator).needs:
        with pytest.raises(RuntimeError, match="in-place") as caught:
            _gradient(writes, neuron, estimator, a)
        assert "h = h - 1" in caught.value.__notes__[1]
        return
    wanted = _gradient(f, neuron, estimator, a)
    assert torch.equal(_gradient(writes, neuron, estimator, a), wanted)
    found, true = (gradest.estimate(g, a, neuron, estimator, 4, 3, warm_up=1).gradient for g in (writes, f))
    assert torch.equal(found, true)


def test_writes_are_seen_in_every_way_to_ask():
    def f(h):
        loss = mixed(h)
        h.zero_()
        return loss

    draw, state = gradest.ask("bernoulli", "rloo", A, SEED)
    gradient, _ = gradest.tell("rloo", draw, gradest.Feedback(f(draw.points)), state)
    assert torch.equal(gradient, _gradient(mixed, "bernoulli", "rloo", A))
    with torch.inference_mode():
        found = gradest.estimate(f, A.clone(), "bernoulli", "rloo", 4, 3).gradient
    assert torch.equal(found, gradest.estimate(mixed, A, "bernoulli", "rloo", 4, 3).gradient)
    mapped = torch.func.vmap(torch.func.grad(lambda a: gradest.expect(f, a, "bernoulli", "rloo", 3)[0]))(A)
    assert torch.equal(
        mapped, torch.func.vmap(torch.func.grad(lambda a: gradest.expect(mixed, a, "bernoulli", "rloo", 3)[0]))(A)
    )


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

    def values(f, evaluation):
        layer = gradest.nn.Expectation("bernoulli", estimator, evaluation).eval()
        torch.manual_seed(0)
        return torch.stack([layer(f, A + step) for step in range(3)])

    assert torch.equal(second(InPlace()), second(mixed))
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
            return _loss(neuron)(h).double() + offset

        state = None
        if estimator in {"nvil", "reinforce_average", "reinforce_centered"}:
            _, state = gradest.expect(f, a, neuron, estimator, 4)
        found.append(_gradient(f, neuron, {"name": estimator}, a, state=state))
    size = found[0].abs().max()
    assert size > 0
    # nvil: a learned function of a, which after one step is 0.01 times its inputs whatever the loss
    assert torch.allclose(found[1], found[0], atol=float(size) * 1e-4)


def test_integer_losses_keep_their_digits():
    found = _gradient(lambda h: h.sum(-1).long() + 10**9, "bernoulli", "rloo", A)
    assert torch.equal(found, _gradient(lambda h: h.sum(-1), "bernoulli", "rloo", A))
    with pytest.raises(InvalidInput, match=r"loss must be real numbers, not torch\.complex64"):
        _gradient(lambda h: h.sum(-1) + 0j, "bernoulli", "disarm", A)


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


BAD = [float("nan"), float("inf"), -float("inf")]


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


@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize(("estimator", "neuron", "a"), STATEFUL)
def test_a_loss_that_is_not_finite_leaves_the_state(estimator, neuron, a, bad):
    f = _loss(neuron)
    _, state = gradest.expect(f, a, neuron, estimator, 3)
    kept = {name: value.clone() for name, value in state.items()}
    for allow_inf in (False, True):
        with pytest.raises(InvalidInput):
            gradest.expect(lambda h: f(h) + bad, a, neuron, estimator, 3, state, allow_inf=allow_inf)
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    if estimator in {
        "lax",
        "nvil",
        "rebar",
        "relax",
        "relax_rebar",
        "rodeo",
    }:  # they learn by autograd, which transforms lack
        return
    _, after = torch.func.vmap(lambda a: gradest.expect(lambda h: f(h) + bad, a, neuron, estimator, 3, state))(a[None])
    assert all(torch.equal(after[name][0], value) for name, value in kept.items())


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


def test_a_derivative_that_is_not_finite_leaves_the_state_of_a_layer():
    """Loss scaling makes infinite derivatives, and skips the step when it sees them in the parameters."""
    layer = gradest.nn.Stochastic("bernoulli", "slope_annealed_straight_through")
    a = A.clone().requires_grad_()
    layer(a).sum().backward()
    state = layer.state
    a.grad = None
    (layer(a) * torch.inf).sum().backward()
    assert not torch.isfinite(a.grad).all()
    assert all(torch.equal(layer.state[name], value) for name, value in state.items())


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_second_derivatives_by_enumeration():
    """Those of exp(E), by torch.func and by create_graph, beside the sum over outputs by hand."""
    a = A[:, :2].double()

    def f(h):
        return torch.sin(h[..., 0] + 2 * h[..., 1]) + h[..., 0] * h[..., 1]

    def by_hand(a):
        p, total = torch.sigmoid(a), 0.0
        for bits in ([0, 0], [0, 1], [1, 0], [1, 1]):
            h = torch.tensor(bits, dtype=a.dtype)
            total = total + torch.where(h == 1, p, 1 - p).prod(-1) * f(h)
        return total.exp().sum()

    def by_expect(a):
        return gradest.expect(f, a, "bernoulli", "enumeration", 3)[0].exp().sum()

    wanted = torch.func.hessian(by_hand)(a)
    assert wanted.abs().max() > 0.01
    assert torch.allclose(torch.func.hessian(by_expect)(a), wanted, atol=1e-12)
    assert torch.allclose(torch.autograd.functional.hessian(by_expect, a), wanted, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
@pytest.mark.parametrize(
    ("estimator", "neuron"), [("disarm", "bernoulli"), ("straight_through", "bernoulli"), ("pathwise", "gaussian")]
)
def test_second_derivatives_that_samples_do_not_give_raise(estimator, neuron):
    parameter = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)

    def value(a):
        return gradest.expect(lambda h: (h * parameter).sum(-1) ** 2, a, neuron, estimator, 3)[0].sum()

    a = A.clone().requires_grad_()
    of_a, of_parameter = torch.autograd.grad(value(a) * scale, (a, parameter), create_graph=True)
    for first, second in ((of_a, a), (of_a, parameter), (of_parameter, a)):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            torch.autograd.grad(first.sum(), second, retain_graph=True)
    for transform in (
        torch.func.hessian,
        lambda f: torch.func.jacrev(torch.func.jacrev(f)),
        lambda f: torch.func.jacfwd(torch.func.jacfwd(f)),
    ):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            transform(value)(A)
    # what the samples do give
    (by_scale,) = torch.autograd.grad(of_a.sum(), scale, retain_graph=True)
    assert torch.allclose(by_scale, of_a.sum() / 2)
    (curvature,) = torch.autograd.grad(of_parameter.sum(), parameter)
    assert curvature.abs().max() > 0
    (forward,), (backward,) = (
        [jacobian(value)(A)] for jacobian in (torch.func.jacfwd, torch.func.jacrev)
    )  # first derivatives in both modes
    assert torch.allclose(forward, backward)
    assert torch.allclose(forward * 2, of_a)


@pytest.mark.parametrize("estimator", ["rloo", "straight_through", "rebar", "enumeration"])
@pytest.mark.parametrize("neuron", ["bernoulli", "categorical"])
def test_flatten_gives_f_one_batch_dim(estimator, neuron):
    a = A if neuron == "bernoulli" else LOGITS.expand(2, 2, 3)
    if not gradest.estimator(estimator).accepts(gradest.neuron(neuron)):
        estimator = "gumbel_softmax"
    labels, seen = torch.tensor([1.0, -2.0]), []

    def f(h):
        seen.append(h.shape)
        return _loss(neuron)(h) * labels.repeat(len(h) // 2)

    def whole(h):
        return _loss(neuron)(h) * labels

    assert torch.equal(_gradient(f, neuron, estimator, a, flatten=True), _gradient(whole, neuron, estimator, a))
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


@pytest.mark.parametrize(("estimator", "neuron", "a"), STATEFUL)
def test_a_state_that_does_not_fit_is_refused(estimator, neuron, a):
    f = _loss(neuron)
    _, state = gradest.expect(f, a, neuron, estimator, 3)
    name = next(iter(state))
    draw, asked = gradest.ask(neuron, estimator, a, 3)
    points = draw.points.requires_grad_()
    loss = f(points)
    (grad,) = torch.autograd.grad(loss.sum(), points)
    feedback = gradest.Feedback(loss.detach(), grad)
    gradest.tell(estimator, draw, feedback, asked)
    wrong = [{}, {**state, "more": torch.zeros(())}, {**state, name: torch.zeros(7, 5)}, {**state, name: 0.5}]
    for given in [*wrong, 3, [state]]:
        text = "have tensors of the shapes" if isinstance(given, dict) else "be the dict that was returned"
        with pytest.raises(InvalidInput, match=f"the state of {estimator} must {text}"):
            gradest.expect(f, a, neuron, estimator, 3, given)
        with pytest.raises(InvalidInput, match="the state of"):
            gradest.estimate(f, a, neuron, estimator, 2, 3, given)
        with pytest.raises(InvalidInput, match="the state of"):
            gradest.tell(estimator, draw, feedback, given)
    with pytest.raises(InvalidInput, match=r"the state of rloo must be \{\}, because it keeps none"):
        gradest.expect(mixed, A, "bernoulli", "rloo", 3, state)


@pytest.mark.parametrize("state", [None, [], 3, {"total": torch.zeros(())}])
def test_tell_takes_the_state_that_ask_returned(state):
    draw, asked = gradest.ask("bernoulli", "rloo", A, 3)
    feedback = gradest.Feedback(mixed(draw.points))
    gradest.tell("rloo", draw, feedback, asked)
    with pytest.raises(InvalidInput, match="the state of rloo must be"):
        gradest.tell("rloo", draw, feedback, state)


def test_counts_of_nothing_are_refused():
    for samples in (0, -1, True, 1.5):
        with pytest.raises(InvalidInput, match="a target is of at least 1 sample"):
            gradest.Target(samples)
    with pytest.raises(InvalidInput, match="warm_up"):
        gradest.estimate(mixed, A, warm_up=-1)
    with pytest.raises(InvalidInput, match="K at least 1"):
        gradest.credit("rloo", torch.zeros(0, 2))


def _with_a_parameter(neuron, read):
    """A loss whose graph leads to a parameter of its own, and not to the points."""
    weight = torch.linspace(-1, 1, 8).requires_grad_()
    event_ndim = gradest.neuron(neuron).event_ndim

    def f(h):
        return (read(h) * weight[: h.shape[-1]]).flatten(h.ndim - event_ndim).sum(-1).square()

    return f


READS = {
    "detached": torch.Tensor.detach,
    "compared": lambda h: (h > 0.3).to(h),
    "as integers": lambda h: h.long().to(h),
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize(("estimator", "neuron", "a"), CASES)
def test_a_graph_that_does_not_lead_to_the_points_is_no_derivative(estimator, neuron, a, read):
    """Without an error the gradient would be 0."""
    f = _with_a_parameter(neuron, read)
    if "grad" not in gradest.estimator(estimator).needs:
        assert _gradient(f, neuron, estimator, a).abs().max() > 0
        return
    with pytest.raises(NotDifferentiable, match="not differentiable in its points"):
        _gradient(f, neuron, estimator, a)
    with pytest.raises(NotDifferentiable):
        gradest.estimate(f, a, neuron, estimator, draws=4)
    with pytest.raises((NotDifferentiable, Incompatible)):  # some do not run inside a transform
        torch.func.vmap(lambda a: gradest.expect(f, a, neuron, estimator, SEED)[0], randomness="same")(a[None])
    skipped = gradest.compare(f, a, neuron, estimators=[estimator], draws=4, seed=0).skipped
    assert estimator in {one.estimator.partition("(")[0] for one in skipped}


@pytest.mark.parametrize("target", [None, gradest.Target(2), gradest.Risk()])
@pytest.mark.parametrize("neuron", ["sigmoid", "rectifier", "stochastic_times_smooth"])
def test_exact_takes_no_such_graph_for_a_derivative(neuron, target):
    a = A[:1, :2]
    for f in (
        _with_a_parameter(neuron, torch.Tensor.detach),
        lambda h: h.detach().square().sum(-1),
        lambda h: torch.from_numpy(h.detach().numpy()).sum(-1),
    ):
        with pytest.raises(NotDifferentiable, match=f"the outputs of {neuron} move with a"):
            gradest.exact(f, a, neuron, target)

    value, gradient = gradest.exact(lambda h: h.square().sum(-1), a, neuron, target)
    assert torch.isfinite(value).all()
    assert gradient.abs().max() > 0
