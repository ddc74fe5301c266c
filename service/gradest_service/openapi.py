"""The OpenAPI document: the routes read raw bodies, so their requests, answers and errors are described here.

Clients in other languages are generated from it. So it has no recursive schema, which some generators drop; no field of a request
has a default, which others take for a required field; and the operationIds and names of schemas are stable.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gradest_service.admit.auth import HEALTH_PATHS
from gradest_service.bodies import descriptions, schemas
from gradest_service.bodies.codec import CODECS, JSON, SAFETENSORS
from gradest_service.problems import MEDIA_TYPE, TITLES, ProblemDetails
from gradest_service.run.event_stream import EventStream

__all__ = [
    "DocumentedApp",
    "counted_errors",
    "describe_answer",
    "describe_errors",
    "describe_list",
    "describe_path_name",
    "describe_query",
    "describe_request",
    "describe_text",
]

_REF = "#/components/schemas/{name}"
_MODELS = [getattr(module, name) for module in (schemas, descriptions) for name in module.__all__] + [ProblemDetails]
_PUBLISHED_NAMES = {"ComparisonRow": "Row", "Excluded": "Rejected"}
"""The names of models in the document that are not their classes' names: clients are generated from the document."""
_ERROR_HEADERS = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}
_PROGRESS: dict[type[BaseModel], type[BaseModel]] = {
    schemas.EstimateAnswer: schemas.EstimateSoFar,
    schemas.CompareAnswer: schemas.Progress,
}
"""What the `progress` events hold of a stream that ends with such an answer."""

Responses = dict[int | str, dict[str, Any]]


class DocumentedApp(FastAPI):
    """FastAPI, with the models of the raw bodies and the API keys in its OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document, which is made once."""
        if self.openapi_schema is None:
            self._complete(super().openapi())
        return super().openapi()

    def _complete(self, document: dict[str, Any]) -> None:
        """Add to FastAPI's document what the routes cannot say."""
        _, definitions = models_json_schema(
            [(model, "validation") for model in _MODELS], ref_template=_REF.format(name="{model}")
        )
        document["components"] = {"schemas": _only_used(_published(definitions["$defs"]), document["paths"])}
        for item in document["paths"].values():
            for operation in item.values():
                _add_examples(operation)
        if self.state.settings.api_keys:
            scheme = {"type": "http", "scheme": "bearer", "description": "An API key, from the service's operator."}
            document["components"]["securitySchemes"] = {"key": scheme}
            document["security"] = [{"key": []}]
            for path, item in document["paths"].items():
                for operation in item.values():
                    if path in HEALTH_PATHS:
                        operation["security"] = []
                    else:
                        operation["responses"] |= {"401": describe_errors(401)[401]}


def _published(definitions: dict[str, Any]) -> dict[str, Any]:
    """Rename the schemas that have a published name, and the references to them."""
    text = json.dumps(definitions)
    for name, published in _PUBLISHED_NAMES.items():
        text = text.replace(f'"{_REF.format(name=name)}"', f'"{_REF.format(name=published)}"')
    schemas_by_name: dict[str, Any] = json.loads(text)
    for name, published in _PUBLISHED_NAMES.items():
        schemas_by_name[published] = schemas_by_name.pop(name) | {"title": published}
    for name, schema in schemas_by_name.items():
        if name.endswith("Request"):
            for field in schema["properties"].values():
                _describe_default(field)
    return schemas_by_name


