"""Estimators of binary units: exact means, by summing each over its whole sample space, and the variances they promise.

A grid replaces the noise: per uniform number one cell for each interval between 0, q, 1 - q and 1, q = min(p, 1-p), taken at
its middle and weighted with its length. These estimators depend on a uniform number through comparisons with p and 1 - p, and
beyond that linearly (arm), so that the weighted sum over cells is the estimator's expectation to the last digits.
"""

import itertools
import math

import pytest
import torch

import gradest
from gradest.kernels.stable import sigmoid

LOGITS = [0.4, -0.9, 2.2]
NEURONS = ("bernoulli", "bipolar")


def curved(h):
    """Every unit interacts with every other, to all orders."""
    w = torch.tensor([1.1, -0.7, 0.4, 0.9], dtype=h.dtype)[: h.shape[-1]]
    return torch.exp((h * w).sum(-1)) + (h * w.flip(0) + 0.3).sum(-1) ** 3


class Script(gradest.Key):
    """A key whose noise is given: numbers[stream]."""

    def __init__(self, *numbers, stream=0):
        super().__init__(0, None, stream)
        object.__setattr__(self, "numbers", numbers)

    def with_stream(self, stream):
        return Script(*self.numbers, stream=stream)

    def uniform(self, batch_shape, event_shape, draws=1, **_):
        return self.numbers[self.stream].expand(draws, *batch_shape, *event_shape)


def cells(a, draws, picks):
    """The noise `[draws, n, units]`, the number that picks a unit `[1, n]`, and the probabilities of the n cells."""
    q = sigmoid(-a.abs())
    middles = torch.stack([q / 2, torch.full_like(q, 0.5), 1 - q / 2])
    lengths = torch.stack([q, 1 - 2 * q, q])
    at = torch.tensor(list(itertools.product(range(3), repeat=draws * len(a)))).reshape(-1, draws, len(a))
    unit = torch.arange(len(a))
    noise, weight = middles[at, unit], lengths[at, unit].flatten(1).prod(1)
    pick = (torch.arange(picks, dtype=torch.float64) + 0.5) / picks
    return noise.movedim(0, 1).repeat(1, picks, 1), pick.repeat_interleave(len(at))[None], weight.repeat(picks) / picks


def over_all(f, a, neuron, estimator, draws=1, picks=1, state=None):
    """E of the gradient, E of the value, and E of the gradient's square."""
    noise, pick, weight = cells(a, draws, picks)
    state = estimator.init(neuron, a) if state is None else state
    draw = estimator.forward(neuron, a.expand(len(weight), -1), Script(noise, pick), state)
    points = draw.points.clone().requires_grad_()
    loss = f(points)
    (grad,) = torch.autograd.grad(loss.sum(), points)
    feedback = gradest.Feedback(loss.detach(), grad if "grad" in estimator.needs else None)
    gradient, _ = estimator.backward(draw, feedback, state)
    value = estimator.value(draw, feedback.loss)
    return weight @ gradient, weight @ value, weight @ gradient**2


def logits(units):
    return torch.tensor(LOGITS[:units], dtype=torch.float64)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("units", [1, 2, 3])
@pytest.mark.parametrize(
    ("spec", "picks"),
    [
        ("disarm", 1),
        ("arm", 1),
        ("local_expectation", 1),
        ("smoothed_perturbation", 1),
        ({"name": "smoothed_perturbation", "side": "right"}, 1),
        ({"name": "smoothed_perturbation", "side": "left"}, 1),
        ("muprop", 1),
        ("bitflip", 6),  # a multiple of the number of units to pick from, 1 to 3
        ("ugc", 6),
        ({"name": "ugc", "threshold": 0.3}, 6),
        ({"name": "ugc", "threshold": 0.5}, 6),
        ({"name": "ugc", "threshold": 0.0}, 6),
    ],
    ids=str,
)
def test_the_mean_is_the_gradient(spec, picks, units, neuron):
    neuron, a = gradest.neuron(neuron), logits(units)
    gradient, value, _ = over_all(curved, a, neuron, gradest.estimator(spec), picks=picks)
    loss, truth = gradest.exact(curved, a, neuron)
    assert torch.allclose(gradient, truth, rtol=1e-11)
    assert torch.allclose(value, loss, rtol=1e-11)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize(("samples", "units"), [(2, 1), (2, 2), (3, 2), (2, 3)])
