"""What may be a pre-activation: dtypes, layouts, devices, masks and shapes; the rest is refused with the remedy."""

import math
import pickle

import pytest
import torch
from torch.testing._internal.two_tensor import TwoTensor

import gradest
from gradest.errors import Incompatible, InvalidInput
from tests.events import event_of

A = torch.tensor([[[0.3, -torch.inf, 1.0], [0.2, 0.5, -1.0]], [[-torch.inf, 2.0, -torch.inf], [0.0, 0.1, 0.2]]])
WEIGHTS = torch.tensor([[0.5, -1.0, 2.0], [1.5, 0.3, -0.7]])


def loss(h):
    return (h * WEIGHTS.to(h)).sum((-1, -2)) ** 2


def square_of_sum(h):
    return (h.flatten(2) * torch.arange(1.0, 1 + h[0, 0].numel(), device=h.device)).sum(-1) ** 2


def fitting(name):
    neuron = gradest.neuron(name)
    return [cls.build() for cls in gradest.registry.estimators.values() if cls.build().accepts(neuron)]


REFUSED = {
    "sparse": (lambda: torch.eye(3).to_sparse(), "to_dense"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)], layout=torch.jagged),
        "to_padded_tensor",
    ),
    "meta": (lambda: torch.zeros(2, 3, device="meta"), "to_empty"),
    "float8": (lambda: torch.zeros(2, 3).to(torch.float8_e4m3fn), "float32"),
    "masked": (lambda: torch.masked.masked_tensor(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)), "get_data"),
    "wrapper": (lambda: TwoTensor(torch.zeros(2, 3), torch.ones(2, 3)), "TwoTensor.*full_tensor"),
    "complex": (lambda: torch.zeros(2, 3, dtype=torch.complex64), r"a\.real"),
    "integer": (lambda: torch.zeros(2, 3, dtype=torch.int64), r"a\.float"),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of MaskedTensors")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_tensors_are_refused_everywhere(kind):
    make, remedy = REFUSED[kind]
    a = make()
    layer = gradest.nn.Stochastic("bernoulli", "straight_through")
    for call in (
        lambda: gradest.sample("bernoulli", a),
        lambda: gradest.expect(lambda h: h.sum(-1), a),
        lambda: gradest.estimate(lambda h: h.sum(-1), a, draws=2),
        lambda: gradest.exact(lambda h: h.sum(-1), a),
        lambda: layer(a),
        lambda: layer.eval()(a),
    ):
        with pytest.raises(InvalidInput, match=remedy):
            call()


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
def test_views_that_negate_are_read_as_the_numbers_they_are(kernels, monkeypatch):
    """Such as the imaginary part of a conjugate, whose memory holds the opposite numbers."""
    monkeypatch.setenv("GRADEST_KERNELS", kernels)
    a = torch.linspace(-2, 2, 12).reshape(4, 3)
    negated = torch._neg_view(-a)
    assert negated.is_neg()
    assert torch.equal(gradest.sample("bernoulli", negated, 5, seed=1), gradest.sample("bernoulli", a, 5, seed=1))
    for estimator in ("rloo", "rebar", "straight_through", "disarm"):
        gradients = []
        for x, sign in ((a, lambda x: x), (negated, lambda x: torch._neg_view(-x))):
            draw, state = gradest.ask("bernoulli", estimator, x, seed=1)
            loss, grad = sign(draw.points.square().sum(-1) - draw.points[..., 0] * 3), sign(2 * draw.points)
            gradients.append(gradest.tell(estimator, draw, gradest.Feedback(loss, grad), state)[0])
        assert torch.equal(*gradients), estimator


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_evaluation_refuses_what_training_refuses(value):
    a = torch.tensor([[0.0, value]], requires_grad=True)
    layer = gradest.nn.Stochastic("bernoulli", "straight_through")
    for training in (True, False):
        with pytest.raises(InvalidInput, match=r"a\[0, 1\]"):
            layer.train(training)(a)


@pytest.mark.parametrize("name", ["categorical", "gumbel_softmax"])
def test_masked_classes_are_never_drawn_and_all_else_is_as_without_them(name):
    neuron = gradest.neuron(name)
    h = gradest.sample(neuron, A, 2000, seed=1)
    masked = torch.isinf(A)
    assert h[:, masked].max() < 1e-30
    assert torch.isfinite(h).all()
    # the unit with one class masked is the unit without that class
    short = A[:1, :1, [0, 2]]
    assert torch.allclose(neuron.mean(A)[:1, :1, [0, 2]], neuron.mean(short), atol=1e-4)
    for a in (A.double(), A.double()[:, None]):
        wanted, slope = gradest.exact(loss, a, neuron)
        assert torch.isfinite(wanted).all()
        assert torch.isfinite(slope).all()
        assert slope[torch.isinf(a)].abs().max() == 0


