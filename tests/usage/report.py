"""Run the cross of ways of use for new pairs, or for ways, and write its table: python -m tests.usage.report [WAY ...]"""

from __future__ import annotations

import sys
from typing import Any

from rich.progress import Progress

from gradest.analysis.markdown import table
from tests.usage import cells
from tests.usage.programs import CALLS, cases
from tests.usage.ways import MEANING, SLOW, WAYS

_HEAD = """# Ways of use

Each way of use listed here gives the right gradient, or an error that says what to do. The table counts the
cells of a cross: each way of use with every pair of an estimator and a neuron that it accepts, in each call that takes the pair,
with default options; the first row has other options too.
The gradient in the pre-activations and in a parameter of the loss is compared with that of a plain step with the same noise, to
within rounding, so there are no false alarms. The plain step is compared with `gradest.ask` and `gradest.tell` by hand, whose
gradients the conformance kit and the certificates hold against enumeration.

"right / error": how many cells gave the right gradient, and how many an error that names the cause and the remedy. A cell that
gave anything else would fail the tests. The counts are written by `python -m tests.usage.report` and held by `make test-deep`;
`make test` runs each way once for each kind of estimator.

"""


def document(found: dict[str, dict[str, Any]]) -> str:
    """Return the document of these sums."""
    rows = [
        [_title(way), *(f"{found[way][call]['right']} / {found[way][call]['error']}" for call in CALLS)] for way in WAYS
    ]
    total = [sum(found[way][call][key] for way in WAYS for call in CALLS) for key in (cells.RIGHT, cells.ERROR)]
    parts = [
        _HEAD,
        f"{sum(total)} cells: {total[0]} right, {total[1]} errors, none silently wrong.\n\n",
        table(["way of use", *(f"`{call}`" for call in CALLS)], rows, "l" + "r" * len(CALLS)),
        "\n\nOf a way marked *, whose cells take a second each, the cross has one neuron for each estimator.\n\n## Errors\n\n",
    ]
    for way in WAYS:
        for call in CALLS:
            for error, estimators in found[way][call]["errors"].items():
                names = ", ".join(f"`{name}`" for name in estimators)
                parts.append(f"- {MEANING[way]}, `{call}`: {error} for {names}.\n")
    return "".join(parts)


def _title(way: str) -> str:
    return MEANING[way] + ("*" if way in SLOW else "")


def main(chosen: list[str]) -> None:
    """Run the ways that are named, or in all ways the pairs that have come since they were run, and write the table.

    What is sound is kept at once, so a run that was interrupted, or found a fault, goes on where it was.
    """
    kept, faults = cells.Kept.load(), []
    known = set(kept.pairs)
    all_cases = list(cases())
    kept.pairs += dict.fromkeys(case.pair for case in all_cases if case.pair not in known)
    jobs = [(way, call) for way in chosen or WAYS for call in CALLS]
    with Progress() as progress:
        for way, call in progress.track(jobs, description="ways of use"):
            before = kept.sums.setdefault(way, {}).get(call) if not chosen else None
            counted = set(kept.pairs[: before["counted"]]) if before else set()
            new = [case for case in cells.cases_of(way, call, all_cases, kept.pairs) if case.pair not in counted]
            try:
                found = cells.summary((case, cells.run(way, case)) for case in new)
            except AssertionError as fault:
                faults.append(f"{way}, {call}: {fault}")
                continue
            kept.sums[way][call] = {**(cells.added(before, found) if before else found), "counted": len(kept.pairs)}
            kept.save()
    if faults:
        sys.exit("\n\n".join(faults))
    cells.DOCUMENT.write_text(document(kept.sums))


if __name__ == "__main__":
    main(sys.argv[1:])
