"""Collects the settings from flags, the environment, a file and the defaults; earlier sources take precedence.

A variable of the environment is GRADEST_SERVICE_ and the setting's name in capitals. The file is TOML, with one setting a line.
Both need pydantic-settings, which the extra `serve` installs; flags alone do not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import SecretStr, ValidationError

from gradest.errors import InvalidInput, InvalidOptions
from gradest_service.settings import Settings

__all__ = ["FILE_VARIABLE", "PREFIX", "LoadedSettings", "list_settings", "load_settings"]

PREFIX = "GRADEST_SERVICE_"
"""How the names of the environment's variables begin."""
FILE_VARIABLE = f"{PREFIX}CONFIG"
"""The environment variable that names a file of settings."""


class LoadedSettings(NamedTuple):
    """Settings, and for each that is not a default its origin, as an operator would look for it."""

    settings: Settings
    origins: Mapping[str, str]


def load_settings(flags: Mapping[str, Any], file: Path | None = None) -> LoadedSettings:
    """Collect the settings from all sources. `file` replaces the one that the environment names.

    Raises InvalidOptions, which names every setting at fault and its origin; InvalidInput if pydantic-settings is needed and is
    not installed, or for an unreadable file.
    """
    values: dict[str, Any] = dict(flags)
    origins = {name: f"--{name.replace('_', '-')}" for name in flags}
    variables = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    file = file or next((Path(value) for name, value in variables.items() if name.upper() == FILE_VARIABLE), None)
    if variables or file:
        for name, (value, origin) in _from_environment_and_file(variables, file).items():
            if name not in values:
                values[name], origins[name] = value, origin
    try:
        return LoadedSettings(Settings(**values), origins)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidOptions("; ".join(_show_fault(fault["loc"], fault["msg"], origins) for fault in faults)) from error


def list_settings(found: LoadedSettings) -> list[tuple[str, str, str]]:
    """Return each setting's name, its value, with secrets hidden, and its origin."""
    return [(name, _show_value(value), found.origins.get(name, "default")) for name, value in found.settings]


def _from_environment_and_file(variables: Mapping[str, str], file: Path | None) -> dict[str, tuple[Any, str]]:
    """Return the values of the environment, and those of the file for the other settings, with their origins."""
    try:
        from pydantic_settings import BaseSettings, EnvSettingsSource, TomlConfigSettingsSource  # noqa: PLC0415
    except ImportError as error:
        raise InvalidInput(
            f"settings from a file or from {PREFIX}* need pydantic-settings: pip install 'gradest[serve]'"
        ) from error

    class SettingsSource(Settings, BaseSettings):  # type: ignore[misc]  # model_config has another type in each
        """The settings, as pydantic-settings looks for them."""

    unknown = {name for name in variables if name.upper().removeprefix(PREFIX).lower() not in Settings.model_fields}
    unknown -= {name for name in variables if name.upper() == FILE_VARIABLE}
    if unknown:
        raise InvalidOptions(f"there is no such setting: {', '.join(sorted(unknown))}")
    from_environment = EnvSettingsSource(SettingsSource, case_sensitive=False, env_prefix=PREFIX)()
    found = {name: (value, f"{PREFIX}{name.upper()}") for name, value in from_environment.items()}
    if file is not None:
        try:
            with file.open("rb"):  # a missing file is an error, which pydantic-settings would ignore
                in_file = TomlConfigSettingsSource(SettingsSource, file)()
        except (OSError, ValueError) as error:
            raise InvalidInput(f"{file} is not a file of settings: {error}") from error
        found = {name: (value, f"{name} in {file}") for name, value in in_file.items()} | found
    return found


def _show_fault(place: tuple[int | str, ...], message: str, origins: Mapping[str, str]) -> str:
    """Return a fault after the place to correct: the setting's origin, or its name if it has none."""
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
