"""credit and score_surrogate: weights by formula, torch.func and the compiler, low precision, and losses without a difference."""

import warnings

import pytest
import torch
from torch.func import grad, jacrev, vmap

import gradest
from gradest.errors import Incompatible
from tests.estimation.score_functions import INPUTS, LENGTH, LOSS, bound, score_functions

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


def test_one_sample_by_itself():
    weights, _ = gradest.credit("reinforce", torch.tensor([0.7]))
    assert weights.tolist() == pytest.approx([0.7])
    value, _ = gradest.score_surrogate(torch.zeros(1, 2), torch.ones(1, 2), "reinforce_average")
    assert value.tolist() == [1, 1]


def test_an_empty_batch():
    for name in STATELESS:
        assert gradest.credit(name, torch.zeros(4, 0))[0].shape == (4, 0)


def test_arguments_are_not_changed():
    loss, length = LOSS.clone(), LENGTH.clone()
    _, state = gradest.credit("reinforce_average", loss)
    kept = {name: x.clone() for name, x in state.items()}
    gradest.credit("reinforce_average", loss, state)
    gradest.credit("opo", loss, features=length)
    assert torch.equal(loss, LOSS)
    assert torch.equal(length, LENGTH)
    assert all(torch.equal(state[name], kept[name]) for name in kept)
