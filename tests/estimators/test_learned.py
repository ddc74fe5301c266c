"""rebar, relax, relax_rebar, nvil and rodeo: what their formulas average to, and what their control variates learn."""

import itertools
import math

import pytest
import torch

import gradest
import gradest.nn
from gradest.contract.estimator import Feedback
from gradest.kernels.stable import sigmoid
from gradest_estimators._learning import adam, with_moments
from gradest_neurons.bernoulli import Bernoulli
from gradest_neurons.bipolar import Bipolar
from gradest_neurons.categorical import Categorical
from tests.losses import SEPARABLE
from tests.selection import deep

TOY = gradest.objective("quadratic", target=0.499)
RELAXING = ("rebar", "relax", "relax_rebar")
LEARNED = ("nvil", "rodeo", *RELAXING)
NETWORK = ("inner", "outer", "linear", "constant")
PARAMETERS = {
    "nvil": NETWORK,
    "rodeo": (*NETWORK, "alpha"),
    "rebar": ("eta",),
    "relax": NETWORK,
    "relax_rebar": ("eta", *NETWORK),
}


def cubic(h):
    return ((h * torch.tensor([1.0, -0.7, 0.5]).to(h)).sum(-1) + 0.3) ** 3


A = torch.tensor([0.4, -0.9, 1.3], dtype=torch.float64)


def gradient_and_state(estimator, neuron, a, f, state, seed=0):
    draw = estimator.forward(neuron, a, gradest.Key(seed), state)
    points = draw.points.detach().requires_grad_()
    loss = f(points)
    (grad,) = torch.autograd.grad(loss.sum(), points)
    return estimator.backward(draw, Feedback(loss.detach(), grad), state)


def trained(estimator, f, a, steps, neuron="bernoulli"):
    estimator = gradest.estimator(estimator)
    state = None
    for seed in range(steps):
        _, state = gradest.expect(f, a.requires_grad_(), neuron, estimator, seed, state)
    return state


def variance(f, a, estimator, state=None):
    return gradest.estimate(f, a, estimator=estimator, draws=4000, seed=1, state=state).variance.mean().item()


# --- the formulas, over the whole sample space of one unit ---------------------------------------------------------------------

N = 400  # midpoints of the uniform noise a dimension; the step of the unit, at p, lies between two of them


class _Grid:
    """The noise of all (u, v), so that the mean over the batch is an integral over both."""

    def noise(self, key, a, draws):
        middle = (torch.arange(N, dtype=a.dtype) + 0.5) / N
        u, v = torch.meshgrid(middle, middle, indexing="ij")
        return (u if key.stream == 0 else v).reshape(1, -1, 1)


class GridBernoulli(_Grid, Bernoulli):
    pass


class GridBipolar(_Grid, Bipolar):
    pass


def of_two_classes(u):
    """The noises of a pair of classes that make it a binary unit of noise u: of -log noise, only the ratio matters."""
    return torch.exp(-torch.stack([u, 1 - u], -1))


class GridCategorical(_Grid, Categorical):
    def noise(self, key, a, draws):
        return of_two_classes(super().noise(key, a, draws))


def something(state):
    """The state with a network that does something."""
    if "outer" not in state:
        return state
    moved = {"outer": state["outer"] + 1.5, "linear": state["linear"] - 2, "constant": state["constant"] + 0.3}
    return {**state, **moved}


GRIDS = [GridBernoulli(), GridBipolar(), GridCategorical()]
CROSS = list(itertools.product(RELAXING, GRIDS, [0.25, 0.8], SEPARABLE))


