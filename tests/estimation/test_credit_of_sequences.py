"""score_surrogate with a sampler of sequences, by enumeration: losses of a sequence, and of each of its tokens."""

import pytest
import torch

import gradest
from gradest.errors import Incompatible
from tests.estimation.score_functions import unbiased_score_functions

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
