"""sample, expect, estimate, exact: values, gradients, shapes, dtypes, and what they refuse."""

import itertools
import math

import pytest
import torch

import gradest
from gradest.contract.neuron import keeps_event, output_shape
from gradest.errors import Incompatible, InvalidInput, TooManyPoints
from gradest.estimation.arguments import first_non_finite
from gradest.estimation.estimate import blocks_of
from gradest.estimation.exact import closed_form
from tests.events import event_of
from tests.losses import mixed as loss
from tests.selection import deep

A = torch.tensor([[0.3, -1.0, 2.0], [0.0, 0.1, -0.2]], dtype=torch.float64)


def by_hand(f, a):
    """E[f] over every configuration, differentiated by autograd: the slow and obvious way."""
    a = a.clone().requires_grad_()
    p, total = torch.sigmoid(a), 0
    for bits in itertools.product([0.0, 1.0], repeat=a.shape[-1]):
        h = torch.tensor(bits, dtype=a.dtype).expand_as(a)
        total = total + torch.where(h == 1, p, 1 - p).prod(-1) * f(h)
    (gradient,) = torch.autograd.grad(total.sum(), a)
    return total.detach(), gradient


def test_exact_is_the_sum_over_configurations():
    value, gradient = gradest.exact(loss, A, neuron="bernoulli")
    wanted_value, wanted_gradient = by_hand(loss, A)
    assert torch.allclose(value, wanted_value, atol=1e-14)
    assert torch.allclose(gradient, wanted_gradient, atol=1e-14)


def test_exact_in_many_chunks(monkeypatch):
    whole = gradest.exact(loss, A, neuron="bernoulli")
    monkeypatch.setattr("gradest.estimation.exact.CHUNK", 7)
    for one, two in zip(whole, gradest.exact(loss, A, neuron="bernoulli"), strict=True):
        assert torch.allclose(one, two, atol=1e-15)


def test_exact_refuses_more_than_twenty_units():
    with pytest.raises(TooManyPoints, match="20 such units"):
        gradest.exact(lambda h: h.sum(-1), torch.zeros(21), neuron="bernoulli")
    value, gradient = gradest.exact(lambda h: h.sum(-1), torch.zeros(20), neuron="bernoulli")
    assert value.item() == pytest.approx(10)
    assert torch.allclose(gradient, torch.full((20,), 0.25))


def test_expect_by_enumeration_is_autograd_of_the_expectation():
    a = A.clone().requires_grad_()
    weight = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    value, _ = gradest.expect(lambda h: weight * loss(h), a, neuron="bernoulli", estimator="enumeration")
    upstream = torch.tensor([2.0, -3.0], dtype=torch.float64)
    (value * upstream).sum().backward()
    wanted_value, wanted_gradient = by_hand(loss, A)
    assert torch.allclose(value, 0.7 * wanted_value, atol=1e-14)
    assert torch.allclose(a.grad, 0.7 * wanted_gradient * upstream[:, None], atol=1e-14)
    assert torch.allclose(weight.grad, (upstream * wanted_value).sum(), atol=1e-14)


@pytest.mark.parametrize("estimator", ["reinforce", "rloo", "straight_through", "reinforce_centered"])
def test_expect_gives_the_estimators_gradient(estimator):
    a = A.clone().requires_grad_()
    value, state = gradest.expect(loss, a, neuron="bernoulli", estimator=estimator, seed=5)
    value.sum().backward()
    built, neuron = gradest.estimator(estimator), gradest.neuron("bernoulli")
    start = built.init(neuron, A)
    draw = built.forward(neuron, A, gradest.Key(5), start)
    points = draw.points.clone().requires_grad_()
    losses = loss(points)
    (grad,) = torch.autograd.grad(losses.sum(), points)
    gradient, after = built.backward(draw, gradest.Feedback(losses.detach(), grad), start)
    assert torch.equal(a.grad, gradient)
    assert torch.equal(value, built.value(draw, losses))
    assert state.keys() == after.keys()


