"""Kernels: the arithmetic of noise and neurons, in one backend for each kind of device. All backends give the same bits.

    reference    plain torch on any device: uniform noise, from which a neuron computes its output in torch
    cpu          numba, for CPU tensors: the noise, and fused kernels that compute a neuron's output while they draw
    cuda         Triton 3.4 or newer, for CUDA tensors: the same

    stable       row-stable torch arithmetic, on which all of gradest is built
    portable     elementary functions whose bits are the same on every device and in every kernel

Each backend has a module `conditional` for linear layers that skip closed gates. Those agree up to rounding only.

A kernel for the CPU is compiled at its first use, in another process; until it is ready the reference is used. With
GRADEST_KERNELS=cpu its first use waits for it.

The environment variable GRADEST_KERNELS names the backend to use where it can be used; elsewhere the reference is used. With
GRADEST_KERNELS=cuda and TRITON_INTERPRET=1 Triton's interpreter runs the CUDA kernels on CPU tensors, slowly.
"""

from __future__ import annotations

import functools
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from gradest.errors import GradestWarning, InvalidInput

__all__ = [
    "conditional",
    "explain_backend",
    "fused",
    "plain_saved_tensors",
    "record_kernels_used",
    "recorded",
    "saved_tensors_are_plain",
    "select",
    "transformed",
    "untransformed",
]

_BACKENDS = ("reference", "cpu", "cuda")
_CONDITIONAL_DTYPES = {  # dtypes of the weights that a backend's `conditional` computes with
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16),
}

_RECORDER = torch._C._TorchDispatchModeKey.PROXY  # the mode by which make_fx records

# os.environ decodes at each call, and raises within it for a name that is not set, which takes ten times as long
_ENVIRONMENT: Mapping[Any, Any] = os.environ._data  # type: ignore[attr-defined]
_WANTED = os.environ.encodekey("GRADEST_KERNELS")

_kernels_used: ContextVar[dict[str, str] | None] = ContextVar("kernels_used", default=None)


@contextmanager
def record_kernels_used() -> Iterator[dict[str, str]]:
    """Yield a dict that collects the name of each kernel that is looked up inside the context, with the name of its backend."""
    used: dict[str, str] = {}
    token = _kernels_used.set(used)
    try:
        yield used
    finally:
        _kernels_used.reset(token)


def explain_backend(device: torch.device) -> str:
    """Name the backend of tensors on this device, and say why unless it is the device's own."""
    backend, wanted = _backend(device), os.environ.get("GRADEST_KERNELS", "")
    if wanted not in ("", device.type):
        return f"{backend}, for GRADEST_KERNELS={wanted}"
    return backend if backend != "reference" else f"reference, for there are no others for {device.type} here"


def fused(name: str, device: torch.device) -> Callable[..., Any] | None:
    """Return the kernel of this name in the device's backend, or None if the backend has none.

    While a kernel is compiled in the background, it returns what the reference kernel of the same name does, or None if the
    reference has none.
    Raises InvalidInput if GRADEST_KERNELS is not the name of a backend, or names one that cannot take tensors on this device.
    """
    backend = _backend(device)
    kernel = _kernel(backend, name)
    used = _kernels_used.get()
    if used is not None and kernel is not None:
        used[name] = backend
    return kernel


def select(name: str, device: torch.device) -> Callable[..., Any]:
    """Return the kernel of this name in the device's backend, or else the reference kernel. Raises as `fused` does."""
    return fused(name, device) or getattr(_import("gradest.kernels.reference"), name)


transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active
"""Tell whether this code runs inside torch.func.vmap, grad, or another of torch's function transforms."""


def recorded() -> bool:
    """Tell whether torch.jit.trace or make_fx records this code.

    Both run it on ordinary tensors, and see no kernel that is not torch's own: its result would be a constant of the program.
    torch.compile and torch.export run it on tensors without values.
    """
    return torch._C._get_tracing_state() is not None or torch._C._get_dispatch_mode(_RECORDER) is not None


def untransformed(x: Tensor) -> Tensor:
    """Return the tensor that torch.func's transforms have wrapped, all examples of vmap together; outside of them x itself."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


def saved_tensors_are_plain() -> bool:
    """Tell whether neither an activation checkpoint nor another hook is active for what autograd saves."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def plain_saved_tensors() -> AbstractContextManager[object]:
    """Return a context in which autograd keeps what it saves, if an activation checkpoint or another hook is active.

    A derivative that is taken at once needs it. A checkpoint would run its whole region again for that derivative, and with other
    noise if it does not preserve the state of the generator.
    """
    if saved_tensors_are_plain():
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


