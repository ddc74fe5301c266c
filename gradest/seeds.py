"""Which integers are seeds. This module does not import torch, so that the client can use it."""

from __future__ import annotations

from gradest.errors import InvalidInput

__all__ = ["MAX_SEED", "check_seed"]

MAX_SEED = 1 << 53
"""The bound of seeds, which are smaller: every JSON client represents integers below 2**53 exactly."""


def check_seed(seed: int) -> int:
    """Return the seed. Raises InvalidInput unless it is an integer with 0 <= seed < 2**53."""
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < MAX_SEED:
        raise InvalidInput(f"a seed must be an integer with 0 <= seed < 2**53, not {seed!r}")
    return seed
