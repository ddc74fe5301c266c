"""Plans in memory: the kernels that list and count open gates.

A plan is three arrays of int32, one after the other:
    opened   `[blocks]`, the position of each block among those that are open, or -1
    starts   `[chunks, blocks + 1]`
    members  `[chunks, ...]`: those from starts[c, g] to starts[c, g + 1] are the examples of chunk c that open block g
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gradest.kernels.cpu.compilation.compiler import array, compiled_with_fma, inlined

__all__ = ["CHUNK", "INT64", "count_gates", "list_gates", "plan_arrays"]

CHUNK = 128
"""The number of examples in a chunk: their inputs stay in the cache."""

_INT32, INT64 = np.empty(0, np.int32), np.empty(0, np.int64)


@inlined
def plan_arrays(at: Any, batch: Any, blocks: Any, chunks: Any) -> Any:
    """Return `opened`, `starts` and `members` of the plan at this address."""
    opened = array(at, (blocks,), _INT32)
    starts = array(at + 4 * blocks, (chunks, blocks + 1), _INT32)
    members = array(at + 4 * (blocks + starts.size), (chunks, min(batch, CHUNK) * blocks + 1), _INT32)
    return opened, starts, members


@compiled_with_fma
def list_gates(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Fill the plan, and write 2^32 times the number of open gates, plus the number of open blocks, to the counter."""
    batch, blocks, chunks, plan_at, gates_at = given[:5]
    opened, starts, members = plan_arrays(plan_at, batch, blocks, chunks)
    gates, pairs = array(gates_at, (batch, blocks), like), 0
    opened[:] = 0
    for chunk in range(chunks):
        listed, begins, k = members[chunk], starts[chunk], np.uint32(0)
        part = gates[chunk * CHUNK : min((chunk + 1) * CHUNK, batch)]
        for g in range(blocks):
            begins[g] = k
            for b in range(len(part)):
                listed[k] = chunk * CHUNK + b  # the next one overwrites it if the gate is closed
                k += np.uint32(part[b, g] != 0)
            opened[g] |= k - begins[g]
        begins[blocks] = k
        pairs += int(k)
    count = 0
    for g in range(blocks):
        found = opened[g] != 0
        opened[g] = count if found else -1
        count += found
    array(counter, (1,), INT64)[0] = (pairs << 32) + count


@compiled_with_fma
def count_gates(given: Any, counter: Any, like: Any, weight_like: Any) -> None:
    """Write the number of open gates to the counter."""
    size, gates_at = given[:2]
    pairs = 0
    for gate in array(gates_at, (size,), like):
        pairs += gate != 0
    array(counter, (1,), INT64)[0] = pairs
