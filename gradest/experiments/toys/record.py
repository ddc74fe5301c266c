"""The results of a part, in a JSON file that grows by a task at a time."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gradest.errors import InvalidInput
from gradest.experiments.checkpoint import write_atomically

__all__ = ["Record"]


class Record:
    """The results of the tasks that are done, by name, and the settings that they belong to, as plain JSON.

    settings: of a file that may not be there yet; if it is, it must have the same. None reads what is there.

    Raises InvalidInput if the file has other settings, or is damaged.
    """

    def __init__(self, path: Path, settings: dict[str, Any] | None = None) -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        if settings is not None and not path.exists():
            self.settings = settings
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            self.settings, self.results = dict(found["settings"]), dict(found["results"])
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput(f"{path} is damaged; delete it to start afresh") from error
        if settings not in (None, self.settings):
            before, now = self.settings, settings or {}
            names = sorted(name for name in {*before, *now} if before.get(name) != now.get(name))
            changes = ", ".join(f"{name} {before.get(name)!r} (now {now.get(name)!r})" for name in names)
            raise InvalidInput(f"{path} holds results of other settings: {changes}. Choose another folder")

    def add(self, task: str, result: Any) -> None:
        """Keep the result of a task. What is used afterwards is what the file holds: a number that is not finite is null."""
        self.results[task] = _plain(result)
        text = json.dumps({"settings": self.settings, "results": self.results}, indent=1, allow_nan=False)
        write_atomically(self.path, lambda new: new.write_text(text + "\n", encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
