"""The folder of a run, of whatever experiment.

    run.json       the experiment, its settings (the seed is one of them), versions, and results as soon as they are known
    metrics.jsonl  one line per measurement, written as soon as it is made
    checkpoint.pt  the state from which the run continues, and how many bytes of metrics belong to it
    tensorboard/   the metrics again, as event files, if they were asked for

Whenever a process is killed, the next one finds files that fit together. If a run has several processes, only the first writes.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from pydantic import BaseModel, ValidationError

from gradest.errors import GradestError, InvalidInput
from gradest.estimation.distributed import rank
from gradest_experiments.engine.checkpoint import load_checkpoint, save_checkpoint, write_atomically

__all__ = ["MetricsRow", "MetricsWriter", "RunFolder", "check_tensorboard", "list_folders"]

_RUN, _METRICS, _CHECKPOINT, _EVENTS = "run.json", "metrics.jsonl", "checkpoint.pt", "tensorboard"

MetricsRow = dict[str, Any]
"""One line of metrics: its kind, the step, and what was measured."""


@dataclass
class RunFolder:
    """A run, as plain JSON. path: its folder; a run without one writes nothing."""

    path: Path | None
    experiment: str
    settings: dict[str, Any]
    versions: dict[str, str]
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the run in the folder. Raises InvalidInput if there is none, or if run.json is damaged."""
        file = path / _RUN
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            settings, results = dict(found["settings"]), dict(found["results"])
            return cls(path, str(found["experiment"]), settings, dict(found["versions"]), results)
        except FileNotFoundError:
            raise InvalidInput(f"{path} holds no run: there is no {_RUN}") from None
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{file} is damaged; delete {path} to start afresh") from error

    @classmethod
    def open(cls, path: Path | None, experiment: str, settings: BaseModel, extendable: str | None = None) -> Self:
        """Return the run of these settings, with its results if the folder has them; nothing is written yet.

        extendable: the setting, such as the number of steps, that may be larger than in the folder: a longer run begins like a
            shorter one. The results of the shorter one are dropped.

        Raises InvalidInput if the folder holds another run, or a run of other versions of gradest or torch.
        """
        now = cls(path, experiment, _plain(settings.model_dump(mode="json")), _versions())
        if path is None or not cls.exists(path):
            if path and (path / _CHECKPOINT).exists():
                raise InvalidInput(
                    f"{path} holds a checkpoint without {_RUN}, of an earlier gradest; choose another folder"
                )
            return now
        found = cls.read(path)
        found.settings = _with_defaults(type(settings), found.settings)
        if found.settings == now.settings:
            now.results = found.results
        was, wanted = ({"experiment": one.experiment, **one.settings, **one.versions} for one in (found, now))
        if extendable and was.get(extendable, math.inf) < wanted[extendable]:
            was[extendable] = wanted[extendable]
        names = sorted(name for name in {*was, *wanted} - {"python"} if was.get(name) != wanted.get(name))
        if names:
            changes = ", ".join(f"{name} {was.get(name)!r} (now {wanted.get(name)!r})" for name in names)
            raise InvalidInput(f"{path} holds a run with other settings: {changes}. Choose another folder")
        return now

    @staticmethod
    def exists(path: Path) -> bool:
        """Whether there is a run in the folder."""
        return (path / _RUN).exists()

    @contextmanager
    def record(self, kept: int | None = 0, *, tensorboard: bool = False) -> Iterator[MetricsWriter]:
        """Write run.json, and open the metrics for appending.

        kept: the number of bytes of metrics that are kept; what follows them is cut off. None keeps every whole line.
        """
        if self.path is None or rank():
            yield MetricsWriter()
            return
        self.add_results()
        events = self.path / _EVENTS
        if events.exists():
            shutil.rmtree(events)  # written again below, so that no line is in them twice
        with (self.path / _METRICS).open("ab") as file:
            metrics = MetricsWriter(file)
            metrics.cut(kept)
            if not tensorboard:
                yield metrics
                return
            with _writer(events) as metrics.events:
                for row in self.rows():
                    metrics.show(row)
                yield metrics

    def add_results(self, **results: Any) -> None:
        """Add results to the run and to run.json. Numbers that are not finite become None, as in the file."""
        self.results.update(_plain(results))
        if self.path is None or rank():
            return
        known = {
            "experiment": self.experiment,
            "settings": self.settings,
            "versions": self.versions,
            "results": self.results,
        }
        text = json.dumps(known, indent=1, allow_nan=False)
        write_atomically(self.path / _RUN, lambda new: new.write_text(text + "\n", encoding="utf-8"))

    def save(self, state: dict[str, Any], metrics: MetricsWriter) -> None:
        """Write a checkpoint of the run's state and of the number of bytes of its metrics."""
        if self.path is not None and not rank():
            save_checkpoint(self.path / _CHECKPOINT, {**state, "metrics": metrics.sync()})

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint, or None if there is none; its `metrics` is the `kept` of `record`.

        Raises InvalidInput if the checkpoint is damaged.
        """
        if self.path is None or not (self.path / _CHECKPOINT).exists():
            return None
        return load_checkpoint(self.path / _CHECKPOINT)

    def rows(self, kind: str | None = None) -> list[MetricsRow]:
        """Return the lines of metrics, of one kind or of all, without a last line that is cut off.

        Raises InvalidInput if another line is damaged.
        """
        if self.path is None or not (self.path / _METRICS).exists():
            return []
        path = self.path / _METRICS
        whole, _, _ = path.read_bytes().rpartition(b"\n")
        try:
            rows: list[MetricsRow] = [json.loads(line) for line in whole.splitlines()]
            return [row for row in rows if row["kind"] == kind or kind is None]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{path} is damaged; delete {self.path} to run it again") from error


class MetricsWriter:
    """The metrics of a run, open for appending; without a file, lines are dropped."""

    def __init__(self, file: BinaryIO | None = None) -> None:
        self._file = file
        self.events: Any = None

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a line; numbers that are not finite become null."""
        row = _plain({"kind": kind, "step": step, **values})
        if self._file:
            self._file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self._file.flush()
        self.show(row)

    def show(self, row: MetricsRow) -> None:
        """Add the numbers of a line to the event files, if there are any, under the tag KIND/NAME."""
        if self.events:
            for name, value in row.items():
                if name not in ("kind", "step") and isinstance(value, int | float):
                    self.events.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def cut(self, kept: int | None) -> None:
        """Cut off what a killed process wrote after its checkpoint, which will be measured again.

        Raises InvalidInput if the file is shorter than `kept` bytes.
        """
        if not self._file:
            return
        size = self._file.seek(0, os.SEEK_END)
        path = Path(self._file.name)
        if kept is None:
            kept = path.read_bytes().rfind(b"\n") + 1
        if size < kept:
            raise InvalidInput(
                f"{path} has lost lines that were written before its checkpoint; delete the folder to start afresh"
            )
        self._file.truncate(kept)

    def sync(self) -> int:
        """Wait until all lines are on the disk, and return the number of bytes."""
        if not self._file:
            return 0
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)


def list_folders(path: Path) -> list[Path]:
    """Return the folders of the runs at and below a folder, sorted by name."""
    return sorted(file.parent for file in path.rglob(_RUN))


def check_tensorboard() -> None:
    """Raise GradestError, which says what to install, unless event files can be written."""
    if find_spec("tensorboard") is None:
        raise GradestError("event files need tensorboard: pip install 'gradest[tensorboard]'")


def _writer(folder: Path) -> Any:
    check_tensorboard()
    from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # an extra

    return SummaryWriter(folder)


def _versions() -> dict[str, str]:
    return {"gradest": version("gradest"), "torch": torch.__version__, "python": platform.python_version()}


def _with_defaults(model: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    """Fill in the settings that the model did not have yet when these were written."""
    try:
        return _plain(model.model_validate(settings).model_dump(mode="json"))  # type: ignore[no-any-return]
    except ValidationError:
        return settings


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
