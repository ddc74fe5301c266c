"""Kernels: the arithmetic under the noise, by device. All of them give the same bits.

    reference    plain torch, on any device: uniform noise, from which a neuron makes its output in torch
    cpu          numba, for CPU tensors: the noise, and fused kernels that make the output of a neuron as they draw
    cuda         Triton 3.4 or newer, for CUDA tensors: the same

conditional_reference, conditional_cpu and conditional_cuda compute linear layers under gates; these agree up to rounding.

GRADEST_KERNELS, in the environment, is the one to use where it can be; elsewhere the reference is used. With
GRADEST_KERNELS=cuda and TRITON_INTERPRET=1 Triton's interpreter runs the kernels for CUDA on CPU tensors, slowly.
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

__all__ = ["conditional", "fused", "record", "select", "transformed", "why"]

_NAMES = ("reference", "cpu", "cuda")
_CONDITIONAL = {  # dtypes of the weights
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16),
}

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
    chosen, wanted = _chosen(device), os.environ.get("GRADEST_KERNELS", "")
    if wanted:
        return f"{chosen}, for GRADEST_KERNELS={wanted}"
    return chosen if chosen != "reference" else f"reference, for there are no others for {device.type} here"


def fused(name: str, device: torch.device) -> Callable[..., Any] | None:
    """The fused kernel of this name for tensors on this device, or None. Raises InvalidInput if GRADEST_KERNELS names none."""
    module = _import("gradest.kernels." + _chosen(device))
    kernel: Callable[..., Any] | None = getattr(module, name, None)
    taken = _taken.get()
    if taken is not None and kernel is not None:
        taken[name] = module.__name__.rpartition(".")[2]
    return kernel


def select(name: str, device: torch.device) -> Callable[..., Any]:
    """The kernel of this name for tensors on this device, or else the reference. Raises as `fused` does."""
    return fused(name, device) or getattr(_import("gradest.kernels.reference"), name)


def transformed() -> bool:
    """Whether this runs inside torch.func.vmap, grad, or another of torch's function transforms."""
    return torch._C._are_functorch_transforms_active()


def conditional(device: torch.device, dtype: torch.dtype) -> Any:
    """The module of kernels for a `gradest.nn.ConditionalLinear` of this dtype. Raises as `fused` does."""
    chosen = _chosen(device)
    return _import(f"gradest.kernels.conditional_{chosen if dtype in _CONDITIONAL.get(chosen, ()) else 'reference'}")


def _chosen(device: torch.device) -> str:
    wanted = os.environ.get("GRADEST_KERNELS", "")
    if wanted and wanted not in _NAMES:
        raise InvalidInput(f"GRADEST_KERNELS is {', '.join(_NAMES)}, or not set; it is {wanted!r}")
    if transformed():  # what torch.func transforms is plain torch, through which it sees
        return "reference"
    if wanted == "cuda" and device.type == "cpu":
        if not _has_triton() or os.environ.get("TRITON_INTERPRET") != "1":
            raise InvalidInput(
                "GRADEST_KERNELS is cuda, but a tensor is on the CPU: put it on a CUDA device, or unset GRADEST_KERNELS "
                "(for tests: with triton installed and TRITON_INTERPRET=1 the kernels are interpreted on the CPU)"
            )
        return "cuda"
    kind = device.type
    there = kind == "cpu" or (kind == "cuda" and torch.version.hip is None and _has_triton())
    return kind if there and wanted in ("", kind) else "reference"


@functools.cache
def _has_triton() -> bool:
    """Whether there is a Triton that can compile the kernels: from 3.4 on, which is torch 2.8's."""
    try:
        version = importlib.import_module("triton").__version__
    except ImportError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (3, 4)


@functools.cache
def _import(name: str) -> Any:
    """The module, imported at its first use: numba and Triton take a while."""
    return importlib.import_module(name)
