"""Where settings come from: flags, then the environment, then a file, then the defaults.

The environment has GRADEST_SERVICE_ and the setting's name in capitals. The file is TOML, a setting a line. Both need
pydantic-settings, from the extra `serve`; flags alone do not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr, ValidationError

from gradest.errors import InvalidInput, InvalidOptions
from gradest_service.settings import Settings

__all__ = ["CONFIG", "PREFIX", "Found", "find_settings", "show"]

PREFIX = "GRADEST_SERVICE_"
CONFIG = f"{PREFIX}CONFIG"


class Found(NamedTuple):
    """Settings, and where each that is not a default came from, as an operator would look for it."""

    settings: Settings
    origins: Mapping[str, str]


def find_settings(flags: Mapping[str, Any], file: Path | None = None) -> Found:
    """The settings from all sources. `file` goes before the one that the environment names.

    Raises InvalidOptions, naming every setting at fault and its source; InvalidInput without pydantic-settings, if needed.
    """
    values: dict[str, Any] = dict(flags)
    origins = {name: f"--{name.replace('_', '-')}" for name in flags}
    variables = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    file = file or next((Path(value) for name, value in variables.items() if name.upper() == CONFIG), None)
    if variables or file:
        for name, (value, origin) in _from_outside(variables, file).items():
            if name not in values:
                values[name], origins[name] = value, origin
    try:
        return Found(Settings(**values), origins)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidOptions("; ".join(_show_fault(fault["loc"], fault["msg"], origins) for fault in faults)) from error


def show(found: Found) -> list[tuple[str, str, str]]:
    """Each setting: its name, its value, secrets hidden, and where that came from."""
    return [(name, _show_value(value), found.origins.get(name, "default")) for name, value in found.settings]


def _from_outside(variables: Mapping[str, str], file: Path | None) -> dict[str, tuple[Any, str]]:
    """The values of the environment, and those of the file for the rest, with their sources."""
    try:
        from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource  # noqa: PLC0415
    except ImportError as error:
        raise InvalidInput(
            f"settings from a file or from {PREFIX}* need pydantic-settings: pip install 'gradest[serve]'"
        ) from error

    class Outside(Settings, BaseSettings):  # type: ignore[misc]  # of each, model_config is a dict of its own type
        """The settings, as pydantic-settings looks for them."""

    unknown = {name for name in variables if name.upper().removeprefix(PREFIX).lower() not in Settings.model_fields}
    unknown -= {name for name in variables if name.upper() == CONFIG}
    if unknown:
        raise InvalidOptions(f"there is no such setting: {', '.join(sorted(unknown))}")
    from_environment = EnvSettingsSource(Outside, case_sensitive=False, env_prefix=PREFIX)()
    found = {name: (value, f"{PREFIX}{name.upper()}") for name, value in from_environment.items()}
    if file is not None:
        try:
            with file.open("rb"):  # a file that is not there is an error, and not for pydantic-settings
                in_file = TomlConfigSettingsSource(Outside, file)()
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{file} is no file of settings: {error}") from error
        found = {name: (value, f"{name} in {file}") for name, value in in_file.items()} | found
    return found


def _show_fault(place: tuple[int | str, ...], message: str, origins: Mapping[str, str]) -> str:
    """A fault after the place to mend: its source, or the flag where several settings are at odds."""
    if place:
        return f"{origins[str(place[0])]}: {message}"
    name, _, rest = message.removeprefix("Value error, ").partition(": ")
    return f"{origins.get(name, name)}: {rest}"


def _show_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, SecretStr):
        return "(hidden)"
    return str(value).lower() if isinstance(value, bool) else str(value)
