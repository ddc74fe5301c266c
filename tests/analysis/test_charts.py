"""The charts' definitions: what altair takes, and what they compute."""

import math
import re

import pytest
import torch

import gradest
from gradest.analysis.charts import chart, definition
from gradest.analysis.results import ComparisonRow

alt = pytest.importorskip("altair")
NAMES = ["bias", "error", "variance", "distribution", "mean", "curve", "surface", "cloud", "training"]
ROW = ComparisonRow("one", "none", 2, 0.1, 1.0, 0.5, 0.3, 0.9, 1.0, 0.1)


@pytest.mark.parametrize("name", NAMES)
def test_definitions_are_valid(name):
    found = definition(name)
    kind = alt.LayerChart if "layer" in found else alt.Chart
    assert kind.from_dict({**found, "config": definition("config")}).to_dict()


def test_the_error_is_that_of_the_row():
    converter = pytest.importorskip("vl_convert")
    rows = [vars(ROW) | {"estimator": "one"}, vars(ROW) | {"estimator": "exact", "snr": "Infinity", "cosine": 0.8}]
    whole = definition("error")
    whole |= {
        "datasets": {"rows": rows},
        "mark": "text",
        "encoding": {"text": {"field": "shown", "type": "nominal"}},
        "transform": [
            *whole["transform"],
            {"calculate": "datum.estimator + ' ' + datum.paid + ' ' + datum.error", "as": "shown"},
        ],
    }
    shown = re.findall(r">(one|exact) ([\d.]+) ([\d.]+)<", converter.vegalite_to_svg(whole))
    assert len(shown) == 2 * 17
    for name, paid, error in shown:
        expected = ROW.error(int(paid)) if name == "one" else math.sqrt(1 - 0.8**2)
        assert float(error) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["bias", "error", "variance"])
def test_every_estimator_has_a_look_of_its_own(name):
    converter = pytest.importorskip("vl_convert")
    names = list(gradest.registry.estimators)
    rows = [{**vars(ROW), "estimator": one, "claim": "none", "p": p, "cost": 1.0} for one in names for p in (0.2, 0.8)]
    svg = converter.vegalite_to_svg(chart(name, rows, "").to_dict())
    looks = {}
    for tag, found in re.findall(r'(<path aria-label="[^"]*estimator: (\w+)[^>]*>)', svg):
        looks[found] = tuple(re.findall(r' (?:fill|stroke|stroke-dasharray)="[^"]*"', tag))
    assert sorted(looks) == names
    assert len(set(looks.values())) == len(names)
    assert {text for text in re.findall(r">(\w+)</text>", svg) if text in looks} == set(
        names
    )  # the legend leaves none out


def test_the_palette_is_one():
    filled = definition("bias")["encoding"]["fill"]["scale"]["range"]
    assert filled[:10] == definition("config")["range"]["category"]


def test_figures_that_are_not_finite_are_drawn():
    table = gradest.compare(
        gradest.objective("quadratic"), torch.zeros(2), estimators=["enumeration", "rloo"], draws=20, seed=1
    )
    assert math.isinf(table.rows[0].snr)
    for name in ("bias", "error"):
        found = table.chart(name).to_dict()
        assert [row["estimator"] for row in found["datasets"]["rows"]] == ["enumeration", "rloo"]
        assert "bernoulli, 20 draws" in found["title"]


def test_a_notebook_shows_the_table():
    table = gradest.compare(gradest.objective("quadratic"), torch.zeros(2), estimators=["rloo"], draws=20, seed=1)
    assert table._repr_markdown_() == table.to_markdown()
