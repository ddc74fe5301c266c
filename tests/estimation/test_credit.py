"""credit and score_surrogate: weights by formula, expectations by enumeration, and samplers of one's own."""

import itertools
import math
import warnings

import pytest
import torch
from torch.func import grad, jacrev, vmap

import gradest
from gradest.contract.score_function import ScoreFunction
from gradest.errors import Incompatible, InvalidInput, PluginFault

LOSS = torch.tensor([[0.3, -2.0], [1.1, 0.4], [-0.7, 0.4], [2.5, 3.0]], dtype=torch.float64)
LENGTH = torch.tensor([[1.0, 3.0], [2.0, 0.0], [5.0, 4.0], [1.0, 2.0]], dtype=torch.float64)
INPUTS = torch.tensor([[0.5, -1.0, 0.2], [1.5, 0.3, -0.4]], dtype=torch.float64)

FORMULAS = {
    "reinforce": lambda x: x / 4,
    "reinforce_average": lambda x: x / 4,
    "nvil": lambda x: x / 4,
    "rloo": lambda x: torch.stack([x[k] - (x.sum(0) - x[k]) / 3 for k in range(4)]) / 4,
    "dr_grpo": lambda x: (x - x.mean(0)) / 4,
    "grpo": lambda x: (x - x.mean(0)) / (x.std(0) + 1e-6) / 4,
    "opo": lambda x: (x - (LENGTH * x).sum(0) / LENGTH.sum(0)) / 4,
    "otb": lambda x: (x - (LENGTH * x).sum(0) / LENGTH.sum(0)) / 4,
}
FEATURES = {"nvil": INPUTS, "opo": LENGTH, "otb": LENGTH}


def bound(loss):
    return -torch.logsumexp(-loss, 0) + math.log(len(loss))


def best(loss, k):
    """The mean of the least loss over all subsets of k samples."""
    subsets = itertools.combinations(range(len(loss)), k)
    return torch.stack([loss[list(subset)].amin(0) for subset in subsets]).mean(0)


def score_functions():
    """The registered score-function estimators with each of their examples."""
    classes = [cls for cls in gradest.registry.estimators.values() if issubclass(cls, ScoreFunction)]
    return [cls.build(**options) for cls in classes for options in cls.examples]


def unbiased_score_functions():
    """Those of them that claim no bias, whatever their target."""
    return [built for built in score_functions() if built.bias(gradest.neuron("categorical")).unbiased]


@pytest.mark.parametrize("name", FORMULAS)
def test_weights_by_their_formula(name):
    weights, state = gradest.credit(name, LOSS, features=FEATURES.get(name))
    torch.testing.assert_close(weights, FORMULAS[name](LOSS), rtol=1e-12, atol=1e-14)
    assert bool(state) == (name in ("reinforce_average", "nvil"))


def test_weights_of_vimco_by_its_formula():
    for baseline, mean in (("geometric", lambda x: x.mean(0)), ("arithmetic", bound)):
        weights, _ = gradest.credit({"name": "vimco", "baseline": baseline}, LOSS)
        for k in range(4):
            others = torch.cat([LOSS[:k], LOSS[k + 1 :]])
            replaced = torch.cat([others, mean(others)[None]])
            torch.testing.assert_close(weights[k], bound(LOSS) - bound(replaced), rtol=1e-12, atol=1e-14)


def test_a_moving_average_counts_from_the_second_step_on():
    _, state = gradest.credit("reinforce_average", LOSS)
    weights, _ = gradest.credit("reinforce_average", LOSS, state)
    torch.testing.assert_close(weights, (LOSS - LOSS.mean()) / 4)


def test_nvil_learns_its_baseline_from_the_features():
    """Of losses that are a function of the features, it learns all but rounding; 500 steps leave under a tenth."""
    estimator, state = {"name": "nvil", "learning_rate": 0.05}, None
    generator = torch.Generator().manual_seed(0)
    for _ in range(500):
        x = torch.randn(16, 2, generator=generator)
        loss = (3 * x[:, 0] + 1).expand(4, 16)
        weights, state = gradest.credit(estimator, loss, state, x)
    assert float(4 * weights.abs().mean()) < 0.1 * float(loss.abs().mean())


