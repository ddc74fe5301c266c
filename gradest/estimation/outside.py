"""Calls that compiled code makes outside its graph. Importing this module imports torch's compiler, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

__all__ = ["CallOutside", "call_outside", "outside"]

Result = TypeVar("Result")


class CallOutside(Protocol):
    """A function that calls another one in eager mode, where compiled code calls it."""

    def __call__(self, function: Callable[..., Result], /, *arguments: Any, **options: Any) -> Result:
        """Call the function with the arguments."""


def call_outside(reason: str) -> CallOutside:
    """Return a function that calls another one in eager mode; the error where the graph may not be broken gives the reason."""

    @torch.compiler.disable(reason=reason)  # type: ignore[untyped-decorator, no-untyped-call]
    def call(function: Callable[..., Result], /, *arguments: Any, **options: Any) -> Result:
        return function(*arguments, **options)

    result: CallOutside = call
    return result


outside = call_outside(
    "a call of gradest.sample, expect, credit or score_surrogate breaks the graph; where it must be whole, make the call "
    "outside of the compiled function, or use gradest.nn.Stochastic"
)
