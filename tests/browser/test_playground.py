"""The playground in a browser: its pictures, its figures, and its code."""

import json
import re
import subprocess

import pytest
import torch

import gradest
from gradest.contract.objective import Separable
from tests.browser.steps import CASE, fact, link, slide, wait_for_pictures
from tests.selection import deep

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def test_sliders_move_the_picture(visit):
    page = visit(link("playground", **CASE))
    wait_for_pictures(page)
    facts = page.get_by_text("P(h > 0) =")
    assert "a₁ = 0.5: E[h] = 0.6225" in facts.inner_text()
    before = [page.locator(".chart canvas").nth(at).screenshot() for at in (0, 1, 2, 3)]
    slide(page, 2, 2)
    assert "a₂ = 2: E[h] = 0.8808" in facts.inner_text()
    after = [page.locator(".chart canvas").nth(at).screenshot() for at in (0, 1, 2, 3)]
    assert all(one != two for one, two in zip(before, after, strict=True))
    assert "2]" in page.evaluate("decodeURIComponent(location.hash)")  # the link is that of what is shown


def test_the_figures_are_those_of_the_library(visit):
    page = visit(link("playground", **CASE))
    wait_for_pictures(page)
    a, loss = torch.tensor(CASE["a"]), gradest.objective(CASE["objective"])
    expected, gradient = gradest.exact(loss, a)
    note = page.get_by_text("exact gradient (").inner_text()
    assert [f"{float(x):.4g}" for x in [expected]] + [f"{x:.3g}" for x in gradient.tolist()] == re.findall(
        r"-?\d+\.\d+", note
    )
    for at, estimator in enumerate(CASE["estimators"]):
        draws = gradest.estimate(loss, a.expand(400, 2), "bernoulli", estimator, draws=1, seed=7).gradient.double()
        card = page.locator(".clouds .card").nth(at)
        bias, error = (float(x) for x in fact(card, "bias").split(" ± "))
        assert bias == pytest.approx(float(draws.mean(0)[0] - gradient[0]), rel=0.02, abs=1e-6)
        assert error == pytest.approx(float(draws.std(0)[0]) / 400**0.5, rel=0.05)
        assert float(fact(card, "variance")) == pytest.approx(float(draws.var(0).mean()), rel=0.01)
        cost = 1 if at else 2
        assert float(fact(card, "evaluations")) == cost
        assert float(fact(card, "efficiency")) == pytest.approx(1 / float(draws.var(0).mean()) / cost, rel=0.01)


@pytest.mark.parametrize(
    ("neuron", "text"),
    [("categorical", "[[1, 0, -1], [0, 0, 2]]"), *deep(("bernoulli", "0.3"), ("gaussian", "1 2 3 4 5 6 7 8"))],
)
def test_numbers_can_be_pasted(visit, neuron, text):
    page = visit(link("playground", neuron=neuron))
    wait_for_pictures(page)
    page.get_by_label("or paste numbers").fill(text)
    page.get_by_label("or paste numbers").press("Tab")
    wait_for_pictures(page)
    assert page.get_by_role("slider").count() == len(re.findall(r"\d+", text)) - text.count(".")
    assert page.locator("#trouble").is_hidden()
    page.get_by_label("or paste numbers").fill("[1, x")
    page.get_by_label("or paste numbers").press("Tab")
    page.get_by_text(re.compile("^Give ")).wait_for()


@pytest.mark.filterwarnings(
    "ignore:pre-activations of stochastic_rounding are exactly on the grid"
)  # one of them is -1
@pytest.mark.parametrize("step", [5, *deep(1)])
def test_every_neuron_can_be_shown(visit, step):
    """Every fifth of them in `make test`."""
    page = visit()
    wait_for_pictures(page)
    names = page.get_by_label("name").first.locator("option").all_inner_texts()
    assert names == list(gradest.registry.neurons)
    for name in names[::step]:
        page.get_by_label("name").first.select_option(name)
        wait_for_pictures(page)
        assert page.locator("#trouble").is_hidden(), name
        assert page.locator(".clouds .card dd").count() >= 4, name


@pytest.mark.usefixtures("acme")
def test_a_strangers_plugin_appears_with_its_options(visit):
    page = visit(link("playground", **{**CASE, "estimators": []}))
    page.get_by_label("acme_gain", exact=True).check()
    page.get_by_label("name").nth(1).select_option("acme_shifted")
    page.get_by_label("shift").fill("3")
    page.get_by_text("options of acme_gain").click()
    page.get_by_label("gain", exact=True).fill("2")
    card = page.locator(".card", has_text="acme_gain(gain=2)")
    card.locator("dd").first.wait_for()
    wait_for_pictures(page)
    assert "E[L] = 3.446" in page.get_by_text("E[L] =").inner_text()  # 3 + the mean of σ(0.5) and σ(-1)
    assert float(fact(card, "variance")) == 0


