"""The page of the command line, from the objects of typer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from importlib.metadata import entry_points
from io import StringIO
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer

from gradest.analysis.markdown import table
from gradest.analysis.pages.prose import cell, to_markdown
from gradest.cli import app
from gradest.cli.commands import COMMANDS
from gradest.discovery.entry_points import COMMAND_GROUP

__all__ = ["write_commands"]

_INTRODUCTION = """\
# Commands

`gradest COMMAND --help` prints what this page says. Tables are for people; with `--json` a command prints JSON and nothing else
on standard output. A command that cannot do what it was asked ends with exit code 1 and one line on standard error."""


def write_commands(path: Path) -> None:
    """Write the page."""
    root = typer.main.get_command(app)
    parts = [part for name in COMMANDS for part in _command(f"gradest {name}", root.commands[name], 2)]  # type: ignore[attr-defined]
    for point in sorted(entry_points(group=COMMAND_GROUP), key=lambda point: point.name):
        if point.dist and point.dist.name == "gradest":
            loaded, name = point.load(), f"gradest {point.name}"
            parts += (
                _command(name, typer.main.get_command(loaded), 2)
                if isinstance(loaded, typer.Typer)
                else _printed(name, loaded)
            )
    path.write_text("\n\n".join([_INTRODUCTION, *parts]) + "\n", encoding="utf-8")


def _printed(name: str, call: Any) -> Iterator[str]:
    """What `--help` prints, for a command that makes its options when it is called."""
    printed = StringIO()
    with redirect_stdout(printed), suppress(SystemExit):
        call(["--help"], prog_name=name)
    yield f"## {name}"
    yield f"```text\n{printed.getvalue().strip()}\n```"


def _command(name: str, command: Any, level: int) -> Iterator[str]:
    yield f"{'#' * level} {name}"
    yield to_markdown(command.help or "")
    arguments = [one for one in command.params if not one.opts[0].startswith("-")]
    options = [one for one in command.params if one not in arguments and one.name != "help"]
    if arguments:
        rows = [[f"`{one.metavar or one.name}`", _type(one), cell(one.help or "")] for one in arguments]
        yield table(["argument", "type", "meaning"], rows, "lll")
    if options:
        rows = [
            [", ".join(f"`{flag}`" for flag in one.opts), _type(one), _default(one), cell(one.help or "")]
            for one in options
        ]
        yield table(["option", "type", "default", "meaning"], rows, "llll")
    for part, below in sorted(getattr(command, "commands", {}).items()):
        yield from _command(f"{name} {part}", below, level + 1)


def _type(parameter: Any) -> str:
    return _in_words(parameter.type_descriptor.annotation)


def _in_words(kind: Any) -> str:
    if kind is bool:
        return "flag"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    parts = [part for part in get_args(kind) if part is not type(None)]
    if get_origin(kind) is list:
        return f"{_in_words(parts[0])}, repeated"
    if parts:
        return " or ".join(map(_in_words, parts))
    return {"str": "text", "int": "integer", "float": "number", "Path": "path"}.get(kind.__name__, kind.__name__)


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    value = parameter.default
    return "" if value in (None, False, ()) or callable(value) else f"`{value}`"
