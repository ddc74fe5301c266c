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
    """Run the ways that are named, or the pairs that have come since the last run in all ways, and write the table.

    The results of ways that are sound are kept even if others are not.
    """
    kept, faults = cells.Kept.load(), []
    jobs = [(way, call) for way in chosen or WAYS for call in CALLS]
    with Progress() as progress:
        for way, call in progress.track(jobs, description="ways of use"):
            counted = set() if chosen else set(kept.pairs)
            try:
                found = cells.summary(
                    (case, cells.run(way, case)) for case in cells.cases_of(way, call) if case.pair not in counted
                )
            except AssertionError as fault:
                faults.append(f"{way}, {call}: {fault}")
                continue
            sums = kept.sums.setdefault(way, {})
            sums[call] = cells.added(sums[call], found) if counted else found
    if faults:
        if chosen:
            kept.save()
        sys.exit("\n\n".join(faults))
    if not chosen:
        kept.pairs = sorted({case.pair for case in cases()})
    kept.save()
    cells.DOCUMENT.write_text(document(kept.sums))


if __name__ == "__main__":
    main(sys.argv[1:])