@pytest.mark.parametrize("alpha", [0.0, -1.3])
def test_double_cv_has_the_gradient_as_its_mean_at_any_alpha(alpha, samples, units, neuron):
    neuron, a = gradest.neuron(neuron), logits(units)
    state = {"alpha": torch.tensor(alpha, dtype=torch.float64), "curvature": torch.tensor(1.0, dtype=torch.float64)}
    estimator = gradest.estimator("double_cv", samples=samples)
    gradient, value, _ = over_all(curved, a, neuron, estimator, draws=samples, state=state)
    loss, truth = gradest.exact(curved, a, neuron)
    assert torch.allclose(gradient, truth, rtol=1e-10)
    assert torch.allclose(value, loss, rtol=1e-10)


def rodeo_state(estimator, neuron, a, **averages):
    """A state in which every part does something; with these centres and spreads of what the network sees."""
    state = estimator.init(neuron, a)
    numbers = {"outer": 0.8, "linear": 1.1, "constant": 0.3, "alpha": 0.4}
    state |= {name: state[name] + value for name, value in numbers.items()}
    given = {"weight": 0.5, "spread": 2.0, "first": [0.9, -0.3], "second": [4.0, 1.5]} | averages
    return state | {name: torch.tensor(value, dtype=torch.float64) for name, value in given.items()}


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize(("samples", "units"), [(2, 1), (2, 2), (3, 2), (2, 3)])
def test_rodeo_has_the_gradient_as_its_mean_at_any_state(samples, units, neuron):
    neuron, a, estimator = gradest.neuron(neuron), logits(units), gradest.estimator("rodeo", samples=samples)
    state = rodeo_state(estimator, neuron, a)
    gradient, value, square = over_all(curved, a, neuron, estimator, draws=samples, state=state)
    loss, truth = gradest.exact(curved, a, neuron)
    assert torch.allclose(gradient, truth, rtol=1e-12, atol=1e-12)
    assert torch.allclose(value, loss, rtol=1e-12)
    rloo = over_all(curved, a, neuron, gradest.estimator("rloo", samples=samples), draws=samples)[2]
    assert not torch.allclose(square, rloo, rtol=0.05)  # the control variates are no small correction


@pytest.mark.parametrize("neuron", NEURONS)
def test_reinmax_is_exact_for_quadratics_and_no_further(neuron):
    neuron, a, reinmax = gradest.neuron(neuron), logits(3), gradest.estimator("reinmax")
    w = torch.tensor([1.1, -0.7, 0.4], dtype=torch.float64)
    for power, exact in ((1, True), (2, True), (3, False)):

        def f(h, power=power):
            return ((h * w).sum(-1) - 0.6) ** power

        gradient, _, _ = over_all(f, a, neuron, reinmax)
        _, truth = gradest.exact(f, a, neuron)
        assert torch.allclose(gradient, truth, rtol=1e-11) is exact


# --- arms ----------------------------------------------------------------------------------------------------------------------


