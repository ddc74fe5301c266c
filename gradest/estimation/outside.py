"""Calls that compiled code makes outside its graph. Importing this module imports torch's compiler, which takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["outside"]

Result = TypeVar("Result")


@torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
    reason="a call of gradest.expect, credit or score_surrogate breaks the graph; where it must be whole, make the call outside "
    "of the compiled function, or use gradest.nn.Stochastic"
)
def outside(function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Call the function with the arguments, in eager mode."""
    return function(*arguments, **options)
