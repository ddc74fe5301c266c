"""Tables and charts of the benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gradest.analysis.leaderboard import Board, boards_to_markdown, standings
from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.plot import colour_encoding, inline_data, line_encodings, write_svg

__all__ = ["draw_board", "leaderboard_page", "write_leaderboard", "write_report"]

_COLUMNS = """
By `gradest benchmark`: each estimator on each problem, with several seeds. All estimators have the same data, in the same order,
and the same noise. The value is the mean over seeds, ± its standard deviation. *Behind the first* is the mean over the common
seeds of the difference from the estimator in the first place, ± the standard error of this paired difference. K is the number of
evaluations of the loss in one draw for one example; *evaluations* counts all of a run, and *seconds* is the time of training or
measurement, rough where a machine is shared. The claimed bias is the estimator's own; *least cosine* is the smallest of the
cosines between its mean gradient and the exact one in its certificate for this neuron.
"""

_REPORT = "# Benchmark\n"
_LEADERBOARD = """# Leaderboard

The results that are kept with gradest, ranked. To place an estimator of your own among them, write it in a file `my.py` and run
`gradest benchmark --quick --estimators mine --plugin my.py`; `gradest leaderboard` prints this page's tables. `gradest benchmark
--keep` adds results to docs/results/leaderboard and writes this page again.
"""
_SHOWN = 10  # curves in a chart


def write_report(out: Path, boards: Sequence[Board]) -> Path:
    """Write report.md and the charts of all boards, and return the path of report.md."""
    images = {}
    for board in boards:
        write_svg(draw_board(board), out, board.problem.key)
        images[board.problem.key] = f"{board.problem.key}.svg"
    text = boards_to_markdown(boards, _REPORT + _COLUMNS, images)
    write_atomically(out / "report.md", lambda new: new.write_text(text, encoding="utf-8"))
    return out / "report.md"


def write_leaderboard(folder: Path, boards: Sequence[Board]) -> None:
    """Write leaderboard.md, the page of the kept results, and its charts in the folder images."""
    for board in boards:
        write_svg(draw_board(board), folder / "images", f"leaderboard-{board.problem.key}")
    text = leaderboard_page(boards)
    write_atomically(folder / "leaderboard.md", lambda new: new.write_text(text, encoding="utf-8"))


def leaderboard_page(boards: Sequence[Board]) -> str:
    """Return the page of the kept results, in Markdown."""
    images = {board.problem.key: f"images/leaderboard-{board.problem.key}.svg" for board in boards}
    return boards_to_markdown(boards, _LEADERBOARD + _COLUMNS, images)


def draw_board(board: Board) -> Any:
    """Draw the value of each estimator and seed and, if the problem has curves, those of the best estimators."""
    import altair  # noqa: PLC0415  # an extra

    rows = [row for row in standings(board) if row.rank]
    order = [row.entry.label for row in rows]
    unit = f"{board.problem.metric}, {board.problem.unit}"
    points = [
        {"estimator": row.entry.label, "value": run.value, "claim": row.entry.claim}
        for row in rows
        for run in row.entry.latest().values()
    ]
    claims = sorted({row.entry.claim for row in rows})
    dots = altair.Chart(inline_data(points)).mark_point(filled=True, size=40, opacity=0.8)
    dots = dots.encode(
        x=altair.X("value:Q", title=unit).scale(zero=False),
        y=altair.Y("estimator:N", sort=order, title=None).axis(grid=True, labelLimit=0),
        color=colour_encoding(claims, field="claim").legend(title="claimed bias", symbolType="circle"),
    ).properties(width=420, height=altair.Step(16), title=board.problem.title)
    curves = [point for row in rows[:_SHOWN] for point in _curve(row.entry.label, row.entry.latest().values())]
    if not curves:
        return dots
    best = [label for label in order[:_SHOWN] if any(point["estimator"] == label for point in curves)]
    lines = altair.Chart(inline_data(curves)).mark_line(strokeWidth=2)
    lines = lines.encode(
        x=altair.X("step:Q", title="steps").scale(nice=False),
        y=altair.Y("value:Q", title=unit).scale(zero=False),
        **line_encodings(best, []),
    ).properties(width=420, height=260, title=f"the first {len(best)}, mean over seeds")
    return altair.hconcat(dots, lines).resolve_scale(color="independent", strokeDash="independent")


def _curve(label: str, runs: Any) -> list[dict[str, Any]]:
    """Return the mean curve over seeds, at the steps that all runs have."""
    curves = [dict(run.curve) for run in runs]
    steps = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    return [
        {"estimator": label, "step": step, "value": fmean(curve[step] for curve in curves)} for step in sorted(steps)
    ]
