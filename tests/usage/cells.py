"""The cells of the table of usage: what each way of use gives for each case, and the sums that the table keeps."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradest.errors import GradestError
from tests.usage.programs import Case, Gradients
from tests.usage.ways import SLOW, WAYS

RIGHT, ERROR = "right", "error"
KEPT = Path(__file__).with_name("cells.json")
DOCUMENT = Path(__file__).parents[2] / "docs/results/usage.md"
RUN = "python -m tests.usage.report"

# errors of torch's own, or with a note of gradest's, that say what to do
_TORCH_SAYS = (
    "modified by an inplace operation",
    "written to in place",
    "cannot be differentiated a second time",
    "to a copy of its points",
)


@dataclass(frozen=True)
class Outcome:
    """What a cell gave. verdict: right, error (one that says what to do), or what is wrong. words: of the error, or the gap."""

    verdict: str
    words: str = ""

    @property
    def sound(self) -> bool:
        return self.verdict in (RIGHT, ERROR)


def run(way: str, case: Case) -> Outcome:
    """Run one cell."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found, wanted = WAYS[way](case)
    except GradestError as error:
        return Outcome(ERROR, f"{type(error).__name__}: {error}")
    except Exception as error:
        text = "\n".join([str(error), *getattr(error, "__notes__", ())])
        told = any(words in text for words in _TORCH_SAYS)
        return Outcome(ERROR if told else "raw error", f"{type(error).__name__}: {error}")
    return compare(found, wanted)


def compare(found: Gradients, wanted: Gradients) -> Outcome:
    """Compare two sets of gradients, each to within the rounding of its own dtype, on the scale of the largest."""
    if found.keys() != wanted.keys():
        return Outcome("wrong", f"gradients of {sorted(found)} for those of {sorted(wanted)}")
    size = max([1e-3, *(float(want.abs().max()) for want in wanted.values() if want.numel())])
    for name, want in wanted.items():
        got = found[name]
        if got.shape != want.shape:
            return Outcome("wrong", f"{name}: shape {list(got.shape)} for {list(want.shape)}")
        tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3}.get(got.dtype, 3e-5) * size
        gap = (got.double() - want.double()).abs()
        if want.numel() and not float(gap.max()) <= tolerance:
            return Outcome("wrong", f"{name}: {got.flatten().tolist()[:6]} for {want.flatten().tolist()[:6]}")
    return Outcome(RIGHT)


def one_of_each_kind(all_cases: Iterable[Case]) -> list[Case]:
    """A case of each kind: what the estimator needs, whether it has a state, whether K is 1; in every call."""
    found: dict[object, Case] = {}
    for case in all_cases:
        found.setdefault(case.kind, case)
    return list(found.values())


def cases_of(way: str, call: str, all_cases: Iterable[Case], pairs: Iterable[str]) -> list[Case]:
    """The cases of one call in the whole cross: every pair with its default options, and `plain` with all examples of options.

    Where a cell takes a second it is one neuron for each estimator: that of the pair that came first.
    `pairs` are the labels of the pairs in the order in which they came, as `Kept` has them.
    """
    found = [case for case in all_cases if case.call == call]
    if way != "plain":
        found = [case for case in found if not case.estimator.model_fields_set and not case.neuron.model_fields_set]
    if way not in SLOW:
        return found
    place = {pair: number for number, pair in enumerate(pairs)}
    found.sort(key=lambda case: place.get(case.pair, len(place)))
    return list({case.estimator.name: case for case in reversed(found)}.values())


def summary(outcomes: Iterable[tuple[Case, Outcome]]) -> dict[str, Any]:
    """How many cells are right, and which estimators give which error. Raises AssertionError for a cell that is neither."""
    counts: Counter[str] = Counter()
    errors: dict[str, set[str]] = {}
    unsound = []
    for case, outcome in outcomes:
        counts[outcome.verdict] += 1
        if outcome.verdict == ERROR:
            errors.setdefault(outcome.words.split(":")[0], set()).add(case.estimator.name)
        elif not outcome.sound:
            unsound.append(f"{case.label()}: {outcome.verdict}: {outcome.words}")
    if unsound:
        raise AssertionError(
            f"{len(unsound)} cells are neither right nor an error that says what to do:\n" + "\n".join(unsound)
        )
    return {
        RIGHT: counts[RIGHT],
        ERROR: counts[ERROR],
        "errors": {name: sorted(labels) for name, labels in sorted(errors.items())},
    }


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The sum of two sums, of cells that are not the same."""
    names = sorted({*one["errors"], *other["errors"]})
    return {
        RIGHT: one[RIGHT] + other[RIGHT],
        ERROR: one[ERROR] + other[ERROR],
        "errors": {name: sorted({*one["errors"].get(name, ()), *other["errors"].get(name, ())}) for name in names},
    }


@dataclass
class Kept:
    """What runs have found.

    sums: by way and call, each with `counted`, how many of the pairs it counts, the first ones. pairs: the labels of the pairs,
    options included, in the order in which they came.
    """

    sums: dict[str, dict[str, Any]]
    pairs: list[str]

    @classmethod
    def load(cls) -> Kept:
        return cls(**json.loads(KEPT.read_text()))

    def save(self) -> None:
        KEPT.write_text(json.dumps(vars(self), indent=1) + "\n")
