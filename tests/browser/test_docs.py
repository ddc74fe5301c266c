"""The page at /docs, which needs no other host: it lists every route, and sends a request for its reader."""

import pytest

from tests.selection import deep

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("last", ["", *deep("/")])
def test_routes_are_listed_and_tried(visit, url, last):
    """`visit` fails for anything asked of another host, and for what the page's policy refuses."""
    page = visit(f"docs{last}")
    page.locator("#operations-tag-service").wait_for()
    assert page.title() == "gradest: routes"
    assert page.locator(".opblock").count() > 15
    page.locator(".opblock-summary-path", has_text="/version").click()
    page.get_by_role("button", name="Try it out").click()
    page.get_by_role("button", name="Execute").click()
    page.locator(".live-responses-table .response-col_status", has_text="200").wait_for()