@pytest.mark.parametrize(
    ("name", "neuron", "p", "loss"),
    [
        pytest.param(*case, marks=() if place % 4 == place // 4 % 4 else pytest.mark.deep)
        for place, case in enumerate(CROSS)
    ],
    ids=[f"{name}-{neuron.name}-{p}-{loss}" for name, neuron, p, loss in CROSS],
)
def test_the_mean_over_both_noises_is_the_gradient(name, neuron, p, loss):
    """Each estimator on each neuron, in `make test` with one probability and loss, which take turns."""
    f = SEPARABLE[loss]
    event = (1, 2)[: neuron.event_ndim]
    a = torch.tensor([math.log(p / (1 - p)), 0.0], dtype=torch.float64)[: event[-1]].expand(N * N, *event)

    def first(h):  # f of the unit, or of its first class
        return f(h.flatten(-neuron.event_ndim)[..., 0])

    estimator = gradest.estimator(name, temperature=0.7)
    state = something(estimator.init(neuron, a))
    gradient, _ = gradient_and_state(estimator, neuron, a, first, state)
    _, truth = gradest.exact(first, a[:1], neuron.name)  # whose noise is not that of a grid
    assert torch.allclose(gradient.mean(0), truth[0], atol=2e-5)
    plain, _ = gradient_and_state(gradest.estimator("reinforce"), neuron, a, first, {})
    assert (gradient - plain).abs().mean() > 0.05  # the control variate is no small correction


@pytest.mark.parametrize("name", RELAXING)
def test_a_pair_of_classes_is_a_binary_unit(name):
    """The first class has the relaxed outputs of a binary unit, so the gradients are the unit's and its negative."""
    a, estimator = A.expand(40, 3), gradest.estimator(name, temperature=0.6, learn=False)

    class Pair(Categorical):
        def noise(self, key, a, draws):
            return of_two_classes(Bernoulli().noise(key, a[..., 0], draws))

    binary = estimator.init(Bernoulli(), a)
    pair = estimator.init(Pair(), torch.stack([a, 0 * a], -1))
    if "linear" in binary:  # the constant, and one weight for each unit: the other class is 1 minus the first
        weights = torch.tensor([0.4, -2.0, 0.9], dtype=torch.float64)
        binary |= {"linear": weights, "constant": binary["constant"] + 0.3}
        both = torch.stack([weights, 0 * weights], -1).flatten() * 2**0.5  # a network divides by √inputs
        pair |= {"linear": both, "constant": pair["constant"] + 0.3}
    wanted, _ = gradient_and_state(estimator, Bernoulli(), a, cubic, binary)
    found, _ = gradient_and_state(estimator, Pair(), torch.stack([a, 0 * a], -1), lambda h: cubic(h[..., 0]), pair)
    assert torch.allclose(found, torch.stack([wanted, -wanted], -1), atol=1e-10)


@pytest.mark.parametrize("name", RELAXING)
def test_with_no_control_variate_they_are_reinforce(name):
    neuron, a = Bernoulli(), A.expand(50, 3)
    options = {} if name == "relax" else {"eta": 0.0}  # a network starts as 0
    estimator = gradest.estimator(name, **options)
    gradient, _ = gradient_and_state(estimator, neuron, a, cubic, estimator.init(neuron, a))
    plain, _ = gradient_and_state(gradest.estimator("reinforce"), neuron, a, cubic, {})
    assert torch.allclose(gradient, plain, atol=1e-14)


def test_rebar_by_hand():
    """The printed formula for Bernoulli units, with v' and z̃ differentiated."""
    neuron, estimator = Bernoulli(), gradest.estimator("rebar", temperature=0.6, eta=0.8, learn=False)
    a = A.expand(20, 3).clone().requires_grad_()
    key = gradest.Key(4)
    u, v = neuron.noise(key, a, 1)[0], neuron.noise(key.with_stream(1), a, 1)[0]
    p, b = torch.sigmoid(a), (u < torch.sigmoid(a)).double()
    # in the unit's orientation, high below p, given b the noise is u p or p + u (1 - p)
    s = torch.sigmoid((a - torch.logit(u)) / 0.6)
    s_given_b = torch.sigmoid((a - torch.logit(torch.where(b == 1, v * p, p + v * (1 - p)))) / 0.6)
    path = torch.autograd.grad(0.8 * (cubic(s) - cubic(s_given_b)).sum(), a)[0]
    wanted = (cubic(b) - 0.8 * cubic(s_given_b))[:, None] * (b - p) + path
    found, _ = gradient_and_state(estimator, neuron, a.detach(), cubic, estimator.init(neuron, a), seed=4)
    assert torch.allclose(found, wanted, atol=1e-10)


def test_relax_by_hand():
    """One unit, c(x) = 0.3 - 2 (2x - 1)."""
    neuron, key, a = Bernoulli(), gradest.Key(4), A[:1].expand(20, 1).clone().requires_grad_()
    estimator = gradest.estimator("relax", temperature=0.6, hidden=0, learn=False)
    state = something(estimator.init(neuron, a))
    noise, fresh = neuron.noise(key, a, 1)[0], neuron.noise(key.with_stream(1), a, 1)[0]
    h = neuron.forward(a, noise)
    s, s_given_h = neuron.relax(a, noise, 0.6), neuron.conditional_relax(a, h, fresh, 0.6)
    (path,) = torch.autograd.grad((4 * (s_given_h - s)).sum(), a)
    wanted = ((h - 1) ** 2 - (0.3 - 2 * (2 * s_given_h - 1))) * (h - torch.sigmoid(a)) + path
    found, _ = gradient_and_state(estimator, neuron, a.detach(), lambda h: ((h - 1) ** 2).sum(-1), state, seed=4)
    assert torch.allclose(found, wanted)


def test_the_value_is_the_loss_at_the_sample():
    estimator = gradest.estimator("rebar")
    draw = estimator.forward(Bernoulli(), A.expand(5, 3), gradest.Key(1), {})
    assert ((draw.points[0] == 0) | (draw.points[0] == 1)).all()
    assert ((draw.points[1:] > 0) & (draw.points[1:] < 1)).all()
    assert torch.equal(draw.points[1] > 0.5, draw.points[0] == 1)
    assert torch.equal(draw.points[2] > 0.5, draw.points[0] == 1)
    assert torch.equal(estimator.value(draw, cubic(draw.points)), cubic(draw.points[0]))


@pytest.mark.parametrize("neuron", [Bernoulli(), Categorical()], ids=lambda neuron: neuron.name)
def test_relax_rebar_starts_as_rebar(neuron):
    a = (
        torch.cat([A, A.roll(1)]).expand(20, 6)
        if neuron.event_ndim == 1
        else torch.stack([A, 0.5 * A], -1).expand(20, 3, 2)
    )

    def f(h):
        return torch.exp(h.flatten(-neuron.event_ndim).cos().sum(-1))

    runs = []
    for name in ("rebar", "relax_rebar"):
        estimator = gradest.estimator(name, temperature=0.6, eta=0.8)
        runs.append(gradient_and_state(estimator, neuron, a, f, estimator.init(neuron, a)))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1]["eta"], runs[1][1]["eta"])
    # and what its network adds is what it adds to reinforce in relax
    moved = something(estimator.init(neuron, a))
    added = gradient_and_state(estimator, neuron, a, f, moved)[0] - runs[0][0]
    relax, reinforce = gradest.estimator("relax", temperature=0.6), gradest.estimator("reinforce")
    alone = gradient_and_state(relax, neuron, a, f, moved)[0] - gradient_and_state(reinforce, neuron, a, f, {})[0]
    assert added.abs().max() > 0.1
    assert torch.allclose(added, alone)


