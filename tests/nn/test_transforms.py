"""torch.func: gradients of each example, by expect and by layers, against a loop over the examples."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import gradest
from gradest.contract.objective import Objective
from gradest.errors import GradestWarning, Incompatible, MissingLoss
from gradest.nn import Expectation, Stochastic, broadcast_loss

A = torch.linspace(-1.5, 1.0, 12).reshape(4, 3)
WEIGHT = torch.tensor([1.0, -2.0, 0.5])
LEARNED = {"concrete", "nvil", "rebar", "relax", "relax_rebar", "rodeo", "straight_through_concrete"}  # autograd inside


def f(h):
    return ((h * WEIGHT).sum(-1) + 0.2) ** 2 + h[..., 0]


@pytest.mark.parametrize("neuron", ["bernoulli", "noisy_rectifier"])
def test_expect_maps_as_a_loop_does(neuron):
    """Every estimator that fits, at one key for all examples."""
    built, key = gradest.neuron(neuron), gradest.Key(7)
    for name, estimator in gradest.registry.fitting(built).items():
        state = estimator.init(built, A[0])

        def value(a, key=key, estimator=estimator, state=state):
            return gradest.expect(f, a, built, estimator, key, state)[0]

        wanted = []
        for example in A:
            row = example.clone().requires_grad_()
            value(row).backward()
            wanted.append(row.grad)
        if name in LEARNED:
            with pytest.raises(Incompatible, match=f"{name} on {neuron} does not run inside a transform of torch.func"):
                vmap(grad(value))(A)
            continue
        assert torch.allclose(vmap(grad(value))(A), torch.stack(wanted), atol=1e-5), name
        assert torch.stack(wanted).abs().max() > 1e-3, name


@pytest.mark.parametrize("mapped", [False, True])
def test_an_estimator_that_a_transform_does_not_run_says_so_also_without_a_state(mapped):
    """Its state may begin with random numbers, which vmap would complain of."""
    for neuron, names in (("bernoulli", LEARNED), ("gaussian", {"lax"}), ("categorical", {"rodeo"})):
        rows = A[:, None] if neuron != "categorical" else A[:, None, None]
        for name in names:

            def value(a, neuron=neuron, name=name):
                return gradest.expect(lambda h: h.flatten(2).square().sum(-1), a, neuron, name, seed=0)[0].sum()

            gradient = grad(value)
            with pytest.raises(Incompatible, match=rf"{name} on {neuron} does not run .*outside of the transform"):
                vmap(gradient)(rows) if mapped else gradient(rows[0])


READS = {
    "numpy": lambda h: torch.from_numpy(h.detach().numpy().sum(-1)),
    "item": lambda h: torch.tensor([[x.sum().item() for x in row] for row in h]),
    "if": lambda h: h.sum(-1) if h.sum() > 0 else 2 * h.sum(-1),
    "mask": lambda h: h[h > 0].sum().expand(h.shape[:-1]),
}


class Simulator(Objective):
    name, summary = "simulator", "reads its points by numpy"
    pointwise, differentiable = True, False

    def __call__(self, h):
        return float(h.detach().numpy().sum())


@pytest.mark.parametrize("reads", [*READS, "simulator"])
def test_a_loss_that_reads_its_points(reads):
    loss = Simulator() if reads == "simulator" else READS[reads]

    def value(a):
        return gradest.expect(loss, a, "bernoulli", "rloo", seed=0)[0].sum()

    def gradient(a):
        return grad(value)(a[0])

    for transform in (vmap(value), vmap(grad(value)), *([gradient] if reads in ("numpy", "simulator") else [])):
        with pytest.raises(Incompatible, match=r"reads the values of its points.*expect outside of it"):
            transform(A[:, None])
    value(A.clone().requires_grad_()).backward()

    def fails(h):
        raise RuntimeError("of the user's own")

    with pytest.raises(RuntimeError, match=r"of the user's own") as found:
        grad(lambda a: gradest.expect(fails, a, seed=0)[0].sum())(A)
    assert not isinstance(found.value, Incompatible)


@pytest.mark.parametrize("estimator", ["reinforce_average", "reinforce_centered", "nvil"])
def test_an_expectation_keeps_its_state_out_of_transforms(estimator):
    layer = Expectation("bernoulli", estimator)
    for begun in (False, True):
        if begun:
            layer(f, A.clone().requires_grad_())
        before = {name: value.clone() for name, value in layer.state.items()}
        for transform in (
            lambda: vmap(lambda a: layer(f, a), randomness="same")(A),
            lambda: grad(lambda a: layer(f, a).sum())(A),
        ):
            with pytest.raises(Incompatible, match="has a state"):
                transform()
        assert all(torch.equal(value, before[name]) for name, value in layer.state.items())
    layer(f, A.clone().requires_grad_()).sum().backward()
    assert vmap(lambda a: layer.eval()(f, a), randomness="same")(A).shape == (4,)


def test_expect_with_a_seed_for_each_example():
    seeds = torch.tensor([3, 1, 4, 15])

    def value(a, seed):
        return gradest.expect(f, a, estimator="rloo", seed=gradest.Key(seed))[0]

    found = vmap(grad(value))(A, seeds)
    wanted = torch.stack([grad(value)(a, int(seed)) for a, seed in zip(A, seeds, strict=True)])
    assert torch.allclose(found, wanted, atol=1e-6)
    same = vmap(grad(value), in_dims=(0, None))(A, 3)
    assert torch.allclose(same[0], found[0])
    assert not torch.allclose(same, found)


def test_what_randomness_means():
    """A fresh seed is drawn under vmap as any number of torch's is."""
    a = torch.zeros(64, 20)

    def value(a):
        return gradest.expect(lambda h: h @ torch.linspace(0, 1, 20), a, estimator="reinforce")[0]

    torch.manual_seed(0)
    same, different = (vmap(value, randomness=randomness)(a) for randomness in ("same", "different"))
    assert len(same.unique()) == 1
    assert len(different.unique()) > 32
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(value)(a)


