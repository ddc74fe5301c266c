"""The conformance kit on whole plugins: `gradest check`, what it finds, and the report that it gives."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from gradest.cli import main
from gradest.discovery.entry_points import find
from gradest.errors import PluginError, UnknownPlugin
from gradest.testing import checks
from gradest.testing.suite import collect_checks, run_checks

QUICK = len(checks.ESTIMATOR_CHECKS) - 1  # all but the measurement of bias
"""How many checks an estimator has, without that of its bias."""

HEAD = """
import gradest, torch
from gradest.contract.estimator import Bias, Draw, Feedback, MonteCarlo
from gradest.contract.neuron import per_event
from gradest.contract.neuron import Discrete, LogisticBinary, Relaxable


class Mine(MonteCarlo):
    '''The score-function estimator.'''

    name, summary, needs, capabilities = "mine", "loss times score", frozenset({"loss"}), (Discrete,)

    def accepts(self, neuron):
        return neuron.name in ("bernoulli", "third")

    def bias(self, neuron):
        return Bias.NONE

    def backward(self, draw, feedback, state):
        score = draw.neuron.score(draw.points, draw.a)
        return (per_event(feedback.get_loss(), draw.neuron) * score).mean(0), state


class Broken(Mine):
"""
FOOT = """

@gradest.hookimpl
def gradest_estimators():
    return [Broken]
"""


@pytest.fixture
def written(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Writes a plugin file, of a name that no other test's has."""

    def write(source: str) -> Path:
        path = tmp_path / f"plugin_{re.sub(r'[^a-z0-9]+', '_', request.node.name.lower()).strip('_')}.py"
        path.write_text(source)
        return path

    yield write
    sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `gradest check` in this process: its exit code, standard output and standard error."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradest", "check", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        if isinstance(ended.value.code, str):
            return 1, out, err + ended.value.code
        return int(ended.value.code or 0), out, err

    return run


def wrong(report: dict[str, Any]) -> dict[str, str]:
    return {result["check"]: result["diagnosis"] for result in report["results"] if not result["passed"]}


