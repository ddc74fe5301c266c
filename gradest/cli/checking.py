"""`gradest check`: the conformance kit on somebody's plugin, as a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradest.cli.display import Bars, print_json, show_check
from gradest.conformance import Case, cases, find, run
from gradest.errors import GradestError

__all__ = ["check_plugin"]


def check_plugin(target: str, bias: bool, as_json: bool) -> None:
    """Run every check, and report; raises GradestError if one fails or there is nothing to check."""
    subject = find(target)
    todo = list(cases(subject, bias))
    if not todo and not subject.failures:
        raise GradestError(f"{target} brings no neuron, estimator or objective")
    found: list[tuple[Case, str | None]] = []
    with Bars() as bars:
        for case in todo:
            bars.show(f"checks of {subject.name}", len(found), len(todo))
            found.append((case, run(case)))
    report = _report(subject.name, subject.failures, found)
    if as_json:
        print_json(report)
    else:
        show_check(report)
    wrong = len(report["failures"]) + report["failed"]
    if wrong:
        raise GradestError(f"{subject.name}: {wrong} of {len(found) + len(subject.failures)} checks failed")


def _report(name: str, failures: Sequence[str], found: Sequence[tuple[Case, str | None]]) -> dict[str, Any]:
    checks = [
        {"plugin": case.plugin, "neuron": case.neuron, "check": case.check, "diagnosis": diagnosis}
        for case, diagnosis in found
    ]
    failed = sum(check["diagnosis"] is not None for check in checks)
    return {"name": name, "failures": list(failures), "failed": failed, "checks": checks}
