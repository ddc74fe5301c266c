"""Every number of the page on reproduction is kept with its source, and the page is what they give."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("reproduction", ROOT / "docs/site/reproduction.py")
reproduction = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(reproduction)

_SETTINGS = {
    "0.3",
    "0.1",
    "0.03",
    "0.001",
    "0.01",
    "0.002",
    "0.0003",
    "1.1",
    "1.5",
}  # rates, weights, norms, slopes, temperatures
_NO_RESULTS = r"`[^`]*`|\{\{[^}]*\}\}|arXiv\s\S+|\]\([^)]*\)|torch \S+|storchastic \S+"
_MEASURED = r"(?<![\w.])\d*\.\d+|(?<![\w.])\d+(?= %| ms| nats| bits| points)"


def test_the_page_is_what_the_kept_numbers_give():
    assert reproduction.PAGE.read_text(encoding="utf-8") == reproduction.render()


def test_the_template_has_settings_and_no_results():
    text = re.sub(_NO_RESULTS, "", (reproduction.HOME / "page.md.template").read_text(encoding="utf-8"))
    assert {*re.findall(_MEASURED, text)} <= _SETTINGS


def test_every_number_has_a_source():
    for path in reproduction.HOME.glob("*.json"):
        kept = json.loads(path.read_text(encoding="utf-8"))
        assert all(found["source"] for group in kept.values() for found in group.values())
        assert path.read_text(encoding="utf-8") == reproduction._to_text(kept)
        for found in kept["tables"].values():
            assert {len(row) for row in found["rows"]} == {len(found["columns"])} == {len(found["align"])}


def test_a_table_is_kept_from_the_report_of_a_run(tmp_path):
    home = shutil.copytree(reproduction.HOME, tmp_path / "kept")
    columns = json.loads((home / "experts.json").read_text())["tables"]["networks"]["columns"]
    report = tmp_path / "report.md"
    cells = [str(place) for place in range(len(columns))]
    rows = [["a", "b"], ["---", "---"], ["1", "2"]], [columns, ["---"] * len(columns), cells]
    report.write_text("\n\n".join("\n".join(f"| {' | '.join(row)} |" for row in lines) for lines in rows))
    reproduction.keep("experts.networks", report, "a new run", home)
    kept = json.loads((home / "experts.json").read_text())["tables"]["networks"]
    assert (kept["rows"], kept["source"]) == ([cells], "a new run")
    assert f"| {' | '.join(cells)} |" in reproduction.render(home)
    with pytest.raises(ValueError, match="no table with the columns network, seeds, open"):
        reproduction.keep("block-gated.networks", report, "a new run", home)


def test_a_number_that_is_not_shown_or_not_kept_is_an_error(tmp_path):
    home = shutil.copytree(reproduction.HOME, tmp_path / "kept")
    template = home / "page.md.template"
    text = template.read_text()
    template.write_text(text + "{{experts.nothing}}")
    with pytest.raises(KeyError, match="nothing"):
        reproduction.render(home)
    template.write_text(text.replace("{{experts.networks}}", ""))
    with pytest.raises(KeyError, match=r"does not show experts\.networks"):
        reproduction.render(home)