def test_expect_fits_in_a_training_loop():
    """The toy of Tucker et al.: descent on E[(b - .45)²] must push the unit to 0, where straight-through goes astray."""
    torch.manual_seed(0)
    a, state = torch.zeros(1, requires_grad=True), None
    optimiser = torch.optim.SGD([a], lr=5.0)
    for _ in range(300):
        optimiser.zero_grad()
        value, state = gradest.expect(
            lambda h: ((h - 0.45) ** 2).sum(-1), a, neuron="bernoulli", estimator="reinforce_centered", state=state
        )
        value.backward()
        optimiser.step()
    assert torch.sigmoid(a).item() < 0.1


def test_expect_without_grad_gives_the_value_alone():
    with torch.no_grad():
        value, state = gradest.expect(loss, A, estimator="reinforce_average", seed=1)
    assert not value.requires_grad
    assert all(not tensor.any() for tensor in state.values())


def test_seeds_come_from_torch():
    torch.manual_seed(3)
    first = gradest.sample("bernoulli", A)
    second = gradest.sample("bernoulli", A)
    torch.manual_seed(3)
    assert torch.equal(gradest.sample("bernoulli", A), first)
    assert not torch.equal(torch.stack([first, second])[0], gradest.sample("noisy_rectifier", A))
    assert torch.equal(gradest.sample("noisy_rectifier", A, seed=9), gradest.sample("noisy_rectifier", A, seed=9))


def test_compiled_code_samples_outside_its_graph():
    a = torch.linspace(-1, 1, 6).reshape(2, 3)

    def draw(a):
        return gradest.sample("bernoulli", a, 2, seed=3)

    with pytest.raises(Exception, match=r"a call of gradest\.sample, expect"):
        torch.compile(draw, backend="eager", fullgraph=True)(a)
    assert torch.equal(torch.compile(draw, backend="eager")(a), draw(a))


@pytest.mark.filterwarnings(
    "ignore:pre-activations of stochastic_rounding are exactly on the grid"
)  # 16 bits often are
@pytest.mark.parametrize("neuron", sorted(gradest.registry.neurons))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, *deep(torch.float64, torch.float16)])
def test_dtypes_and_strides(neuron, dtype):
    shape = (2, 5, 3) if keeps_event(gradest.neuron(neuron)) else (2, *event_of(gradest.neuron(neuron), 5, 3))
    a = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    h = gradest.sample(neuron, a, samples=4, seed=2)
    assert h.shape == (4, *output_shape(gradest.neuron(neuron), a))
    assert h.dtype == dtype
    strided = a.transpose(0, 1).contiguous().transpose(0, 1)
    assert not strided.is_contiguous()
    assert torch.equal(gradest.sample(neuron, strided, samples=4, seed=2), h)
    event = tuple(range(-gradest.neuron(neuron).output_ndim, 0))
    for estimator in gradest.registry.fitting(gradest.neuron(neuron)):
        leaf = a.clone().requires_grad_()
        value, _ = gradest.expect(lambda h: (h * h).sum(event), leaf, neuron=neuron, estimator=estimator, seed=1)
        value.sum().backward()
        assert leaf.grad.dtype == dtype
        assert bool(torch.isfinite(leaf.grad).all())


@pytest.mark.parametrize("shape", [(0, 3), (4, 1), (0,), *deep(((3,),), ((2, 0, 3),))])
@pytest.mark.parametrize("estimator", sorted(gradest.registry.fitting(gradest.neuron("bernoulli"))))
def test_shapes_down_to_nothing(shape, estimator):
    a = torch.zeros(shape, requires_grad=True)
    assert gradest.sample("bernoulli", a, samples=2).shape == (2, *shape)
    assert gradest.sample("bernoulli", a, samples=0).shape == (0, *shape)
    value, _ = gradest.expect(lambda h: h.sum(-1), a, estimator=estimator)
    assert value.shape == shape[:-1]
    value.sum().backward()
    assert a.grad.shape == shape
    found = gradest.estimate(lambda h: h.sum(-1), a, estimator=estimator, draws=7)
    assert found.gradient.shape == found.variance.shape == shape
    assert found.loss.shape == shape[:-1]
    value, gradient = gradest.exact(lambda h: h.sum(-1), a)
    assert value.shape == shape[:-1]
    assert gradient.shape == shape


