"""Comparisons in a browser: they run, stop, sort, and can be kept and shared."""

import json
import re
import subprocess

import pytest
import torch

import gradest
from tests.browser.steps import CASE, link, run_comparison, wait_for_pictures
from tests.selection import deep

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_a_comparison_runs_and_sorts(visit):
    page = visit(link("compare", **CASE))
    run_comparison(page)
    names = page.locator("tbody th")
    assert set(names.all_inner_texts()) == {"rloo", "straight_through(derivative=sigmoid)"}
    for column, at in (("variance", 5), ("bias", 3), ("K", 2)):
        button = page.locator("thead").get_by_role("button", name=column, exact=True)
        for direction in ("ascending", "descending"):
            button.press("Enter")
            if page.locator("th[aria-sort]").get_attribute("aria-sort") != direction:
                button.press("Enter")
            shown = [float(row.locator("th, td").nth(at).inner_text()) for row in page.locator("tbody tr").all()]
            assert shown == sorted(shown, reverse=direction == "descending")
    assert page.locator("figure canvas").count() == 3


def test_progress_shows_and_stop_stops(visit):
    case = {**CASE, "draws": 1_000_000, "estimators": ["disarm"]}
    page = visit(link("compare", **case))
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text(re.compile(r"disarm: [1-9]\d* of 1000000")).wait_for()
    assert 0 < float(page.get_by_role("progressbar").get_attribute("value")) < 1
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Stopped.").wait_for()
    assert page.locator("tbody tr").count() == 0
    assert page.get_by_role("button", name="Stop").is_disabled()


def test_the_code_computes_what_is_on_screen(visit, tmp_path):
    page = visit(link("compare", **CASE))
    run_comparison(page)
    with page.expect_download() as caught:
        page.get_by_role("button", name="JSON").click()
    saved = json.loads(caught.value.path().read_text())
    assert saved["request"] == CASE
    for row in saved["result"]["rows"]:
        del row["seconds"]

    def code(title):
        page.get_by_text(title).click()
        return page.locator(f"pre[aria-label='{title}']").inner_text()

    names = {}
    exec(code("Show as Python"), names)
    ours = names["table"].to_dict()
    answer = subprocess.run(code("Show as curl"), shell=True, check=True, capture_output=True, text=True).stdout
    for found in (ours, json.loads(answer)):
        for row in found["rows"]:
            del row["seconds"]
        assert found == saved["result"]


def test_downloads(visit):
    page = visit(link("compare", **CASE))
    run_comparison(page)
    with page.expect_download() as caught:
        page.get_by_role("button", name="CSV").click()
    head, *rows = caught.value.path().read_text().splitlines()
    assert head.split(",")[:4] == ["estimator", "claim", "evaluations", "bias"]
    assert len(rows) == 2
    for name in ("bias", "error", "variance"):
        with page.expect_download() as caught:
            page.get_by_role("button", name=f"{name}: save as PNG").click()
        assert caught.value.suggested_filename == f"gradest-{name}.png"
        assert caught.value.path().read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_link_restores_everything(visit):
    page = visit(link("compare", **CASE))
    run_comparison(page)
    page.locator("thead").get_by_role("button", name="bias", exact=True).click()
    found = page.locator("table").inner_text()
    again = visit(page.url.split("/", 3)[3])
    wait_for_pictures(again)  # it runs by itself
    # all but the seconds, which are the last of each row
    assert [line.rpartition("\t")[0] for line in again.locator("table").inner_text().splitlines()] == [
        line.rpartition("\t")[0] for line in found.splitlines()
    ]
    assert again.evaluate("location.hash") == page.evaluate("location.hash")


# the sides of a canvas on whose outermost three pixels something is drawn
CUT = """(canvas) => {
    const {width, height} = canvas, {data} = canvas.getContext("2d").getImageData(0, 0, width, height), cut = new Set();
    for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
            if ([0, 1, 2].every((one) => data[4 * (y * width + x) + one] === data[one])) continue;
            if (x < 3) cut.add("left");
            if (x >= width - 3) cut.add("right");
            if (y >= height - 3) cut.add("bottom");
        }
    }
    return [...cut];
}"""


@pytest.mark.parametrize(("many", "width"), [(False, 1440), (True, 390), *deep((False, 390), (True, 1440))])
def test_no_legend_is_cut(visit, width, many):
    estimators = [*CASE["estimators"], {"name": "slope_annealed_straight_through", "derivative": "clipped"}]
    if many:  # those without a state, which are fast
        neuron, a = gradest.neuron("bernoulli"), torch.zeros(2)
        plain = [one for one in map(gradest.estimator, gradest.registry.estimators) if one.accepts(neuron)]
        estimators += [
            one.name for one in plain if not one.init(neuron, a) and one.name not in ("rloo", "straight_through")
        ]
    case = {**CASE, "draws": 20, "estimators": estimators}
    page = visit(link("compare", **case), viewport={"width": width, "height": 900})
    run_comparison(page)
    for chart in page.locator("figure canvas").all():
        assert chart.evaluate(CUT) == []
