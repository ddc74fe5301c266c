"""The site of the documents at /guide."""

import asyncio
import re

import httpx
import pytest
from fastapi import FastAPI

from gradest_service.page import add_page
from gradest_service.page.guide import add_guide, find_guide, guide_paths
from gradest_service.problems import Problem

PAGE = "<html><script>hello()</script><script src='x.js'></script></html>"


@pytest.fixture
def site(tmp_path):
    for name in ("index.html", "x.js", "reference/one.html"):
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PAGE)
    (tmp_path / "secret").write_text("secret")
    return tmp_path / "site"


class Site:
    """An application with the routes of the guide and of the page alone."""

    def __init__(self, folder):
        self._app = FastAPI()
        paths = guide_paths(folder)
        add_guide(self._app, folder, paths)
        add_page(self._app, paths)

    def get(self, path):
        async def ask():
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://site") as client:
                return await client.get(path)

        return asyncio.run(ask())


def test_pages_come_with_a_policy_that_lets_their_own_scripts_run(site):
    answer = Site(site).get("/guide/index.html")
    assert answer.text == PAGE
    policy = answer.headers["content-security-policy"]
    assert len(re.findall("'sha256-[^']+'", policy)) == 1  # of the script in the page, not of the one in a file
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert Site(site).get("/guide/x.js").headers["content-type"].startswith("text/javascript")
    assert Site(site).get("/guide/reference/one.html").status_code == 200


def test_the_first_page_is_found_with_and_without_a_slash(site):
    assert Site(site).get("/guide").headers["location"] == "guide/index.html"


@pytest.mark.parametrize("name", ["none.html", "..%2fsecret", "%2e%2e/secret", "reference", ""])
def test_nothing_else_is_served(site, name):
    with pytest.raises(Problem, match="no such page") as found:
        Site(site).get(f"/guide/{name}")
    assert found.value.status == 404


def test_without_a_site_the_error_says_how_to_build_it():
    for path in ("/guide", "/guide/index.html"):
        with pytest.raises(Problem, match="make docs") as found:
            Site(None).get(path)
        assert found.value.status == 404


def test_the_page_knows_which_pages_the_guide_has(site):
    assert Site(site).get("/page/guide.json").json() == ["index.html", "reference/one.html"]
    assert Site(None).get("/page/guide.json").json() == []


def test_the_site_is_found_in_the_package_or_beside_it(site, tmp_path):
    package = tmp_path / "checkout/service/gradest_service"
    package.mkdir(parents=True)
    assert find_guide(package) is None
    built = tmp_path / "checkout/build/site"
    built.parent.mkdir()
    site.rename(built)
    assert find_guide(package) is None  # a folder beside some other package is none of ours
    (tmp_path / "checkout/docs/site").mkdir(parents=True)
    assert find_guide(package) == built
    (package / "site").mkdir()
    (package / "site/index.html").write_text(PAGE)
    assert find_guide(package) == package / "site"
