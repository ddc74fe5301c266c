"""JSON lines that survive an interrupt."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gradest.errors import InvalidInput

__all__ = ["Metrics", "read_metrics"]


class Metrics:
    """A file that grows by a line a measurement, each on its way to the disk as it comes.

    kept: how many bytes of what is there belong to the run that goes on; what a killed process wrote after its checkpoint is
    cut off, and comes again. Raises InvalidInput where fewer are left.
    """

    def __init__(self, path: Path, kept: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        if self._file.tell() < kept:
            self._file.close()
            raise InvalidInput(
                f"{path} has lost lines that its checkpoint counts on; delete the folder to start afresh"
            )
        self._file.truncate(kept)

    def write(self, kind: str, step: int, **values: float) -> None:
        """Add a line."""
        line = json.dumps({"kind": kind, "step": step, **values}, allow_nan=False)
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Wait until all lines are on the disk, and return how many bytes there are."""
        os.fsync(self._file.fileno())
        return self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a finished run. Raises InvalidInput if the file is damaged."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:
        raise InvalidInput(f"{path} is damaged; delete its folder to run it again") from error
