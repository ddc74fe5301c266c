"""Errors as RFC 9457 problem details. None of them repeats what the caller sent."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails, to_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gradest.errors import Incompatible, InvalidInput, InvalidOptions, PluginFault, TooManyPoints, UnknownPlugin
from gradest_service.plugin_frames import plugin_method

__all__ = [
    "MAX_FAULTS",
    "MEDIA_TYPE",
    "STOPPING",
    "TITLES",
    "Fault",
    "Problem",
    "ProblemDetails",
    "describe_faults",
    "from_exception",
    "from_http_exception",
    "further_faults",
    "internal_error",
    "plugin_at_fault",
    "to_bytes",
    "to_response",
]

MEDIA_TYPE = "application/problem+json"
MAX_FAULTS = 20
"""The largest number of faults that a problem lists; the rest are counted."""

TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
"""The `title` of a problem, by its status."""

_STATUSES: dict[type[Exception], int] = {
    UnknownPlugin: 404,
    TooManyPoints: 413,
    InvalidOptions: 422,
    Incompatible: 422,
    InvalidInput: 422,
}


class Fault(BaseModel):
    """One thing that is wrong with a request."""

    field: str = Field(
        description="The faulty field: names and indices joined by dots; empty if it is the request as a whole."
    )
    message: str


class ProblemDetails(BaseModel):
    """An error of the service: RFC 9457, media type application/problem+json."""

    type: str = Field("about:blank", description="Always about:blank: the status says which kind of error this is.")
    title: str = Field(description="The name of the status.")
    status: int
    detail: str = Field(description="What was wrong, and what to do about it.")
    request_id: str = Field(description="The request's id, as in the header X-Request-ID and in the service's log.")
    errors: list[Fault] = Field(
        default=[],
        description="The faults of the request's fields, if they are known: 20 at most, and the number of others.",
    )


class Problem(Exception):
    """An error with its HTTP status, raised anywhere in the service and sent to the caller as an answer."""

    def __init__(
        self, status: int, detail: str, faults: Sequence[Fault] = (), headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.title = TITLES.get(status, "Error")
        self.detail = detail
        self.faults = tuple(faults)
        self.headers = dict(headers or {})

    def details(self, request_id: str) -> ProblemDetails:
        """Return the body of the answer."""
        errors = list(self.faults)
        return ProblemDetails(
            title=self.title, status=self.status, detail=self.detail, request_id=request_id, errors=errors
        )


STOPPING = Problem(
    503, "The service is stopping and could not finish this request. Send it again.", headers={"Retry-After": "1"}
)


def from_exception(error: Exception) -> Problem | None:
    """Convert an expected error to a problem; None for an unexpected one, which is the service's or a plugin's own fault."""
    if isinstance(error, Problem):
        return error
    for kind, status in _STATUSES.items():
        if isinstance(error, kind):
            return Problem(status, str(error))
    return None


def internal_error(error: Exception) -> Problem:
    """Convert an unexpected error to a problem that names the plugin method in which it was raised, if it was in one."""
    raised, method = _raised_in(error)
    if raised is error and isinstance(error, PluginFault):
        what = f"{error}."
    else:
        what = f"{method} failed on this request." if method else "The service failed on this request."
    return Problem(500, f"{what} The service's log has the reason under this request_id.")


def plugin_at_fault(error: Exception) -> str:
    """Return the name of the plugin in which an unexpected error was raised; "" if it was in none."""
    raised, method = _raised_in(error)
    if method is None and raised is error and isinstance(error, PluginFault):
        method = str(error).partition(" ")[0]  # it begins with the method
    return (method or "").partition(".")[0]


def _raised_in(error: Exception) -> tuple[BaseException, str | None]:
    """Return the error in which an unexpected one has its cause, and the plugin method in which that was raised, if in one."""
    raised = (error.__cause__ if isinstance(error, PluginFault) else None) or error
    return raised, plugin_method(frame for frame, _ in reversed(list(traceback.walk_tb(raised.__traceback__))))


def from_http_exception(error: HTTPException) -> Problem:
    """Convert an error of the web framework to a problem: an unknown route, or a method that a route does not take."""
    details = {
        404: "There is no such route. GET /openapi.json lists the routes, and GET /docs shows them.",
        405: "This route does not take this method. The header Allow lists the methods that it takes.",
    }
    return Problem(error.status_code, details.get(error.status_code, str(error.detail)), headers=error.headers)


def describe_faults(error: ValidationError, known: Sequence[str], prefix: str = "") -> list[Fault]:
    """Convert pydantic's findings to faults that repeat neither the input nor names that the caller made up, 20 at most.

    known: the names that the fields may have.
    prefix: the place of the faulty object in the request.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    faults = [_describe_fault(fault, known, prefix) for fault in found[:MAX_FAULTS]]
    return faults if len(found) <= MAX_FAULTS else [*faults, further_faults(len(found) - MAX_FAULTS)]


def further_faults(number: int) -> Fault:
    """Return what stands for faults that an answer does not list, so that its size does not depend on the request."""
    return Fault(field="", message=f"{number} more faults are not listed; correct these first")


def _describe_fault(found: ErrorDetails, known: Sequence[str], prefix: str) -> Fault:
    if found["type"] == "extra_forbidden":
        place, message = [], f"it has a field with an unknown name; the known names are {', '.join(known) or 'none'}"
    else:
        # below the first name a place may hold keys of the caller's own
        place = [part for depth, part in enumerate(found["loc"]) if depth == 0 or isinstance(part, int)]
        message = found["msg"]
    return Fault(field=".".join(map(str, [prefix, *place] if prefix else place)), message=message)


def to_response(problem: Problem, request: Request) -> Response:
    """Build the answer."""
    return Response(to_bytes(problem, request.state.request_id), problem.status, problem.headers, MEDIA_TYPE)


def to_bytes(problem: Problem, request_id: str) -> bytes:
    """Encode the answer's body."""
    return to_json({"type": "about:blank", **problem.details(request_id).model_dump(exclude_defaults=True)})
