"""The command line, `gradest`. Tables are for people; with --json a command prints JSON and nothing else on standard output.

    commands    the ten commands of gradest itself
    plugins     commands of other distributions, found through the entry-point group `gradest.commands`
    arguments   what is read from the command line; like display, commands of other distributions may use it
    display     what is printed
    backends    what answers the commands that take --url: this process or a service
    scaffold    the files of `gradest new-plugin`
    certifying  the measurements of `gradest certify`

A command imports what it needs when it runs, because `gradest --help` must not wait for torch.
"""

from __future__ import annotations

import codecs
import io
import sys
import unicodedata
from typing import Annotated

import typer

import gradest
from gradest.cli.commands import COMMANDS
from gradest.cli.plugins import PluginGroup
from gradest.errors import GradestError

__all__ = ["app", "main"]

app = typer.Typer(cls=PluginGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    """Run the command line. An error that gradest raises on purpose is one line on standard error, with exit code 1.

    Where the encoding of standard output has no σ or é, such as cp1252 or ASCII, a letter without its accent or "?" is printed.
    """
    codecs.register_error("gradest.plain", _to_plain_text)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="gradest.plain")
    try:
        app()
    except (GradestError, OSError) as error:
        sys.exit(f"gradest: {' '.join(str(error).split())}")


def _to_plain_text(error: UnicodeError) -> tuple[str, int]:
    """Replace what cannot be encoded by as many characters of ASCII, so that the columns of tables stay in line."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = (unicodedata.normalize("NFKD", letter)[0] for letter in error.object[error.start : error.end])
    return "".join(letter if letter.isascii() else "?" for letter in letters), error.end


def _print_version(given: bool) -> None:
    if given:
        print(gradest.__version__)
        raise typer.Exit


@app.callback()
def _global(
    _: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Stochastic neurons, estimators of their gradients, and how they compare.

    Commands with --url ask a service; the others work on code, files and processors of this machine.
    """
