"""The site that `make docs` builds: it opens from disk, asks no other host for anything, and shows formulas."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.test_page_links import PLACES

SITE = Path(__file__).parents[2] / "build/site"
PAGES = {  # with the least number of formulas that each shows
    "index.html": 0,
    "tutorials/five_minutes.html": 5,
    "explanation/theory.html": 40,
    "explanation/pitfalls.html": 3,
    "guides/randomness.html": 0,
    "guides/models.html": 0,
    "guides/coming_from.html": 0,
    "reference/estimators/disarm.html": 1,
    "reference/neurons/k_subset.html": 1,
    "reference/objectives/quadratic.html": 1,
    "reference/api/gradest.nn.html": 0,
    "reference/http.html": 0,
    "reference/commands.html": 0,
    "results/certificates.html": 0,
}
LOADED = re.compile(r"<(?:script|img|iframe)[^>]* src=\"(https?:)?//|<link[^>]* href=\"(https?:)?//|url\((https?:)?//")

pytestmark = [pytest.mark.deep, pytest.mark.skipif(not SITE.is_dir(), reason="make docs builds the site")]


@pytest.fixture(scope="module")
def open_page(request: pytest.FixtureRequest) -> Iterator[Callable[[str], object]]:
    """Opens a page of the site from disk. It fails for a message in the console, and for a request to anywhere else."""
    driver = pytest.importorskip("playwright.sync_api")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=request.config.chromium, args=["--no-sandbox"])
        page = browser.new_page()
        wrong: list[str] = []
        page.on("console", lambda said: said.type in ("error", "warning") and wrong.append(said.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda asked: asked.url.startswith(("file:", "data:")) or wrong.append(asked.url))

        def visit(where: str) -> object:
            wrong.clear()
            page.goto(f"{SITE.as_uri()}/{where}")
            assert not wrong
            return page

        yield visit
        browser.close()


@pytest.mark.browser
@pytest.mark.parametrize(("where", "formulas"), PAGES.items())
def test_a_page_opens_from_disk_and_shows_its_formulas(
    open_page: Callable[[str], object], where: str, formulas: int
) -> None:
    page = open_page(where)
    assert page.locator("h1").count() == 1
    assert page.locator(".math .katex").count() >= formulas
    assert page.locator(".katex-error").count() == 0
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")  # tables scroll within themselves


@pytest.mark.browser
def test_search_works_from_disk(open_page: Callable[[str], object]) -> None:
    page = open_page("search.html?q=baseline")
    page.locator("#search-results li").nth(5).wait_for()  # they come one by one


def test_no_page_loads_anything_from_another_host() -> None:
    pages = list(SITE.rglob("*.html"))
    assert len(pages) > 100
    for path in [*pages, *SITE.rglob("*.css")]:
        assert not LOADED.search(path.read_text(encoding="utf-8")), path.relative_to(SITE)
    assert LOADED.search('<script src="https://cdn.example/x.js">')


def test_every_page_with_code_ran() -> None:
    text = (SITE / "tutorials/index.html").read_text(encoding="utf-8")
    docs = SITE.parents[1] / "docs"
    executed = [
        path for path in docs.rglob("*.md") if "\nfile_format: mystnb\n" in path.read_text(encoding="utf-8")[:200]
    ]
    assert {*(docs / "tutorials").glob("*.md")} - {docs / "tutorials/index.md"} < {*executed}
    for path in executed:
        name = path.relative_to(docs).with_suffix("").as_posix()
        assert f">{name}<" in text, "EXECUTE=off leaves out the code; make docs runs it"


def test_the_theory_links_to_every_neuron_and_estimator() -> None:
    text = (SITE / "explanation/theory.html").read_text(encoding="utf-8")
    text = text[text.index("<article") : text.index("</article>")]  # the navigation has links to all of them
    linked = set(re.findall(r'href="\.\./reference/((?:neurons|estimators)/\w+)\.html"', text))
    pages = {
        f"{kind}/{path.stem}" for kind in ("neurons", "estimators") for path in (SITE / "reference" / kind).glob("*")
    }
    assert pages - linked == {"neurons/index", "estimators/index"}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_the_places_that_the_page_links_to_are_there(place: str) -> None:
    page, _, anchor = place.partition("#")
    assert f'id="{anchor}"' in (SITE / page).read_text(encoding="utf-8")


def test_the_page_of_a_plugin_has_its_options() -> None:
    for kind, name in (("neurons", "bernoulli"), ("estimators", "rloo"), ("objectives", "quadratic")):
        assert 'id="options"' in (SITE / f"reference/{kind}/{name}.html").read_text(encoding="utf-8")
