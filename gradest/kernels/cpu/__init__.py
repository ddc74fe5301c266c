"""Kernels for the CPU, compiled by numba: the same bits as the reference, in one pass over memory.

They are compiled at their first use and kept on disk. They release the interpreter's lock, and a large tensor is cut among as
many threads as torch uses, which live no longer than the call; so they may be called from several threads, and after a fork.

Each kernel walks over the elements of `[rows, units]` in blocks that stay in the cache. For a block it works out what all draws
share, the row keys and what depends on `a` alone, and then draws. Its loops hold nothing that a vector unit cannot do:
no calls, no conversion between unsigned integers and floating point, no index but the loop's own. And they are short: a long
chain of operations that wait for one another fills the processor's queue before those of the next element are in sight, so a
cipher cut in five loops, and a sigmoid in three, take little more than half the time.

In a kernel `a` is flat and `out` `[draws, elements]`; a call does the elements `first` to `last`. Loops go over slices, whose own
index starts at 0: for another numba would look whether it is negative, and not vectorise. A function whose body raises
NotImplementedError is a name for numba alone, which takes the overload that follows it.
"""

from gradest.kernels.cpu.binary import antithetic, binary, gated, gated_backward
from gradest.kernels.cpu.classes import one_hot, softmax, softmax_backward
from gradest.kernels.cpu.counts import binomial, poisson
from gradest.kernels.cpu.deterministic import logistic_backward, rectified_backward, repeated, surrogate_backward
from gradest.kernels.cpu.noise import uniform
from gradest.kernels.cpu.noisy import concrete, concrete_pullback, normal, normal_pullback, rectified
from gradest.kernels.cpu.scores import antithetic_score, leave_one_out_score, logistic_score
from gradest.kernels.cpu.statistics import all_finite, moments

__all__ = [
    "all_finite",
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
    "moments",
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
