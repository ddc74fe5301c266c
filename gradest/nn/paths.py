"""How the first dim of a batch holds whole-path samples."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["NO_PATHS", "Paths"]


@dataclass(frozen=True)
class Paths:
    """How the first dim of a batch holds whole-path samples.

    samples: K, or 0 if the batch holds none. flat: whether the dim counts K·batch, path by path, instead of K.
    """

    samples: int = 0
    flat: bool = False


NO_PATHS = Paths()