@pytest.mark.parametrize("name", sorted(gradest.registry.neurons))
def test_without_units_the_value_is_the_loss(name):
    """Estimators that move one unit at a time had the value 0."""
    neuron = gradest.neuron(name)
    a = torch.zeros(3, 0, *neuron.example_events[0][1:])
    for estimator in gradest.registry.fitting(neuron):
        leaf = a.clone().requires_grad_()
        value, _ = gradest.expect(
            lambda h: h.flatten(2 if neuron.output_ndim else 1).sum(-1) + 2.5, leaf, neuron, estimator, seed=0
        )
        value.sum().backward()
        assert value.tolist() == pytest.approx([2.5] * 3, rel=1e-6), estimator
        assert leaf.grad.shape == a.shape


def test_bad_pre_activations_are_refused():
    for bad, reason in (
        ([0.0, 1.0], "torch tensor"),
        (torch.zeros(3, dtype=torch.int64), r"float32 or float64, not torch\.int64"),
        (torch.tensor(1.0), r"\[\*batch, units\]"),
        (torch.tensor([[0.0, 1.0], [math.nan, math.inf]]), r"a\[1, 0\] is nan"),
        (torch.tensor([0.0, -math.inf]), r"a\[1\] is -inf"),
    ):
        for call in (
            lambda a: gradest.sample("bernoulli", a),
            lambda a: gradest.expect(loss, a),
            lambda a: gradest.exact(loss, a),
            lambda a: gradest.estimate(loss, a),
            lambda a: gradest.compare(loss, a),
        ):
            with pytest.raises(InvalidInput, match=reason):
                call(bad)


def test_bad_arguments_are_refused():
    with pytest.raises(InvalidInput, match="samples must be an integer of at least 0"):
        gradest.sample("bernoulli", A, samples=-1)
    with pytest.raises(InvalidInput, match="draws must be an integer of at least 1"):
        gradest.estimate(loss, A, draws=0)
    for target in (-1, math.nan, math.inf, True, "0.1"):
        with pytest.raises(InvalidInput, match="target_standard_error must be a finite number of at least 0"):
            gradest.estimate(loss, A, target_standard_error=target)
    with pytest.raises(InvalidInput, match="seed"):
        gradest.sample("bernoulli", A, seed=-1)
    with pytest.raises(InvalidInput, match=r"to losses \[2, 2\]"):
        gradest.expect(lambda h: h.sum(), A, estimator="rloo")
    with pytest.raises(InvalidInput, match="not differentiable"):
        gradest.expect(lambda h: (h.detach() > 0).double().sum(-1), A, estimator="straight_through")
    with pytest.raises(Incompatible, match=r"take this neuron.*fit noisy_rectifier: .*held_noise, pathwise"):
        gradest.expect(loss, A, neuron="noisy_rectifier", estimator="straight_through")
    with pytest.raises(Incompatible, match="Discrete"):
        gradest.estimate(loss, A, neuron="noisy_rectifier", estimator="nvil")


@pytest.mark.parametrize("step", [256, 12])
def test_estimate_is_the_mean_and_variance_of_single_draws(monkeypatch, step):
    monkeypatch.setattr("gradest.estimation.estimate._STEP", step)  # one block, and several
    draws = 64
    found = gradest.estimate(loss, A, estimator="rloo", draws=draws, seed=3)
    singles = []
    for repetition in range(draws):
        a = A.clone().requires_grad_()
        value, _ = gradest.expect(loss, a, estimator="rloo", seed=gradest.Key(3).fold_in(repetition))
        value.sum().backward()
        singles.append(a.grad)
    stacked = torch.stack(singles)
    assert torch.allclose(found.gradient, stacked.mean(0), atol=1e-14)
    assert torch.allclose(found.variance, stacked.var(0), atol=1e-14)
    assert torch.allclose(found.standard_error, stacked.std(0) / math.sqrt(draws), atol=1e-14)
    assert (found.draws, found.evaluations, found.seed) == (draws, 2, 3)
    assert gradest.estimate(loss, A, draws=1).variance.isnan().all()


