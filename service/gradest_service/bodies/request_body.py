"""Reads a request's body, and decodes it to a checked request of a schema."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from gradest_service.bodies.codec import Codec, request_codec
from gradest_service.problems import Fault, Problem, describe_faults
from gradest_service.settings import Settings

__all__ = ["RequestBody", "read_body", "validate"]

AnyModel = TypeVar("AnyModel", bound=BaseModel)


class RequestBody:
    """The bytes of a request's body. They are decoded once, later, since that takes long enough to need a thread."""

    def __init__(self, chunks: list[bytes], codec: Codec, settings: Settings) -> None:
        self.size = sum(map(len, chunks))
        self._chunks = chunks
        self._codec = codec
        self._settings = settings

    def decode(self, schema: type[AnyModel]) -> AnyModel:
        """Decode the body to a request of this schema; raises a 400, 413 or 422. It can be called once."""
        # tensors are views of the whole, which torch accepts only if it is writable
        whole = bytearray().join(self._chunks)
        self._chunks.clear()
        return validate(schema, self._codec.decode(whole, self._settings), "body")


async def read_body(request: Request, settings: Settings) -> RequestBody:
    """Read the body; raises a 415 if there is no codec for it."""
    codec = request_codec(request.headers.get("content-type", ""))
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "Send the body without a Content-Encoding.")
    return RequestBody([chunk async for chunk in request.stream()], codec, settings)


def validate(schema: type[AnyModel], fields: Any, place: str) -> AnyModel:
    """Check fields against a schema; raises a 422 with its faults. `place` stands for the request as a whole.

    Fields with unknown names are counted apart, because pydantic would make an error of each.
    """
    known, faults, unknown = list(schema.model_fields), list[Fault](), 0
    if isinstance(fields, dict):
        given = {name: fields[name] for name in known if name in fields}
        fields, unknown = given, len(fields) - len(given)
    try:
        found = schema.model_validate(fields)
        if not unknown:
            return found
    except ValidationError as error:
        faults = describe_faults(error, known)
    if unknown:
        what = "a field with an unknown name" if unknown == 1 else f"{unknown} fields with unknown names"
        faults.append(Fault(field="", message=f"it has {what}; the known names are {', '.join(known)}"))
    listed = "; ".join(f"{fault.field or place}: {fault.message}" for fault in faults)
    raise Problem(422, f"The request does not fit its schema: {listed}.", faults)
