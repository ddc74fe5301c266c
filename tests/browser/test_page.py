"""The page in a browser: what people do on it, and what they see when something is wrong."""

import json
import re
import subprocess
import threading
import time
from urllib.parse import quote

import httpx
import pytest
import torch
import uvicorn

import gradest
from gradest.contract.estimator import Bias, MonteCarlo
from gradest.contract.objective import Separable
from gradest.discovery.loading import PluginFailure
from gradest_service.admit.auth import new_key
from gradest_service.app import create_app
from gradest_service.settings import Settings
from tests.selection import deep

pytestmark = pytest.mark.browser

CASE = {
    "neuron": "bernoulli",
    "objective": {"name": "quadratic", "target": 0.3},
    "a": [0.5, -1],
    "draws": 200,
    "seed": 7,
    "estimators": ["rloo", {"name": "straight_through", "derivative": "sigmoid"}],
}


def link(view, **state):
    return f"#/{view}?{quote(json.dumps(state))}"


def wait_for_pictures(page):
    page.locator(".pictures[aria-busy=false]").wait_for()


def slide(page, unit, value):
    page.get_by_label(f"a of unit {unit}").fill(str(value))
    wait_for_pictures(page)


def fact(card, name):
    """A figure of an estimator's card, as it is shown."""
    return card.locator(f"div:has(> dt:text-is('{name}')) > dd").inner_text()


# --- playground ---


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
    [("bernoulli", "0.3"), ("categorical", "[[1, 0, -1], [0, 0, 2]]"), ("gaussian", "1 2 3 4 5 6 7 8")],
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
def test_every_neuron_can_be_shown(visit):
    page = visit()
    wait_for_pictures(page)
    names = page.get_by_label("name").first.locator("option").all_inner_texts()
    assert names == list(gradest.registry.neurons)
    for name in names:
        page.get_by_label("name").first.select_option(name)
        wait_for_pictures(page)
        assert page.locator("#trouble").is_hidden(), name
        assert page.locator(".clouds .card dd").count() >= 4, name


class Acme(MonteCarlo):
    """ĝ = gain · dL/dh."""

    name, summary, needs = "acme_gain", "passes dL/dh on, times a gain", frozenset({"grad"})
    gain: float = 0.5

    def bias(self, neuron):
        return Bias.BIASED

    def backward(self, draw, feedback, state):
        return self.gain * feedback.get_grad().mean(0), state


class Shifted(Separable):
    """L(h) = mean_i (h_i + shift)."""

    name, summary = "acme_shifted", "the mean, shifted"
    shift: float = 0.0

    def per_unit(self, h):
        return h + self.shift


@pytest.fixture
def acme():
    added = [gradest.registry.register(plugin) for plugin in (Acme, Shifted)]
    yield
    for plugin in added:
        gradest.registry.unregister(plugin)


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


class Gate(gradest.Objective):
    """Lets nothing through until it is opened."""

    name, summary = "acme_gate", "waits"

    def __call__(self, points):
        if points.shape[0]:
            type(self).asked.release()
            assert type(self).open.wait(30)
        return points.mean(-1)


class Slow(Acme):
    """`Acme`, once the gate is open."""

    name, summary = "acme_slow", "waits"

    def backward(self, draw, feedback, state):
        assert Gate.open.wait(30)
        return super().backward(draw, feedback, state)


@pytest.fixture
def gate():
    Gate.asked, Gate.open = threading.Semaphore(0), threading.Event()
    added = [gradest.registry.register(plugin) for plugin in (Gate, Slow)]
    yield Gate
    Gate.open.set()
    for plugin in added:
        gradest.registry.unregister(plugin)


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


# --- compare ---


def run_comparison(page):
    page.get_by_role("button", name="Compare", exact=True).click()
    wait_for_pictures(page)


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


# --- registry ---


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


# --- craft ---


def test_by_keyboard_alone(visit):
    page = visit(link("playground", **CASE))
    wait_for_pictures(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    for _ in range(2):
        page.keyboard.press("Tab")  # past the number of units, to the first slider
    assert page.evaluate("document.activeElement.ariaLabel") == "a of unit 1"
    page.keyboard.press("ArrowRight")
    page.get_by_text("a₁ = 0.6:").wait_for()


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
