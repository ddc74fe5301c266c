"""The registry in a browser: what there is, and a page for each estimator."""

import math

import pytest

import gradest
from gradest.discovery.loading import PluginFailure
from tests.browser.plugins import Long, Misspelt, Wide
from tests.browser.steps import wait_for_pictures
from tests.selection import deep

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


@pytest.fixture
def wide():
    for plugin in (Long, Misspelt, Wide):
        gradest.registry.register(plugin)
    yield
    for plugin in (Long, Misspelt, Wide):
        gradest.registry.unregister(plugin)


# of each formula: the name on its card, how much wider it is than its place, whether the keyboard reaches it, and how far it goes
# beyond its top or bottom, in pixels
SIZES = """() => [...document.querySelectorAll(".card .formula")].map((host) => {
    const {top, bottom} = host.getBoundingClientRect();
    const boxes = [...host.querySelectorAll(".katex-base, .katex-error")].map((part) => part.getBoundingClientRect());
    const beyond = Math.max(...boxes.map((box) => Math.max(top - box.top, box.bottom - bottom)));
    const name = host.closest(".card").querySelector("h3").textContent;
    return [name, host.scrollWidth - host.clientWidth, host.tabIndex === 0, beyond];
})"""


def only(names):
    """What leaves the other plugins out of a page, so that few formulas have to be typeset."""

    def answer(route):
        found = route.fetch()
        route.fulfill(response=found, json=[one for one in found.json() if one["name"] in names])

    return lambda page: [page.route(f"**/v1/{kind}", answer) for kind in ("neurons", "estimators", "objectives")]


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize("every", [False, *deep(True)])
def test_no_formula_is_cut(visit, every):
    """A formula fits, or it scrolls and shows at its edge that there is more."""
    longest = max(
        gradest.registry.estimators.values(), key=lambda cls: len(cls.formula) * (cls.name[:4] != "acme")
    ).name
    some = only({"acme_long", "acme_misspelt", "acme_wide", longest})
    page = visit("#/registry", prepare=(lambda page: None) if every else some)
    page.locator(".katex-html").first.wait_for()
    page.locator(".formula:not(:has(.katex, .katex-error))").first.wait_for(state="detached")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.evaluate(
            "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )  # sizes are seen
        found = page.evaluate(SIZES)
        assert all(beyond <= 0 and focusable == (wider > 0) for _, wider, focusable, beyond in found), found
        scrolls = {name for name, wider, _, _ in found if wider > 0}
        assert "acme_wide" in scrolls
        assert not scrolls & {"acme_long", longest}
        shows_that_there_is_more(page, page.locator(".card:has(a:text-is('acme_wide')) .formula"))


def shows_that_there_is_more(page, host):
    """Fails if the edges of a formula look the same at the start and at the end of its scrolling."""
    host.scroll_into_view_if_needed()
    box = host.bounding_box()

    def edge(x):  # above the formula, where nothing is written
        return page.screenshot(clip={"x": math.ceil(x), "y": math.ceil(box["y"] + 1), "width": 5, "height": 2})

    seen = []
    for place in (0, 1_000_000):
        host.evaluate(f"host => host.scrollTo({place}, 0)")
        seen.append((edge(box["x"]), edge(box["x"] + box["width"] - 6)))
    (paper, shadow_right), (shadow_left, end) = seen
    assert end == paper
    assert paper not in (shadow_right, shadow_left)