def pattern_probability(rare, q):
    """P(exactly these samples take the rarer output): d_k > c for them alone, and P(d > c on a set S) = (1 - |S|c)₊^(K-1)."""
    K = len(rare)
    c = 1 - q ** (1 / (K - 1))
    outside = [k for k in range(K) if not rare[k]]
    total = 0.0
    for n in range(len(outside) + 1):  # inclusion and exclusion
        size = sum(rare) + n
        total += (-1) ** n * math.comb(len(outside), n) * max(0.0, 1 - size * c) ** (K - 1)
    return total


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize(
    ("samples", "logits"), [(2, [0.4, -0.9]), (3, [0.4, -0.9]), (3, [2.2]), (5, [-0.2]), (4, [0.0])]
)
def test_the_mean_of_arms_is_the_gradient(samples, logits, neuron):
    """Every pattern of outputs of K samples, by its probability under the Dirichlet copula."""
    neuron, a = gradest.neuron(neuron), torch.tensor(logits, dtype=torch.float64)
    estimator = gradest.estimator("arms", samples=samples)
    patterns = list(itertools.product([False, True], repeat=samples))
    gradient, mass = torch.zeros_like(a), 0.0
    for joint in itertools.product(patterns, repeat=len(a)):
        weight = math.prod(
            pattern_probability(rare, q) for rare, q in zip(joint, sigmoid(-a.abs()).tolist(), strict=True)
        )
        high = (a < 0) == torch.tensor(joint).T
        points = torch.where(high, neuron.high, neuron.low).double()
        draw = gradest.Draw(neuron, a, gradest.Key(0), points, torch.ones(samples))
        part, _ = estimator.backward(draw, gradest.Feedback(curved(points)), {})
        gradient += weight * part
        mass += weight
    assert mass == pytest.approx(1)
    assert torch.allclose(gradient, gradest.exact(curved, a, neuron)[1], rtol=1e-10)


@pytest.mark.parametrize("samples", [2, 3, 6])
def test_samples_of_arms_have_the_neurons_law_and_the_stated_joint_one(samples):
    a = torch.tensor([0.0, 0.4, -0.9, 2.2, -3.0], dtype=torch.float64)
    rows = 40_000
    draw = gradest.estimator("arms", samples=samples).forward(
        gradest.neuron("bernoulli"), a.expand(rows, -1), gradest.Key(1), {}
    )
    p = sigmoid(a)
    q = torch.minimum(p, 1 - p)
    J = (2 * q ** (1 / (samples - 1)) - 1).clamp(min=0) ** (samples - 1) + (2 * p - 1).clamp(
        min=0
    )  # the source's two cases
    for found, wanted in ((draw.points[0], p), (draw.points[-1], p), (draw.points[0] * draw.points[1], J)):
        assert torch.all((found.mean(0) - wanted).abs() <= 5 * (wanted * (1 - wanted) / rows).sqrt() + 1e-12)


def test_arms_of_two_samples_is_disarm():
    neuron, a = gradest.neuron("bernoulli"), torch.tensor([[0.4, -0.9, 2.2]], dtype=torch.float64).expand(50, -1)
    disarm, arms = gradest.estimator("disarm"), gradest.estimator("arms", samples=2)
    draw = disarm.forward(neuron, a, gradest.Key(1), {})
    feedback = gradest.Feedback(curved(draw.points))
    assert torch.allclose(arms.backward(draw, feedback, {})[0], disarm.backward(draw, feedback, {})[0])


# --- variances -----------------------------------------------------------------------------------------------------------------


def variance(spec, a, picks=1, draws=1):
    """The exact variance, a unit."""
    mean, _, square = over_all(curved, a, gradest.neuron("bernoulli"), gradest.estimator(spec), draws, picks)
    return square - mean**2


def test_disarm_on_two_hundred_units():
    """f = mean (b - .499)², θ = 0: the published variance per coordinate."""
    toy = gradest.objective("quadratic", target=0.499)
    found = gradest.estimate(toy, torch.zeros(200, dtype=torch.float64), estimator="disarm", draws=4000, seed=1)
    assert found.variance.mean().item() == pytest.approx(1.25e-9, rel=0.03)
    z = (found.gradient - 2.5e-6) / found.standard_error
    assert z.square().mean().item() == pytest.approx(1, abs=0.5)


def test_disarm_has_less_variance_than_arm_and_rloo():
    """For each unit; against rloo by the exact variances."""
    a = logits(3)
    disarm = variance("disarm", a)
    assert torch.all(disarm < 0.98 * variance("rloo", a, draws=2))
    sampled, arm = (
        gradest.estimate(curved, a, estimator=name, draws=20_000, seed=1).variance for name in ("disarm", "arm")
    )
    assert torch.allclose(sampled, disarm, rtol=0.05)
    assert torch.all(disarm < 0.9 * arm)


