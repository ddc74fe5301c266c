"""Seeds and keys for one purpose each, derived from the seed of a run."""

from __future__ import annotations

from gradest.random import Key

__all__ = ["derive_key", "derive_seed"]


def derive_key(seed: int, *numbers: int) -> Key:
    """Return the key of this sequence of numbers, such as (purpose, epoch): its noise is independent of any other sequence's."""
    key = Key(seed)
    for number in numbers:
        key = key.fold_in(number)
    return key


def derive_seed(seed: int, *numbers: int) -> int:
    """Return the seed of `derive_key`."""
    derived = derive_key(seed, *numbers).seed
    assert isinstance(derived, int)
    return derived
