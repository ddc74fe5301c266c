"""Kernels: the arithmetic under the noise, by device. All of them give the same bits.

    reference    plain torch, on any device
    cpu          numba, for CPU tensors

GRADEST_KERNELS=reference, in the environment, has everything computed by the reference.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from gradest.errors import InvalidInput

__all__ = ["select"]

_MODULES = {"reference": "gradest.kernels.reference", "cpu": "gradest.kernels.cpu"}


def select(name: str, device: torch.device) -> Callable[..., Any]:
    """The kernel of this name for tensors on this device. Raises InvalidInput if GRADEST_KERNELS names none."""
    wanted = os.environ.get("GRADEST_KERNELS", "")
    if wanted not in ("", *_MODULES):
        raise InvalidInput(f"GRADEST_KERNELS is {' or '.join(_MODULES)}, or not set; it is {wanted!r}")
    chosen = "reference" if device.type != "cpu" else wanted or "cpu"
    # imported at its first use: numba takes a while
    kernel: Callable[..., Any] = getattr(importlib.import_module(_MODULES[chosen]), name)
    return kernel