def test_more_pairs_have_less_variance():
    a = logits(3)
    assert torch.allclose(variance({"name": "disarm", "samples": 4}, a, draws=2), variance("disarm", a) / 2, rtol=1e-9)


def test_arms_has_less_variance_than_independent_samples():
    a = logits(3)
    arms, rloo = (
        gradest.estimate(curved, a, estimator={"name": name, "samples": 4}, draws=20_000, seed=1).variance
        for name in ("arms", "rloo")
    )
    assert torch.all(arms < 0.9 * rloo)


@pytest.mark.parametrize(
    ("spec", "picks"),
    [("smoothed_perturbation", 1), ({"name": "smoothed_perturbation", "side": "left"}, 1), ("bitflip", 3)],
    ids=str,
)
def test_local_expectation_has_less_variance_than_other_flips(spec, picks):
    assert torch.all(variance("local_expectation", logits(3)) < variance(spec, logits(3), picks))


@pytest.mark.parametrize("name", ["local_expectation", "muprop"])
def test_no_variance_on_a_linear_loss(name):
    linear, bipolar = gradest.objective("linear"), gradest.neuron("bipolar")
    mean, _, square = over_all(linear, logits(3), bipolar, gradest.estimator(name))
    assert torch.allclose(square, mean**2, rtol=1e-12)


def test_ugc_beats_disarm_near_saturation():
    a = torch.logit(torch.tensor([0.01, 0.99, 0.01, 0.5], dtype=torch.float64))  # τ = 1/8
    ugc, disarm, bitflip = variance("ugc", a, 3), variance("disarm", a), variance("bitflip", a, 4)
    assert torch.all(ugc[:3] < 0.2 * disarm[:3])
    assert torch.all(ugc[:3] < bitflip[:3])  # one of three is picked, not one of four
    assert torch.allclose(ugc[3], disarm[3])


# --- double_cv -----------------------------------------------------------------------------------------------------------------


def test_double_cv_falls_below_rloo_on_the_toy():
    """By a little, for dL/dh says little there; the same seed gives both the same points, so that it shows."""
    toy, a = gradest.objective("quadratic", target=0.499), torch.zeros(200, dtype=torch.float64)
    rloo = gradest.estimate(toy, a, estimator="rloo", draws=2000, seed=1).variance.mean()
    learned = gradest.estimate(toy, a, estimator="double_cv", draws=2000, seed=1, warm_up=200)
    assert learned.variance.mean() < rloo * (1 - 0.001)
    assert learned.state["alpha"].item() == pytest.approx(-1.6e-3, rel=0.2)  # -(1.25e-9) / (7.8e-7), var A and var B


def test_double_cv_falls_far_below_rloo_where_the_derivative_tells():
    a = torch.linspace(-1, 1, 50, dtype=torch.float64)

    def f(h):
        return (h.sum(-1) - 30) ** 2

    rloo = gradest.estimate(f, a, estimator="rloo", draws=2000, seed=1)
    learned = gradest.estimate(f, a, estimator="double_cv", draws=2000, seed=1)
    assert learned.variance.mean() < 0.25 * rloo.variance.mean()


def test_double_cv_learns_the_minimiser_of_its_square_from_earlier_steps():
    neuron, a, decay = gradest.neuron("bernoulli"), logits(3), 0.8
    estimator = gradest.estimator("double_cv", decay=decay)
    state = estimator.init(neuron, a)
    assert state["alpha"] == 0  # rloo
    products = squares = 0.0
    for step in range(4):
        draw = estimator.forward(neuron, a, gradest.Key(step), state)
        points = draw.points.clone().requires_grad_()
        loss = curved(points)
        feedback = gradest.Feedback(loss.detach(), torch.autograd.grad(loss.sum(), points)[0])
        fixed = {value: {**state, "alpha": torch.full_like(state["alpha"], value)} for value in (0.0, 1.0)}
        first, both = (estimator.backward(draw, feedback, fixed[value])[0] for value in (0.0, 1.0))
        second = both - first
        gradient, after = estimator.backward(draw, feedback, state)
        assert torch.allclose(gradient, first + state["alpha"] * second)  # not the next one
        assert torch.allclose(first, gradest.estimator("rloo").backward(draw, feedback, {})[0])
        products, squares = decay * products + first @ second, decay * squares + second @ second
        assert torch.allclose(after["alpha"], -products / squares)
        state = after