# --- expectations, by enumeration of every group of K samples ---

K = 3
OUTCOME_LOSS = torch.tensor([0.2, -1.0, 0.9, 1.7], dtype=torch.float64)
OUTCOME_LENGTH = torch.tensor([1.0, 4.0, 2.0, 3.0], dtype=torch.float64)
THETA = torch.tensor([0.4, -0.3, 0.1, 0.8], dtype=torch.float64)
GROUPS = torch.cartesian_prod(*[torch.arange(4)] * K).T  # [K, 64]


def group_probability(theta):
    return torch.softmax(theta, -1)[GROUPS].prod(0)


def gradient_of(value):
    """The gradient in the logits of Σ_groups P(group) value(group)."""
    theta = THETA.clone().requires_grad_()
    return torch.autograd.grad((group_probability(theta) * value).sum(), theta)[0]


def expected_gradient(estimator, loss, state=None, features=None):
    """E[Σ_k weights_k score_k], by autograd of score_surrogate at every group; it must be what the weights of credit say."""
    theta = THETA.clone().requires_grad_()
    log_prob = torch.log_softmax(theta, -1)[GROUPS]
    value, _ = gradest.score_surrogate(log_prob, loss, estimator, state, features)
    (found,) = torch.autograd.grad((group_probability(THETA) * value).sum(), theta)
    weights, _ = gradest.credit(estimator, loss, state, features)
    score = torch.eye(4, dtype=torch.float64)[GROUPS] - torch.softmax(THETA, -1)
    torch.testing.assert_close(found, torch.einsum("n,kn,knc->c", group_probability(THETA), weights, score))
    return found


PLAIN = gradient_of(OUTCOME_LOSS[GROUPS].mean(0))


@pytest.mark.parametrize("estimator", unbiased_score_functions(), ids=lambda estimator: estimator.label())
def test_those_without_bias_estimate_their_target(estimator):
    """With any K; those with a state in their second step."""
    given = {name: getattr(estimator, name) for name in estimator.model_fields_set - {"samples"}}
    spec, loss = {"name": estimator.name, **given}, OUTCOME_LOSS[GROUPS]
    features = {
        "nvil": torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(64, 2),
        "opo": OUTCOME_LENGTH[GROUPS],
        "otb": OUTCOME_LENGTH[GROUPS],
    }.get(estimator.name)
    if estimator.name == "nvil":  # what is known before the samples are drawn is the same for every group
        features = features[:1].expand(64, 2)
    _, state = gradest.credit(spec, loss + 1, features=features)
    target = type(estimator).build(**given, samples=K).target()
    parts = loss if target.samples == 1 else torch.stack(list(loss)[: target.samples])
    wanted = PLAIN if target.samples == 1 else gradient_of(target.combine(parts))
    torch.testing.assert_close(expected_gradient(spec, loss, state, features), wanted, rtol=1e-10, atol=1e-12)


def test_dr_grpo_estimates_a_fraction_of_the_gradient():
    torch.testing.assert_close(expected_gradient("dr_grpo", OUTCOME_LOSS[GROUPS]), (K - 1) / K * PLAIN)


@pytest.mark.parametrize("name", ["opo", "otb"])
def test_opo_estimates_the_loss_less_a_share_of_its_baseline(name):
    loss, length = OUTCOME_LOSS[GROUPS], OUTCOME_LENGTH[GROUPS]
    baseline = (length * loss).sum(0) / length.sum(0)
    wanted = gradient_of(loss.mean(0) - baseline / K)
    found = expected_gradient(name, loss, features=length)
    torch.testing.assert_close(found, wanted)
    assert not torch.allclose(found, (K - 1) / K * PLAIN, rtol=0.01)
    equal = expected_gradient(name, loss, features=torch.ones_like(length))
    torch.testing.assert_close(equal, (K - 1) / K * PLAIN)


