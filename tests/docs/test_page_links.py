"""The links from the service's page to the guide lead to headings that the sources of the guide have."""

from __future__ import annotations

import re

import pytest

from tests.docs.test_documents import ROOT, anchors

PAGE = ROOT / "service/gradest_service/page"
SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in PAGE.glob("*.js")}
PLACES = dict(re.findall(r'^  "?([\w-]+)"?: "([^"$]+[.]html#[^"]+)",$', SCRIPTS["guide.js"], re.MULTILINE))
"""The places that marks lead to, by topic."""


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_guide_has_the_place(place: str) -> None:
    page, _, anchor = place.partition("#")
    source = ROOT / "docs" / page.replace(".html", ".md")
    assert source.is_file()
    assert anchor in anchors(source)


def test_every_place_is_linked_and_no_link_is_made_elsewhere() -> None:
    used = re.findall(r'\bhelp\("([\w-]+)"', "".join(SCRIPTS.values()))
    kinds = re.findall(
        r'new Choice\("\w+", "(\w+)"', "".join(SCRIPTS.values())
    )  # which are the topics of their legends
    assert {*used, *kinds} == set(PLACES)
    others = {name for name, text in SCRIPTS.items() if ".html" in text}
    assert others == {"app.js", "guide.js"}
    assert re.findall(r'"[^"]*[.]html[^"]*"', SCRIPTS["app.js"]) == ['"index.html"']  # the first page of the guide
    assert re.findall(r'href="(guide[^"]*)"', (PAGE / "index.html").read_text(encoding="utf-8")) == ["guide/index.html"]
