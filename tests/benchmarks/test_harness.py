"""The harness and the report: what is counted, which way a ratio goes, and that the document is current."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from . import report
from .harness import Bench, quartiles, slope

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs/results/benchmarks.md"


def test_contenders_take_turns():
    calls: list[str] = []
    found = Bench(short=True).measure({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=9, turn=0)
    assert "".join(calls) == "aabb" + 3 * "aabb"
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3}
    assert all(time > 0 for times in found.values() for time in times)


def test_a_turn_is_filled_with_calls():
    calls: list[None] = []
    (time,) = Bench(short=False).measure({"a": lambda: calls.append(None)}, rounds=1, turn=0.01)["a"]
    assert len(calls) > 1000
    assert time < 0.01  # milliseconds a call, not a turn


@pytest.mark.parametrize(("overhead", "size"), [(3.0, 0), (0.0, 1)])
def test_slope(overhead, size):
    sizes = [size, 10, 100, 1000, 10_000]
    found = slope([max(1, x) for x in sizes], [overhead + 0.5 * x**1.2 for x in sizes], overhead > 0)
    assert found == pytest.approx(1.2, abs=1e-6)


def test_slope_counts_what_is_above_the_overhead():
    values = [1.0, 4.0, 11.0, 101.0, 10_001.0]  # above it by 3, 10, 100 and 10⁴ at 1, 10, 100 and 1000
    assert slope([0.1, 1, 10, 100, 1000], values) == pytest.approx(1.5)  # of the last three, whose steps are 1 and 2


def test_slope_of_a_constant():
    assert slope([1, 10, 100], [5.0, 5.0, 5.0], overhead=False) == pytest.approx(0)


def test_quartiles():
    assert quartiles([4.0]) == [4, 4, 4]
    assert quartiles([5.0, 1.0, 2.0, 4.0, 3.0]) == [2, 3, 4]


@pytest.fixture
def found() -> Bench:
    """gradest five times as fast, half as fast, and twice as good; one slope that is reached and one that is not."""
    bench = Bench(short=False)
    bench.compare("time", {"gradest": [1.0, 2.0], "slow": [5.0, 10.0], "quick": [0.5, 1.0]}, at_least={"slow": 10})
    bench.compare("rate", {"gradest": [4.0], "other": [2.0]}, "requests/s", more_is_better=True, at_least={"other": 2})
    for title, power in (("linear", 1), ("quadratic", 2)):
        values = {n: [float(n**power)] for n in (1, 10, 100)}
        bench.grow(title, "units", values, overhead=False, at_most=1.5)
    return bench


def test_rows(found):
    ratios = {(row["title"], row["name"]): row["ratio"] for row in found.rows}
    assert ratios == {
        ("time", "gradest"): None,
        ("time", "slow"): [5, 5, 5],
        ("time", "quick"): [0.5, 0.5, 0.5],
        ("rate", "gradest"): None,
        ("rate", "other"): [2, 2, 2],
        ("linear", "slope in units"): None,
        ("quadratic", "slope in units"): None,
    }
    assert [report.reached(row) for row in found.rows] == [None, False, None, None, True, True, False]
    assert found.curves[1]["points"] == [[1, 1.0], [10, 100.0], [100, 10_000.0]]


def test_document(found, tmp_path):
    (tmp_path / "results.json").write_text(json.dumps(found.results("pytest -m benchmark")))
    report.main(tmp_path, tmp_path / "docs/benchmarks.md")
    text = (tmp_path / "docs/benchmarks.md").read_text()
    assert "| time | gradest | 1.5 ms (1.25 to 1.75) |  |  |  |\n" in text
    assert "|  | slow | 7.5 ms (6.25 to 8.75) | 5 × | at least 10 | **no** |\n" in text
    assert "| rate | gradest | 4 requests/s |  |  |  |\n|  | other | 2 requests/s | 2 × | at least 2 | yes |\n" in text
    assert "| quadratic | slope in units | 2 |  | at most 1.5 | **no** |" in text
    for name in ("ratios", "growth"):
        assert f"(images/{name}.svg)" in text
        assert (tmp_path / f"docs/images/{name}.svg").read_text().startswith("<svg")


def test_bars(found):
    slow, quick, other = report.bars(found.rows, width=10).splitlines()
    assert slow.endswith(f" {' ' * 10}|{'█' * 10} 5.00×, at least 10: MISSED")
    assert quick.endswith(f" {' ' * 6}{'█' * 4}|{' ' * 10} 0.50×")
    assert other.endswith("|████       2.00×, at least 2: reached")


def test_the_document_is_current():
    """It is what report.py writes from the kept results, without measuring again."""
    results = json.loads((ROOT / "tests/benchmarks/results/results.json").read_text())
    assert not results["short"]
    assert DOCUMENT.read_text() == report.markdown(results)
    for name, text in report.charts(results):
        kept = (DOCUMENT.parent / report.IMAGES / f"{name}.svg").read_text()
        assert len(kept) < 100_000 > len(text)
