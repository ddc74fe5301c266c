"""recommend: which estimators are ranked, which are left out, and the reasons for both."""

import pytest
import torch

import gradest
from gradest.analysis.certificates import load_certificates
from gradest.analysis.results import relative_error
from gradest.analysis.variance_map import MapPlace, load_variance_map
from gradest.errors import InvalidInput


def labels(found):
    return [row.label for row in found.rows]


def names(found):
    return [row.estimator["name"] for row in found.rows]


def reasons(found, name):
    (row,) = [row for row in found.rejected if row.estimator == name]
    return row.reasons


@pytest.mark.parametrize("neuron", list(gradest.registry.neurons))
def test_every_fitting_estimator_is_ranked_or_rejected_with_a_reason(neuron):
    found = gradest.recommend(neuron, ["loss"], 4)
    assert sorted(names(found) + [row.estimator for row in found.rejected]) == sorted(
        gradest.registry.fitting(gradest.neuron(neuron))
    )
    assert all(row.reasons for row in (*found.rows, *found.rejected))


def test_what_the_caller_cannot_bring_is_left_out():
    found = gradest.recommend("bernoulli", ["loss"])
    assert "straight_through" not in names(found)
    assert reasons(found, "straight_through") == ("needs dL/dh",)
    both = gradest.recommend("bernoulli", ["loss", "grad"])
    assert "straight_through" in names(both)
    assert reasons(both, "muprop") == ("asks for the loss between the outputs of the neuron",)
    assert "muprop" in names(gradest.recommend("bernoulli", ["loss", "grad", "relaxed"]))
    assert reasons(gradest.recommend("bernoulli", ["grad"]), "rloo") == ("needs the loss",)


def test_unbiased_leaves_out_the_biased():
    found = gradest.recommend("bernoulli", ["loss", "grad"], unbiased=True)
    assert {row.claim for row in found.rows} == {"none"}
    assert reasons(found, "reinmax") == ("its bias: exact to order 2",)


def test_evaluations_are_kept_to_and_used():
    found = gradest.recommend("bernoulli", ["loss"], 5)
    assert all(row.evaluations <= 5 for row in found.rows)
    assert {"rloo(samples=5)", "disarm(samples=4)", "bitflip"} <= set(labels(found))
    for evaluations in (5, 10):  # one less than it asks for is too few
        found_by = gradest.recommend("bernoulli", ["loss"], evaluations)
        assert reasons(found_by, "local_expectation") == ("asks for 11 evaluations",)
    assert "local_expectation" in names(gradest.recommend("bernoulli", ["loss"], 5, units=4))
    (bitflip,) = [row for row in found.rows if row.label == "bitflip"]
    assert "average 2 draws a step" in bitflip.reasons


def test_specs_build_what_was_ranked():
    for row in gradest.recommend("categorical", ["loss", "grad"], 8).rows:
        estimator = gradest.estimator(row.estimator)
        assert estimator.label() == row.label
        assert estimator.evaluations(gradest.neuron("categorical"), (10, 3)) == row.evaluations


def test_rows_are_sorted_by_error_and_more_evaluations_lessen_it():
    few, many = (gradest.recommend("bernoulli", ["loss"], evaluations) for evaluations in (4, 64))
    errors = [row.error for row in few.rows]
    assert errors == sorted(errors)
    (before,) = [row.error for row in few.rows if row.estimator["name"] == "disarm"]
    (after,) = [row.error for row in many.rows if row.estimator["name"] == "disarm"]
    assert after < before


