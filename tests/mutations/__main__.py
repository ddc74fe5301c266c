"""Try faults, and say which are caught and by which test.

    python -m tests.mutations                                  all of them
    python -m tests.mutations nn/3 cli estimation/17-20        some of them, by name or by part
    python -m tests.mutations --list                           what there is
    python -m tests.mutations --jobs 2 --results runs/mutations.json

Each fault is put into a copy of the working tree, in a temporary folder with a virtual environment that leads to it. The tests
named beside it are run there, those alone that `make test` runs; then the fault is taken out again. A fault is caught if one of
them fails. With --results what is found is kept, and faults that the file has already are not tried again.

The exit code is 1 if a fault is missed. `--check` tries nothing: it says whether each fault's text still stands exactly once in
its file and each of its test files is there.
"""

from __future__ import annotations

import argparse
import json
import queue
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.mutations import CATALOGUE, PARTS
from tests.mutations.copies import REPOSITORY, Copy

Results = dict[str, dict[str, Any]]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts, or faults by name; all if omitted")
    parser.add_argument("--jobs", type=int, default=1, help="how many faults to try at a time")
    parser.add_argument("--results", type=Path, help="a file that keeps what is found")
    parser.add_argument("--list", action="store_true", help="list the faults and stop")
    parser.add_argument("--check", action="store_true", help="say what is out of date in the list and stop")
    given = parser.parse_args()
    names = chosen(given.names)
    if given.list:
        print("\n".join(f"{name:14} {CATALOGUE[name].file}: {CATALOGUE[name].breaks}" for name in names))
        return 0
    problems = out_of_date()
    if problems or given.check:
        print("\n".join(problems) or "up to date")
        return 1 if problems else 0
    results: Results = json.loads(given.results.read_text()) if given.results and given.results.exists() else {}
    try_all([name for name in names if name not in results], given.jobs, results, given.results)
    print(table(results))
    return 0 if all(result["caught"] for result in results.values()) else 1


def chosen(words: list[str]) -> list[str]:
    """The names of the faults that are meant by words such as "cli", "nn/3" and "estimation/17-20"; all if there are none."""
    found: list[str] = []
    for word in words or PARTS:
        part, _, numbers = word.partition("/")
        first, _, last = numbers.partition("-")
        every = range(1, len(PARTS.get(part, ())) + 1)
        names = [f"{part}/{number}" for number in (range(int(first), int(last or first) + 1) if numbers else every)]
        unknown = [name for name in names if name not in CATALOGUE]
        if unknown or not names:
            raise SystemExit(f"there is no fault {', '.join(unknown) or word}; --list shows them all")
        found += names
    return found


def out_of_date() -> list[str]:
    """Faults whose text no longer stands exactly once in their file, or whose tests are not there."""
    problems = []
    for name, mutation in CATALOGUE.items():
        try:
            mutation.applied((REPOSITORY / mutation.file).read_text())
        except (OSError, ValueError) as error:
            problems.append(f"{name}: {error}")
        for word in mutation.tests.split():
            if word.startswith("tests/") and not (REPOSITORY / word.partition("::")[0]).exists():
                problems.append(f"{name}: there is no {word}")
    return problems


def try_all(names: list[str], jobs: int, results: Results, path: Path | None) -> None:
    """Try each fault, several at a time, and add what is found to the results and to the file that keeps them."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for job in range(jobs):
            copy = Copy(Path(folder, str(job)))
            stack.callback(copy.close)
            copies.put(copy)

        def try_one(name: str) -> tuple[str, dict[str, object]]:
            copy = copies.get()
            try:
                return name, copy.try_one(CATALOGUE[name])
            finally:
                copies.put(copy)

        pool = stack.enter_context(ThreadPoolExecutor(jobs))
        for task in as_completed([pool.submit(try_one, name) for name in names]):
            name, result = task.result()
            results[name] = result
            verdict = "caught" if result["caught"] else "MISSED"
            print(f"{name:14} {verdict} {result['seconds']:6} s  {result['by']}", flush=True)
            if path:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(results, indent=1))


def table(results: Results) -> str:
    """What was found, a line a fault, in Markdown."""
    lines = ["| fault | file | what it breaks | caught by |", "| --- | --- | --- | --- |"]
    for name, mutation in CATALOGUE.items():
        if result := results.get(name):
            by = f"`{result['by']}`" if result["caught"] else f"**missed** ({result['by']})"
            lines.append(f"| {name} | {mutation.file} | {mutation.breaks} | {by} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
