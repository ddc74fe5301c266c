"""Kernels: the arithmetic under the noise, by device. All of them give the same bits.

    reference    plain torch, on any device: uniform noise, from which a neuron makes its output in torch
    cpu          numba, for CPU tensors: the noise, and fused kernels that make the output of a neuron as they draw

GRADEST_KERNELS=reference, in the environment, has everything computed by the reference.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable
from typing import Any

import torch

from gradest.errors import InvalidInput

__all__ = ["fused", "select", "transformed"]

_MODULES = {"reference": "gradest.kernels.reference", "cpu": "gradest.kernels.cpu"}


def fused(name: str, device: torch.device) -> Callable[..., Any] | None:
    """The fused kernel of this name for tensors on this device, or None where there is none. Raises as `select` does."""
    kernel: Callable[..., Any] | None = getattr(_module(device), name, None)
    return kernel


def select(name: str, device: torch.device) -> Callable[..., Any]:
    """The kernel of this name for tensors on this device. Raises InvalidInput if GRADEST_KERNELS names none."""
    kernel: Callable[..., Any] = getattr(_module(device), name)
    return kernel


def transformed() -> bool:
    """Whether this runs inside torch.func.vmap, grad, or another of torch's function transforms."""
    return torch._C._are_functorch_transforms_active()


def _module(device: torch.device) -> Any:
    wanted = os.environ.get("GRADEST_KERNELS", "")
    if wanted not in ("", *_MODULES):
        raise InvalidInput(f"GRADEST_KERNELS is {' or '.join(_MODULES)}, or not set; it is {wanted!r}")
    # what torch.func transforms is plain torch, through which it sees
    chosen = "reference" if device.type != "cpu" or transformed() else wanted or "cpu"
    return _import(_MODULES[chosen])


@functools.cache
def _import(name: str) -> Any:
    """The module, imported at its first use: numba takes a while."""
    return importlib.import_module(name)
