"""Commands of other distributions, found through the entry-point group `gradest.commands`.

    [project.entry-points."gradest.commands"]
    fit = "acme.cli:fit"

makes `gradest fit` call the object `fit` of the module acme.cli. gradest's own `serve`, `train`, `reproduce`, `report` and
`demo` are found in the same way. The object is called as `fit(arguments, prog_name="gradest fit")`, where `arguments` are the
words after the command's name. It can be a `typer.Typer`, a click command, or a function with these two parameters, which may
use argparse. A GradestError or OSError that it raises is printed in one line, with exit code 1. `gradest.cli.arguments` and
`gradest.cli.display` read options and print tables as gradest's own commands do.

No code of a plugin runs before its command is called, so `gradest --help` is quick whatever is installed. The help line is read
from the source of the module. It is the first line of the docstring if `fit` is a function or a class, of the text of `help=` if
the module has `fit = typer.Typer(help="...")`, and of the module's docstring otherwise. Import slow packages such as torch inside
functions: then `gradest fit --help` is quick too.

A distribution cannot replace a command of gradest, or of a distribution whose name sorts before its own: the second command of a
name is a failure. `gradest --help` names the failures that can be seen without running code: names that are taken, and modules
that are missing, cannot be parsed or import what is not installed. `gradest list` loads every command and names all failures.
GRADEST_LOAD_PLUGINS, a comma-separated list of distributions, keeps commands of all others but gradest itself from being found.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint
from typing import Any, NamedTuple

import typer
from rich.markup import escape
from typer.core import TyperGroup

from gradest.cli.docstrings import read_summary
from gradest.discovery.entry_points import COMMAND_GROUP, discover
from gradest.discovery.faults import contained, describe_error
from gradest.errors import PluginError

__all__ = ["CommandFailure", "PluginCommand", "PluginGroup", "find_commands", "list_failures"]


class CommandFailure(NamedTuple):
    """A command that cannot be used. The fields are those of `PluginFailure`, whose module would import torch.

    phase: "duplicate" if the name is taken, else "import".
    """

    distribution: str
    version: str
    entry_point: str
    phase: str
    error: str

    def __str__(self) -> str:
        return f"{' '.join(filter(None, [self.distribution, self.version]))} ({self.entry_point}): {self.error}"


@dataclass(frozen=True)
class PluginCommand:
    """A command of a distribution, whose code has not been run.

    summary: its line in `gradest --help`.
    failure: what is wrong with it, as far as this can be seen without running code.
    """

    distribution: str
    version: str
    entry_point: EntryPoint
    summary: str = ""
    failure: CommandFailure | None = None

    def load(self) -> Callable[..., Any]:
        """Import the object to call. Raises PluginError, with the reason alone, if that fails."""
        if self.failure is not None:
            raise PluginError(self.failure.error)
        with contained(PluginError):
            loaded = self.entry_point.load()
        if not callable(loaded):
            raise PluginError(f"{self.entry_point.value} is of type {type(loaded).__name__}, which cannot be called")
        command: Callable[..., Any] = loaded
        return command

    def fail(self, phase: str, error: str) -> CommandFailure:
        """Return the record of a failure of this command."""
        return CommandFailure(self.distribution, self.version, self.entry_point.name, phase, error)


class PluginGroup(TyperGroup):
    """The commands of a Typer app and the commands of plugins. The plugins are searched when a command is not the app's own."""

    _failures: tuple[CommandFailure, ...] | None = None

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands: the app's, then those of plugins."""
        self._add_plugins()
        return super().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return the command of that name, or None."""
        if cmd_name not in self.commands:
            self._add_plugins()
        return super().get_command(ctx, cmd_name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help, with the commands that cannot be used at its end."""
        if failures := self._add_plugins():
            self.epilog = "\n\n".join(escape(f"Not available: {failure}") for failure in failures)
        super().format_help(ctx, formatter)

    def _add_plugins(self) -> tuple[CommandFailure, ...]:
        """Add the commands of plugins, once; return the failures that are seen without running code."""
        if self._failures is None:
            found = find_commands(self.commands)
            self._failures = tuple(command.failure for command in found if command.failure is not None)
            for command in found:
                if command.failure is None or command.failure.phase != "duplicate":
                    self.commands[command.entry_point.name] = _to_click(command)
        return self._failures


def find_commands(own: Collection[str]) -> list[PluginCommand]:
    """Return the commands of all installed distributions, gradest's first and then by name. None of their code is run.

    own: the names that are taken.
    """
    owners = dict.fromkeys(own, "gradest")
    found = []
    for source in discover(COMMAND_GROUP):
        for point in source.entry_points:
            command = PluginCommand(source.distribution, source.version, point)
            if point.name in owners:
                taken = f"{owners[point.name]} has a command {point.name!r} already"
                command = replace(command, failure=command.fail("duplicate", taken))
            else:
                owners[point.name] = source.distribution
                command = _read(command)
            found.append(command)
    return found


def list_failures(own: Collection[str]) -> list[CommandFailure]:
    """Load every command, and return the failures."""
    return [failure for command in find_commands(own) if (failure := _try(command)) is not None]


def _read(command: PluginCommand) -> PluginCommand:
    """Return the command with its summary or, if its source shows that it cannot be imported, with its failure."""
    point = command.entry_point
    try:
        if point.pattern.match(point.value) is None:
            raise ImportError(f"{point.value!r} is not of the form module:object")
        return replace(command, summary=read_summary(point.module, point.attr))
    except Exception as error:  # of a finder or a loader, too
        return replace(command, failure=command.fail("import", describe_error(error)))


def _try(command: PluginCommand) -> CommandFailure | None:
    if command.failure is None:
        try:
            command.load()
        except PluginError as error:
            return command.fail("import", str(error))
    return command.failure


def _to_click(command: PluginCommand) -> Any:
    """Return a click command that loads the plugin's when it is called, and passes it all arguments."""

    def run(context: typer.Context) -> None:
        try:
            call = command.load()
        except PluginError as error:
            raise PluginError(f"the command {command.entry_point.name!r} does not load: {error}") from error
        call(context.args, prog_name=context.command_path)

    app = typer.Typer(add_completion=False)
    app.command(
        command.entry_point.name,
        help=escape(command.summary),
        hidden=command.failure is not None,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(run)
    return typer.main.get_command(app)