def test_double_cv_keeps_its_state_over_an_empty_batch():
    neuron, a, estimator = gradest.neuron("bernoulli"), torch.zeros(0, 3), gradest.estimator("double_cv")
    state = {"alpha": torch.tensor(-0.5), "curvature": torch.tensor(2.0)}
    draw = estimator.forward(neuron, a, gradest.Key(1), state)
    feedback = gradest.Feedback(torch.zeros(2, 0), torch.zeros(2, 0, 3))
    assert estimator.backward(draw, feedback, state)[1] == state


# --- rodeo ---------------------------------------------------------------------------------------------------------------------


def feedback_of(f, draw):
    points = draw.points.clone().requires_grad_()
    loss = f(points)
    return gradest.Feedback(loss.detach(), torch.autograd.grad(loss.sum(), points)[0])


@pytest.mark.parametrize("samples", [2, 3])
def test_rodeo_by_hand(samples):
    """The formula term by term, with the Stein operator written out for functions of y alone."""
    neuron, a = gradest.neuron("bipolar"), logits(3)
    estimator = gradest.estimator("rodeo", samples=samples, hidden=2)
    state = rodeo_state(estimator, neuron, a)
    draw = estimator.forward(neuron, a, gradest.Key(5), state)
    feedback = feedback_of(curved, draw)
    h, loss, grad, p = draw.points, feedback.loss, feedback.grad, sigmoid(a)
    centre = state["first"] / 0.5
    scale = (state["second"] / 0.5 - centre**2).sqrt()

    def others(k):
        return [j for j in range(samples) if j != k]

    def surrogate(k, y):
        level = sum(loss[j] for j in others(k)) / (samples - 1)
        seen = sum(grad[j] @ (y - h[j]) for j in others(k)) / (samples - 1)
        x = ((torch.stack([level, seen]) - centre) / scale).clamp(-30, 30) / 2**0.5
        hidden = torch.tanh(state["inner"][:, :2] @ x + state["inner"][:, 2])
        return 3 * 2.0 * (state["constant"] + state["linear"] @ x + state["outer"] @ hidden / 2**0.5)

    def stein(g, y):
        total = 0.0
        for i in range(3):
            flipped = y.clone()
            flipped[i] *= -1
            total = total + torch.where(y[i] > 0, 1 - p[i], p[i]) * (g(flipped) - g(y)) / 3
        return total

    wanted = torch.zeros(3, dtype=torch.float64)
    for k in range(samples):
        baseline = sum(loss[j] + 1.4 * stein(lambda y, j=j: surrogate(j, y), h[j]) for j in others(k)) / (samples - 1)
        vector = stein(lambda y, k=k: surrogate(k, y) * neuron.score(y, a), h[k])
        wanted += ((loss[k] - baseline) * neuron.score(h[k], a) + vector) / samples
    assert torch.allclose(estimator.backward(draw, feedback, state)[0], wanted, rtol=1e-12)


def test_rodeo_starts_as_rloo():
    neuron, a, estimator = gradest.neuron("bernoulli"), logits(3).expand(20, 3), gradest.estimator("rodeo", samples=4)
    draw = estimator.forward(neuron, a, gradest.Key(1), estimator.init(neuron, a))
    gradient, _ = estimator.backward(draw, feedback_of(curved, draw), estimator.init(neuron, a))
    wanted, _ = gradest.estimator("rloo", samples=4).backward(draw, feedback_of(curved, draw), {})
    assert torch.allclose(gradient, wanted, rtol=1e-12)