# --- what is learned -----------------------------------------------------------------------------------------------------------


def moving_state(name, neuron, a):
    """A state after a few steps, at which no parameter has a slope of zero."""
    estimator = gradest.estimator(name, learning_rate=0.1)
    state = estimator.init(neuron, a)
    for seed in range(5):
        _, state = gradient_and_state(estimator, neuron, a, cubic, state, seed)
    return state


@pytest.mark.parametrize("name", LEARNED)
def test_the_slope_is_the_derivative_of_the_objective(name):
    """At fixed noise, against finite differences: of the mean ĝ² (of each unit for η), and for nvil of the squared error."""
    neuron, estimator = Bipolar(), gradest.estimator(name)
    a = torch.cat([A.expand(20, 3), -A.expand(20, 3)])
    state = moving_state(name, neuron, a)
    zeroed = {key: value * 0 if key.endswith("_mean") else value for key, value in state.items()}

    def objective(state):
        gradient, _ = gradient_and_state(gradest.estimator(name, learn=False), neuron, a, cubic, state, seed=9)
        if name != "nvil":
            return gradient.square().mean(0).sum()
        draw = estimator.forward(neuron, a, gradest.Key(9), state)
        # ĝ / score is the error, in any unit
        return (gradient / neuron.score(draw.points[0], a))[:, 0].square().mean()

    _, after = gradient_and_state(estimator, neuron, a, cubic, zeroed, seed=9)
    assert PARAMETERS[name] == tuple(key for key in state if key + "_mean" in state)
    for key in PARAMETERS[name]:
        slope = after[key + "_mean"] / 0.1  # Adam's first average keeps a tenth of what is new
        for at in range(min(5, slope.numel())):
            step = torch.zeros_like(slope)
            step.view(-1)[at] = 1e-5
            upper, lower = ({**state, key: state[key] + sign * step} for sign in (1, -1))
            wanted = (objective(upper) - objective(lower)).item() / 2e-5
            assert wanted != 0
            assert slope.view(-1)[at].item() == pytest.approx(wanted, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", LEARNED)
def test_the_values_of_a_unit_do_not_matter(name):
    """The same loss of 0 and 1 as of -1 and 1: the same gradients, and the same things learned."""
    a, estimator = A.expand(9, 3), gradest.estimator(name)
    runs = []
    for neuron, f in ((Bernoulli(), cubic), (Bipolar(), lambda h: cubic((h + 1) / 2))):
        state = estimator.init(neuron, a)
        for seed in range(4):
            gradient, state = gradient_and_state(estimator, neuron, a, f, state, seed)
        runs.append(gradient)
    assert torch.allclose(*runs, atol=1e-9)


def test_adam_by_hand():
    state = with_moments({"x": torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)})
    first = adam(state, {"x": torch.tensor([2.0, -3.0, 0.0], dtype=torch.float64)}, 0.1)
    assert first["x"].tolist() == pytest.approx([0.9, 1.1, 1.0])  # the first step has the learning rate's length
    second = adam(first, {"x": torch.tensor([4.0, 0.0, 0.0], dtype=torch.float64)}, 0.1)
    mean, square = (0.9 * 0.2 + 0.1 * 4) / (1 - 0.81), (0.999 * 0.004 + 0.001 * 16) / (1 - 0.999**2)
    assert second["x"][0].item() == pytest.approx(0.9 - 0.1 * mean / square**0.5)
    assert second["x"][2].item() == 1
    assert second["steps"] == 2
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    reference = torch.optim.Adam([parameter], lr=0.1, eps=1e-30)
    for gradient in ([2.0, -3.0, 0.0], [4.0, 0.0, 0.0]):
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        reference.step()
    assert torch.allclose(second["x"], parameter.detach(), atol=1e-12)


