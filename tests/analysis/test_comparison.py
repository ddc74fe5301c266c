"""compare: its figures against estimate and exact, its output formats, and the estimators that it leaves out."""

import json
import math

import pytest
import torch

import gradest
from gradest.analysis.comparison import comparable_estimators
from gradest.errors import Incompatible, InvalidInput

A = torch.tensor([[0.3, -1.0], [0.0, 1.2]])
F = gradest.objective("quadratic", target=0.2)


def test_rows_hold_what_estimate_and_exact_give():
    table = gradest.compare(F, A, neuron="bernoulli", estimators=["rloo", "straight_through"], draws=500, seed=3)
    _, truth = gradest.exact(F, A)
    for row, name in zip(table.rows, ["rloo", "straight_through"], strict=True):
        found = gradest.estimate(F, A, estimator=name, draws=500, seed=3)
        error = found.gradient - truth
        assert row.estimator == name
        assert row.bias == pytest.approx(float(error.square().mean().sqrt()), rel=1e-4)
        assert row.bias_in_se == pytest.approx(float((error / found.standard_error).square().mean().sqrt()), rel=1e-3)
        assert row.variance == pytest.approx(float(found.variance.mean()), rel=1e-5)
        assert row.evaluations == found.evaluations
        assert row.efficiency == pytest.approx(1 / (row.variance * row.evaluations))
        assert row.snr == pytest.approx(float(found.gradient.norm() / found.variance.sum().sqrt()), rel=1e-4)
        assert row.cosine == pytest.approx(
            float(torch.cosine_similarity(found.gradient.flatten(), truth.flatten(), 0)), rel=1e-4
        )
    assert table.rows[0].claim == "none"
    assert table.rows[1].claim == "biased"
    assert table.rows[1].bias_in_se > 5 > table.rows[0].bias_in_se


@pytest.mark.parametrize(
    "estimators", ["rloo", {"name": "rloo"}, gradest.estimator("rloo")], ids=["name", "spec", "instance"]
)
def test_an_estimator_in_place_of_a_list_is_refused(estimators):
    with pytest.raises(InvalidInput, match=r"estimators must be a list of estimators, such as \['rloo'\], not "):
        gradest.compare(F, A, estimators=estimators)


def test_all_fitting_estimators_by_default():
    table = gradest.compare(F, A, neuron="bernoulli", draws=20, seed=1, warm_up=2)
    assert [row.estimator for row in table.rows] == [e.name for e in comparable_estimators(gradest.neuron("bernoulli"))]
    many = gradest.compare(F, torch.zeros(200), neuron="bernoulli", draws=20, seed=1, warm_up=2)
    assert "enumeration" not in [row.estimator for row in many.rows]
    assert many.exact is not None  # by the objective's closed form


def test_without_an_exact_gradient():
    table = gradest.compare(lambda h: h.sum(-1).sin(), torch.zeros(30), estimators=["rloo"], draws=20, seed=1)
    assert table.exact is None
    assert table.rows[0].bias is table.rows[0].cosine is None
    assert "| - |" in table.to_markdown()


def test_an_estimator_without_variance_shows_no_significant_bias():
    (row,) = gradest.compare(F, A, estimators=["enumeration"], draws=10, seed=1).rows
    assert row.variance == 0
    assert row.bias_in_se < 5
    assert math.isinf(row.efficiency)


def test_a_row_of_large_losses_does_not_hide_the_bias_of_another():
    """straight_through on a cubic is biased by 30 standard errors in 4,000 draws; beside a row of losses of 1e7 it had 0.2."""
    a = torch.tensor([[0.5, -0.2], [0.5, -0.2]])

    def f(h):
        cubic = (h.sum(-1) - 0.3) ** 3
        return torch.stack([cubic[:, 0] * 0 + 1e7, cubic[:, 1]], -1)

    (row,) = gradest.compare(f, a, estimators=["straight_through"], draws=4000, seed=0).rows
    assert row.bias_in_se > 10
    (exact,) = gradest.compare(f, a, estimators=["enumeration"], draws=10, seed=0).rows
    assert exact.bias_in_se < 5
    empty = gradest.compare(lambda h: h.sum(-1), a[:, :0], estimators=["rloo"], draws=10, seed=0)
    assert empty.rows[0].bias_in_se == 0


def test_output_formats():
    seen = []
    table = gradest.compare(F, A, estimators=["rloo"], draws=50, seed=1, progress=lambda *at: seen.append(at))
    assert seen[-1] == ("rloo", 50, 50)
    json.dumps(table.to_dict())
    lines = table.to_markdown().splitlines()
    assert len(lines) == 3
    assert {line.count("|") for line in lines} == {11}


def test_estimators_of_one_target_share_its_exact_gradient():
    seen = []
    names = ["vimco", "rloo", "vimco"]
    rows = gradest.compare(F, A, estimators=names, draws=10, seed=1, progress=lambda *at: seen.append(at)).rows
    ends = [at for at in seen if at[0] == "exact" and at[1] == at[2]]
    assert len(ends) == 1  # E[L] has a closed form
    assert rows[0].bias == rows[2].bias is not None


def test_incompatible_estimators_are_refused_before_any_work():
    with pytest.raises(Incompatible, match="pathwise does not fit bernoulli"):
        gradest.compare(F, A, estimators=["rloo", "pathwise"], draws=10**9)


def test_a_difference_that_rare_outputs_explain_is_no_evidence_of_bias():
    """Estimators without bias were 20 to 5e14 standard errors off, because the draws never showed what the gradient is made of.

    A biased estimator stays beyond what rare outputs may contribute, and where no output is rare nothing is unresolved. The
    figures follow from the seeds; a change of the noise may move single names.
    """

    def names(table):
        return {one.estimator for one in table.unresolved}

    one = torch.tensor([[0.5]], dtype=torch.float64)
    for rate in (8, 20):  # of E[exp(rate h)] most is beyond 8 and 20 standard deviations
        table = gradest.compare(lambda h, rate=rate: torch.exp(rate * h).sum(-1), one, "gaussian", ["pathwise"], 200, 0)
        assert table.rows[0].bias_in_se > 1000
        assert names(table) == {"pathwise"}
        assert "The bias of pathwise is not established: the difference" in table.to_markdown()
        assert table.to_dict()["unresolved"][0]["estimator"] == "pathwise"

    def cubic(h):
        return (h.sum(-1) - 0.4) ** 3

    estimators = ["local_expectation", "muprop", "nvil", "straight_through", "enumeration"]
    saturated = gradest.compare(cubic, torch.tensor([[8.0, -1.0]]), "bernoulli", estimators, 1000, 0)
    assert [row.bias_in_se > 5 for row in saturated.rows] == [True, True, True, True, False]
    assert names(saturated) == {"local_expectation", "muprop", "nvil"}
    moderate = gradest.compare(cubic, torch.tensor([[0.8, -1.0]]), "bernoulli", estimators, 1000, 0)
    assert [row.bias_in_se > 5 for row in moderate.rows] == [False, False, False, True, False]
    assert not moderate.unresolved
    classes = torch.tensor([[[4.0, -4.0, 0.0], [0.0, 0.0, 0.0]]])
    weight = torch.tensor([[1.0, -2.0, 0.5], [0.3, 1.0, 2.0]])
    table = gradest.compare(
        lambda h: ((h * weight).sum((-1, -2)) - 0.4) ** 2, classes, "categorical", ["muprop"], 1000, 0
    )
    assert table.rows[0].bias_in_se > 100
    assert names(table) == {"muprop"}
