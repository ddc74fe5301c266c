"""The command `gradest serve`, an entry point of the group `gradest.commands`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from gradest.cli.arguments import settings_command

__all__ = ["serve"]


def serve(arguments: Sequence[str], *, prog_name: str) -> None:
    """Serve the registry over HTTP."""
    from gradest_service.settings import Settings

    settings_command(Settings, _serve)(arguments, prog_name=prog_name)


def _serve(
    given: dict[str, Any],
    *,
    config: Annotated[
        Path | None,
        typer.Option(help="A TOML file of settings. If omitted, the file that GRADEST_SERVICE_CONFIG names."),
    ] = None,
    show: Annotated[
        bool, typer.Option("--show-settings", help="Print each setting and where it comes from, and exit.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--new-api-key", help="Make an API key of this name, print it and its line for --api-keys, and exit."
        ),
    ] = None,
) -> None:
    """Serve the registry over HTTP. A setting is taken from its flag, else from GRADEST_SERVICE_NAME, else from the file."""
    from gradest_service.host.configuration import list_settings, load_settings

    if name is not None:
        from gradest_service.admit.auth import new_key

        key, line = new_key(name)
        print(f"The API key, which is not shown again: {key}", file=sys.stderr)
        print(line)
        return
    found = load_settings(given, config)
    if show:
        from gradest.cli.display import show_rows

        show_rows(["setting", "value", "from"], list_settings(found))
    else:
        from gradest_service.app import serve

        serve(found.settings)
