"""How Triton is told to compile the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

__all__ = ["IEEE", "compiled", "inlined"]

compiled: Callable[..., Any] = triton.jit(do_not_specialize=["stream", "draws", "points", "row_count", "trials"])
inlined: Callable[..., Any] = triton.jit
IEEE = {"enable_fp_fusion": False}
"""What Triton is told to compile these kernels: no contraction of a product and a sum."""
