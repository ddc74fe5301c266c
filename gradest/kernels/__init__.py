"""Kernels: the arithmetic under the noise, by device. All of them give the same bits.

    reference    plain torch, on any device: uniform noise, from which a neuron makes its output in torch
    cpu          numba, for CPU tensors: the noise, and fused kernels that make the output of a neuron as they draw

conditional_reference and conditional_cpu compute linear layers under gates; these agree up to rounding.

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

__all__ = ["conditional", "fused", "select"]

_NAMES = ("reference", "cpu")


def fused(name: str, device: torch.device) -> Callable[..., Any] | None:
    """The fused kernel of this name for tensors on this device, or None where there is none. Raises as `select` does."""
    kernel: Callable[..., Any] | None = getattr(_module(device), name, None)
    return kernel


def select(name: str, device: torch.device) -> Callable[..., Any]:
    """The kernel of this name for tensors on this device. Raises InvalidInput if GRADEST_KERNELS names none."""
    kernel: Callable[..., Any] = getattr(_module(device), name)
    return kernel


def conditional(device: torch.device, dtype: torch.dtype) -> Any:
    """The module of kernels for a `gradest.nn.ConditionalLinear` of this dtype. Raises as `select` does."""
    compiled = dtype in (torch.float32, torch.float64, torch.bfloat16)
    return _import(f"gradest.kernels.conditional_{_chosen(device) if compiled else 'reference'}")


def _module(device: torch.device) -> Any:
    return _import(f"gradest.kernels.{_chosen(device)}")


def _chosen(device: torch.device) -> str:
    wanted = os.environ.get("GRADEST_KERNELS", "")
    if wanted not in ("", *_NAMES):
        raise InvalidInput(f"GRADEST_KERNELS is {' or '.join(_NAMES)}, or not set; it is {wanted!r}")
    return "reference" if device.type != "cpu" else wanted or "cpu"


@functools.cache
def _import(name: str) -> Any:
    """The module, imported at its first use: numba takes a while."""
    return importlib.import_module(name)
