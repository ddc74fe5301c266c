"""The parsing of arguments: numbers, plugins with options, and flags made from a model of settings."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

import typer
from rich.markup import escape

from gradest.errors import InvalidInput, InvalidOptions

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

__all__ = [
    "SPEC",
    "Json",
    "Plugins",
    "build_settings",
    "command",
    "read_numbers",
    "read_options",
    "read_spec",
    "settings_command",
]

SPEC = "a name, name:key=value,key=value, or JSON"
"""How a help text describes what `read_spec` reads."""

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
"""The flag of a command that can print JSON."""


def _use_plugins(context: typer.Context, plugins: list[str] | None) -> list[str] | None:
    """Register plugins until the command ends."""
    if plugins and not context.resilient_parsing:
        from gradest.discovery.entry_points import find
        from gradest.discovery.registry import registry

        for plugin in plugins:
            context.with_resource(registry.using(find(plugin)))
    return plugins


Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        callback=_use_plugins,
        is_eager=True,
        help="A plugin to register for this run: a .py file with hooks, a project's folder, or a module. It can be repeated.",
    ),
]
"""The option by which a command of this machine knows plugins that are not installed. The command's body need not read it."""

Settings = TypeVar("Settings", bound="BaseModel")

_METAVARS = {int: "INTEGER", float: "NUMBER", Path: "PATH"}


def read_numbers(text: str) -> Any:
    """Read numbers, or nested lists of them.

    text: numbers separated by commas, such as "0.3,-1,2"; a JSON array; the path of a JSON file; or "-" for JSON on standard
        input.

    Raises InvalidInput for anything else.
    """
    if text != "-":
        try:
            return [float(number) for number in text.split(",")]
        except ValueError:
            pass
    source, content = repr(text), text
    if text == "-":
        source, content = "standard input", sys.stdin.read()
    elif not text.lstrip().startswith("["):
        try:
            content = Path(text).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(
                f'{text!r} is neither numbers, such as "0.3,-1,2", nor a nested JSON array, nor the path of a JSON file,'
                " nor - for standard input"
            ) from error
    try:
        numbers = json.loads(content)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{source} is not a JSON array of numbers: {error}") from error
    return numbers if isinstance(numbers, list) else [numbers]


def read_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Read options of a plugin from key=value pairs. A value that is not JSON is taken as text."""
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise InvalidOptions(f"an option must have the form key=value, not {pair!r}")
        try:
            options[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            options[key.strip()] = value.strip()
    return options


def read_spec(text: str) -> dict[str, Any]:
    """Read a plugin, {"name": ..., **options}, from that JSON, from a name, or from name:key=value,key=value."""
    if text.lstrip().startswith("{"):
        try:
            spec: dict[str, Any] = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidOptions(f"{text!r} is not JSON: {error}") from error
        return spec
    name, _, options = text.partition(":")
    # a comma that key= does not follow is part of a value
    pairs = re.split(r",(?=\s*\w+\s*=)", options) if options else []
    return {"name": name.strip(), **read_options(pairs)}


def build_settings(model: type[Settings], given: dict[str, Any]) -> Settings:
    """Build the settings from the values of flags. Raises InvalidOptions that names each flag with a wrong value."""
    from pydantic import ValidationError

    try:
        return model(**given)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        raise InvalidOptions("; ".join(f"{_flag(str(fault['loc'][0]))}: {fault['msg']}" for fault in faults)) from error


def command(run: Callable[..., None]) -> typer.Typer:
    """Return a command line whose arguments and options are the parameters of `run`, annotated as Typer reads them."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(run)
    return app


def settings_command(model: type[BaseModel], run: Callable[..., None]) -> typer.Typer:
    """Return a command line with a flag for each field of the model, and one for each further parameter of `run`.

    run(given, ...) is called with the fields that were given, as text or bool. Building the model from them checks them and fills
    in the defaults.
    """

    def call(**flags: Any) -> None:
        given = {name: flags.pop(name) for name in model.model_fields}
        run({name: value for name, value in given.items() if value is not None}, **flags)

    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_option(name, field),
        )
        for name, field in model.model_fields.items()
    ]
    _, *further = inspect.signature(run, eval_str=True).parameters.values()
    call.__signature__ = inspect.Signature([*fields, *further])  # type: ignore[attr-defined]
    call.__doc__ = run.__doc__
    return command(call)


def _option(name: str, field: FieldInfo) -> Any:
    """Return the annotation of a field's flag, which is a switch, --x or --no-x, if the field is a bool."""
    text = None if field.description is None else escape(field.description)
    shown = False if field.default is None else str(field.default)
    if field.annotation is bool:
        flag, no = _flag(name), _flag(f"no_{name}")
        return Annotated[
            bool | None,
            typer.Option(f"{flag}/{no}", help=text, show_default=no if not field.default else flag),
        ]
    return Annotated[
        str | None,
        typer.Option(_flag(name), help=text, metavar=_metavar(field.annotation), show_default=shown),
    ]


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _metavar(annotation: Any) -> str:
    """Return how a help text shows the values of a type: its choices, or a word for it."""
    choices = [
        str(choice) for kind in _alternatives(annotation) if get_origin(kind) is Literal for choice in get_args(kind)
    ]
    if choices:
        return "|".join(choices)
    return next((_METAVARS[kind] for kind in _alternatives(annotation) if kind in _METAVARS), "TEXT")


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union, or the type alone."""
    if get_origin(annotation) in (None, Literal) or isinstance(annotation, type):
        return [annotation]
    return [member for part in get_args(annotation) for member in _alternatives(part)]