@pytest.mark.parametrize("name", ["categorical", "gumbel_softmax"])
def test_every_estimator_takes_masks(name):
    """2,000 draws for each of some 30 unbiased estimators; none should be beyond 5 standard errors, at 1e-5 for all of them."""
    neuron = gradest.neuron(name)
    _, truth = gradest.exact(loss, A, neuron)
    for estimator in fitting(name):
        if estimator.target() != gradest.Target():
            continue
        found = gradest.estimate(loss, A, neuron, estimator, draws=2000, seed=3, warm_up=5)
        assert torch.isfinite(found.gradient).all(), estimator.label()
        if estimator.bias(neuron).unbiased:
            off = (found.gradient - truth).abs() / found.standard_error.clamp(min=1e-6)
            assert off.max() < 5, (estimator.label(), float(off.max()))


MASKABLE = [name for name, kind in gradest.registry.neurons.items() if kind.maskable]


@pytest.mark.parametrize("name", MASKABLE)
def test_masked_classes_have_no_gradient(name):
    """From every estimator: noise, such as that of evolution, and substituted derivatives would move what is never drawn."""
    a = torch.tensor([[[0.3, 1.0, -torch.inf, -0.5]], [[0.3, -torch.inf, 0.2, -0.5]]])
    masked = torch.isinf(a)

    def f(h):
        return ((h * torch.tensor([1.0, -2.0, 0.5, 3.0])).sum((-1, -2)) - 1) ** 2

    def found(a, estimator):
        a = a.clone().requires_grad_()
        (slope,) = torch.autograd.grad(gradest.expect(f, a, name, estimator, seed=3)[0].sum(), a)
        return slope

    moved = 0
    for estimator in gradest.registry.fitting(gradest.neuron(name)).values():
        slope = found(a, estimator)
        assert torch.isfinite(slope).all(), estimator.label()
        assert (slope[masked] == 0).all(), estimator.label()
        moved += bool(slope[~masked].abs().max() > 0)
    assert moved >= 3
    for estimator in ("spsa", "evolution"):  # a pickled draw, as of a service, and a transform do not know of the mask
        draw, state = gradest.ask(name, estimator, a, seed=3)
        points = draw.points
        gradient, _ = gradest.tell(estimator, pickle.loads(pickle.dumps(draw)), gradest.Feedback(f(points)), state)
        assert torch.equal(gradient, found(a, estimator))

        def value(a, estimator=estimator):
            return gradest.expect(f, a, name, estimator, seed=3)[0].sum()

        assert (torch.func.grad(value)(a)[masked] == 0).all()


def test_a_layer_gives_masked_classes_no_gradient():
    a = torch.tensor([[[0.3, 1.0, -torch.inf]]], requires_grad=True)
    layer = gradest.nn.Stochastic("categorical", "straight_through")
    (layer(a) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert a.grad is not None
    assert a.grad.flatten()[2] == 0
    assert a.grad.flatten()[:2].abs().min() > 0


@pytest.mark.parametrize("name", ["logistic_normal", "noisy_top_k", "plackett_luce"])
def test_what_takes_no_mask_says_what_does_its_job(name):
    a = torch.tensor([[[0.3, 1.0, -torch.inf, -0.5]]])
    with pytest.raises(InvalidInput, match=rf"{name} takes no mask of -inf; a large negative number, such as -1e9"):
        gradest.sample(name, a)
    large, without = a.clamp(min=-1e9), a[..., [0, 1, 3]]
    mean, short = (gradest.neuron(name).mean(x) for x in (large, without))
    if name == "plackett_luce":
        assert torch.equal(gradest.sample(name, large, 100, seed=1)[..., 3, 2], torch.ones(100, 1, 1))
        mean = mean[..., :3, :]
    torch.testing.assert_close(mean[..., [0, 1, 3]], short, rtol=0, atol=2e-4)


def test_masks_are_refused_where_nothing_is_left_or_there_are_no_classes():
    none_left = torch.tensor([[[-torch.inf, -torch.inf], [0.0, 1.0]]])
    for a in (none_left, torch.tensor([[[torch.inf, 0.0]]]), torch.tensor([[[torch.nan, 0.0]]])):
        with pytest.raises(InvalidInput, match="some classes of a unit, but not all"):
            gradest.sample("categorical", a)
    for name in ("categorical", "gumbel_softmax"):
        with pytest.raises(InvalidInput, match="at least one class"):
            gradest.sample(name, torch.zeros(2, 3, 0))


def test_logits_without_a_dim_of_units():
    """[batch, classes], as torch.distributions takes it."""
    logits = torch.zeros(8, 5, requires_grad=True)
    for estimator in ("rloo", "straight_through"):
        with pytest.raises(InvalidInput, match=r"units of one event.*a\[:, None\]"):
            gradest.expect(lambda h: (h * torch.arange(5)).sum(-1), logits, "categorical", estimator)
    value, _ = gradest.expect(lambda h: (h * torch.arange(5)).sum((-1, -2)), logits[:, None], "categorical", "rloo")
    assert value.shape == (8,)
    with pytest.raises(InvalidInput, match=r"a\[None\]"):
        gradest.sample("categorical", torch.zeros(5))
    for name in ("k_subset", "plackett_luce"):
        with pytest.raises(InvalidInput, match=r"units of one event.*a\[:, None\]"):
            gradest.expect(lambda h: h[..., 0] if h.ndim == 3 else h[..., 0, 0], logits, name, "reinforce")


@pytest.mark.parametrize("name", sorted(gradest.registry.neurons))
def test_a_default_device_or_dtype_other_than_the_tensors(name):
    """The meta device, because every machine has it: a factory function without a device would give a tensor without values."""
    neuron = gradest.neuron(name)
    shape = (3, 2) if neuron.event_ndim == 1 else (1, *event_of(neuron, 2, 3))
    a = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)

    def run():
        found = [neuron.mean(a), neuron.law(a)[1], neuron.threshold(a, 0.5), gradest.sample(neuron, a, 2, seed=1)]
        if neuron.event_ndim == 1:
            found += gradest.exact(lambda h: h.sum(-1), a[:, :1], neuron)
        return [x for x in found if x.dtype == torch.float32 and x.device.type == "cpu"]

    wanted = run()
    with torch.device("meta"):
        moved = run()
    torch.set_default_dtype(torch.float64)
    try:
        wide = run()
    finally:
        torch.set_default_dtype(torch.float32)
    for found in (moved, wide):
        assert len(found) == len(wanted)
        assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))