def test_grpo_rescales_the_gradient_of_a_probability():
    """For losses 0 and 1 by c_K(q), from the binomial law of the other K - 1 losses; it tends to 1/√(q(1-q))."""
    binary = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    q = float(torch.softmax(THETA, -1) @ binary)

    def factor(samples):
        total = 0.0
        for ones in range(samples):
            chance = math.comb(samples - 1, ones) * q**ones * (1 - q) ** (samples - 1 - ones)
            group = torch.tensor([0.0] * (samples - 1 - ones) + [1.0] * ones, dtype=torch.float64)
            one, zero = (float(first_weight_of_grpo(torch.cat([group.new_tensor([x]), group]))) for x in (1.0, 0.0))
            total += samples * chance * (one - zero)
        return total

    found = expected_gradient("grpo", binary[GROUPS])
    torch.testing.assert_close(found, factor(K) * gradient_of(binary[GROUPS].mean(0)), rtol=1e-5, atol=0)
    assert factor(400) == pytest.approx((q * (1 - q)) ** -0.5, rel=0.01)
    assert abs(factor(K) / (q * (1 - q)) ** -0.5 - 1) > 0.1


def first_weight_of_grpo(x):
    """The weight of the first sample of a group."""
    return ((x - x.mean()) / (x.std() + 1e-6))[0] / len(x)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_pass_at_k_by_its_definition(k):
    """Its weights are the mean over all subsets of what a sample adds, its value the mean least loss; ties included."""
    loss = torch.tensor([[1.0, 0.3, 1.0, -2.0, 0.7], [0.0, 1.0, 1.0, 0.0, 1.0]], dtype=torch.float64).T
    weights, _ = gradest.credit({"name": "pass_at_k", "k": k}, loss)
    wanted = torch.zeros_like(loss)
    for subset in itertools.combinations(range(5), k):
        for i in subset:
            rest = [j for j in (subset if k > 1 else range(5)) if j != i]
            other = loss[rest].amin(0) if k > 1 else loss[rest].mean(0)
            wanted[i] += (loss[list(subset)].amin(0) - other) / math.comb(5, k)
    torch.testing.assert_close(weights, wanted)
    value, _ = gradest.score_surrogate(torch.zeros_like(loss), loss, {"name": "pass_at_k", "k": k})
    torch.testing.assert_close(value, best(loss, k))


@pytest.mark.parametrize("k", [2, 3])
def test_the_expectation_of_pass_at_k_is_the_gradient_of_the_best_of_k(k):
    found = expected_gradient({"name": "pass_at_k", "k": k}, OUTCOME_LOSS[GROUPS])
    torch.testing.assert_close(found, gradient_of(OUTCOME_LOSS[GROUPS][:k].amin(0)))


def test_pass_at_k_is_rloo_for_k_of_one():
    torch.testing.assert_close(gradest.credit({"name": "pass_at_k", "k": 1}, LOSS)[0], gradest.credit("rloo", LOSS)[0])


def test_pass_at_k_of_many_samples():
    """Binomial coefficients of 1024 exceed every float; the weights and the value do not."""
    right = torch.zeros(1024, dtype=torch.float64)
    right[:9] = 1
    estimator = {"name": "pass_at_k", "k": 500}
    weights, _ = gradest.credit(estimator, 1 - right)
    wrong = math.comb(1015, 499) / math.comb(1024, 500)  # exact integers, divided
    torch.testing.assert_close(weights[:9], torch.full((9,), -wrong, dtype=torch.float64))
    assert bool((weights[9:] == 0).all())
    value, _ = gradest.score_surrogate(torch.zeros_like(right), 1 - right, estimator)
    assert float(value) == pytest.approx(math.comb(1015, 500) / math.comb(1024, 500))
    assert bool(torch.isfinite(gradest.credit(estimator, torch.linspace(-1e30, 1e30, 1024))[0]).all())


