"""Kernels: the arithmetic under the noise, by device. All of them give the same bits.

    reference    plain torch, on any device: uniform noise, from which a neuron makes its output in torch
    cpu          numba, for CPU tensors: the noise, and fused kernels that make the output of a neuron as they draw

GRADEST_KERNELS=reference, in the environment, has everything computed by the reference.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

from gradest.errors import InvalidInput

__all__ = ["fused", "record", "select", "transformed", "why"]

_MODULES = {"reference": "gradest.kernels.reference", "cpu": "gradest.kernels.cpu"}


_taken: ContextVar[dict[str, str] | None] = ContextVar("taken", default=None)


@contextmanager
def record() -> Iterator[dict[str, str]]:
    """Inside, the names of the kernels that are taken are put into what it gives, each with the module it is of."""
    taken: dict[str, str] = {}
    token = _taken.set(taken)
    try:
        yield taken
    finally:
        _taken.reset(token)


def why(device: torch.device) -> str:
    """Which kernels a tensor on this device has, and the reason."""
    chosen, wanted = _module(device).__name__.rpartition(".")[2], os.environ.get("GRADEST_KERNELS", "")
    if wanted:
        return f"{chosen}, for GRADEST_KERNELS={wanted}"
    return chosen if chosen != "reference" else f"reference, for there are no others for {device.type} here"


def fused(name: str, device: torch.device) -> Callable[..., Any] | None:
    """The fused kernel of this name for tensors on this device, or None. Raises InvalidInput if GRADEST_KERNELS names none."""
    module = _module(device)
    kernel: Callable[..., Any] | None = getattr(module, name, None)
    taken = _taken.get()
    if taken is not None and kernel is not None:
        taken[name] = module.__name__.rpartition(".")[2]
    return kernel


def select(name: str, device: torch.device) -> Callable[..., Any]:
    """The kernel of this name for tensors on this device, or else the reference. Raises as `fused` does."""
    return fused(name, device) or getattr(_import(_MODULES["reference"]), name)


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