def conditional(device: torch.device, dtype: torch.dtype) -> Any:
    """Return the module that computes a `gradest.nn.ConditionalLinear` of this dtype on this device. Raises as `fused` does."""
    backend = _backend(device)
    if dtype not in _CONDITIONAL_DTYPES.get(backend, ()):
        backend = "reference"
    return _import(f"gradest.kernels.{backend}.conditional")


def _backend(device: torch.device) -> str:
    wanted = _wanted() if _ENVIRONMENT.get(_WANTED) else ""
    if transformed() or recorded():  # torch.func can only transform plain torch
        return "reference"
    kind = _kind_of(device)
    return _own_backend(kind) if wanted in ("", kind) else _substitute(wanted, kind)


def _wanted() -> str:
    """Return the backend that GRADEST_KERNELS names, or "". Raises InvalidInput if there is none of this name."""
    wanted = os.environ.get("GRADEST_KERNELS", "")
    if wanted and wanted not in _BACKENDS:
        raise InvalidInput(f"GRADEST_KERNELS must be {', '.join(_BACKENDS)} or unset; it is {wanted!r}")
    return wanted


@functools.cache
def _kind_of(device: torch.device) -> str:
    """Return `device.type`, which torch makes anew each time, in a third of the time."""
    return device.type


def _substitute(wanted: str, kind: str) -> str:
    """Name the backend of tensors on this kind of device, where that of another kind is wanted."""
    if wanted == "cuda" and kind == "cpu":
        if not _has_triton() or os.environ.get("TRITON_INTERPRET") != "1":
            raise InvalidInput(
                "GRADEST_KERNELS is cuda, but a tensor is on the CPU. Move it to a CUDA device, or unset GRADEST_KERNELS. "
                "(For tests: with triton installed and TRITON_INTERPRET=1 the kernels are interpreted on the CPU.)"
            )
        return "cuda"
    return "reference"


def _own_backend(kind: str) -> str:
    """Name the backend of tensors on this kind of device, where nothing else is wanted."""
    available = (kind == "cpu" and _has_numba()) or (kind == "cuda" and torch.version.hip is None and _has_triton())
    return kind if available else "reference"


@functools.cache
def _has_numba() -> bool:
    """Tell whether numba compiles the kernels here. If not, warn: the reference gives the same bits, several times as slowly."""
    try:
        reason = "NUMBA_DISABLE_JIT is set" if importlib.import_module("numba").config.DISABLE_JIT else ""
        if not reason:
            importlib.import_module("gradest.kernels.cpu")
    except Exception as error:  # an installation without numba, or with versions that do not fit each other
        reason = f"{type(error).__name__}: {error}"
    if reason:
        warnings.warn(
            f"the kernels for the CPU are not compiled ({reason}); the same bits are computed by torch, which is slower",
            GradestWarning,
            stacklevel=2,
        )
    return not reason


@functools.cache
def _has_triton() -> bool:
    """Tell whether a Triton is installed that can compile the kernels: 3.4, the version of torch 2.8, or newer."""
    try:
        version = importlib.import_module("triton").__version__
    except ImportError:
        return False
    return tuple(map(int, version.split(".")[:2])) >= (3, 4)


@functools.cache
def _kernel(backend: str, name: str) -> Callable[..., Any] | None:
    module = _import(f"gradest.kernels.{backend}")
    kernel: Callable[..., Any] | None = getattr(module, name) if name in module.__all__ else None
    return (
        _until_compiled(kernel, getattr(_import("gradest.kernels.reference"), name, None))
        if backend == "cpu" and kernel
        else kernel
    )


def _until_compiled(kernel: Callable[..., Any], reference: Callable[..., Any] | None) -> Callable[..., Any]:
    """Return the kernel, which calls the reference instead, or returns None, as long as it is being compiled."""
    not_compiled: type[Exception] = _import("gradest.kernels.cpu.compilation.background").NotCompiled

    @functools.wraps(kernel)
    def call(*arguments: Any, **options: Any) -> Any:
        try:
            return kernel(*arguments, **options)
        except not_compiled:
            return None if reference is None else reference(*arguments, **options)

    return call


@functools.cache
def _import(name: str) -> Any:
    """Import the module at its first use, because numba and Triton take long to import."""
    return importlib.import_module(name)