def test_a_picture_that_nobody_waits_for_is_cancelled(visit, gate, caplog):
    caplog.set_level("INFO", "gradest_service")
    page = visit(link("playground", **{**CASE, "objective": "acme_gate"}))
    assert gate.asked.acquire(timeout=20)
    page.wait_for_timeout(300)  # longer than the page lets a picture be on its way
    page.get_by_label("a of unit 1").fill("1")
    page.wait_for_timeout(300)
    gate.open.set()
    wait_for_pictures(page)
    # of a request whose client went away, before it had an answer
    assert 499 in [record.fields["status"] for record in caplog.records if hasattr(record, "fields")]


def test_a_slow_estimator_keeps_nobody_waiting(visit, gate):
    page = visit(link("playground", **{**CASE, "estimators": ["acme_slow", "rloo"]}))
    slow, fast = (page.locator(".clouds .card").nth(at) for at in (0, 1))
    fast.locator("dd").first.wait_for()
    assert (fast.get_attribute("aria-busy"), slow.get_attribute("aria-busy")) == ("false", "true")
    assert slow.locator("dd").count() == 0
    gate.open.set()
    wait_for_pictures(page)
    assert slow.get_attribute("aria-busy") == "false"
    assert float(fact(slow, "evaluations")) == 1


class Noted(Separable):
    """L(h) = n · mean_i h_i, where n is the length of the note."""

    name, summary = "acme_noted", "h, as often as the note has letters"
    note: str = ""

    def per_unit(self, h):
        return h * len(self.note)


@pytest.fixture
def noted():
    gradest.registry.register(Noted)
    yield
    gradest.registry.unregister(Noted)


@pytest.mark.usefixtures("noted")
def test_the_playground_as_code(visit):
    objective = {"name": "acme_noted", "note": "it's \\ $HOME `id` END"}  # a shell is to leave it as it is
    page = visit(link("playground", **{**CASE, "objective": objective}))
    wait_for_pictures(page)
    code = {}
    for title in ("Show as Python", "Show as curl"):
        page.get_by_text(title).click()
        code[title] = page.locator(f"pre[aria-label='{title}']").inner_text()
    answers = subprocess.run(code["Show as curl"], shell=True, check=True, capture_output=True, text=True).stdout
    (exact,) = {str(json.loads(answer)["exact"]["gradient"][0]) for answer in answers.splitlines()}
    for at, answer in enumerate(answers.splitlines()):
        card = page.locator(".clouds .card").nth(at)
        draws = torch.tensor(json.loads(answer)["gradient"]).double()
        assert draws.shape == (400, 2)
        assert float(fact(card, "variance")) == pytest.approx(float(draws.var(0).mean()), rel=0.01)
        bias, _ = fact(card, "bias").split(" ± ")
        assert float(bias) == pytest.approx(float(draws.mean(0)[0]) - json.loads(exact)[0], rel=0.01, abs=1e-6)
    assert at == 1
    names = {}
    exec(code["Show as Python"], names)
    assert torch.equal(names["draws"].double(), draws)


def sweep_chart(page):
    return page.locator("figure", has_text="variance: save as PNG")


def test_the_variance_is_swept_over_the_unit_chosen(visit):
    page = visit(link("compare", **{**CASE, "a": [0.5, -1, 2], "ran": True}))
    asked = []
    page.on("request", lambda request: "/v1/" in request.url and asked.append(request))
    wait_for_pictures(page)
    table, first = page.locator("table").inner_text(), sweep_chart(page).locator("canvas").screenshot()
    asked.clear()
    page.get_by_label("p changes with").select_option("a of unit 3")
    wait_for_pictures(page)
    paths = [request.url.rpartition("/")[2] for request in asked]
    assert paths == ["mean", "estimate", "estimate"]  # the comparison itself is not made again
    assert all(request.post_data_json["a"] == [[0.5, -1, -6 + 0.75 * at] for at in range(17)] for request in asked)
    assert page.locator("table").inner_text() == table
    assert sweep_chart(page).locator("canvas").screenshot() != first
    assert "with a of unit 3" in sweep_chart(page).locator(".chart").get_attribute("aria-label")
    again = visit(page.url.split("/", 3)[3])
    wait_for_pictures(again)
    assert again.get_by_label("p changes with").input_value() == "a of unit 3"
