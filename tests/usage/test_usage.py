"""Every way of use gives the right gradient or an error that says what to do: once for each kind of estimator."""

import pytest
import torch

from tests.usage import cells, report
from tests.usage.programs import CALLS, Case, cases
from tests.usage.ways import SLOW, WAYS
from tests.usage.ways.forks import in_fork, in_parallel

ALL_CASES = list(cases())
CASES = cells.one_of_each_kind(ALL_CASES)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", [way for way in WAYS if way != "compiled"])  # test_layers compiles
def test_way_of_use(way, call):
    chosen = [case for case in CASES if case.call == call]
    if way in SLOW:  # other processes, to which it matters whether there is a state alone; the deep cross has all kinds
        chosen = list({case.stateful: case for case in chosen}.values())
    cells.summary([(case, cells.run(way, case)) for case in chosen])


def test_the_kinds_are_there():
    """Estimators that need the loss, its gradient, or both; with a state and without; of one point and of more."""
    kinds = {case.kind[1:] for case in CASES}
    assert {needs for needs, _, _ in kinds} == {"loss", "grad", "both"}
    assert {True, False} == {stateful for _, stateful, _ in kinds} == {single for *_, single in kinds}


@pytest.mark.parametrize("broken", ["sign", "factor", "raw error", "shape", "missing"])
def test_a_cell_that_is_wrong_is_seen(broken, monkeypatch):
    case = CASES[0]
    right = {"weight": torch.tensor([0.5, -1.0])}
    wrong = {
        "sign": {"weight": -right["weight"]},
        "factor": {"weight": 2 * right["weight"]},
        "shape": {"weight": right["weight"][:1]},
        "missing": {},
    }

    def way(case: Case):
        if broken == "raw error":
            raise RuntimeError("a view was modified")
        return wrong[broken], right

    monkeypatch.setitem(WAYS, "broken", way)
    with pytest.raises(AssertionError, match="neither right nor an error"):
        cells.summary([(case, cells.run("broken", case))])


def test_errors_in_other_processes_are_raised():
    with pytest.raises(ZeroDivisionError):
        in_fork(lambda: {"weight": torch.tensor(1 / 0)})
    with pytest.raises(AttributeError, match="build"):
        in_parallel(None, 1)
    assert in_parallel(CASES[0], 1)  # the processes go on


def test_the_document_is_that_of_the_kept_cells():
    assert cells.DOCUMENT.read_text() == report.document(cells.Kept.load().sums), f"run {cells.RUN}"


def test_the_kept_cells_are_of_all_ways():
    assert {(way, call) for way, calls in cells.Kept.load().sums.items() for call in calls} == {
        (way, call) for way in WAYS for call in CALLS
    }, f"run {cells.RUN}"


def test_all_pairs_are_counted():
    """Of a unit or an estimator that has come since, the table would say nothing."""
    kept = cells.Kept.load()
    assert set(kept.pairs) == {case.pair for case in ALL_CASES}, f"run {cells.RUN}"
    for way, calls in kept.sums.items():
        for call, found in calls.items():
            assert found["counted"] == len(kept.pairs)
            of_this = cells.cases_of(way, call, ALL_CASES, kept.pairs)
            assert found[cells.RIGHT] + found[cells.ERROR] == len(of_this), f"run {cells.RUN} {way}"