# --- a sampler of one's own: sequences of three tokens over a vocabulary of three ---

T, V = 3, 3
SEQUENCES = torch.cartesian_prod(*[torch.arange(V)] * T)  # [27, T]
PREFIX = torch.stack(
    [sum((SEQUENCES[:, s] + 1) * 4**s for s in range(t)) + torch.zeros(27, dtype=torch.long) for t in range(T)], -1
)  # a number for each prefix, [27, T]
PAIRS = torch.cartesian_prod(torch.arange(27), torch.arange(27)).T  # every group of two sequences, [2, 729]
TABLE = torch.randn(int(PREFIX.max()) + 1, V, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
DUE = torch.randn(V, V + 1, T, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
TOKEN_LOSS = torch.stack(
    [DUE[SEQUENCES[:, t], SEQUENCES[:, t - 1] + 1 if t else 0, t] + SEQUENCES[:, : t + 1].sum(-1) for t in range(T)], -1
)  # what is due at a token depends on it and on those before, [27, T]


def token_log_prob(table):
    return torch.log_softmax(table, -1)[PREFIX].gather(-1, SEQUENCES[..., None])[..., 0]


def exact_gradient_of_sequences(value):
    """The gradient in the table of logits of Σ_pairs P(pair) value(pair)."""
    table = TABLE.clone().requires_grad_()
    probability = token_log_prob(table).sum(-1)[PAIRS].sum(0).exp()
    return torch.autograd.grad((probability * value).sum(), table)[0]


def gradient_of_sampler(estimator, loss, features=None, state=None):
    table = TABLE.clone().requires_grad_()
    log_prob = token_log_prob(table)
    value, _ = gradest.score_surrogate(log_prob[PAIRS], loss, estimator, state, features)
    probability = log_prob.detach().sum(-1)[PAIRS].sum(0).exp()
    assert value.shape == (729,)
    return torch.autograd.grad((probability * value).sum(), table)[0]


def features_of_sequences(name, by_token):
    """For nvil the prefix, known before the token; for opo and otb the energy of the sequence so far."""
    if name == "nvil":
        known = torch.stack([PREFIX.double() / 9, torch.arange(3.0).expand(27, 3)], -1)
        return known[PAIRS] if by_token else known[:1, 0].expand(729, 2)
    if name in ("opo", "otb"):
        probability = torch.softmax(TABLE, -1)[PREFIX]
        chosen = probability.gather(-1, SEQUENCES[..., None])[..., 0]
        energy = (1 - 2 * chosen + probability.square().sum(-1)).cumsum(-1)
        return (energy if by_token else energy[:, -1])[PAIRS]
    return None


@pytest.mark.parametrize("by_token", [False, True], ids=["sequence", "token"])
@pytest.mark.parametrize("estimator", unbiased_score_functions(), ids=lambda estimator: estimator.label())
def test_a_sampler_of_sequences(estimator, by_token):
    """Every estimator without bias, for losses of sequences and for losses of tokens, over all 729 pairs of sequences."""
    given = {name: getattr(estimator, name) for name in estimator.model_fields_set - {"samples"}}
    spec, target = {"name": estimator.name, **given}, type(estimator).build(**given, samples=2).target()
    token_loss, total = TOKEN_LOSS[PAIRS], TOKEN_LOSS.sum(-1)[PAIRS]
    features = features_of_sequences(estimator.name, by_token)
    if by_token and target.samples > 1:
        with pytest.raises(Incompatible, match="cost-to-go does not apply"):
            gradest.score_surrogate(token_log_prob(TABLE)[PAIRS], token_loss, spec)
        return
    loss = token_loss if by_token else total
    _, state = gradest.credit(spec, loss + 2, features=features)
    wanted = exact_gradient_of_sequences(total.mean(0) if target.samples == 1 else target.combine(total))
    found = gradient_of_sampler(spec, loss, features, state)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-10)


def test_what_was_due_before_a_token_does_not_count_for_it():
    """The last token's gradient is that of its own loss, so a huge loss of the first token adds nothing to it."""
    huge = TOKEN_LOSS.clone()
    huge[:, 0] += 1e6 * SEQUENCES[:, 0]
    one, two = (gradient_of_sampler("reinforce", loss[PAIRS]) for loss in (TOKEN_LOSS, huge))
    last = PREFIX[:, 2].unique()
    assert torch.equal(one[last], two[last])
    assert not torch.allclose(one[0], two[0])


def test_a_loss_of_the_sequence_is_that_of_its_last_token():
    total = TOKEN_LOSS.sum(-1)[PAIRS]
    late = torch.zeros(2, 729, T, dtype=torch.float64)
    late[..., -1] = total
    torch.testing.assert_close(gradient_of_sampler("rloo", late), gradient_of_sampler("rloo", total))


def test_optimal_token_baseline_by_its_formula():
    """B_t = Σ_j W_jt G_jt / Σ_j W_jt at each token, with padding left out."""
    loss = torch.tensor([[[0.5, 1.0, 2.0], [1.0, 0.0, -1.0]], [[2.0, 0.3, 0.0], [0.2, 0.1, 0.4]]])  # [K=2, B=2, T]
    energy = torch.tensor([[[0.5, 0.7, 0.9], [0.2, 0.4, 0.6]], [[0.1, 0.3, 0.0], [0.3, 0.5, 0.6]]])
    log_prob = torch.zeros(2, 2, 3, requires_grad=True)
    value, _ = gradest.score_surrogate(log_prob, loss, "otb", features=energy)
    value.sum().backward()
    to_go = torch.stack([loss[..., t:].sum(-1) for t in range(3)], -1)
    baseline = (energy * to_go).sum(0) / energy.sum(0)
    torch.testing.assert_close(log_prob.grad, (to_go - baseline) / 2)
    torch.testing.assert_close(value.detach(), loss.sum(-1).mean(0))


@pytest.mark.parametrize("tokens", [True, None])
def test_whether_the_last_dim_is_that_of_tokens(tokens):
    """It is said, or it is inferred where both have the same shape and three dims."""
    loss = torch.arange(12.0).reshape(3, 1, 4) if tokens is None else torch.arange(12.0).reshape(3, 4)
    log_prob = torch.zeros_like(loss, requires_grad=True)
    value, _ = gradest.score_surrogate(log_prob, loss, "reinforce", tokens=tokens)
    assert value.shape == loss.shape[1:-1]
    value.sum().backward()
    torch.testing.assert_close(log_prob.grad, loss.flip(-1).cumsum(-1).flip(-1) / 3)
    plain = torch.zeros_like(loss, requires_grad=True)
    value, _ = gradest.score_surrogate(plain, loss, "reinforce", tokens=False)
    assert value.shape == loss.shape[1:]
    value.sum().backward()
    torch.testing.assert_close(plain.grad, loss / 3)


# --- the value, derivatives, transforms ---


def test_the_value_is_differentiable_in_the_loss():
    weight = torch.tensor(2.0, requires_grad=True)
    log_prob = torch.zeros(4, 2, requires_grad=True)
    loss = weight * LOSS.float()
    value, _ = gradest.score_surrogate(log_prob, loss, "vimco")
    torch.testing.assert_close(value.detach(), bound(loss.detach()))
    (2 * value.sum()).backward()
    torch.testing.assert_close(log_prob.grad, 2 * gradest.credit("vimco", loss)[0])
    share = torch.softmax(-loss.detach(), 0)
    torch.testing.assert_close(weight.grad, 2 * (share * LOSS.float()).sum())


@pytest.mark.parametrize("of", ["log_prob", "loss"])
def test_a_second_derivative_raises(of):
    """It would otherwise be 0, since the weights are constants to autograd."""
    leaves = {name: torch.randn(4, 2, requires_grad=True) for name in ("log_prob", "loss")}
    value, _ = gradest.score_surrogate(2 * leaves["log_prob"], leaves["loss"] ** 2, "rloo")
    (first,) = torch.autograd.grad(value.sum(), leaves["log_prob"], create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
        torch.autograd.grad(first.square().sum(), leaves[of])
    # the loss's own second derivative is the ordinary one
    (own,) = torch.autograd.grad(value.sum(), leaves["loss"], create_graph=True)
    (second,) = torch.autograd.grad(own.sum(), leaves["loss"])
    torch.testing.assert_close(second, torch.full((4, 2), 2 / 4))


def surrogate_of(estimator):
    return lambda log_prob, loss: gradest.score_surrogate(log_prob, loss, estimator)[0].sum()


STATELESS = ["reinforce", "rloo", "vimco", "grpo", "dr_grpo", "pass_at_k"]


@pytest.mark.parametrize("name", STATELESS)
def test_inside_torch_func(name):
    log_probs, losses = torch.randn(2, 5, 4, 3, generator=torch.Generator().manual_seed(0))
    wanted = torch.stack([gradest.credit(name, loss)[0] for loss in losses])
    torch.testing.assert_close(vmap(grad(surrogate_of(name)))(log_probs, losses), wanted)
    torch.testing.assert_close(vmap(lambda loss: gradest.credit(name, loss)[0])(losses), wanted)


def test_a_second_derivative_raises_in_torch_func():
    log_prob, loss = torch.randn(4, 2), torch.randn(4, 2)
    f = surrogate_of("rloo")
    for twice in (
        lambda: grad(lambda x: grad(f)(x, loss).sum())(log_prob),
        lambda: grad(lambda x: grad(f)(log_prob, x).sum())(loss),
        lambda: jacrev(jacrev(f))(log_prob, loss),
    ):
        with pytest.raises(RuntimeError, match="cannot be differentiated a second time"):
            twice()


def test_learning_inside_a_transform_is_refused():
    x = torch.randn(3, 2)
    with pytest.raises(Incompatible, match=r"nvil.* does not run inside a transform of torch\.func"):
        grad(lambda loss: gradest.score_surrogate(loss, loss, "nvil", features=x)[0].sum())(torch.randn(4, 3))


def test_compiled_code_breaks_the_graph_and_works():
    torch._dynamo.reset()
    log_prob, loss = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    log_prob.requires_grad_()
    with warnings.catch_warnings():  # the compiler's own code warns of torch's deprecations
        warnings.simplefilter("ignore")
        for f in (surrogate_of("rloo"), grad(surrogate_of("rloo"))):
            with pytest.raises(Exception, match="breaks the graph"):
                torch.compile(f, fullgraph=True, backend="aot_eager")(log_prob.detach(), loss)
        (found,) = torch.autograd.grad(
            torch.compile(surrogate_of("rloo"), backend="aot_eager")(2 * log_prob, loss), log_prob
        )
        inside = torch.compile(grad(surrogate_of("rloo")), backend="aot_eager")(log_prob.detach(), loss)
    torch.testing.assert_close(found, 2 * gradest.credit("rloo", loss)[0])
    torch.testing.assert_close(inside, gradest.credit("rloo", loss)[0])
    torch._dynamo.reset()


# --- dtypes, shapes and what is refused ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_float32(dtype):
    loss = (100 + LOSS).to(dtype)
    weights, _ = gradest.credit("rloo", loss)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, gradest.credit("rloo", loss.float())[0])
    log_prob = torch.zeros(4, 2, dtype=dtype, requires_grad=True)
    value, _ = gradest.score_surrogate(log_prob, loss, "rloo")
    assert value.dtype == torch.float32
    value.sum().backward()
    torch.testing.assert_close(log_prob.grad, weights.to(dtype))


@pytest.mark.parametrize("estimator", score_functions(), ids=lambda estimator: estimator.label())
def test_equal_losses(estimator):
    """Nothing is divided by a spread of 0. Group baselines give exactly 0, though the mean of seven 0.1 in float32 is not 0.1."""
    given = {name: getattr(estimator, name) for name in estimator.model_fields_set - {"samples"}}
    loss = torch.full((7, 2), 0.1)
    features = {"nvil": torch.ones(2, 1), "opo": torch.rand(7, 2), "otb": torch.zeros(7, 2)}.get(estimator.name)
    weights, _ = gradest.credit({"name": estimator.name, **given}, loss, features=features)
    if estimator.name in ("grpo", "dr_grpo", "opo") or (estimator.name == "pass_at_k" and estimator.k > 1):
        assert bool((weights == 0).all())
    assert float(weights.abs().max()) <= 0.1


def test_nearly_equal_and_huge_losses_in_grpo():
    """The weights stay those of the standardised losses over seventy orders of magnitude, and small where ε rules."""
    loss = torch.tensor([[1.0], [2.0], [4.0]])
    wanted = FORMULAS["grpo"](loss) * 4 / 3
    for scale in (1e-3, 1e20, 1e35):
        torch.testing.assert_close(gradest.credit("grpo", loss * scale)[0], wanted, rtol=2e-3, atol=0)
    assert float(gradest.credit("grpo", loss * 1e-40)[0].abs().max()) < 1e-30


def test_samples_without_weight_are_left_out_of_the_baseline():
    loss = torch.tensor([[1.0, 1.0], [3.0, 3.0], [5.0, 5.0]])
    weight = torch.tensor([[0, 0], [1, 0], [0, 0]])  # whole numbers, as lengths are
    weights, _ = gradest.credit("opo", loss, features=weight)
    torch.testing.assert_close(3 * weights, loss - torch.tensor([3.0, 0.0]))
    weights, _ = gradest.credit({"name": "opo", "leave_one_out": True}, loss, features=weight)
    torch.testing.assert_close(3 * weights[:, 0], torch.tensor([1.0 - 3, 3.0, 5.0 - 3]))


@pytest.mark.parametrize("name", ["rloo", "vimco", "grpo", "dr_grpo", "opo", "otb", "pass_at_k"])
def test_a_group_of_one_is_refused(name):
    for loss in (torch.ones(1), torch.ones(1, 3)):
        with pytest.raises(InvalidInput, match=r"cannot credit K = 1 sample.* Draw more samples"):
            gradest.credit(name, loss, features=torch.ones_like(loss))


def test_one_sample_by_itself():
    weights, _ = gradest.credit("reinforce", torch.tensor([0.7]))
    assert weights.tolist() == pytest.approx([0.7])
    value, _ = gradest.score_surrogate(torch.zeros(1, 2), torch.ones(1, 2), "reinforce_average")
    assert value.tolist() == [1, 1]


def test_an_empty_batch():
    for name in STATELESS:
        assert gradest.credit(name, torch.zeros(4, 0))[0].shape == (4, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite(bad):
    loss = torch.ones(4, 2)
    loss[2, 1] = bad
    for call in (lambda: gradest.credit("rloo", loss), lambda: gradest.score_surrogate(loss, loss, "rloo")):
        with pytest.raises(InvalidInput, match=rf"loss must be finite, but loss\[2, 1\] is {bad}"):
            call()


def test_the_number_of_samples_is_that_of_the_losses():
    assert torch.equal(gradest.credit("rloo", LOSS)[0], gradest.credit(gradest.estimator("rloo", samples=4), LOSS)[0])
    for spec in ({"name": "rloo", "samples": 2}, gradest.estimator("rloo", samples=5)):
        with pytest.raises(InvalidInput, match=r"credits \d samples against each other, but there are 4"):
            gradest.credit(spec, LOSS)
    with pytest.raises(InvalidInput, match="cannot credit K = 4 sample"):
        gradest.credit({"name": "pass_at_k", "k": 6}, LOSS)


def test_estimators_of_another_kind():
    with pytest.raises(Incompatible, match=r"disarm .*has no credit\. Estimators that have: .*grpo.*rloo.*vimco"):
        gradest.credit("disarm", LOSS)
    with pytest.raises(gradest.errors.UnknownPlugin):
        gradest.credit("rlo", LOSS)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ([1.0, 2.0], "must be a torch tensor"),
        (torch.ones(4, dtype=torch.int64), r"loss\.float\(\)"),
        (torch.tensor(1.0), r"must be \[K, \*batch\]"),
        (torch.ones(0, 3), r"must be \[K, \*batch\]"),
    ],
)
def test_losses_of_a_wrong_kind(loss, message):
    with pytest.raises(InvalidInput, match=message):
        gradest.credit("rloo", loss)


