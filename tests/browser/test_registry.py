"""The registry in a browser: what there is, and a page for each estimator."""

import pytest

import gradest
from gradest.discovery.loading import PluginFailure
from tests.browser.steps import wait_for_pictures

pytestmark = pytest.mark.browser


def test_the_registry_shows_all(visit, monkeypatch):
    failure = PluginFailure("acme-broken", "0.3", "plugin", "import", "ModuleNotFoundError: no module named 'acme'")
    monkeypatch.setattr(gradest.registry, "_failures", (failure,))
    page = visit("#/registry")
    page.get_by_role("heading", name="Registry").wait_for()
    registry = gradest.registry
    assert page.locator("h3 a").all_text_contents() == [*registry.estimators, *registry.neurons, *registry.objectives]
    assert "no module named 'acme'" in page.locator("section", has_text="Did not load").first.inner_text()
    page.locator("input[type=search]").fill("antithetic pairs")
    assert page.locator(".card:visible h3").all_inner_texts() == ["arm", "disarm"]
    assert not page.get_by_role("heading", name="Objectives").is_visible()
    assert not page.get_by_text("Nothing that is registered").is_visible()
    page.locator("input[type=search]").fill("antithetic septuplets")
    page.get_by_text("Nothing that is registered").wait_for()
    page.locator("input[type=search]").fill("")
    assert page.locator(".card:visible").count() == page.locator(".card").count()


def test_an_estimator_has_a_page_of_its_own(visit):
    page = visit("#/estimators/disarm")
    page.get_by_role("heading", name="disarm").wait_for()
    page.locator(".katex-html").first.wait_for()
    assert page.locator(".katex-error").count() == 0
    text = page.locator("main").inner_text()
    assert "unbiased" in text
    assert "arXiv 2006.10680" in text
    assert " ± " in page.locator("section", has_text="Certificate").inner_text()
    page.get_by_role("link", name="Try it in the playground").click()
    wait_for_pictures(page)
    assert page.locator(".clouds .card h3").all_inner_texts() == ["disarm"]
    page.go_back()
    page.get_by_role("heading", name="disarm").wait_for()


def test_an_unknown_name_says_so(visit):
    page = visit("#/estimators/disrm", faults=["404"])
    page.get_by_text("did you mean").wait_for()
