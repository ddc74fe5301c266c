"""What tests do on the page again and again."""

import json
from urllib.parse import quote

CASE = {
    "neuron": "bernoulli",
    "objective": {"name": "quadratic", "target": 0.3},
    "a": [0.5, -1],
    "draws": 200,
    "seed": 7,
    "estimators": ["rloo", {"name": "straight_through", "derivative": "sigmoid"}],
}


def link(view, **state):
    return f"#/{view}?{quote(json.dumps(state))}"


def wait_for_pictures(page):
    page.locator(".pictures[aria-busy=false]").wait_for()


def slide(page, unit, value):
    page.get_by_label(f"a of unit {unit}").fill(str(value))
    wait_for_pictures(page)


def fact(card, name):
    """A figure of an estimator's card, as it is shown."""
    return card.locator(f"div:has(> dt:text-is('{name}')) > dd").inner_text()


def run_comparison(page):
    page.get_by_role("button", name="Compare", exact=True).click()
    wait_for_pictures(page)