BROKEN = {
    "sign flipped": (
        """
        def backward(self, draw, feedback, state):
            gradient, state = super().backward(draw, feedback, state)
            return -gradient, state
        """,
        "bias_is_as_claimed",
        "point the other way: is a sign wrong?",
    ),
    "factor two": (
        """
        def backward(self, draw, feedback, state):
            gradient, state = super().backward(draw, feedback, state)
            return 2 * gradient, state
        """,
        "bias_is_as_claimed",
        r"off by \d+ to \d+ % of the gradient: is there a wrong factor",
    ),
    "baseline that peeks at its own sample": (
        """
        def init(self, neuron, a):
            return {"mean": a.new_zeros(())}

        def backward(self, draw, feedback, state):
            loss = feedback.loss
            if loss.numel():
                state = {"mean": 0.5 * state["mean"] + 0.5 * loss.mean().to(state["mean"])}
            return super().backward(draw, Feedback(loss - state["mean"].to(loss)), state)
        """,
        "rows_are_independent",
        "a row alone differs from the same row in a batch",
    ),
    "baseline of a row that peeks at its own sample": (
        """
        def backward(self, draw, feedback, state):
            return super().backward(draw, Feedback(feedback.loss - 0.5 * feedback.loss), state)
        """,
        "bias_is_as_claimed",
        "does a baseline depend on the very sample whose loss it is subtracted from",
    ),
    "noise from torch's global generator": (
        """
        def forward(self, neuron, a, key, state):
            points = (torch.rand(self.samples, *a.shape) < neuron.probability(a)).to(a.dtype)
            return Draw(neuron, a, key, points, a.new_full((self.samples,), 1 / self.samples))
        """,
        "is_pure",
        "noise was taken from torch's global generator",
    ),
    "argument changed in place": (
        """
        def backward(self, draw, feedback, state):
            feedback.loss.sub_(1)
            return super().backward(draw, feedback, state)
        """,
        "is_pure",
        "an argument was changed in place",
    ),
    "K misstated": (
        """
        def evaluations(self, neuron, event_shape):
            return 2
        """,
        "shapes_and_dtypes",
        "evaluations says K = 2, but forward asks for 1 points",
    ),
    "result dependent on the batch": (
        """
        def backward(self, draw, feedback, state):
            rest = feedback.loss.mean() if feedback.loss.numel() else 0
            return super().backward(draw, Feedback(feedback.loss - rest), state)
        """,
        "rows_are_independent",
        "a row alone differs from the same row in a batch",
    ),
    "NaN at saturation": (
        """
        def backward(self, draw, feedback, state):
            p = torch.sigmoid(draw.a)
            slope = p * (1 - p)
            return (per_event(feedback.loss, draw.neuron) * (draw.points - p) / slope * slope).mean(0), state
        """,
        "survives_saturation",
        "the gradient is not finite at saturation",
    ),
    "wrong dtype": (
        """
        def backward(self, draw, feedback, state):
            gradient, state = super().backward(draw, feedback, state)
            return gradient.float(), state
        """,
        "shapes_and_dtypes",
        "gradient is torch.float32 for an input of torch.float64",
    ),
    "exception": (
        """
        def evaluations(self, neuron, event_shape):
            return event_shape[3]
        """,
        "shapes_and_dtypes",
        r"raises IndexError: tuple index out of range \(plugin_.*\.py:\d+, in evaluations\)",
    ),
    "assertion of its own": (
        """
        def evaluations(self, neuron, event_shape):
            assert event_shape == (), "no event"
            return 1
        """,
        "shapes_and_dtypes",
        r"raises AssertionError: no event \(plugin_.*\.py:\d+, in evaluations\)",
    ),
    "no neuron": (
        """
        capabilities = (LogisticBinary, Relaxable)

        def accepts(self, neuron):
            return False
        """,
        "accepts",
        "accepts no neuron, neither its plugin's nor a built-in one: `capabilities` requires LogisticBinary and Relaxable",
    ),
    "accepts raises": (
        """
        def accepts(self, neuron):
            return neuron.no_such_attribute
        """,
        "accepts",
        "raises AttributeError: .*no_such_attribute",
    ),
    "example that cannot be built": (
        "examples = ({}, {'sample': 3})",
        "examples",
        "cannot be built from its examples: raises InvalidOptions: mine: sample: Extra inputs",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_check_finds_what_is_wrong_and_says_it_plainly(fault: str, written: Any, check: Any) -> None:
    body, name, diagnosis = BROKEN[fault]
    path = written(HEAD + "".join(f"    {line}\n" for line in dedent(body).splitlines()) + FOOT)
    code, out, _ = check(str(path), "--json")
    assert code == 1
    found = json.loads(out)
    assert not found["passed"]
    assert re.search(diagnosis, wrong(found)[name])


GOOD = """
    pass


class Third(LogisticBinary):
    '''A unit.'''

    name, summary, low, high = "third", "-1 or 2", -1.0, 2.0


class Cube(gradest.Separable):
    '''A cube.'''

    name, summary = "cube", "h³"

    def per_unit(self, h):
        return h**3


@gradest.hookimpl
def gradest_neurons():
    return [Third]


@gradest.hookimpl
def gradest_objectives():
    return [Cube]
"""


def test_a_right_plugin_passes(written: Any, check: Any) -> None:
    path = written(HEAD + "    pass\n" + FOOT)
    code, out, err = check(str(path), "--json")
    found = json.loads(out)
    assert (code, found["passed"], found["failures"], err) == (0, True, [], "")
    assert [result["check"] for result in found["results"]][-1] == "bias_is_as_claimed"
    code, shown, err = check(str(path), "--fast")
    assert (code, err) == (0, "")
    assert f"conforms: {QUICK} of {QUICK} checks passed" in shown
    assert "what is wrong" not in shown


def test_what_is_tried_on_what(written: Any) -> None:
    cases = collect_checks(find(str(written(HEAD + GOOD + FOOT)))).cases
    tried = {(case.kind, case.plugin, case.neuron) for case in cases}
    assert {
        ("neuron", "third", ""),
        ("objective", "cube", ""),
        ("estimator", "mine", "bernoulli"),
        ("estimator", "mine", "third"),
    } <= tried
    assert ("estimator", "rebar", "third") in tried, "its neurons are tried under built-in estimators"
    assert all("third" in (neuron, plugin) or plugin in ("mine", "cube") for _, plugin, neuron in tried)
    assert len({str(case) for case in cases}) == len(cases)
    assert all(case.run().passed for case in cases if case.kind != "estimator" or case.plugin == "reinforce")


def test_a_neuron_that_cannot_be_built_leaves_the_rest_to_be_checked(written: Any) -> None:
    source = GOOD.replace('"-1 or 2", -1.0, 2.0', '"-1 or 2", -1.0, 2.0\n    examples = ({"no_such": 1},)')
    source = source.replace("    pass\n", "    def accepts(self, neuron):\n        return False\n", 1)
    report = run_checks(find(str(written(HEAD + source + FOOT))))
    assert [(result.plugin, result.check) for result in report.results if not result.passed] == [
        ("third", "examples"),
        ("mine", "accepts"),
    ]
    assert {result.plugin for result in report.results if result.passed} == {"cube"}


def test_an_estimator_that_fits_a_built_in_neuron_only_with_options_is_tried_there(written: Any) -> None:
    body = "    def accepts(self, neuron):\n        return neuron.label() == 'binomial(trials=1)'\n"
    cases = collect_checks(find(str(written(HEAD + body + FOOT))), bias=False).cases
    assert {case.neuron for case in cases} == {"binomial(trials=1)"}


def test_progress_is_told(written: Any) -> None:
    told: list[tuple[int, int]] = []
    report = run_checks(
        find(str(written(HEAD + "    pass\n" + FOOT))), bias=False, progress=lambda *done: told.append(done)
    )
    assert report.passed
    assert told == [(done, QUICK) for done in range(QUICK)]


@pytest.mark.slow
def test_a_fault_that_only_estimators_see_is_found(written: Any) -> None:
    """A relaxation that is not that of the unit: no check of the neuron alone looks at it."""
    source = GOOD.replace(
        "2.0\n\n\nclass Cube",
        "2.0\n\n    def conditional_relax(self, a, h, noise, temperature):\n"
        "        return super().conditional_relax(a, 1 - h, noise, temperature)\n\n\nclass Cube",
    )
    assert source != GOOD
    cases = collect_checks(find(str(written(HEAD + source + FOOT)))).cases
    assert all(case.run().passed for case in cases if case.kind == "neuron")
    (case,) = (
        case for case in cases if (case.plugin, case.neuron, case.check) == ("rebar", "third", "bias_is_as_claimed")
    )
    assert "standard errors off" in case.run().diagnosis


def test_the_report_for_people_names_the_fault(written: Any, check: Any) -> None:
    body, name, _ = BROKEN["K misstated"]
    path = written(HEAD + dedent(body).replace("\n", "\n    ") + FOOT)
    code, shown, _ = check(str(path), "--fast")
    assert code == 1
    for part in ("mine", "bernoulli", "FAILS", "what is wrong", name, "evaluations says K = 2", "does not conform"):
        assert part in shown


@pytest.mark.parametrize(
    ("source", "phase", "reason"),
    [
        ("import no_such_module", "import", "No module named 'no_such_module'"),
        ("raise SystemExit('no licence')", "import", "SystemExit: no licence"),
        ("GRADEST_PLUGIN_API = 9", "api", "written for plugin API 9"),
        ("", "hooks", "implements no gradest hook"),
        (HEAD + "    name = 'Not A Name'\n" + FOOT, "class", "must be in lower_snake_case"),
        (HEAD + "    name = 'rloo'\n" + FOOT, "duplicate", "is already provided by gradest"),
    ],
    ids=lambda value: value if value in ("import", "api", "hooks", "class", "duplicate") else "",
)  # fmt: skip
def test_what_does_not_load_is_reported_as_the_registry_does(
    source: str, phase: str, reason: str, written: Any, check: Any
) -> None:
    path = written(source)
    code, out, _ = check(str(path), "--json")
    found = json.loads(out)
    assert (code, found["passed"], found["results"]) == (1, False, [])
    (failure,) = found["failures"]
    assert (failure["distribution"], failure["phase"]) == (path.stem, phase)
    assert reason in failure["error"]
    assert "did not load" in check(str(path))[1]


def test_hooks_that_bring_nothing_are_a_failure(written: Any, check: Any) -> None:
    path = written("import gradest\n\n@gradest.hookimpl\ndef gradest_neurons():\n    return []\n")
    code, out, _ = check(str(path), "--json")
    assert code == 1
    assert wrong(json.loads(out)) == {"brings_something": "its hooks return no class at all"}


def test_a_plugin_is_loaded_into_a_registry_of_its_own(written: Any) -> None:
    import gradest

    collect_checks(find(str(written(HEAD + GOOD + FOOT))))
    assert "mine" not in gradest.registry.estimators


def project(folder: Path, package: str, pyproject: str, source: str) -> Path:
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(f"from {package}.parts import *\n")
    (folder / package / "parts.py").write_text(source)
    (folder / "pyproject.toml").write_text(pyproject)
    return folder


POINTS = '[project]\nname = "{name}"\nversion = "2.0"\n[project.entry-points.gradest]\nx = "{package}"\n'


@pytest.mark.parametrize("layout", ["", "src"])
def test_a_project_is_found_by_its_folder(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"acme-{layout or 'flat'}"
    package = name.replace("-", "_")
    project(tmp_path / layout, package, "", HEAD + "    pass\n" + FOOT)
    (tmp_path / "pyproject.toml").write_text(POINTS.format(name=name, package=package))
    monkeypatch.setattr(sys, "path", [*sys.path])
    source = find(str(tmp_path))
    assert (source.distribution, source.version) == (name, "2.0")
    assert [case.plugin for case in collect_checks(source, bias=False).cases] == ["mine"] * QUICK


def test_a_package_and_a_file_inside_it_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = project(tmp_path, "acme_package", "", HEAD + "    pass\n" + FOOT)
    (folder / "pyproject.toml").unlink()
    monkeypatch.setattr(sys, "path", [*sys.path])
    assert find(str(folder / "acme_package")).distribution == "acme_package"
    source = find(str(folder / "acme_package/parts.py"))
    assert source.distribution == "acme_package.parts"
    assert len(collect_checks(source, bias=False).cases) == QUICK
    assert (
        len(collect_checks(find("acme_package.parts"), bias=False).cases) == QUICK
    )  # now that its folder is known, by its name


def test_gradest_itself_can_be_checked(check: Any) -> None:
    suite = collect_checks(find("Gradest"))
    assert not suite.failures
    assert {case.kind for case in suite.cases} == {"neuron", "estimator", "objective"}


def test_the_arguments_that_name_no_plugin(tmp_path: Path, check: Any) -> None:
    for argument in ("acme-nothing", "no/such/file.py", str(tmp_path), "", "...", "x y"):
        code, out, err = check(argument)
        assert (code, out) == (1, "")
        assert "is not an installed distribution with plugins, an importable module" in err
    with pytest.raises(UnknownPlugin):
        find("acme-nothing")


def test_a_project_without_entry_points_and_a_file_whose_name_is_taken_are_refused(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n')
    with pytest.raises(PluginError, match="declares no plugins"):
        find(str(tmp_path))
    (tmp_path / "pyproject.toml").write_text("[project")
    with pytest.raises(PluginError, match="cannot be read"):
        find(str(tmp_path))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(PluginError, match="another module is already named 'json'"):
        find(str(tmp_path / "json.py"))