def _only_used(schemas_by_name: dict[str, Any], paths: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas to which the paths refer, directly or through other schemas."""
    used, found = set[str](), _references(paths)
    while found - used:
        used |= found
        found = set().union(*(_references(schemas_by_name[name]) for name in used))
    return {name: schema for name, schema in schemas_by_name.items() if name in used}


def _references(description: Any) -> set[str]:
    """Return the names of the schemas to which a description refers."""
    return set(re.findall(f'"{_REF.format(name="(.+?)")}"', json.dumps(description)))


def _describe_default(field: dict[str, Any]) -> None:
    """Move the default of a field into its description."""
    default = field.pop("default", None)
    if default is not None:
        field["description"] = f"{field['description'].rstrip('.')}; {json.dumps(default)} if omitted."


@cache
def _examples() -> dict[str, dict[str, Any]]:
    """Return an example for each operationId: its `parameters`, its `request` and its `answer`, where it has such."""
    text = files("gradest_service").joinpath("examples.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def _add_examples(operation: dict[str, Any]) -> None:
    example = _examples().get(operation["operationId"], {})
    given = example.get("parameters", {})
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in given:
            parameter["example"] = given[parameter["name"]]
    if "request" in example:
        operation["requestBody"]["content"][JSON.media_type]["example"] = example["request"]
    for media_type, body in operation["responses"]["200"]["content"].items():
        if media_type in (JSON.media_type, "text/plain") and "answer" in example:
            body["example"] = example["answer"]


def _refer(model: type[BaseModel]) -> dict[str, Any]:
    """Return a reference to the model's schema among the document's components."""
    return {"$ref": _REF.format(name=_PUBLISHED_NAMES.get(model.__name__, model.__name__))}


def _describe_body(model: type[BaseModel], media_type: str) -> dict[str, Any]:
    """Describe a body of this media type that holds this model."""
    if media_type == EventStream.media_type:
        events = [_event("progress", _PROGRESS[model]), _event("result", model), _event("error", ProblemDetails)]
        return {"schema": {"oneOf": events}}
    if media_type != SAFETENSORS.media_type:
        return {"schema": _refer(model)}
    key = "request" if model.__name__.endswith("Request") else "response"
    description = (
        f"Tensors by the names of the fields of {model.__name__}, those inside a field as state.NAME or objective.NAME. "
        f"The other fields are a JSON object, as text, under the key `{key}` of the metadata."
    )
    return {"schema": {"type": "string", "format": "binary", "description": description}}


def _event(name: str, data: type[BaseModel]) -> dict[str, Any]:
    """Describe one event of a stream, whose data is this model as JSON."""
    content = {"type": "string", "contentMediaType": JSON.media_type, "contentSchema": _refer(data)}
    return {"type": "object", "properties": {"event": {"const": name}, "data": content}, "required": ["event", "data"]}


def describe_request(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a request whose body holds this model, in any content type that the service reads."""
    content = {media_type: _describe_body(model, media_type) for media_type in CODECS}
    return {"requestBody": {"required": True, "content": content}}


def describe_answer(
    model: type[BaseModel], media_types: Iterable[str] = (JSON.media_type,), description: str | None = None
) -> Responses:
    """Describe an answer that holds this model, in each of these media types; by default in the words of its docstring."""
    content = {media_type: _describe_body(model, media_type) for media_type in media_types}
    return {200: {"description": description or model.__doc__, "content": content}}


def describe_list(model: type[BaseModel], description: str) -> Responses:
    """Describe an answer that is a JSON array of this model."""
    schema = {"type": "array", "items": _refer(model)}
    return {200: {"description": description, "content": {JSON.media_type: {"schema": schema}}}}


def describe_text(description: str) -> Responses:
    """Describe an answer in plain text."""
    return {200: {"description": description, "content": {"text/plain": {"schema": {"type": "string"}}}}}


def describe_errors(*statuses: int) -> Responses:
    """Describe answers with these statuses, which are problems."""
    return {
        status: {
            "description": TITLES[status],
            "content": {MEDIA_TYPE: {"schema": _refer(ProblemDetails)}},
            "headers": {
                name: {"required": True, "schema": {"type": "string"}} for name in _ERROR_HEADERS.get(status, ())
            },
        }
        for status in statuses
    }


def counted_errors(*more: int) -> Responses:
    """Describe the errors of any request but those for the service's health, and these more."""
    return describe_errors(*more, 403, 413, 421, 429, 500, 503, 504)


def describe_path_name() -> dict[str, Any]:
    """Describe the parameter `name` of a path. FastAPI's own description would promise an answer 422 of its own too."""
    return {"parameters": [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]}


def describe_query(model: type[BaseModel]) -> dict[str, Any]:
    """Describe a request whose query parameters are the fields of this model."""
    fields = model.model_json_schema(ref_template=_REF.format(name="{model}"))["properties"]
    return {
        "parameters": [
            {"name": name, "in": "query", "description": schema["description"], **_parameter(schema)}
            for name, schema in fields.items()
        ]
    }


def _parameter(schema: dict[str, Any]) -> dict[str, Any]:
    """Describe a field in a query: omitted rather than null, and in JSON unless it is a word, a number or a list of words."""
    while "anyOf" in schema:
        schema = schema["anyOf"][0]
    return {"content": {JSON.media_type: {"schema": schema}}} if "$ref" in schema else {"schema": schema}