@pytest.mark.parametrize("name", ["relax", *deep("relax_rebar")])
def test_relax_learns_the_toy(name):
    """One unit at p = ½, f = (b - .499)²: reinforce has variance 1/64, a constant c all but removes it."""
    state = trained(name, TOY, torch.zeros(64, 1), 150)
    found = gradest.estimate(TOY, torch.zeros(1), estimator=name, draws=20_000, seed=1, state=state)
    assert found.variance.item() < 0.015625 / 500
    assert abs(found.gradient.item() - 5.0e-4) < 5 * found.standard_error.item()


@pytest.mark.parametrize(
    ("name", "share"), [("rebar", 0.65), *deep(("relax", 0.45), ("relax_rebar", 0.4), ("nvil", 0.85)), ("rodeo", 0.3)]
)
def test_learning_lowers_the_variance(name, share):
    spec = {"name": name, **({"eta": 0.0} if "eta" in PARAMETERS[name] else {})}
    plain = variance(cubic, A, "rloo" if name == "rodeo" else "reinforce")
    assert variance(cubic, A, spec, gradest.estimator(spec).init(Bernoulli(), A)) == pytest.approx(plain, rel=1e-6)
    state = trained(spec, cubic, A.expand(64, 3).clone(), 150)
    assert variance(cubic, A, spec, state) < share * plain


def test_eta_goes_to_its_optimum():
    """ĝ is linear in η, so the best η of a unit is -cov(ĝ(0), ĝ(1) - ĝ(0)) / var(ĝ(1) - ĝ(0))."""
    neuron, a = Bernoulli(), A.expand(20_000, 3)
    at = [
        gradient_and_state(gradest.estimator("rebar", eta=eta, learn=False), neuron, a, cubic, init, seed=3)[0]
        for eta in (0.0, 1.0)
        for init in [gradest.estimator("rebar", eta=eta).init(neuron, a)]
    ]
    plain, control = at[0], at[1] - at[0]
    best = -(plain * control).mean(0) / control.square().mean(0)
    state = trained({"name": "rebar", "learning_rate": 0.03}, cubic, A.expand(256, 3).clone(), 150)
    assert torch.allclose(state["eta"], best, atol=0.1)
    assert ((best - 1).abs() > 0.2).any()


