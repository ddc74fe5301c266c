"""Errors as RFC 9457 problem details. None of them repeats what the caller sent."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails, to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gradest.errors import Incompatible, InvalidInput, InvalidOptions, PluginFault, TooManyPoints, UnknownPlugin
from gradest_service.plugin_frames import where

__all__ = [
    "MEDIA_TYPE",
    "REF",
    "STOPPING",
    "Fault",
    "Problem",
    "ProblemDetails",
    "describe_faults",
    "documented",
    "from_exception",
    "from_http_exception",
    "internal_error",
    "to_bytes",
    "to_response",
]

MEDIA_TYPE = "application/problem+json"
REF = "#/components/schemas/{model}"
"""Where the OpenAPI document has a model; the application adds them all."""

_TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_HEADERS_OF = {401: ["WWW-Authenticate"], 429: ["Retry-After"], 503: ["Retry-After"]}
_STATUSES: dict[type[Exception], int] = {
    UnknownPlugin: 404,
    TooManyPoints: 413,
    InvalidOptions: 422,
    Incompatible: 422,
    InvalidInput: 422,
}


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(description="where: names and indices joined by dots; empty for the request as a whole")
    message: str


class ProblemDetails(BaseModel):
    """Every error of the service: RFC 9457, media type application/problem+json."""

    type: str = Field("about:blank", description="what the status says, and no more")
    title: str = Field(description="the name of the status")
    status: int
    detail: str = Field(description="what was wrong, and what to do about it")
    request_id: str = Field(description="as in the header X-Request-ID and in the service's log")
    errors: list[Fault] = Field(default=[], description="each fault of the request's fields, where there are several")


class Problem(Exception):
    """An error with its HTTP status, on its way to the caller."""

    def __init__(
        self, status: int, detail: str, faults: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = _TITLES.get(status, "Error")
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})

    def details(self, request_id: str) -> ProblemDetails:
        """The body of the answer."""
        errors = list(self.faults)
        return ProblemDetails(
            title=self.title, status=self.status, detail=self.detail, request_id=request_id, errors=errors
        )


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers with these statuses, as the OpenAPI document has them."""
    schema = {"$ref": REF.format(model=ProblemDetails.__name__)}
    return {
        status: {
            "description": _TITLES[status],
            "content": {MEDIA_TYPE: {"schema": schema}},
            "headers": {name: {"required": True, "schema": {"type": "string"}} for name in _HEADERS_OF.get(status, ())},
        }
        for status in statuses
    }


STOPPING = Problem(
    503, "The service is stopping and could not finish this request. Send it again.", headers={"Retry-After": "1"}
)


def from_exception(error: Exception) -> Problem | None:
    """The problem that an error is; None for one that nobody expected, which is the service's or a plugin's own fault."""
    if isinstance(error, Problem):
        return error
    for kind, status in _STATUSES.items():
        if isinstance(error, kind):
            return Problem(status, str(error))
    return None


def internal_error(error: Exception) -> Problem:
    """The problem that an unexpected error is: a plugin's fault, where it was raised in one, or the service's."""
    place = where(frame for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))))
    if isinstance(error, PluginFault):
        what = f"{error}."
    else:
        what = f"{place} failed on this request." if place else "The service failed on this request."
    return Problem(500, f"{what} The service's log has the reason under this request_id.")


def from_http_exception(error: HTTPException) -> Problem:
    """The framework's own errors: no such route, and a method that the route does not have."""
    details = {
        404: "There is no such route. GET /openapi.json lists those there are, and GET /docs shows them.",
        405: "This route does not take this method. The header Allow says which it takes.",
    }
    return Problem(error.status_code, details.get(error.status_code, str(error.detail)), headers=error.headers)


def describe_faults(error: ValidationError, known: Sequence[str], prefix: str = "") -> list[Fault]:
    """pydantic's findings without the input, nor the names the caller made up; `known` are the names there are."""
    return [
        _fault(found, known, prefix)
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]


def _fault(found: ErrorDetails, known: Sequence[str], prefix: str) -> Fault:
    if found["type"] == "extra_forbidden":
        place, message = [], f"there is a field of another name; the names are {', '.join(known) or 'none'}"
    else:
        # below the first name a place may hold keys of the caller's own
        place = [part for depth, part in enumerate(found["loc"]) if depth == 0 or isinstance(part, int)]
        message = found["msg"]
    return Fault(field=".".join(map(str, [prefix, *place] if prefix else place)), message=message)


def to_response(problem: Problem, request: Request) -> Response:
    """The answer."""
    return Response(to_bytes(problem, request.state.request_id), problem.status, problem.headers, MEDIA_TYPE)


def to_bytes(problem: Problem, request_id: str) -> bytes:
    """The answer's body."""
    return to_json({"type": "about:blank", **problem.details(request_id).model_dump(exclude_defaults=True)})
