"""The ways of use. Each runs a program in its own way and says which gradients the same step has without it.

A way is a function of a case that returns (found, wanted). All draws come from torch's generator, which both sides seed alike, so
the two agree to rounding or something is wrong: no statistics, and no false alarms. `plain` alone compares with another
implementation, ask and tell by hand, whose gradients the conformance kit holds against enumeration.

    alone         plain steps, which the others are compared with
    transforms    torch.compile and torch.func
    checkpoints   activation checkpoints and saved tensors that are kept elsewhere
    casts         autocast, scaled gradients, and models of other dtypes
    copies        copies and saved models
    autograd      ways to call backward, and forward passes that are not followed by one
    memory        tensors that are written to in place, and their layout
    processes     threads, forks, workers of a DataLoader and DistributedDataParallel

The table of results has the ways in this order.
"""

from tests.usage.ways import (  # noqa: F401, I001  # the order is that of the table
    alone,
    transforms,
    checkpoints,
    casts,
    copies,
    autograd,
    memory,
    processes,
)
from tests.usage.ways.entry import MEANING, SLOW, WAYS

__all__ = ["MEANING", "SLOW", "WAYS"]
