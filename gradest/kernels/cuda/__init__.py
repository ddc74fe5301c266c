"""Kernels for CUDA devices, compiled by Triton: the bits of the reference, in one pass over memory.

A program does a tile of rows and units: it works out what all draws share, the row keys and what depends on `a` alone, and then
draws; nothing but the output is written. The formulas are those of `gradest.kernels.portable`, operation by operation. They
have the same bits because a compiler is allowed nothing here that IEEE 754 does not define: launches forbid it to contract a
product and a sum, and divisions are rounded to nearest. (What is divided or rounded to an integer is never subnormal, for some
versions of Triton take that for 0.)

In a kernel `a` is `[row_count, units]` and `out` `[draws, row_count, units]`, both contiguous. The functions that launch them are
those of `gradest.kernels.cpu`, which says what each gives. Kernels are compiled at their first use, for which Triton wants a C
compiler, and kept on disk. With TRITON_INTERPRET=1 in the environment before Triton is imported they run on CPU tensors, slowly,
by an interpreter.
"""

from gradest.kernels.cuda.binary import antithetic, binary, gated, gated_backward
from gradest.kernels.cuda.classes import one_hot, softmax, softmax_backward
from gradest.kernels.cuda.counts import binomial, poisson
from gradest.kernels.cuda.deterministic import logistic_backward, rectified_backward, repeated, surrogate_backward
from gradest.kernels.cuda.noise import uniform
from gradest.kernels.cuda.noisy import concrete, concrete_pullback, normal, normal_pullback, rectified
from gradest.kernels.cuda.scores import antithetic_score, leave_one_out_score, logistic_score

__all__ = [
    "antithetic",
    "antithetic_score",
    "binary",
    "binomial",
    "concrete",
    "concrete_pullback",
    "gated",
    "gated_backward",
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
    "softmax",
    "softmax_backward",
    "surrogate_backward",
    "uniform",
]
