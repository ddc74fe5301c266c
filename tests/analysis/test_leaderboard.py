"""How estimators are ranked, and how results are joined."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from gradest.analysis.leaderboard import (
    Board,
    BoardEntry,
    BoardProblem,
    BoardRun,
    board_to_dict,
    boards_to_markdown,
    join_boards,
    read_boards,
    standings,
    to_row,
    write_board,
)
from gradest.errors import InvalidInput

PROBLEM = BoardProblem("toy", "quick", "A toy", "It is small.", "error", "%", "lower", "nothing.", {"steps": 3})


def run(seed, value, **other):
    return BoardRun(
        **{"seed": seed, "gradest": "1", "torch": "2", "machine": "a", "evaluations": 10, "seconds": 0.5, **other},
        value=value,
    )


def entry(label, *values, **other):
    runs = tuple(run(seed, value) for seed, value in enumerate(values))
    fields = {"needs": ("loss",), "per_draw": 2, "claim": "none", "cosine": None, "runs": runs, **other}
    return BoardEntry({"name": label}, label, "acme 1.0", "bernoulli", **fields)


def board(*entries, problem=PROBLEM):
    return Board(problem, {one.label: one for one in entries})


def test_the_differences_are_paired():
    """Both estimators vary over seeds by 10, and their difference by 1."""
    worst, best = standings(board(entry("worst", 12.0, 23.0, 31.0), entry("best", 10.0, 20.0, 30.0)))[::-1]
    assert (best.rank, best.mean, best.spread, best.behind, best.behind_error) == (1, 20, 10, 0, 0)
    assert (worst.rank, worst.mean, worst.seeds) == (2, 22, 3)
    assert worst.behind == pytest.approx(2)
    assert worst.behind_error == pytest.approx(1 / math.sqrt(3))
    assert worst.spread == pytest.approx(9.539, abs=1e-3)


def test_where_more_is_better_the_largest_is_first():
    rows = standings(board(entry("low", 1.0, 2.0), entry("high", 3.0, 5.0), problem=replace(PROBLEM, better="higher")))
    assert [row.entry.label for row in rows] == ["high", "low"]
    assert (rows[1].behind, rows[1].behind_error) == (2.5, 0.5)


def test_differences_are_of_the_common_seeds():
    rows = standings(board(entry("first", 1.0, 2.0, 3.0), entry("second", 5.0)))
    assert (rows[1].behind, rows[1].behind_error, rows[1].spread) == (4, None, None)


def test_who_failed_has_no_place():
    failed = entry("a", 0.0, None, runs=(run(0, 0.0), run(1, None, failure="it diverged")))
    rows = standings(board(failed, entry("b", 1.0, 2.0)))
    assert [(row.entry.label, row.rank, row.mean) for row in rows] == [("b", 1, 1.5), ("a", None, None)]
    assert to_row(rows[1])[2] == "failed"
    assert "Failed: it diverged." in boards_to_markdown([board(failed)], "# X")
    assert standings(board(failed))[0].rank is None


def test_a_value_ends_where_its_spread_has_two_digits():
    """So that a difference of a nat is seen beside 123 of them."""
    far, near = entry("far", 122.0, 126.0), entry("near", 123.41, 123.43)
    assert [to_row(row)[2] for row in standings(board(far, near, entry("once", 1234.5678)))] == [
        "123.420",
        "124.0",
        "1234.6",
    ]
    assert to_row(standings(board(entry("diverged", 1e300, 2e300)))[0])[2] == "1.5e+300"


def test_what_is_written_is_read(tmp_path):
    one = entry(
        "a(x=1, y=2)", 0.5, runs=(run(0, 0.123456789, curve=((0, 1.0), (3, 0.5)), details={"cells": {"p": 0.25}}),)
    )
    write_board(tmp_path, board(one, entry("b", None)))
    assert {path.name for path in (tmp_path / "toy.quick").iterdir()} == {"problem.json", "a-x-1-y-2.json", "b.json"}
    (found,) = read_boards(tmp_path)
    assert found.problem == PROBLEM
    assert found.entries["b"].runs[0].value is None
    assert found.entries["a(x=1, y=2)"].runs == (replace(one.runs[0], value=0.123457),)
    assert json.loads(json.dumps(board_to_dict(found)))["standings"][0]["label"] == "a(x=1, y=2)"
    (tmp_path / "toy.quick" / "b.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"b\.json is not JSON"):
        read_boards(tmp_path)
    one_run = (tmp_path / "toy.quick" / "a-x-1-y-2.json").read_text()
    for damaged in ("{}", "[]", '"runs"', one_run.replace("0.123457", '"0.1"'), one_run.replace("[0,", '["x",')):
        (tmp_path / "toy.quick" / "b.json").write_text(damaged)
        with pytest.raises(InvalidInput, match=r"b\.json is not a file of results"):
            read_boards(tmp_path)
    (tmp_path / "toy.quick" / "b.json").write_text(one_run.replace("0.123457", "NaN"))
    with pytest.raises(InvalidInput, match=r"b\.json is not JSON: NaN"):
        read_boards(tmp_path)
    (tmp_path / "toy.quick" / "problem.json").write_text("[]")
    with pytest.raises(InvalidInput, match=r"problem\.json is not a problem"):
        read_boards(tmp_path)
    assert read_boards(tmp_path / "nothing") == []


def test_joined_results():
    """A new run replaces the kept one of its seed, version and machine, and stands for its seed beside older ones."""
    kept = board(entry("a", 1.0, 2.0), entry("b", 3.0))
    again = entry("a", runs=(run(0, 7.0), run(1, 8.0, gradest="2")))
    (joined,) = join_boards([kept], [board(again, entry("c", 4.0))])
    assert [*joined.entries] == ["a", "b", "c"]
    assert [one.value for one in joined.entries["a"].runs] == [2.0, 7.0, 8.0]
    assert {seed: one.value for seed, one in joined.entries["a"].latest().items()} == {0: 7.0, 1: 8.0}
    other = replace(PROBLEM, settings={"steps": 4})
    (joined,) = join_boards([kept], [board(entry("c", 4.0), problem=other)])
    assert [*joined.entries] == ["c"]
    elsewhere = board(entry("z", 1.0), problem=replace(PROBLEM, name="far"))
    assert [one.problem.key for one in join_boards([kept], [elsewhere])] == ["far.quick", "toy.quick"]


def test_the_page_adds_up_the_hours_and_those_of_all_threads():
    runs = [run(0, 1.0, machine="X 3000", seconds=3600.0), run(1, 1.0, machine="X, 2 threads", seconds=7200.0)]
    page = boards_to_markdown([board(entry("mine", runs=tuple(runs)))], "# Page\n")
    assert "All 2 runs together took 3 hours of training and measurement, which is at most 5 CPU hours" in page


def test_the_page_has_a_card_for_each_estimator():
    far = board(entry("a", 9.0), problem=replace(PROBLEM, name="far"))
    page = boards_to_markdown(
        [far, board(entry("a", 1.0), entry("b(x=1)", 2.0))], "# Title\n", {"toy.quick": "toy.svg"}
    )
    assert page.startswith("# Title\n\n## Overview")
    assert "| [a](#a) | 1 | 1 |\n| [b(x=1)](#bx1) | - | 2 |" in page
    assert "![A toy](toy.svg)" in page
    assert "Value: error, in %; the lower the better. Tuned: nothing. Settings: steps 3." in page
    _, _, card = page.partition("### a\n")
    assert "| [far.quick](#farquick) | bernoulli | 1 of 1 | 9 |" in card
    assert "| [toy.quick](#toyquick) | bernoulli | 1 of 2 | 1 |" in card


def test_results_without_a_run_are_refused(tmp_path):
    write_board(tmp_path, board(entry("one", 1.0), entry("none")))
    with pytest.raises(InvalidInput, match=r"none\.json is not a file of results: it has no run"):
        read_boards(tmp_path)


def test_results_that_could_not_be_written_leave_the_old_ones(tmp_path, monkeypatch):
    write_board(tmp_path, board(entry("one", 1.0)))

    def fail(*_):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(OSError, match="full"):
            write_board(tmp_path, board(entry("one", 2.0)))
    (found,) = read_boards(tmp_path)
    assert found.entries["one"].runs[0].value == 1
