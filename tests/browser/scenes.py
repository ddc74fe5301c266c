"""What the scenes for newcomers claim, step by step, checked on what the page shows and by the library."""

import re

import pytest
import torch

import gradest
from tests.browser.steps import fact

QUADRATIC = gradest.objective({"name": "quadratic", "target": 0.3})


def figures(page):
    """E[h], exact and sampled, as the page shows them."""
    found = re.search(r"E\[h\] = ([\d.]+), sampled ([\d.]+);", page.locator(".pictures").inner_text())
    return float(found[1]), float(found[2])


def unit_is_at_half(page):
    assert page.get_by_label("a of unit 1").input_value() == "0.5"


def the_share_is_near(page):
    exact, sampled = figures(page)
    assert abs(exact - sampled) < 0.02


def the_mean_has_risen(page):
    assert figures(page)[0] > 0.85


def the_loss_has_two_values(page):
    assert QUADRATIC(torch.tensor([[0.0], [1.0]])).tolist() == pytest.approx([0.09, 0.49])


def the_sampled_mean_alone_has_changed(page):
    at_seed_0 = float(gradest.sample("bernoulli", torch.tensor([0.5]), samples=4000, seed=0).mean())
    exact, sampled = figures(page)
    assert abs(sampled - at_seed_0) > 0.001
    assert exact == 0.6225


def reinforce_needs_the_loss_alone(page):
    assert gradest.estimator("reinforce").needs == {"loss"}


def no_draw_hits_but_the_mean_does(page):
    bias, error = (float(part) for part in fact(page.locator(".clouds .card").first, "bias").split(" ± "))
    assert abs(bias) < 2 * error
    a = torch.tensor([0.5, -1.0])
    draws = gradest.estimate(QUADRATIC, a.expand(400, 2), "bernoulli", "reinforce", draws=1, seed=0).gradient
    distances = (draws - gradest.exact(QUADRATIC, a, "bernoulli")[1]).norm(dim=-1)
    assert float(distances.min()) > 0.08


def rloo_has_a_fifth_of_the_variance(page):
    plain, rloo = page.locator(".clouds .card").all()
    variance = [float(fact(card, "variance")) for card in (plain, rloo)]
    assert 4.5 < variance[0] / variance[1] < 5.5
    assert fact(rloo, "evaluations") == "2"


def straight_through_is_ten_standard_errors_off(page):
    bias, error = (float(part) for part in fact(page.locator(".clouds .card").nth(2), "bias").split(" ± "))
    assert 9 < bias / error < 11


def the_list_has_what_fits(page):
    neuron = gradest.neuron("bernoulli")
    fitting = [one for one in gradest.registry.estimators if gradest.estimator(one).accepts(neuron)]
    assert [name.strip() for name in page.locator(".estimators label[for^=use-]").all_inner_texts()] == fitting
    assert page.get_by_text("options of rloo").is_visible()


def four_estimators_are_compared(page):
    assert page.locator(".estimators input[id^=use-]:checked").count() == 4


def column(page, name):
    heads = page.locator("thead th").all_inner_texts()
    at = next(at for at, head in enumerate(heads) if head.rstrip(" ↑↓") == name)
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("tbody tr").all()]
    return {cells[0]: float(cells[at]) for cells in rows}


def three_have_no_bias(page):
    found = column(page, "bias/SE")
    assert found.pop("straight_through") > 30
    assert len(found) == 3
    assert max(found.values()) < 3


def straight_through_has_the_largest_error(page):
    found = column(page, "bias")
    assert max(found, key=found.get) == "straight_through"


def its_bias_stays(page):
    """The error of n draws is √(bias² + variance / n). After 2000, the bias is nearly all of it, for straight_through alone."""
    bias, variance = column(page, "bias"), column(page, "variance")
    noise = {name: (of_one / 2000) ** 0.5 for name, of_one in variance.items()}
    assert {name for name in bias if bias[name] > 3 * noise[name]} == {"straight_through"}


def pairs_stay_below_reinforce(page):
    a = torch.tensor([0.5, -1.0, 2.0]).repeat(17, 1)
    a[:, 0] = torch.linspace(-6, 6, 17)
    found = {
        name: gradest.estimate(QUADRATIC, a, "bernoulli", name, draws=400, seed=0) for name in ("reinforce", *PAIRS)
    }
    cost = {name: one.variance.double().mean(-1) * one.evaluations for name, one in found.items()}
    assert all(bool((cost[name] < cost["reinforce"]).all()) for name in PAIRS)


PAIRS = ("rloo", "disarm")


def it_can_be_taken_along(page):
    for name in ("JSON", "CSV", "Copy the link"):
        assert page.get_by_role("button", name=name).is_visible()


CLAIMS = {
    "unit": [
        unit_is_at_half,
        the_share_is_near,
        the_mean_has_risen,
        the_loss_has_two_values,
        the_sampled_mean_alone_has_changed,
    ],
    "estimator": [
        reinforce_needs_the_loss_alone,
        no_draw_hits_but_the_mean_does,
        rloo_has_a_fifth_of_the_variance,
        straight_through_is_ten_standard_errors_off,
        the_list_has_what_fits,
    ],
    "comparison": [
        four_estimators_are_compared,
        three_have_no_bias,
        straight_through_has_the_largest_error,
        its_bias_stays,
        pairs_stay_below_reinforce,
        it_can_be_taken_along,
    ],
}
