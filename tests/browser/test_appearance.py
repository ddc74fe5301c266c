"""The page by keyboard, on every screen, in every theme."""

import re

import pytest

from tests.browser.steps import CASE, link, wait_for_pictures
from tests.selection import deep

pytestmark = pytest.mark.browser


def test_by_keyboard_alone(visit):
    page = visit(link("playground", **CASE))
    wait_for_pictures(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(9):  # past what there is for newcomers, a mark and the number of units
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "a of unit 1":
            break
    page.keyboard.press("ArrowRight")
    page.get_by_text("a₁ = 0.6:").wait_for()


VIEWS = {
    "playground": "#/playground",
    "compare": link("compare", ran=True, draws=300),
    "registry": "#/registry",
    "estimator": "#/estimators/disarm",
}
SEEN = [
    *(("playground", "light", 390), ("compare", "dark", 1440), ("registry", "light", 1440), ("estimator", "dark", 390)),
]
APPEARANCES = [(view, theme, width) for view in VIEWS for theme in ("light", "dark") for width in (390, 1440)]


@pytest.mark.parametrize(("view", "theme", "width"), [*SEEN, *deep(*(one for one in APPEARANCES if one not in SEEN))])
def test_every_view_is_accessible_and_fits(visit, view, theme, width):
    """Its screenshot is left in runs/page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit(VIEWS[view], viewport={"width": width, "height": 900}, color_scheme=theme)
    if view in ("playground", "compare"):
        wait_for_pictures(page)
    else:
        page.locator(".katex-html").first.wait_for()
        page.locator(".formula:not(:has(.katex))").first.wait_for(state="detached")
    page.wait_for_timeout(200)  # the picture is to be complete
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert (
        page.evaluate(
            "(({scrollHeight, clientHeight}) => scrollHeight - clientHeight)(document.querySelector('.view'))"
        )
        == 0
    )
    page.screenshot(path=f"runs/page/{view}_{theme}_{width}.png", full_page=view != "registry")
    assert not re.search(r"\b(null|undefined|NaN)\b", page.locator("main").inner_text())
    found = axe.Axe().run(page, context={"exclude": [".katex"]}).response["violations"]
    serious = [
        (one["id"], [node["html"] for node in one["nodes"]])
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
    assert not serious


def test_the_theme_can_be_switched(visit):
    page = visit(color_scheme="light")
    wait_for_pictures(page)

    def paper():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    before, chart = paper(), page.locator(".chart canvas").first.screenshot()
    page.get_by_role("button", name="Switch between light and dark").click()
    page.wait_for_timeout(500)
    assert paper() != before
    assert page.locator(".chart canvas").first.screenshot() != chart


def test_the_theme_that_was_chosen_is_kept(visit):
    page = visit("#/registry", color_scheme="light")
    first = "document.documentElement.dataset.theme"
    page.add_init_script(f"document.addEventListener('readystatechange', () => (window.first ??= {first} ?? 'none'))")

    def scheme():
        return page.evaluate("getComputedStyle(document.documentElement).colorScheme")

    for theme in ("dark", "light"):
        page.get_by_role("button", name="Switch between light and dark").click()
        page.reload()
        assert page.evaluate("window.first") == theme  # ahead of the modules, so that nothing flashes
        assert scheme() == theme
    assert page.evaluate("Object.keys(localStorage)") == ["gradest-theme"]
