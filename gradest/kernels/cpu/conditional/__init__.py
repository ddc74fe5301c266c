"""The conditional layer of `gradest.kernels.reference.conditional` on the CPU, compiled by numba.

A plan lists, for every chunk of examples and every block of units, the examples that open the block, so that each row of
weights is read once a chunk, for all of them. The order of each sum depends only on the example and the unit, so the bits
depend neither on the batch around an example nor on the number of threads.

Tensors are passed by address, because making numpy arrays of them takes as long as the arithmetic of one example. Large
problems are shared among torch's own threads if its OpenMP is GNU's: threads of our own would compete with those, which stay
awake for a while after each operation of torch. The threads take pieces of work from a common counter.
"""

from gradest.kernels.cpu.conditional.layer import Plan, count, forward, grad_input, grad_weight, plan

__all__ = ["Plan", "count", "forward", "grad_input", "grad_weight", "plan"]
