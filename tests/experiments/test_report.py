from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
from pydantic import BaseModel

from gradest.errors import GradestError, InvalidInput
from gradest_experiments import report
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.report import write_report

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

OUTSIDE = ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background")


class Numbers(BaseModel):
    seed: int = 0
    steps: int = 3
    later: str = "a default"


class Page(HTMLParser):
    """A parser that collects the cells of tables by row, drawings, the runs as JSON, and all references."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.paths, self.identifiers, self.references, self.labels = [], [], [], [], []
        self.text, self.data = "", ""
        self._script = self._cell = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self._script = tag == "script"
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True
        elif tag == "path" and given.get("stroke") in ("#4c78a8", "#f58518"):
            self.paths.append(given)
        elif tag == "svg":
            self.labels.append(given.get("aria-label"))
        self.identifiers += [given["id"]] if "id" in given else []
        self.references += [given[name] for name in OUTSIDE if name in given]

    def handle_data(self, data):
        if self._script:
            self.data += data
        elif self._cell:
            self.rows[-1][-1] += data.strip()
        self.text += data

    def handle_endtag(self, tag):
        self._script = False
        self._cell = self._cell and tag not in ("td", "th")


def run(path, seed=0, steps=3, experiment="numbers", lines=((1, 2.0), (2, 1.0), (3, 0.25))):
    folder = RunFolder.open(path, experiment, Numbers(seed=seed, steps=steps, later="<b>&'\""))
    with folder.record() as metrics:
        for step, loss in lines:
            metrics.write("train", step, loss=loss + seed, open_share=0.5)
    folder.add_results(test={"error": 0.125}, nothing=float("nan"))
    return folder


def test_one_run_is_a_page_of_its_own(tmp_path):
    folder = run(tmp_path / "a")
    path = write_report([tmp_path / "a"], tmp_path / "a")
    assert path == tmp_path / "a/report.html"
    text = path.read_text()
    page = Page(text)
    assert page.rows[0] == ["run", "test error", "nothing", "steps", "train: loss", "train: open share"]
    assert page.rows[1] == ["a", "0.125", "-", "3", "0.25", "0.5"]
    assert "seed 0, steps 3, later <b>&'\", gradest" in page.text
    assert f"torch {folder.versions['torch']}" in page.text
    assert page.labels == ["train: loss", "train: open share"]
    assert {path.name for path in (tmp_path / "a").glob("*.png")} == {
        "report-numbers-train-loss.png",
        "report-numbers-train-open-share.png",
    }
    assert json.loads(page.data)[0]["metrics"] == folder.rows()


def test_several_runs_are_lines_of_the_same_charts(tmp_path):
    for seed in (0, 1):
        run(tmp_path / f"set/{seed}", seed)
    run(tmp_path / "other", experiment="others", lines=())
    page = Page(write_report([tmp_path / "set", tmp_path / "other"], tmp_path / "out").read_text())
    names = [row[:2] for row in page.rows]
    assert names == [["run", "seed"], ["set/0", "0"], ["set/1", "1"], ["run", "test error"], ["other", "0.125"]]
    assert len(page.labels) == 2
    assert len([path for path in page.paths if path.get("aria-roledescription") == "line mark"]) == 4


def test_a_page_refers_to_nothing_outside_and_its_names_are_its_own(tmp_path):
    run(tmp_path / "a")
    (tmp_path / "a/chart.svg").write_text(
        '<svg xmlns="http://x"><clipPath id="clip0"/><g clip-path="url(#clip0)"/></svg>'
    )
    text = write_report([tmp_path / "a"], tmp_path / "out").read_text()
    page = Page(text)
    assert all(reference.startswith("#") for reference in page.references)
    assert "http" not in text
    assert "@import" not in text
    assert "url(" not in text.replace("url(#", "")
    assert len(set(page.identifiers)) == len(page.identifiers)
    for name in text.split("url(#")[1:]:
        assert name.partition(")")[0] in page.identifiers
    assert '<meta name="viewport" content="width=device-width' in text
    assert "color-scheme: light dark" in text


def test_tasks_are_a_table(tmp_path):
    folder = RunFolder.open(tmp_path, "tasks", Numbers())
    with folder.record() as metrics:
        metrics.write("task", 0, name="one", result={"variance": 0.5, "points": [1, 2]})
        metrics.write("task", 1, name="two", result={"variance": None})
    page = Page(write_report([tmp_path], tmp_path).read_text())
    assert page.rows[-3:] == [["task", "variance"], ["one", "0.5"], ["two", "-"]]
    assert page.labels == []


def test_a_run_that_has_not_begun_to_measure_is_shown(tmp_path):
    run(tmp_path, lines=[(1, float("nan"))])
    page = Page(write_report([tmp_path], tmp_path).read_text())
    assert page.labels == ["train: open share"]


def test_what_is_no_run_or_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    with pytest.raises(InvalidInput, match=r"holds no run: there is no run\.json at or below it"):
        write_report([tmp_path], tmp_path)
    run(tmp_path)
    monkeypatch.setattr("gradest_experiments.engine.plot.find_spec", lambda name: None)
    with pytest.raises(GradestError, match=r"pip install 'gradest\[plot\]'"):
        report.write_report([tmp_path], tmp_path)
