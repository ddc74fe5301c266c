"""The start for newcomers: scenes that walk through what is on screen, and the offer of them."""

import json
import re

import pytest

from tests.browser.scenes import CLAIMS
from tests.browser.steps import wait_for_pictures
from tests.selection import deep

pytestmark = pytest.mark.browser

LOSSES = {"0.3", "0.09", "0.49"}  # figures of a text that are not on screen; a claim checks them
SCREEN = """() => document.querySelector("main").innerText
    + [...document.querySelectorAll("main input")].map((one) => ` ${one.value}`).join("")"""


# whether what is spoken of is in view and above the panel, once the scroll to it has ended
IN_VIEW = """() => new Promise((done) => {
    let frames = 0;
    const look = () => {
        const [box, panel] = [".spoken-of", ".walk"].map((one) => document.querySelector(one).getBoundingClientRect());
        const seen = box.top >= 0 && box.bottom <= panel.top && panel.bottom <= innerHeight;
        if (seen || (frames += 1) > 200) done(seen);
        else requestAnimationFrame(look);
    };
    look();
})"""


def see(page, scene, at):
    """Checks a step: its address, its claim, its figures, what it speaks of, and that the panel is not in front of that."""
    panel, target = (
        page.get_by_role("region", name=f"step {at + 1} of {len(CLAIMS[scene])}"),
        page.locator(".spoken-of"),
    )
    panel.wait_for()
    target.wait_for()
    wait_for_pictures(page)
    assert page.evaluate("location.hash") == f"#/start/{scene}/{at + 1}"
    assert target.count() == 1
    text = panel.get_by_role("status").inner_text()
    screen = page.evaluate(SCREEN).replace(text, "")
    for figure in re.findall(r"\d+\.\d+|(?<![\d,])\d{3,}", text):
        assert figure in LOSSES or figure in screen, f"{figure} of {text!r}"
    CLAIMS[scene][at](page)
    assert page.evaluate(IN_VIEW)


@pytest.mark.parametrize(
    ("width", "height", "scene", "title"),
    [
        (390, 844, "estimator", "An estimator"),
        *deep(
            (390, 844, "unit", "A unit"),
            (390, 844, "comparison", "A comparison"),
            (1280, 900, "unit", "A unit"),
            (1280, 900, "estimator", "An estimator"),
            (1280, 900, "comparison", "A comparison"),
        ),
    ],
)
def test_a_scene_by_keyboard(visit, width, height, scene, title):
    """A newcomer finds the offer, goes through the scene, and stays where it ended."""
    page = visit(viewport={"width": width, "height": height}, reduced_motion="reduce")
    wait_for_pictures(page)
    page.get_by_role("complementary", name="For newcomers").get_by_role("link", name=title).press("Enter")
    for at in range(len(CLAIMS[scene])):
        see(page, scene, at)
        assert page.evaluate("document.activeElement.className") == "walk"
        if at + 1 < len(CLAIMS[scene]):
            page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    page.get_by_role("region", name=f"step {at} of").wait_for()
    page.keyboard.press("Escape")
    page.locator(".walk").wait_for(state="detached")
    wait_for_pictures(page)
    assert page.evaluate("document.activeElement.id") == "main"
    state = json.loads(page.evaluate("decodeURIComponent(location.hash).split('?')[1]"))
    assert "straight_through" in state["estimators"] or scene == "unit"
    assert page.evaluate("localStorage.getItem('gradest-start')") == "seen"
    if scene != "comparison":
        assert page.get_by_role("link", name="Show me around").is_visible()


@pytest.mark.deep
def test_a_scene_by_mouse_goes_on_to_the_next(visit):
    page = visit("#/start/unit/5", reduced_motion="no-preference")
    wait_for_pictures(page)
    assert page.locator("nav a[aria-current]").inner_text() == "Playground"
    back = page.get_by_role("button", name="Back")
    for at in (3, 2, 1, 0):
        back.click()
        see(page, "unit", at)
    assert back.is_disabled()
    assert page.evaluate("document.activeElement.textContent") == "Next"  # the focus is not lost
    page.goto(page.url.replace("unit/1", "estimator/5"))
    wait_for_pictures(page)
    page.get_by_role("button", name="Next: A comparison").click()
    see(page, "comparison", 0)
    assert page.locator("nav a[aria-current]").inner_text() == "Compare"
    page.get_by_role("button", name="Close").click()
    wait_for_pictures(page)
    assert page.locator("tbody tr").count() == 4
    page.goto(page.url.split("#")[0] + "#/start/none/99")  # a link from another version
    page.get_by_role("region", name="A unit step 5 of 5").wait_for()
    wait_for_pictures(page)


def test_a_step_about_the_table_is_computed_if_it_is_opened_by_its_address(visit):
    page = visit("#/start/comparison/2", viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    see(page, "comparison", 1)
    assert page.locator(".pictures > .scroll").evaluate("e => e.scrollWidth <= e.clientWidth")  # no column is cut off


@pytest.mark.deep
@pytest.mark.parametrize("stores", [True, False])
def test_the_offer_is_declined_once(visit, stores):
    def without(page):
        page.add_init_script("Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no') }})")

    page = visit(prepare=(lambda page: None) if stores else without)
    wait_for_pictures(page)
    page.get_by_role("button", name="No, thanks").click()
    assert page.evaluate("document.activeElement.textContent") == "Show me around"
    page.reload()
    wait_for_pictures(page)
    assert page.get_by_role("complementary", name="For newcomers").count() == (0 if stores else 1)


@pytest.mark.deep
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_step_is_accessible(visit, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = visit("#/start/estimator/3", viewport={"width": 390, "height": 844}, color_scheme=theme)
    wait_for_pictures(page)
    page.locator(".spoken-of").wait_for()
    page.wait_for_timeout(600)  # the outline has arrived
    found = axe.Axe().run(page).response["violations"]
    assert not [one["id"] for one in found if one["impact"] in ("serious", "critical")]