def test_every_estimator_under_another_default_device():
    for name in ("bernoulli", "categorical"):
        a = torch.linspace(-1, 1, 6).reshape((1, 2, 3) if name == "categorical" else (3, 2)).requires_grad_()
        for estimator in fitting(name):
            gradients = []
            for device in ("cpu", "meta"):
                with torch.device(device):
                    value, _ = gradest.expect(square_of_sum, a, name, estimator, seed=1)
                gradients.append(torch.autograd.grad(value.sum(), a)[0])
            assert torch.equal(*gradients), estimator.label()


def test_what_was_made_in_inference_mode_trains_afterwards():
    for name in ("bernoulli", "categorical"):
        for cls in {type(estimator) for estimator in fitting(name)}:
            shape = (3, 2, 3) if name == "categorical" else (3, 2)
            dims = (-1, -2) if name == "categorical" else -1
            with torch.inference_mode():
                neuron, estimator = gradest.neuron(name), cls.build()
                objective = gradest.objective(
                    "quadratic", target=[0.2, 0.4, 0.1][: shape[-1]], event_ndim=len(shape) - 1
                )
                draw, state = gradest.ask(neuron, estimator, torch.zeros(shape), seed=1)
                loss = draw.points.sum(dims)
                if cls.__name__ in ("Nvil", "Relax"):  # a step of these learns by autograd
                    with pytest.raises(Incompatible, match=r"torch\.no_grad"):
                        gradest.tell(estimator, draw, gradest.Feedback(loss), state)
                elif "grad" not in estimator.needs:
                    _, state = gradest.tell(estimator, draw, gradest.Feedback(loss), state)
            a = torch.zeros(shape, requires_grad=True)
            for _ in range(2):
                value, state = gradest.expect(objective, a, neuron, estimator, seed=2, state=state)
                assert torch.isfinite(torch.autograd.grad(value.sum(), a)[0]).all()


def test_the_quadratures_kept_from_inference_mode_serve_autograd():
    for name in ("gaussian", "binary_concrete", "hard_concrete", "noisy_sigmoid", "noisy_rectifier"):
        with torch.inference_mode():
            gradest.neuron(name).law(torch.zeros(1, 1, dtype=torch.float64))
        a = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
        (gradest.neuron(name).law(a)[1] ** 2).sum().backward()


@pytest.mark.parametrize("name", ["gumbel_softmax", "binary_concrete", "hard_concrete"])
def test_temperatures_and_logits_that_overflow_are_refused(name):
    for temperature in (0.0, 1e-40, 1e40, float("nan")):
        with pytest.raises(gradest.errors.InvalidOptions, match="temperature"):
            gradest.neuron(name, temperature=temperature)
    for temperature in (1e-30, 1e-3, 1e30):
        shape = (1, 1, 3) if name == "gumbel_softmax" else (1, 3)
        for dtype in (torch.float32, torch.float64):
            a = torch.tensor([0.5, 0.0, -0.5], dtype=dtype).reshape(shape)
            neuron = gradest.neuron(name, temperature=temperature)
            assert torch.isfinite(gradest.sample(neuron, a, 100, seed=1)).all()
            assert torch.isfinite(neuron.mean(a)).all()
    if name == "gumbel_softmax":
        with pytest.raises(InvalidInput, match="overflows"):
            gradest.sample(name, torch.tensor([[[3e38, -3e38, 0.0]]]))
