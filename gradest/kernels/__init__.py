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

__all__ = ["fused", "select"]

_MODULES = {"reference": "gradest.kernels.reference", "cpu": "gradest.kernels.cpu"}


def fused(name: str, device: torch.device) -> Callable[..., Any] | None:
    """The fused kernel of this name for tensors on this device, or None. Raises InvalidInput if GRADEST_KERNELS names none."""
    kernel: Callable[..., Any] | None = getattr(_module(device), name, None)
    return kernel


def select(name: str, device: torch.device) -> Callable[..., Any]:
    """The kernel of this name for tensors on this device, or else the reference. Raises as `fused` does."""
    return fused(name, device) or getattr(_import(_MODULES["reference"]), name)


def _module(device: torch.device) -> Any:
    wanted = os.environ.get("GRADEST_KERNELS", "")
    if wanted not in ("", *_MODULES):
        raise InvalidInput(f"GRADEST_KERNELS is {' or '.join(_MODULES)}, or not set; it is {wanted!r}")
    chosen = "reference" if device.type != "cpu" else wanted or "cpu"
    return _import(_MODULES[chosen])


@functools.cache
def _import(name: str) -> Any:
    """The module, imported at its first use: numba takes a while."""
    return importlib.import_module(name)
