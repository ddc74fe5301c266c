"""How heavy and how fast the page is: `pytest -m "browser and benchmark" -s tests/browser`."""

import gzip
import statistics
from importlib.resources import files

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.benchmark]

MOVES = 60
MOVE = """async (value) => {
    const slider = document.querySelector("input[type=range]"), pictures = document.querySelector(".pictures");
    const began = performance.now();
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    await new Promise((done) => new MutationObserver((_, watch) => {
        if (pictures.ariaBusy === "false") (watch.disconnect(), done());
    }).observe(pictures, {attributes: true}));
    await new Promise(requestAnimationFrame);
    return performance.now() - began;
}"""


def test_weight_first_paint_and_slider(visit, url):
    page = visit()
    paints = []
    for _ in range(10):
        page.goto("about:blank")
        page.goto(f"{url}/")
        page.locator(".pictures[aria-busy=false]").wait_for()
        paints.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime"))
    print(f"\nfirst paint: median {statistics.median(paints):.0f} ms, largest {max(paints):.0f} ms")
    times = sorted(page.evaluate(MOVE, -3 + 0.1 * move) for move in range(MOVES))
    print(f"slider to picture: median {statistics.median(times):.0f} ms, p95 {times[int(0.95 * MOVES)]:.0f} ms")
    here = files("gradest_service.page")
    for kind, folder in (("own files", here), ("libraries", here / "vendor")):
        loads = [item.read_bytes() for item in folder.iterdir() if item.name.endswith((".js", ".css", ".html", ".svg"))]
        packed = sum(len(gzip.compress(content)) for content in loads)
        print(f"{kind}: {sum(map(len, loads)) / 1e3:.0f} kB, packed {packed / 1e3:.0f} kB")