def test_the_error_is_that_of_as_many_certified_draws_as_the_evaluations_pay_for():
    """K is of the event that is asked about, not of the certificate's two units."""
    for units, measured in ((2, 2), (5, 8), (3, 2)):
        found = {
            row.estimator["name"]: row.error for row in gradest.recommend("bernoulli", ["loss"], 12, units=units).rows
        }
        for name, evaluations in (("disarm", 2), ("local_expectation", units + 1), ("reinforce", 1)):
            assert found[name] == certificate(name).error("moderate", 12 // evaluations, measured)


def certificate(name):
    (found,) = [found for found in load_certificates(gradest.registry.estimators[name]) if found.neuron == "bernoulli"]
    return found


def test_the_error_is_that_of_whole_draws():
    """16 evaluations pay for one draw of nine, and for no 1.78 of them; more samples in a draw count as such."""
    found = {row.label: row for row in gradest.recommend("bernoulli", ["loss"], 16, units=8).rows}
    assert found["local_expectation"].evaluations == 9
    assert found["local_expectation"].error == certificate("local_expectation").error("moderate", 1, 8)
    assert found["bitflip"].error == certificate("bitflip").error("moderate", 8, 8)
    assert found["rloo(samples=16)"].error == certificate("rloo").error("moderate", 8, 8)
    (enumeration,) = [row for row in gradest.recommend("bernoulli", ["loss"]).rows if row.label == "enumeration"]
    assert "the error is that of one draw of 1024 evaluations" in enumeration.reasons
    a, f = torch.zeros(8), gradest.objective("quadratic", target=0.4)
    row = gradest.compare(f, a, "bernoulli", ["local_expectation"], 50, 0).rows[0]
    assert row.error(16) == row.error(9) > row.error(18)


def test_what_is_first_was_measured_for_about_as_many_units():
    """With two evaluations `relax` is the best for two units. For more it is not, and for many its rank says little."""
    few, default = (gradest.recommend("bernoulli", ["loss"], 2, unbiased=True, units=units) for units in (2, None))
    assert few.source == "certificates: four losses of 2 units, moderate logits"
    assert names(few)[0] == "relax"
    assert default.source == "certificates: four losses of 8 units, moderate logits"
    assert names(default).index("relax") > 2
    many = gradest.recommend("categorical", ["loss"], 2, unbiased=True, units=200)
    assert "they say little of the order for 200 units, so estimators that learn come last" in many.source
    learn = ["pass its state on" in row.reasons[-1] for row in many.rows]
    assert learn == sorted(learn)
    assert 0 < sum(learn) < len(learn)


def test_bernoulli_units_have_a_map_where_certificates_do_not_reach():
    many = gradest.recommend("bernoulli", ["loss"], 2, unbiased=True, units=200)
    assert many.source.startswith("the map of variance: 200 units, p 0.3, curvature 0.1, 0.5, 0.9")
    placed = gradest.recommend("bernoulli", ["loss"], 4, units=10, p=0.9, curvature=0.5)
    assert placed.source.startswith("the map of variance: 10 units, p 0.1, curvature 0.5")
    mapped, place = load_variance_map("bernoulli"), MapPlace(0.1, 10, 0.5)
    found = {row.estimator["name"]: row.error for row in placed.rows}
    assert found["bitflip"] == mapped["bitflip"].error(place, 2)
    assert found["disarm"] == mapped["disarm"].error(place, 2)  # four samples are two draws of two
    far = gradest.recommend("bernoulli", ["loss"], 4, units=1000, p=0.001).source
    assert "the map has p 0.01 to 0.5 and units 2 to 200, so the figures are those of its edge" in far


def test_an_estimator_that_is_not_on_the_map_comes_last_unless_it_is_exact():
    class Unmapped(gradest.registry.estimators["disarm"]):
        name = "unmapped"

    gradest.registry.register(Unmapped)
    try:
        found = gradest.recommend("bernoulli", ["loss"], 64, units=5, curvature=0.5)
    finally:
        gradest.registry.unregister(Unmapped)
    assert names(found)[-1] == "unmapped"
    assert (names(found)[0], found.rows[0].error) == ("enumeration", 0)
    assert found.source.endswith("unmapped")


def test_the_map_is_exact_in_its_cells_and_between_them_in_between():
    mapped = load_variance_map("bernoulli")["disarm"]
    for cell, (tangent, noise) in mapped.cells.items():
        wanted = relative_error((1 + tangent) ** -0.5, noise**-0.5, 7)
        assert mapped.error(cell, 7) == pytest.approx(wanted, rel=1e-6)
    for axis, (low, high) in enumerate(((0.01, 0.1), (10, 50), (0.1, 0.5))):
        cells = [MapPlace(0.1, 50, 0.5)._replace(**{MapPlace._fields[axis]: at}) for at in (low, high)]
        between = cells[0]._replace(**{MapPlace._fields[axis]: (low * high) ** 0.5})
        errors = sorted(mapped.error(cell, 3) for cell in cells)
        assert errors[0] < mapped.error(between, 3) < errors[1]
    assert mapped.error(MapPlace(1e-5, 1e4, 1.0), 3) == mapped.error(MapPlace(0.01, 200, 0.9), 3)


def test_reasons_state_the_condition_of_a_claim():
    found = gradest.recommend("noisy_rectifier", ["loss", "grad"], unbiased=True)
    assert {row.claim for row in found.rows} == {"none for continuous losses"}
    assert all(
        "unbiased for losses that are continuous and differentiable almost everywhere" in row.reasons
        for row in found.rows
    )
    claims = {
        row.estimator["name"]: row.claim for row in gradest.recommend("bernoulli", ["loss", "grad", "relaxed"]).rows
    }
    assert {name for name, claim in claims.items() if claim == "none for continuous losses"} == {"rebar", "relax_rebar"}
    assert claims["relax"] == claims["muprop"] == claims["rodeo"] == "none"


def test_near_certain_units_want_another_estimator():
    moderate, saturated = (
        gradest.recommend("bernoulli", ["loss"], 4, unbiased=True, units=2, saturated=far) for far in (False, True)
    )
    rank = {name: names(moderate).index(name) - names(saturated).index(name) for name in ("ugc", "bitflip", "disarm")}
    assert rank["ugc"] > 0
    assert rank["bitflip"] > 0
    assert rank["disarm"] <= 0


def test_measures_on_the_callers_case():
    a = torch.linspace(-1, 1, 6).reshape(2, 3)

    def separate(h):
        return (
            torch.tensor([1.0, -3.0, 2.0]).to(h).mul(h).sum(-1)
        )  # a sum over units: no variance where each is summed out

    found = gradest.recommend("bernoulli", ["loss"], 4, f=separate, a=a, draws=2000, seed=3)
    assert found.source == "measured on the objective given"
    table = gradest.compare(separate, a, "bernoulli", [row.estimator for row in found.rows], 2000, 3)
    for row, measured in zip(found.rows, table.rows, strict=True):
        assert row.error == measured.error(4)
    assert names(found)[0] == "local_expectation"


def test_an_estimator_without_certificate_comes_last():
    class Uncertified(gradest.registry.estimators["disarm"]):
        name = "uncertified"

    gradest.registry.register(Uncertified)
    try:
        found = gradest.recommend("bernoulli", ["loss"], 4)
        assert (found.rows[-1].label, found.rows[-1].error) == ("uncertified(samples=4)", None)
        a = torch.zeros(2)
        measured = gradest.recommend(
            "bernoulli", ["loss"], 4, f=gradest.objective("quadratic", target=0.4), a=a, draws=50, seed=0
        )
        assert all(row.error is not None for row in measured.rows)
    finally:
        gradest.registry.unregister(Uncertified)


def test_to_markdown_and_to_dict():
    found = gradest.recommend("noisy_rectifier", ["grad"])
    assert "| pathwise | none for continuous losses | 1 |" in found.to_markdown()
    plain = found.to_dict()
    assert plain["rows"][0]["estimator"]["name"] in ("pathwise", "held_noise")
    assert plain["evaluations"] == 100


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"bring": "loss"}, "bring must be a list"),
        ({"bring": []}, "bring must be a list"),
        ({"bring": ["gradient"]}, "bring must be a list of loss, grad, relaxed"),
        ({"evaluations": 0}, "evaluations must be an integer of at least 1"),
        ({"units": 0}, "units must be an integer of at least 1"),
        ({"a": torch.zeros(2)}, "give both f and a"),
        ({"p": 1.0}, "p must be between 0 and 1"),
        ({"p": "0.3"}, "p must be between 0 and 1, not .0.3"),
        ({"curvature": True}, "curvature must be from 0 to 1, not True"),
        ({"units": "8"}, "units must be an integer of at least 1"),
        ({"curvature": -0.1}, "curvature must be from 0 to 1"),
        ({"f": lambda h: h.sum(-1), "a": torch.tensor([float("nan")])}, "finite"),
        ({"f": lambda h: h.sum(-1), "a": torch.zeros(2, 0)}, r"at least one unit .* shape \[2, 0\]"),
    ],
)
def test_bad_input(arguments, complaint):
    with pytest.raises(InvalidInput, match=complaint):
        gradest.recommend("bernoulli", **arguments)


def test_other_neurons_are_not_on_the_map():
    with pytest.raises(InvalidInput, match="a map of variance, and categorical has none"):
        gradest.recommend("categorical", p=0.2)
