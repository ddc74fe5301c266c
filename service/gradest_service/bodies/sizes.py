"""The caps on what a request's body may hold, whatever it asks for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradest.client.wire import SAFETENSORS
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["check_elements", "check_json_bytes", "size"]

_USE_SAFETENSORS = f"Send tensors as safetensors, with Content-Type: {SAFETENSORS}."


def size(shape: Iterable[int]) -> int:
    """Return the number of elements with a dim of 0 counted as 1, so that an empty dim does not make the others free."""
    return math.prod(max(1, dim) for dim in shape)


def check_json_bytes(settings: Settings, body_bytes: int) -> None:
    """Check a body, or a part of it, that is parsed as JSON against its cap; raises a 413."""
    if body_bytes > settings.max_json_bytes:
        raise Problem(
            413, f"JSON may have {settings.max_json_bytes} bytes. {_USE_SAFETENSORS} Or send fewer rows in a request."
        )


def check_elements(settings: Settings, field: str, shape: Sequence[int], as_json: bool) -> None:
    """Check the size of one tensor of a request against its cap; raises a 413."""
    if as_json and size(shape) > settings.max_json_elements:
        raise Problem(
            413,
            f"{field} may have {settings.max_json_elements} elements in JSON. {_USE_SAFETENSORS} Or send fewer rows in "
            "a request.",
        )
    if size(shape) > settings.max_elements:
        raise Problem(
            413, f"{field} may have {settings.max_elements} elements. Send fewer rows in a request, and more requests."
        )