def test_nvil_learns_what_a_says_of_the_loss():
    """Rows whose losses differ by far, as their pre-activations tell: one average for all is no good baseline."""
    a = torch.tensor([[3.0, 0.0], [-3.0, 0.0]]).repeat(32, 1)

    def f(h):
        return 5 * h[..., 0] + h[..., 1]

    specs = ("reinforce_average", {"name": "nvil", "learning_rate": 0.05})
    average, learned = (
        gradest.estimate(f, a[:2], estimator=spec, draws=4000, seed=1, state=trained(spec, f, a, 150))
        .variance[:, 1]
        .mean()
        for spec in specs
    )
    assert learned < 0.3 * average


def test_nvil_by_hand():
    neuron, a = Bernoulli(), torch.tensor([[0.3, -0.8]])
    estimator = gradest.estimator("nvil", decay=0.9)
    state = {**estimator.init(neuron, a), "linear": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    state |= {"total": torch.tensor(0.2), "weight": torch.tensor(0.1)}
    draw = estimator.forward(neuron, a, gradest.Key(2), state)
    gradient, after = estimator.backward(draw, Feedback(torch.tensor([[7.0]])), state)
    learned = (torch.tanh(a / 2)[0] * torch.tensor([1.0, 2.0])).sum() / 2**0.5
    assert torch.allclose(gradient, (7 - learned - 2) * (draw.points[0] - sigmoid(a)))
    assert after["total"].item() == pytest.approx(0.9 * 0.2 + 0.1 * (7 - learned.item()))


# --- state ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEARNED)
def test_the_estimate_does_not_depend_on_what_its_step_learns(name):
    neuron, a = Bernoulli(), A.float().expand(7, 3)
    state = moving_state(name, neuron, a)
    learning, after = gradient_and_state(gradest.estimator(name), neuron, a, cubic, state)
    still, unmoved = gradient_and_state(gradest.estimator(name, learn=False), neuron, a, cubic, state)
    assert torch.equal(learning, still)
    assert all(torch.equal(unmoved[key], state[key]) for key in PARAMETERS[name])
    assert not any(torch.equal(after[key], state[key]) for key in PARAMETERS[name])
    assert not any(value.requires_grad for value in (learning, still, *after.values()))


@pytest.mark.parametrize("name", LEARNED)
def test_an_empty_batch_leaves_the_state(name):
    neuron, a = Bernoulli(), A.expand(7, 3)
    state = moving_state(name, neuron, a)
    gradient, after = gradient_and_state(gradest.estimator(name), neuron, a[:0], cubic, state)
    assert gradient.shape == (0, 3)
    assert all(torch.equal(after[key], state[key]) for key in state)


@pytest.mark.parametrize("name", LEARNED)
def test_the_state_survives_a_state_dict(name):
    a = A.float().expand(4, 3).clone().requires_grad_()
    layer = gradest.nn.Expectation("bernoulli", name)
    for _ in range(3):
        layer(cubic, a).sum().backward()
    other = gradest.nn.Expectation("bernoulli", name)
    other.load_state_dict(layer.state_dict())
    gradients = []
    for module in (layer, other):
        torch.manual_seed(5)
        a.grad = None
        module(cubic, a).sum().backward()
        gradients.append(a.grad)
    assert torch.equal(*gradients)
    assert layer.state["steps"] == 4
    assert all(torch.equal(other.state[key], value) for key, value in layer.state.items())


@pytest.mark.parametrize("name", LEARNED)
def test_a_loss_of_any_size_leaves_the_state_finite(name):
    """The squares of squares of a float32 loss of 1e15 are far outside float32."""
    neuron, a = Bernoulli(), A.float().expand(7, 3)
    estimator = gradest.estimator(name)
    state = estimator.init(neuron, a)
    for seed in range(3):
        gradient, state = gradient_and_state(estimator, neuron, a, lambda h: 1e15 * cubic(h), state, seed)
    assert torch.isfinite(gradient).all()
    assert all(torch.isfinite(value).all() for value in state.values())
    for key in {"eta", "constant"} & set(PARAMETERS[name]):
        assert ((state[key] - estimator.init(neuron, a)[key]).abs() > 1e-3).all()
