"""`run_benchmark`: estimators on problems, into a folder, joined with the kept results."""

from __future__ import annotations

import math
import platform
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

import gradest
from gradest.analysis.certificates import load_certificates, options_of
from gradest.analysis.leaderboard import (
    Board,
    BoardEntry,
    BoardProblem,
    BoardRun,
    join_boards,
    read_boards,
    write_board,
)
from gradest.contract.estimator import Bias, Estimator
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.errors import GradestError, Incompatible, InvalidInput, PluginFault
from gradest.random import MAX_SEED
from gradest_experiments.benchmark.problem import OnProgress, Problem, Size
from gradest_experiments.benchmark.report import write_leaderboard, write_report
from gradest_experiments.engine.data import load
from gradest_experiments.engine.display import do_in_turn
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.options import RunSettings, to_folder_name
from gradest_experiments.engine.plot import check_plots

__all__ = ["BenchmarkRun", "RunOptions", "list_benchmark_runs", "run_benchmark"]

EXPERIMENT = "benchmark"


class RunOptions(RunSettings):
    """What determines the value of a run, as its folder keeps it."""

    problem: str
    sizes: dict[str, Any]
    estimator: dict[str, Any]
    seed: int = Field(ge=0, lt=MAX_SEED)


@dataclass(frozen=True)
class BenchmarkRun:
    """One estimator on one problem, with one seed."""

    problem: Problem
    size: Size
    estimator: Estimator
    seed: int

    @cached_property
    def key(self) -> str:
        """The problem and its size."""
        return f"{self.problem.name}.{self.size}"

    @cached_property
    def label(self) -> str:
        """The label of the estimator."""
        return registry.label(self.estimator)

    def describe(self) -> str:
        """Return a line for the progress bar."""
        return f"{self.key} {self.label}, seed {self.seed}"

    def folder(self) -> str:
        """Return the relative path of the run's folder."""
        return f"{self.key}/{to_folder_name(self.label)}/seed-{self.seed}"


def list_benchmark_runs(
    problems: Iterable[Problem], size: Size, estimators: Sequence[dict[str, Any]] | None, seeds: int
) -> tuple[list[BenchmarkRun], dict[str, str]]:
    """Return the runs, and the reasons why estimators are not run on problems, by "PROBLEM: ESTIMATOR".

    estimators: specs; if None, every registered estimator with its default options.

    Raises UnknownPlugin, InvalidOptions, and Incompatible if an estimator that is named fits no problem.
    """
    named = [*registry.estimators] if estimators is None else estimators
    chosen = {registry.label(one): one for one in map(registry.estimator, named)}
    runs: list[BenchmarkRun] = []
    reasons: dict[str, str] = {}
    for problem in problems:
        for label, estimator in chosen.items():
            try:
                problem.neuron_for(estimator)
            except (Incompatible, PluginFault) as error:
                reasons[f"{problem.name}: {label}"] = str(error)
            else:
                runs += [BenchmarkRun(problem, size, estimator, seed) for seed in range(seeds)]
    fitting = {run.label for run in runs}
    if estimators is not None and (unfit := [label for label in chosen if label not in fitting]):
        why = "; ".join(f"{place}: {reason}" for place, reason in reasons.items() if place.endswith(f": {unfit[0]}"))
        raise Incompatible(f"{unfit[0]} fits none of the problems: {why}")
    return runs, reasons


def run_benchmark(
    out: Path, runs: Sequence[BenchmarkRun], kept: Path, *, keep: bool = False, progress: bool = False
) -> Path:
    """Do the runs into the folder `out`, and return the path of the report, in which the kept results stand beside them.

    Each run has a folder of its own under `out`/runs, whose files `gradest_experiments.engine.folder` describes. `out`/results
    has the results of all runs there, in the form of `gradest.analysis.leaderboard`. Called again, it continues where it stopped;
    more problems, estimators and seeds may be added later. A run that fails is a result too, which the report names; called
    again, it is done again from its start.

    kept: the folder of the results to join. keep: add all results of `out` to it, and write leaderboard.md, with its charts in
        images, beside it. progress: show a progress bar.

    Raises GradestError if plots cannot be written or the images of a problem are missing, and InvalidInput if a folder holds
    other settings or is damaged.
    """
    check_plots()
    _check_data(runs)
    read_boards(kept)  # a damaged file is told before the runs
    done = do_in_turn(
        runs,
        lambda run, show: _do(run, out / "runs" / run.folder(), show),
        BenchmarkRun.describe,
        lambda run: run.problem.seconds,
        progress=progress,
    )
    new = _to_boards(zip(runs, done, strict=True))
    own = join_boards(read_boards(out / "results"), new)
    for board in own:
        write_board(out / "results", board)
    shown = {board.problem.key for board in own}
    joined = [board for board in join_boards(read_boards(kept), own) if board.problem.key in shown]
    if keep:  # what another process has kept meanwhile stays
        for board in joined:
            write_board(kept, board)
        write_leaderboard(kept.parent, read_boards(kept))  # which are rounded
    return write_report(out, joined)


