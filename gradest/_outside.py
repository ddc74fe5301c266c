"""What compiled code calls outside its graph. Importing it imports torch's compiler, which takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gradest.estimator import State
from gradest.expectation import expect

__all__ = ["expect_outside"]


@torch.compiler.disable(  # type: ignore[untyped-decorator, no-untyped-call]
    reason="gradest.expect breaks the graph; where it must be whole use gradest.nn.Stochastic"
)
def expect_outside(*arguments: Any) -> tuple[Tensor, State]:
    """`gradest.expect`."""
    return expect(*arguments)
