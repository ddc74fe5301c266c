"""Kernels for the CPU, compiled by numba: the same bits as the reference, in one pass over memory.

They are compiled at their first use, by one process while others wait, and kept on disk. They release the interpreter's lock. A
large tensor is divided among as many threads as torch uses; these threads end with the call, so kernels may be called from
several threads, and after a fork.

A kernel walks over the elements of `[rows, units]` in blocks that stay in the cache. For each block it computes what all draws
share, the keys of the rows and what depends on `a` alone, and then draws. Its loops contain only what a vector unit can do: no
calls, no conversion between unsigned integers and floating point, and no index but the loop's own. They are also short, because a
long chain of operations that wait for one another fills the processor's queue before the operations of the next element are in
sight: with the cipher in five loops and a sigmoid in three, both take little more than half the time.

In a kernel `a` is flat and `out` is `[draws, elements]`; one call computes the elements `first` to `last`. Loops go over slices,
whose own index starts at 0, because for any other index numba tests whether it is negative, and then does not vectorise. A
sampler for float32 also serves float16 and bfloat16, which it widens as it reads a block and narrows as it writes one. A
function whose body raises NotImplementedError is a name for numba alone, which compiles the overload that follows it.

`conditional` computes linear layers that skip closed gates.
"""

from gradest.kernels.cpu.additive_noise import (
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
from gradest.kernels.cpu.binaries import antithetic, binary, times_smooth, times_smooth_backward
from gradest.kernels.cpu.classes.softmaxes import (
    one_hot,
    scaled_softmax,
    scaled_softmax_pullback,
    softmax,
    softmax_backward,
)
from gradest.kernels.cpu.classes.sparse import entmax, top_softmax
from gradest.kernels.cpu.classes.subsets import subset, subset_marginals, subset_mean_backward
from gradest.kernels.cpu.counts import binomial, poisson
from gradest.kernels.cpu.deterministic import logistic_backward, rectified_backward, repeated, surrogate_backward
from gradest.kernels.cpu.groups import correlated, correlated_concrete, correlated_concrete_pullback, ordered
from gradest.kernels.cpu.noise import uniform
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
    "correlated",
    "correlated_concrete",
    "correlated_concrete_pullback",
    "entmax",
    "leave_one_out_score",
    "logistic_backward",
    "logistic_score",
    "moments",
    "normal",
    "normal_pullback",
    "one_hot",
    "ordered",
    "poisson",
    "rectified",
    "rectified_backward",
    "repeated",
    "scaled_concrete",
    "scaled_concrete_pullback",
    "scaled_normal",
    "scaled_normal_pullback",
    "scaled_softmax",
    "scaled_softmax_pullback",
    "softmax",
    "softmax_backward",
    "subset",
    "subset_marginals",
    "subset_mean_backward",
    "surrogate_backward",
    "times_smooth",
    "times_smooth_backward",
    "top_softmax",
    "uniform",
]
