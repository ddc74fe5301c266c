"""The page and its service: keys, a prefix, a server that goes away, refuses or sheds load, and what the policy lets in."""

import threading
import time

import httpx
import pytest
import uvicorn

from gradest_service.admit.auth import new_key
from gradest_service.app import create_app
from gradest_service.settings import Settings
from tests.browser.steps import CASE, link, run_comparison, slide, wait_for_pictures

pytestmark = pytest.mark.browser


def test_a_key_is_typed_once_and_kept_in_memory(visit, start, tmp_path):
    key, line = new_key("lecturer")
    file = tmp_path / "keys"
    file.write_text(f"{line}\n")
    address, _ = start(api_keys=file)
    page = visit(host=address, faults=["401"])
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key").fill("gradest_wrong")
    dialog.get_by_role("button", name="Use it").click()
    page.get_by_text("There is no such API key").wait_for()
    dialog.get_by_label("API key").fill(key)
    dialog.get_by_role("button", name="Use it").click()
    wait_for_pictures(page)
    page.get_by_role("link", name="Compare", exact=True).click()
    page.get_by_role("button", name="Compare", exact=True).click()
    wait_for_pictures(page)
    page.get_by_text("Show as curl").click()
    assert "$GRADEST_API_KEY" in page.locator("pre").last.inner_text()
    kept = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])")
    assert key not in kept
    assert key not in page.content()
    page.reload()
    dialog.wait_for()
    page.wait_for_load_state("networkidle")  # the service stops before the page is closed


def test_below_a_prefix(visit):
    app = create_app(Settings())

    async def below(scope, receive, send):
        if scope["type"] == "http":
            assert scope["path"].startswith("/tools/gradest/")
            scope = {**scope, "root_path": "/tools/gradest"}
        await app(scope, receive, send)

    server = uvicorn.Server(uvicorn.Config(below, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        page = visit(link("compare", **CASE), host=f"http://127.0.0.1:{port}/tools/gradest")
        run_comparison(page)
        assert page.locator("tbody tr").count() == 2
        page.goto(f"http://127.0.0.1:{port}/tools/gradest/#/estimators/rloo")
        page.locator(".katex-html").first.wait_for()
    finally:
        server.should_exit = True
        thread.join()


def test_the_server_goes_away_and_comes_back(visit, start):
    address, stop = start()
    page = visit(link("playground", **CASE), host=address, faults=["ERR_"])
    wait_for_pictures(page)
    stop()
    page.get_by_label("a of unit 1").fill("1")
    page.get_by_role("alert").get_by_text("does not answer").wait_for()
    start(port=int(address.rpartition(":")[2]))
    slide(page, 1, 2)
    assert page.locator("#trouble").is_hidden()


def test_a_server_that_sheds_load_is_shown(start, gate, visit):  # the page closes before its server
    address, _ = start(max_requests=1)
    body = {**CASE, "objective": "acme_gate", "estimator": "rloo"}
    del body["estimators"]
    held = threading.Thread(target=lambda: httpx.post(f"{address}/v1/estimate", json=body, timeout=60))
    held.start()
    assert gate.asked.acquire(timeout=20)
    page = visit("#/estimators/rloo", host=address, faults=["429", "503"])
    page.get_by_role("alert").wait_for()
    assert "again" in page.get_by_role("alert").inner_text()
    gate.open.set()
    held.join()
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("heading", name="rloo").wait_for()
    assert page.locator("#trouble").is_hidden()


def test_what_the_service_refuses_is_shown(visit):
    page = visit(link("playground", **{**CASE, "objective": "cross_entropy"}), faults=["422"])
    page.get_by_role("alert").get_by_text("weight").wait_for()


def test_the_policy_lets_nothing_else_in(visit, url):
    policy = httpx.get(f"{url}/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    page = visit(faults=["Content Security Policy", "violates"])
    wait_for_pictures(page)
    for attack in (
        "eval('window.broken = 1')",
        "document.body.setAttribute('onclick', 'window.broken = 1'), document.body.click()",
    ):
        # from a timer, for what the driver itself runs is exempt
        page.evaluate(f"setTimeout(() => {{ {attack} }})")
    page.wait_for_timeout(50)
    assert page.evaluate("window.broken") is None


def test_files_are_kept_and_packed(url):
    first = httpx.get(f"{url}/page/app.js")
    assert first.headers["content-encoding"] == "gzip"
    assert httpx.get(f"{url}/page/app.js", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    plain = httpx.get(f"{url}/page/app.js", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.text == first.text
    assert httpx.get(f"{url}/page/vendor/none.js").status_code == 404
