"""Reads a Dockerfile: what it does at each step, and which files are sent to its builder."""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """One instruction of one stage."""

    stage: str
    """The name of the stage, or "" for the last."""
    instruction: str
    value: str

    def words(self) -> list[str]:
        """The words of the value: of its JSON form, or as a shell takes them."""
        return json.loads(self.value) if self.value.startswith("[") else shlex.split(self.value)

    def command(self) -> str:
        """The command of a RUN or of a HEALTHCHECK, without options of the builder."""
        return re.sub(r"^(--\S+\s+)+(CMD\s+)?", "", self.value)


def read_steps(path: Path) -> list[Step]:
    """The steps in order; comments and line ends inside them are left out."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    steps, stage = [], ""
    for line in filter(None, map(str.strip, text.splitlines())):
        instruction, _, value = line.partition(" ")
        if instruction == "FROM":
            stage = value.partition(" AS ")[2]
        steps.append(Step(stage, instruction, value.strip()))
    return steps


def is_sent(path: str, rules: Path) -> bool:
    """Whether a file is sent to the builder: the last rule that fits it or a folder above it decides."""
    parts, sent = path.split("/"), True
    for rule in rules.read_text().splitlines():
        pattern = rule.strip().lstrip("!").rstrip("/")
        if not pattern or pattern.startswith("#"):
            continue
        above = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        names = above if not pattern.startswith("**/") else parts
        if any(fnmatch.fnmatchcase(name, pattern.removeprefix("**/")) for name in names):
            sent = rule.startswith("!")
    return sent