def test_what_rodeo_leaves_of_a_linear_loss():
    """With H = D/2 (the loss as the other sample sees it - E[L]) and α = 2, ½ score (L(h) - L(h flipped))."""
    neuron, a, w = gradest.neuron("bernoulli"), logits(3), torch.tensor([1.1, -0.7, 0.4], dtype=torch.float64)
    estimator, centre = gradest.estimator("rodeo", hidden=0), float(sigmoid(a) @ w)
    state = rodeo_state(estimator, neuron, a, weight=1.0, spread=1.0, first=[centre, 0.0], second=[1 + centre**2, 1.0])
    state |= {"linear": torch.full((2,), 2**-0.5, dtype=torch.float64)}
    state |= {name: torch.tensor(value, dtype=torch.float64) for name, value in (("constant", 0.0), ("alpha", 2.0))}
    draw = estimator.forward(neuron, a.expand(20, 3), gradest.Key(1), state)
    gradient, _ = estimator.backward(draw, feedback_of(lambda h: (h * w.to(h)).sum(-1), draw), state)
    assert torch.allclose(gradient, (draw.points - sigmoid(a)).abs().mean(0) * w / 2, rtol=1e-10)


def rows_of(f, a, estimator, steps, rows=8):
    """The state after some steps on a batch of rows."""
    estimator, state, a = gradest.estimator(estimator), None, a.expand(rows, -1).clone().requires_grad_()
    for seed in range(steps):
        _, state = gradest.expect(f, a, estimator=estimator, seed=seed, state=state)
    return state


def mean_variance(f, a, estimator, state=None):
    return gradest.estimate(f, a, estimator=estimator, draws=2000, seed=1, state=state).variance.mean().item()


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_rodeo_falls_far_below_rloo_and_double_cv(size):
    """Of single precision, and the same for a loss of any size."""
    a = torch.linspace(-1, 1, 50)

    def f(h):
        return size * (h.sum(-1) - 30) ** 2

    rodeo = mean_variance(f, a, "rodeo", rows_of(f, a, "rodeo", 50))
    assert rodeo < 0.15 * mean_variance(f, a, "rloo")
    assert rodeo < 0.7 * mean_variance(f, a, "double_cv")


def test_rodeo_knows_the_level_where_the_derivative_says_nothing():
    toy, a = gradest.objective("quadratic", target=0.499), torch.zeros(200)
    spec = {"name": "rodeo", "samples": 3, "hidden": 0}
    rloo = mean_variance(toy, a, {"name": "rloo", "samples": 3})
    assert mean_variance(toy, a, spec, rows_of(toy, a, spec, 60)) == pytest.approx(2 / 3 * rloo, rel=0.07)


def test_rodeo_keeps_averages_of_what_its_network_sees():
    neuron, a, estimator = gradest.neuron("bernoulli"), logits(3).expand(5, 3), gradest.estimator("rodeo", decay=0.8)
    state = rodeo_state(estimator, neuron, a)
    draw = estimator.forward(neuron, a, gradest.Key(2), state)
    feedback = feedback_of(curved, draw)
    _, after = estimator.backward(draw, feedback, state)
    (one, two), (up, down), apart = feedback.loss, feedback.grad, draw.points[0] - draw.points[1]
    seen = torch.stack([torch.cat([two, one]), torch.cat([(down * apart).sum(-1), -(up * apart).sum(-1)])], -1)
    assert after["weight"].item() == pytest.approx(0.8 * 0.5 + 0.2)
    assert after["spread"].item() == pytest.approx(0.8 * 2 + 0.2 * ((one - two) ** 2 / 2).mean().item())
    assert torch.allclose(after["first"], 0.8 * state["first"] + 0.2 * seen.mean(0))
    assert torch.allclose(after["second"], 0.8 * state["second"] + 0.2 * (seen**2).mean(0))


