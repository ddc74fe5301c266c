"""The marks beside controls: they lead to the guide if the service has it, and are not there if it has none."""

import re
import time

import httpx
import pytest

import gradest_service.app
from tests.browser.steps import CASE, link, wait_for_pictures
from tests.docs.test_documents import ROOT, anchors

pytestmark = pytest.mark.browser


@pytest.fixture
def guided(tmp_path, monkeypatch, start):
    """A service with a guide: the headings of one page, and pages of some plugins."""
    names = anchors(ROOT / "docs/guides/page.md")
    texts = {
        "index": "",
        "guides/page": "".join(f'<h2 id="{name}">{name}</h2><p style="height: 40rem"></p>' for name in names),
        **{f"reference/{name}": '<h2 id="options">Options</h2>' for name in ("neurons/bernoulli", "estimators/rloo")},
    }
    for name, text in texts.items():
        path = tmp_path / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<!doctype html><link rel=icon href=data:,>{text}")
    monkeypatch.setattr(gradest_service.app, "find_guide", lambda: tmp_path)
    return start()[0]


def test_marks_lead_to_the_guide(guided, visit):  # the page closes before its server
    page = visit(link("playground", **{**CASE, "estimators": ["rloo"]}), host=guided)
    wait_for_pictures(page)
    marks = page.locator("main a.help:visible")
    marks.nth(6).wait_for()
    places = {mark.get_attribute("href") for mark in marks.all()}
    assert f"{guided}/guide/reference/neurons/bernoulli.html#options" in places
    assert not [place for place in places if "quadratic" in place]  # this guide has no page of it
    for place in places:
        answer = httpx.get(place)
        assert answer.status_code == 200
        assert f'id="{place.partition("#")[2]}"' in answer.text
    assert page.get_by_role("link", name="Guide", exact=True).is_visible()
    page.get_by_role("link", name="In the guide: Estimators").press("Enter")
    page.wait_for_url("**/guides/page.html#estimators")
    assert page.locator(":target").inner_text() == "estimators"
    until = time.monotonic() + 20
    while (
        page.locator(":target").bounding_box()["y"] >= 10
    ):  # until all is laid out; the page allows no wait_for_function
        assert time.monotonic() < until
        page.wait_for_timeout(50)


def test_without_a_guide_there_are_no_marks(visit):
    page = visit(
        "#/estimators/rloo", prepare=lambda page: page.route("**/guide.json", lambda asked: asked.fulfill(json=[]))
    )
    page.locator("h1 a.help").wait_for(state="attached")
    page.wait_for_load_state("networkidle")
    assert page.locator("a.help:visible").count() == 0
    assert not page.get_by_role("link", name=re.compile("Guide", re.IGNORECASE)).count()
