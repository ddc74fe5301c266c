"""--plugin: a plugin that is not installed, registered for one run of a command."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from gradest import registry
from gradest.cli import main
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.toys.probability import ProbabilityPart
from gradest_experiments.toys.subsets import SubsetsPart
from tests import stranger

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

FILE = str(Path(stranger.__file__))


class Failed(Exception):
    """The command ended with another exit code than 0."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run a command with --plugin, and return what it printed. Afterwards the plugin is not registered."""

    def command(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["gradest", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        path = list(sys.path)
        with pytest.raises(SystemExit) as ended:
            main()
        assert stranger.Mine.name not in registry.estimators
        assert sys.path == path
        if ended.value.code:
            raise Failed(str(ended.value.code))
        return capsys.readouterr().out

    return command


def test_compare(run):
    chosen = ["--estimators", "mine", "--estimators", "rloo"]
    found = json.loads(
        run("compare", "--a", "0.3,-1", "--draws", "400", "--seed", "1", *chosen, "--json", "--plugin", FILE)
    )
    mine, other = found["rows"]
    assert (mine["estimator"], mine["claim"], mine["evaluations"]) == ("mine", "none", 1)
    # the root mean square of two coordinates, in standard errors: above 3.5 with probability e^-12.25 = 5e-6 if unbiased
    assert mine["bias_in_se"] < 3.5
    assert mine["cosine"] > 0.9
    assert other["estimator"] == "rloo"
    with pytest.raises(Failed, match="no estimator is named 'mine'"):
        run("compare", "--a", "0.3,-1", *chosen)


def test_recommend(run):
    found = json.loads(run("recommend", "--json", "--plugin", FILE))
    assert "mine" in [row["label"] for row in found["rows"]]
    assert "mine" not in [row["label"] for row in json.loads(run("recommend", "--json"))["rows"]]


def test_train(run, tmp_path):
    settings = ["--data", "digits", "--epochs", "1", "--hidden", "4", "--gates", "10", "--neuron", "bernoulli"]
    run("train", *settings, "--estimator", "mine", "--out", str(tmp_path / "run"), "--plugin", FILE)
    assert RunFolder.read(tmp_path / "run").settings["estimator"]["name"] == "mine"


def test_reproduce_toys(run, tmp_path, monkeypatch):
    """Only parts that the estimator fits are run; the report keeps them when the plugin is not registered any more."""
    monkeypatch.setattr(ProbabilityPart, "quick", {"units": 3, "places": 3, "draws": 20})
    monkeypatch.setattr(SubsetsPart, "quick", {"items": 3, "chosen": 1, "draws": 20, "warm_up": 2})
    toys = ["reproduce", "toys", "--quick", "--out", str(tmp_path)]
    run(*toys, "--part", "subsets", "--estimators", "mine", "--plugin", FILE)
    assert [row["name"] for row in RunFolder.read(tmp_path / "subsets").rows("task")] == [
        "distance: mine",
        "pairs: mine",
    ]
    run(*toys, "--part", "probability")
    report = (tmp_path / "report.md").read_text()
    assert "| mine |" in report
    assert "| bitflip |" in report
    with pytest.raises(Failed, match="vimco cannot be compared in any of the parts probability"):
        run(*toys, "--part", "probability", "--estimators", "vimco")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--plugin", FILE, "--url", "http://127.0.0.1:9"], "--plugin registers a plugin in this process"),
        (["--plugin", str(Path(__file__).with_name("nothing.py"))], "is not an installed distribution"),
        (["--plugin", str(Path(__file__).parents[1] / "losses.py")], "losses implements no gradest hook"),
    ],
)
def test_what_cannot_be_used_is_said(run, arguments, reason):
    with pytest.raises(Failed, match=reason):
        run("recommend", *arguments)