class Gated(nn.Module):
    def __init__(self, estimator, neuron="bernoulli"):
        super().__init__()
        self.gates, self.last, self.layer = nn.Linear(3, 5), nn.Linear(5, 1), Stochastic(neuron, estimator)

    def forward(self, x):
        return self.last(self.layer(self.gates(x)))[:, 0]


def example_loss(model, x):
    def value(parameters):
        out = functional_call(model, parameters, (x[None],))
        return broadcast_loss(model, (out - x.sum(-1)) ** 2)

    return value


@pytest.mark.parametrize(
    ("neuron", "estimator"),
    [
        ("bernoulli", "reinforce"),
        ("bernoulli", "straight_through"),
        ("stochastic_times_smooth", "pathwise_score"),
        ("noisy_rectifier", "pathwise"),
    ],
)
def test_gradients_of_each_example_of_a_gated_model(neuron, estimator):
    torch.manual_seed(0)
    model, x = Gated(estimator, neuron), torch.randn(6, 3)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def one(parameters, x):
        return example_loss(model, x)(parameters)

    torch.manual_seed(9)
    found = vmap(grad(one), in_dims=(None, 0), randomness="same")(parameters, x)
    for place, example in enumerate(x):
        torch.manual_seed(9)
        model.zero_grad()
        broadcast_loss(model, (model(example[None]) - example.sum()) ** 2).backward()
        for name, parameter in model.named_parameters():
            assert torch.allclose(found[name][place], parameter.grad, atol=1e-5), name
    assert found["gates.weight"].abs().max() > 0.1
    assert model.layer._thread.uses.latest is None
    torch.manual_seed(9)
    different = vmap(grad(one), in_dims=(None, 0), randomness="different")(parameters, x)
    assert not torch.allclose(different["gates.weight"], found["gates.weight"])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(grad(one), in_dims=(None, 0))(parameters, x)


