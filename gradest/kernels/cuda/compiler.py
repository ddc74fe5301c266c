"""How Triton compiles the kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton

__all__ = ["IEEE", "compiled", "inlined"]

compiled: Callable[..., Any] = triton.jit(do_not_specialize=["stream", "draws", "points", "row_count", "trials"])
"""Compile a kernel, once for all values of these arguments (Triton by default compiles another kernel where an integer is 1)."""

inlined: Callable[..., Any] = triton.jit
"""Compile a function into the kernels that call it, or a kernel for the values of its arguments."""

IEEE = {"enable_fp_fusion": False}
"""Launch options that forbid the compiler to contract a product and a sum to one rounding."""