@pytest.mark.parametrize(
    ("name", "features", "message"),
    [
        ("rloo", LENGTH, "omit features"),
        ("opo", None, "there are none"),
        ("opo", LENGTH[0], r"they have shape \[2\]"),
        ("opo", -LENGTH, "must not be negative"),
        ("opo", LENGTH / 0, "features must be finite, but features"),
        ("opo", LENGTH.tolist(), "must be a torch tensor"),
        ("opo", LENGTH.to(torch.complex64), "must be real numbers"),
        ("nvil", None, "pass them as features"),
        ("nvil", torch.tensor(1.0), "pass them as features"),
        ("nvil", torch.ones(3, 2), r"needs features of shape \[\*batch, features\]"),
        ("nvil", torch.ones(2, 0), "at least one of them"),
    ],
)
def test_features_that_do_not_fit(name, features, message):
    with pytest.raises(InvalidInput, match=message):
        gradest.credit(name, LOSS, features=features)


@pytest.mark.parametrize(
    "state", [{}, {"total": torch.zeros(())}, {"total": torch.zeros(2), "weight": torch.zeros(())}, [1], {"total": 1.0}]
)
def test_states_that_do_not_fit(state):
    wanted = (
        "must have tensors of the shapes .*, and None at the first" if isinstance(state, dict) else "must be the dict"
    )
    with pytest.raises(InvalidInput, match=wanted):
        gradest.credit("reinforce_average", LOSS, state)