@pytest.mark.parametrize("scale", [0.0, 3.0])
def test_grad_alone_and_a_scale(scale):
    torch.manual_seed(0)
    model, x = Gated("reinforce"), torch.randn(6, 3)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def scaled(parameters):
        return scale * broadcast_loss(model, (functional_call(model, parameters, (x,)) - 1) ** 2, "sum")

    torch.manual_seed(9)
    found = grad(scaled)(parameters)
    torch.manual_seed(9)
    (scale * broadcast_loss(model, (model(x) - 1) ** 2, "sum")).backward()
    assert torch.allclose(found["gates.weight"], model.gates.weight.grad, atol=1e-5)
    assert bool(found["gates.weight"].any()) == bool(scale)


def test_backward_through_vmap():
    torch.manual_seed(0)
    model, x = Gated("reinforce"), torch.randn(6, 3)
    torch.manual_seed(9)
    vmap(lambda x: broadcast_loss(model, model(x[None]) ** 2), randomness="same")(x).sum().backward()
    found = model.gates.weight.grad.clone()
    model.zero_grad()
    for example in x:
        torch.manual_seed(9)
        broadcast_loss(model, model(example[None]) ** 2).backward()
    assert torch.allclose(found, model.gates.weight.grad, atol=1e-5)


def test_what_a_transform_refuses():
    model, x = Gated("reinforce"), torch.randn(6, 3)
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def untold(parameters):
        return functional_call(model, parameters, (x,)).sum()

    with pytest.raises(MissingLoss, match="broadcast_loss"):
        grad(untold)(parameters)
    with pytest.warns(GradestWarning, match="told inside the same transform"):
        scalar = broadcast_loss(model, model(x))
    scalar.backward()  # what a transform left behind does no harm
    with pytest.raises(Incompatible, match="has a state"):
        vmap(Gated("reinforce_average"))(x[:, None])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("record", ["make_fx", "jit.trace"])
def test_what_is_recorded_has_no_noise_of_its_own(record):
    """A seed would be a constant of the program. What needs no seed follows its input."""

    def recorded(function, a):
        return make_fx(function)(a) if record == "make_fx" else torch.jit.trace(function, a, check_trace=False)

    a, other = torch.randn(4, 3), torch.randn(4, 3)
    layer = gradest.nn.Stochastic("bernoulli", "straight_through", evaluation="sample")
    for call in (layer, layer.eval(), lambda a: gradest.sample("bernoulli", a)):
        with pytest.raises(Incompatible, match="record a seed as a constant"):
            recorded(call, a)
    for evaluation in ("mean", "threshold"):
        layer.evaluation = evaluation
        assert torch.equal(recorded(layer, a)(other), layer(other))
    if record == "jit.trace":
        with pytest.raises(Incompatible, match="cannot record noise"):
            recorded(lambda a: gradest.sample("bernoulli", a, 2, seed=1), a)
    else:
        sample = recorded(lambda a: gradest.sample("bernoulli", a, 2, seed=1), a)
        assert torch.equal(sample(other), gradest.sample("bernoulli", other, 2, seed=1))


def test_evaluation_maps():
    model, x = Gated("reinforce_average").eval(), torch.randn(6, 3)
    assert torch.allclose(vmap(lambda x: model(x[None])[0])(x), model(x), atol=1e-6)


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("call", [gradest.exact, lambda f, a: gradest.compare(f, a, estimators=["rloo"], draws=2)])
def test_exact_gradients_are_computed_outside_of_transforms(call, mapped):
    """Also at pre-activations that the transform does not touch."""
    a = torch.zeros(3, 2)

    def inside(x):
        call(lambda h: (h**2).sum(-1), x if mapped else a)
        return x.sum()

    for transform in (vmap, grad):
        with pytest.raises(Incompatible, match=r"does not run inside a transform of torch\.func"):
            transform(inside)(a)