def test_estimate_does_not_depend_on_chunks(monkeypatch):
    whole = gradest.estimate(loss, A, estimator="reinforce", draws=1000, seed=3)
    monkeypatch.setattr("gradest.estimation.estimate.CHUNK", 500)
    calls = []

    def counted(h):
        calls.append(h.shape)
        return loss(h)

    parts = gradest.estimate(counted, A, estimator="reinforce", draws=1000, seed=3)
    assert len(calls) > 10
    for name in ("gradient", "variance", "standard_error", "loss"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_blocks_grow_and_end_with_the_steps():
    def ends(draws, most):
        at = 0
        for first, n in blocks_of(draws, most):
            assert first == at
            assert 0 < n <= most
            at += n
            yield at

    steps = [256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 3584, 4096, 5120]
    assert list(ends(5120, 10**9)) == steps
    for most in (1, 3, 100, 256, 1000):
        assert set(steps[:-1]) <= set(ends(5000, most))
    assert list(ends(20, 7)) == [7, 14, 20]
    assert max(n for _, n in blocks_of(10**6, 10**9)) < 10**6 / 6  # work for six at the end


def test_progress_and_watch_see_every_block():
    at, seen = [], []
    found = gradest.estimate(
        loss,
        A,
        draws=1000,
        seed=3,
        progress=lambda *report: at.append(report),
        watch=seen.append,
        estimator="reinforce",
    )
    assert at == [(256, 1000), (512, 1000), (768, 1000), (1000, 1000)]
    assert [estimate.draws for estimate in seen] == [256, 512, 768, 1000]
    for part in seen:
        alone = gradest.estimate(loss, A, draws=part.draws, seed=3, estimator="reinforce")
        for name in ("gradient", "variance", "standard_error", "loss"):
            assert torch.equal(getattr(part, name), getattr(alone, name))
    assert torch.equal(seen[-1].gradient, found.gradient)


def test_progress_is_told_of_a_warm_up():
    at = []
    gradest.estimate(
        loss, A, draws=5, estimator="reinforce_centered", warm_up=3, progress=lambda *report: at.append(report)
    )
    assert at == [(0, 5), (0, 5), (0, 5), (5, 5)]


@pytest.mark.parametrize("callback", ["progress", "watch"])
def test_a_callback_may_stop_the_work(callback):
    drawn = []

    def counted(h):
        drawn.append(h.shape[0])
        return loss(h)

    def stop(*report):
        raise TimeoutError("enough")

    with pytest.raises(TimeoutError, match="enough"):
        gradest.estimate(counted, A, draws=10**6, estimator="reinforce", **{callback: stop})
    assert sum(drawn[4:]) == 256  # the first four calls check f


def test_a_target_standard_error_stops_at_the_first_look_that_meets_it():
    target = 0.005
    seen = []
    found = gradest.estimate(loss, A, draws=10**6, seed=3, target_standard_error=target, watch=seen.append)
    assert float(found.standard_error.max()) <= target
    assert found.draws == seen[-1].draws > 2048
    assert all(float(before.standard_error.max()) > target for before in seen[:-1])
    alone = gradest.estimate(loss, A, draws=found.draws, seed=3)
    for name in ("gradient", "variance", "standard_error", "loss"):
        assert torch.equal(getattr(found, name), getattr(alone, name))


def test_a_target_standard_error_is_looked_at_on_a_schedule_alone(monkeypatch):
    """Wherever blocks end, the same draws are made; and draws remain the cap."""
    wanted = gradest.estimate(loss, A, draws=10**6, seed=3, target_standard_error=0.02).draws
    assert wanted % 256 == 0
    monkeypatch.setattr("gradest.estimation.estimate._BLOCK", 2 * A.numel() * 100)
    seen = []
    found = gradest.estimate(loss, A, draws=10**6, seed=3, target_standard_error=0.02, watch=seen.append)
    assert seen[0].draws == 100
    assert found.draws == wanted
    assert gradest.estimate(loss, A, draws=300, seed=3, target_standard_error=1e-9).draws == 300
    assert gradest.estimate(loss, A, draws=200, seed=3, target_standard_error=100).draws == 200
    assert gradest.estimate(loss, A, draws=900, estimator="enumeration", target_standard_error=1e-12).draws == 256
    assert gradest.estimate(lambda h: h.sum(-1), A[:0], draws=900, target_standard_error=0).draws == 256


def test_variance_is_stable_far_from_zero():
    """A mean of 1e8 beside a standard deviation of 1: the sum of squares would lose every digit."""
    found = gradest.estimate(
        lambda h: 1e8 * h[..., 0] + h[..., 1] * 0,
        A[:, :2],
        neuron="noisy_rectifier",
        estimator="pathwise",
        draws=4000,
        seed=1,
    )
    p = torch.sigmoid(A[:, 0])
    assert torch.allclose(found.variance[:, 0] / 1e16, p * (1 - p), atol=0.02)


def test_a_stateful_estimator_is_measured_at_its_trained_state():
    """Against a constant of 100 the baseline takes nearly all variance away."""

    def far(h):
        return loss(h) + 100

    plain = gradest.estimate(far, A, estimator="reinforce", draws=500, seed=1)
    centred = gradest.estimate(far, A, estimator="reinforce_centered", draws=500, seed=1)
    cold = gradest.estimate(far, A, estimator="reinforce_centered", draws=500, seed=1, warm_up=0)
    assert centred.variance.mean() < plain.variance.mean() / 1000
    assert torch.allclose(cold.variance, plain.variance)
    again = gradest.estimate(far, A, estimator="reinforce_centered", draws=500, seed=1, state=centred.state)
    assert torch.equal(again.variance, centred.variance)


def test_closed_form_where_there_is_one():
    neuron = gradest.neuron("bernoulli")
    many = torch.zeros(200)
    value, gradient = closed_form(gradest.objective("quadratic", target=0.499), many, neuron)
    assert gradient.mean().item() == pytest.approx(2.5e-6, rel=1e-3)
    assert value.item() == pytest.approx(0.250001, rel=1e-6)
    assert closed_form(lambda h: h.sum(-1), many, neuron) is None
    assert closed_form(lambda h: h.sum(-1), many[:5], neuron)[0].item() == pytest.approx(2.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_the_first_entry_that_is_not_finite_is_found(dtype):
    x = torch.zeros(3, 4, dtype=dtype)
    assert first_non_finite(x) is None
    assert first_non_finite(x[:0]) is None
    assert first_non_finite(torch.full_like(x, torch.finfo(dtype).max)) is None  # though their sum may overflow
    for bad in (torch.nan, torch.inf, -torch.inf):
        x[1, 2] = bad
        x[2, 0] = torch.inf
        assert first_non_finite(x) == [1, 2]
        assert first_non_finite(x.T) == [0, 2]
    assert first_non_finite(x[1, 2]) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_largest_numbers_are_finite(dtype):
    largest = torch.finfo(dtype).max
    a = torch.tensor([[largest, -largest, 0.0]], dtype=dtype)
    assert gradest.sample("bernoulli", a, seed=1)[0, 0, :2].tolist() == [1, 0]
    for bad in (torch.nan, torch.inf, -torch.inf):
        with pytest.raises(InvalidInput, match=r"a\[1, 2\] is"):
            gradest.sample("bernoulli", torch.cat([a, torch.tensor([[0, 1, bad]], dtype=dtype)]), seed=1)


def test_backward_goes_through_f_once_where_f_has_no_parameters():
    passes = []

    def f(h):
        inside = h * 2
        if inside.requires_grad:
            inside.register_hook(passes.append)
        return inside.square().sum(-1)

    a = torch.randn(3, 4, requires_grad=True)
    loss, _ = gradest.expect(f, a, "bernoulli", "straight_through", seed=1)
    loss.sum().backward()
    assert len(passes) == 1


class Hidden(torch.autograd.Function):
    """The square times a weight that its graph does not show."""

    weight = torch.nn.Parameter(torch.tensor(3.0))

    @staticmethod
    def forward(ctx, h):
        ctx.save_for_backward(h)
        return Hidden.weight.detach() * h**2

    @staticmethod
    def backward(ctx, grad):
        (h,) = ctx.saved_tensors
        Hidden.weight.grad = (grad * h**2).sum()
        return 2 * grad * Hidden.weight.detach() * h


def test_a_function_of_its_own_in_f_is_gone_through_by_backward():
    a = torch.randn(3, 4, requires_grad=True)
    loss, _ = gradest.expect(lambda h: Hidden.apply(h).sum(-1), a, "bernoulli", "straight_through", seed=1)
    Hidden.weight.grad = None
    loss.sum().backward()
    assert Hidden.weight.grad == gradest.sample("bernoulli", a, seed=1).sum()
