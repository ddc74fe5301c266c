"""The page of the HTTP interface, from the OpenAPI document of the service."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gradest.analysis.markdown import table
from gradest.analysis.pages.prose import cell, escape
from gradest_service.app import create_app

__all__ = ["write_http"]

_INTRODUCTION = """\
# HTTP interface

A running service describes itself: `/openapi.json` is the document from which this page is made, and `/docs` shows it with a form
for each route. [The service](../guides/service.md) explains how the routes work together. Bodies are JSON, or safetensors for
large tensors. Errors are problem details ([RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)), whose `detail` says what is
wrong and what to do."""


def write_http(path: Path) -> None:
    """Write the page."""
    document = create_app().openapi()
    schemas = document["components"]["schemas"]
    groups: dict[str, list[str]] = {}
    for route, operations in document["paths"].items():
        for method, operation in operations.items():
            groups.setdefault(operation["tags"][0], []).append(
                "\n\n".join(_operation(method, route, operation, schemas))
            )
    parts = [_INTRODUCTION]
    for tag, found in groups.items():
        parts += [f"## {tag.capitalize()}", *found]
    parts += ["## Bodies", *(_schema(name, schema) for name, schema in sorted(schemas.items()))]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _operation(method: str, route: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {method.upper()} {escape(route)}"
    yield escape(operation["summary"].rstrip(".") + ".")
    yield escape(operation.get("description", ""))
    if parameters := operation.get("parameters"):
        rows = [
            [f"`{one['name']}`", one["in"], _type(one.get("schema", {})), cell(one.get("description", ""))]
            for one in parameters
        ]
        yield table(["parameter", "in", "type", "meaning"], rows, "llll")
    body = operation.get("requestBody", {}).get("content", {})
    if "application/json" in body:
        schema = body["application/json"]["schema"]
        yield f"Body: {_type(schema)}, as {' or '.join(f'`{kind}`' for kind in body)}."
        if example := _example(schema, schemas):
            yield f"```json\n{json.dumps(example)}\n```"
    answers = {code: one for code, one in sorted(operation["responses"].items()) if code < "400"}
    yield "\n".join(f"- {code}: {escape(one['description'])} {_answer(one)}" for code, one in answers.items())
    errors = ", ".join(
        f"{code} {one['description']}" for code, one in sorted(operation["responses"].items()) if code >= "400"
    )
    yield f"Errors, as [ProblemDetails](#{_label('ProblemDetails')}): {errors}."


def _answer(response: Mapping[str, Any]) -> str:
    schemas = [one.get("schema", {}) for kind, one in response.get("content", {}).items() if kind.endswith("json")]
    return "; ".join(dict.fromkeys(_type(schema) for schema in schemas))


def _example(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body with the first example of each field that has one."""
    name = schema.get("$ref", "").rpartition("/")[2]
    fields = schemas.get(name, {}).get("properties", {})
    return {field: one["examples"][0] for field, one in fields.items() if one.get("examples")}


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = schema.get("required", [])
    rows = [
        [f"`{field}`", _type(one), "required" if field in required else _default(one), cell(one.get("description", ""))]
        for field, one in schema.get("properties", {}).items()
    ]
    fields = table(["field", "type", "default", "meaning"], rows, "llll") if rows else f"It is {_type(schema)}."
    return "\n\n".join(
        part for part in (f"({_label(name)})=\n### {name}", escape(schema.get("description", "")), fields) if part
    )


def _label(name: str) -> str:
    return f"http-{name.lower()}"


def _default(field: Mapping[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


def _type(schema: Mapping[str, Any]) -> str:
    """Return a type in words, with links to the bodies that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{_label(name)})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[key]))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{json.dumps(one)}`" for one in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array" and "items" in schema:
        return f"array of {_type(schema['items'])}"
    kind = schema.get("type", "any")
    return " or ".join(kind) if isinstance(kind, list) else str(kind)