@pytest.mark.parametrize(
    ("log_prob", "loss", "tokens", "message"),
    [
        (torch.zeros(4, 2, 3), torch.zeros(4), None, r"it has \[4, 2, 3\], and the loss \[4\]"),
        (torch.zeros(4), torch.zeros(4, 2), None, "the shape of the loss"),
        (torch.zeros(4, 2, 3), torch.zeros(4, 2), False, "must have the shape of the loss"),
        (torch.zeros(4), torch.zeros(4), True, "one dim of tokens more"),
        (torch.zeros(4, dtype=torch.int64), torch.zeros(4), None, "not torch.int64"),
        ([0.0], torch.zeros(4), None, "not list"),
    ],
)
def test_log_probabilities_that_do_not_fit(log_prob, loss, tokens, message):
    with pytest.raises(InvalidInput, match=message):
        gradest.score_surrogate(log_prob, loss, "rloo", tokens=tokens)


def test_arguments_are_not_changed():
    loss, length = LOSS.clone(), LENGTH.clone()
    _, state = gradest.credit("reinforce_average", loss)
    kept = {name: x.clone() for name, x in state.items()}
    gradest.credit("reinforce_average", loss, state)
    gradest.credit("opo", loss, features=length)
    assert torch.equal(loss, LOSS)
    assert torch.equal(length, LENGTH)
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_a_plugin_with_weights_of_a_wrong_shape():
    class Summed(ScoreFunction):
        name, summary = "summed", "wrong on purpose"

        def credit(self, loss, state, features=None):
            return loss.sum(0), state

    with pytest.raises(PluginFault, match=r"summed\.credit must return weights of shape \[4, 2\], not \[2\]"):
        gradest.credit(Summed(), LOSS)