def test_a_constant_loss_teaches_rodeo_nothing():
    a, state = torch.zeros(4, 3), None
    for seed in range(3):
        value, state = gradest.expect(
            lambda h: 0 * h.sum(-1) + 0.1, a.requires_grad_(), estimator="rodeo", seed=seed, state=state
        )
        (gradient,) = torch.autograd.grad(value.sum(), a)
        assert torch.equal(gradient, torch.zeros(4, 3))
    assert all(torch.isfinite(value).all() for value in state.values())
    assert not state["linear"].any()


# --- points --------------------------------------------------------------------------------------------------------------------


def test_an_antithetic_pair_is_one_noise_and_its_mirror():
    neuron, a = gradest.neuron("bipolar"), torch.tensor([0.4, -0.9])
    draw = gradest.estimator("disarm").forward(neuron, a, gradest.Key(3), {})
    noise = neuron.noise(gradest.Key(3), a, 1)[0]
    assert torch.equal(draw.points[0], torch.where(noise < sigmoid(a), 1.0, -1.0))
    assert torch.equal(draw.points[1], torch.where(noise > 1 - sigmoid(a), 1.0, -1.0))
    with pytest.raises(gradest.errors.InvalidOptions, match="multiple of 2"):
        gradest.estimator("disarm", samples=3)


@pytest.mark.parametrize("name", ["bitflip", "ugc"])
def test_the_flipped_unit_is_any_of_those_it_may_be(name):
    rows, a = 9000, torch.tensor([-8.0, 0.0, 8.0, 7.0])
    draw = gradest.estimator(name).forward(gradest.neuron("bernoulli"), a.expand(rows, -1), gradest.Key(1), {})
    flipped = draw.points[0] != draw.points[-1]
    assert torch.all(flipped.sum(-1) == 1)
    units = torch.tensor([1.0, 1, 1, 1] if name == "bitflip" else [1.0, 0, 1, 1])  # 0.0 is not near saturation
    share = units / units.sum()
    assert torch.all((flipped.float().mean(0) - share).abs() <= 5 * (share * (1 - share) / rows).sqrt())


def test_ugc_flips_nothing_where_nothing_is_near_saturation():
    draw = gradest.estimator("ugc").forward(gradest.neuron("bernoulli"), torch.zeros(5, 3), gradest.Key(1), {})
    assert torch.equal(draw.points[2], draw.points[0])


def test_arm_by_hand():
    """By its mean alone any constant would do for ½."""
    neuron, a = gradest.neuron("bernoulli"), torch.tensor([0.4, -0.9])
    draw = gradest.estimator("arm").forward(neuron, a, gradest.Key(3), {})
    gradient, _ = gradest.estimator("arm").backward(draw, gradest.Feedback(torch.tensor([3.0, 1.0])), {})
    assert torch.equal(gradient, -2 * (neuron.noise(gradest.Key(3), a, 1)[0] - 0.5))


def test_the_sides_of_smoothed_perturbation_by_hand():
    """On the right a low unit can flip, at the rate p, and on the left a high one, at the rate 1 - p; each alone is unbiased."""
    neuron, a = gradest.neuron("bernoulli"), torch.tensor([0.4, -0.9])
    draw = gradest.Draw(neuron, a, gradest.Key(0), torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), torch.ones(3))
    feedback, p = gradest.Feedback(torch.tensor([5.0, 2.0, 9.0])), sigmoid(a)
    left, right = (1 - p[0]) * (5 - 2), p[1] * (9 - 5)
    for side, wanted in (("right", [0, right]), ("left", [left, 0]), ("both", [left / 2, right / 2])):
        gradient, _ = gradest.estimator("smoothed_perturbation", side=side).backward(draw, feedback, {})
        assert torch.allclose(gradient, torch.tensor(wanted))


@pytest.mark.parametrize(
    "name", ["disarm", "local_expectation", "bitflip", "ugc", "muprop", "arms", "double_cv", "rodeo", "reinmax"]
)
def test_an_event_without_units(name):
    loss, _ = gradest.expect(lambda h: h.sum(-1) + 3, torch.zeros(2, 0, requires_grad=True), estimator=name)
    assert loss.tolist() == [3.0, 3.0]