def _check_data(runs: Iterable[BenchmarkRun]) -> None:
    """Read the images that the problems need, because runs without them would be taken for failures of their estimators."""
    for name in {run.problem.data for run in runs if run.problem.data}:
        load(name)


def _do(run: BenchmarkRun, path: Path, on_progress: OnProgress) -> BoardRun:
    """Do a run, unless its folder has a value, and return the result."""
    options = RunOptions(
        problem=run.problem.name,
        sizes=run.problem.model_dump(mode="json"),
        estimator=run.estimator.spec(),
        seed=run.seed,
    )
    folder = RunFolder.open(path, EXPERIMENT, options)
    if "failure" in folder.results:
        shutil.rmtree(path)
        folder.results.clear()
    if "value" not in folder.results:
        folder.add_results()
        folder.add_results(**_result(run, folder, lambda share: on_progress(share * run.problem.seconds)))
    on_progress(run.problem.seconds)
    found = dict(folder.results)
    found["curve"] = tuple((int(step), value) for step, value in found["curve"])
    return BoardRun(seed=run.seed, gradest=folder.versions["gradest"], torch=folder.versions["torch"], **found)


def _result(run: BenchmarkRun, folder: RunFolder, on_progress: OnProgress) -> dict[str, Any]:
    """Return what the run comes to, or why it failed."""
    failures: dict[str, PluginFault] = {}
    failure = ""
    with registry.containing(failures, run.label):
        try:
            found = run.problem.run(folder, run.estimator, run.seed, on_progress)
            if not math.isfinite(found.value):
                raise GradestError(f"the value is {found.value}")
            return {
                "value": found.value,
                "evaluations": found.evaluations,
                "seconds": found.seconds,
                "curve": [list(point) for point in found.curve],
                "details": dict(found.details),
                "machine": describe_machine(),
            }
        except PluginFault:
            raise
        except InvalidInput as error:
            if run.problem.data is not None:  # the images or the folder are at fault
                raise
            failure = str(error)
        except GradestError as error:
            failure = str(error)
    failure = failure or str(failures[run.label])
    return {
        "value": None,
        "evaluations": 0,
        "seconds": 0.0,
        "curve": [],
        "failure": failure,
        "machine": describe_machine(),
    }


def describe_machine() -> str:
    """Return the kind of this machine: its processor and how many threads torch uses."""
    return f"{_processor()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _to_boards(done: Iterable[tuple[BenchmarkRun, BoardRun]]) -> list[Board]:
    """Return the results by problem and estimator."""
    problems: dict[str, BoardProblem] = {}
    entries: dict[str, dict[str, BoardEntry]] = {}
    for run, result in done:
        problems[run.key] = _describe_problem(run)
        of = entries.setdefault(run.key, {})
        earlier = of[run.label].runs if run.label in of else ()
        of[run.label] = _describe_estimator(run, (*earlier, result))
    return [Board(problem, entries[key]) for key, problem in problems.items()]


def _describe_problem(run: BenchmarkRun) -> BoardProblem:
    problem = run.problem
    text = " ".join(problem.text.split())
    return BoardProblem(
        problem.name,
        run.size,
        problem.title,
        text,
        problem.metric,
        problem.unit,
        problem.better,
        problem.tuned,
        problem.model_dump(mode="json"),
    )


def _describe_estimator(run: BenchmarkRun, runs: tuple[BoardRun, ...]) -> BoardEntry:
    estimator, neuron = run.estimator, run.problem.neuron_for(run.estimator)
    return BoardEntry(
        estimator=estimator.spec(),
        label=run.label,
        distribution=_distribution(estimator),
        neuron=neuron.label(),
        needs=tuple(sorted(estimator.needs, reverse=True)),
        per_draw=run.problem.per_draw(estimator),
        claim=str(registry.call(estimator, "bias", neuron, kind=Bias)),
        cosine=_least_cosine(estimator, neuron),
        runs=runs,
    )


def _distribution(estimator: Estimator) -> str:
    """Return what provides the estimator, with its version, if it has one."""
    for info in registry.plugins:
        if info.estimators.get(estimator.name) is type(estimator):
            version = gradest.__version__ if info.distribution == "gradest" else info.version
            return " ".join(filter(None, [info.distribution, version]))
    return type(estimator).__module__


def _least_cosine(estimator: Estimator, neuron: Neuron) -> float | None:
    """Return the least cosine of the mean gradient with the exact one in the certificate for these options, if there is one."""
    for found in load_certificates(type(estimator), type(neuron)):
        if found.options == options_of(estimator) and found.records:
            return min(record.cosine for record in found.records)
    return None
