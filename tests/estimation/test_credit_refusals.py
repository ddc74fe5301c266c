"""What credit and score_surrogate refuse: groups of one, numbers that are not finite, and arguments that do not fit."""

import math

import pytest
import torch

import gradest
from gradest.contract.score_function import ScoreFunction
from gradest.errors import Incompatible, InvalidInput, PluginFault
from tests.estimation.score_functions import LENGTH, LOSS


@pytest.mark.parametrize("name", ["rloo", "vimco", "grpo", "dr_grpo", "opo", "otb", "pass_at_k"])
def test_a_group_of_one_is_refused(name):
    for loss in (torch.ones(1), torch.ones(1, 3)):
        with pytest.raises(InvalidInput, match=r"cannot credit K = 1 sample.* Draw more samples"):
            gradest.credit(name, loss, features=torch.ones_like(loss))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_losses_that_are_not_finite(bad):
    loss = torch.ones(4, 2)
    loss[2, 1] = bad
    for call in (lambda: gradest.credit("rloo", loss), lambda: gradest.score_surrogate(loss, loss, "rloo")):
        with pytest.raises(InvalidInput, match=rf"loss must be finite, but loss\[2, 1\] is {bad}"):
            call()


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_log_probabilities_that_are_not_finite(bad):
    """A drawn token of probability 0 tells of logits that are shifted by one, or of a mask in one of the two passes alone."""
    log_prob = torch.zeros(4, 2, 3, requires_grad=True).clone()
    log_prob[2, 1, 0] = bad
    with pytest.raises(InvalidInput, match=rf"log_prob\[2, 1, 0\] is {bad}.*shifted by one.*masked_fill\(padding, 0\)"):
        gradest.score_surrogate(log_prob, torch.ones(4, 2), "rloo")


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
        ("opo", None, "there are none. Give features=lengths"),
        ("otb", torch.ones(*LENGTH.shape, 3), "need the loss of each token"),
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


def test_a_plugin_with_weights_of_a_wrong_shape():
    class Summed(ScoreFunction):
        name, summary = "summed", "wrong on purpose"

        def credit(self, loss, state, features=None):
            return loss.sum(0), state

    with pytest.raises(PluginFault, match=r"summed\.credit must return weights of shape \[4, 2\], not \[2\]"):
        gradest.credit(Summed(), LOSS)
