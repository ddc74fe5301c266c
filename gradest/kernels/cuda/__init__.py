"""Kernels for CUDA devices, compiled by Triton: the bits of the reference, in one pass over memory.

Each program computes a tile of rows and units: first what all draws share, the keys of the rows and what depends on `a` alone,
and then the draws. Nothing but the output is written. The formulas are those of `gradest.kernels.portable`, operation by
operation. They have the same bits because the compiler may do nothing that IEEE 754 does not define: launches forbid it to
contract a product and a sum, and divisions are rounded to nearest. (No number that is divided or rounded to an integer is ever
subnormal, because some versions of Triton treat subnormal numbers as 0.)

In a kernel `a` is `[row_count, units]` and `out` is `[draws, row_count, units]`, both contiguous. The functions that launch
kernels are those of `gradest.kernels.cpu`, where each is documented. Kernels are compiled at their first use, for which Triton
needs a C compiler, and kept on disk. If TRITON_INTERPRET=1 is in the environment before Triton is imported, an interpreter runs
them on CPU tensors, slowly.

`conditional` computes linear layers that skip closed gates.
"""

from gradest.kernels.cuda.additive_noise import (
    concrete,
    concrete_pullback,
    normal,
    normal_pullback,
    rectified,
    scaled_concrete,
    scaled_concrete_pullback,
    scaled_normal,
    scaled_normal_pullback,
)
from gradest.kernels.cuda.binaries import antithetic, binary, times_smooth, times_smooth_backward
from gradest.kernels.cuda.classes import one_hot, softmax, softmax_backward
from gradest.kernels.cuda.counts import binomial, poisson
from gradest.kernels.cuda.deterministic import logistic_backward, rectified_backward, repeated, surrogate_backward
from gradest.kernels.cuda.groups import correlated
from gradest.kernels.cuda.noise import uniform
from gradest.kernels.cuda.scores import antithetic_score, leave_one_out_score, logistic_score

__all__ = [
    "antithetic",
    "antithetic_score",
    "binary",
    "binomial",
    "concrete",
    "concrete_pullback",
    "correlated",
    "leave_one_out_score",
    "logistic_backward",
    "logistic_score",
    "normal",
    "normal_pullback",
    "one_hot",
    "poisson",
    "rectified",
    "rectified_backward",
    "repeated",
    "scaled_concrete",
    "scaled_concrete_pullback",
    "scaled_normal",
    "scaled_normal_pullback",
    "softmax",
    "softmax_backward",
    "surrogate_backward",
    "times_smooth",
    "times_smooth_backward",
    "uniform",
]
