"""The arguments of every call, checked: pre-activations, and counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradest.contract.neuron import Neuron
from gradest.errors import InvalidInput
from gradest.kernels import select, transformed
from gradest.kernels.reference import all_finite
from gradest.kernels.stable import widen

__all__ = [
    "at_least_float32",
    "check_count",
    "check_form",
    "check_pre_activations",
    "first_non_finite",
    "loss_dtype",
]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

_MANY = 1 << 16  # elements that a kernel looks at faster than torch


def check_pre_activations(a: Tensor, neuron: Neuron) -> Tensor:
    """Return `a`, detached and widened to at least float32.

    Raises InvalidInput with the reason, or with the index of the first entry that is not finite.
    """
    wide = check_form(a, neuron)
    if transformed():  # a transform does not allow reading values
        return wide
    limit = neuron.limit(wide.dtype)
    if limit < math.inf and wide.numel():
        low, high = wide.aminmax()
        if -limit <= low and high <= limit:
            neuron.check(wide)
            return wide
    index = first_non_finite(wide)
    if index is not None and not (neuron.maskable and _is_mask(wide)):
        allowed = ", or -inf for some classes of a unit, but not all" if neuron.maskable else ""
        raise InvalidInput(
            f"pre-activations must be finite{allowed}, but a[{', '.join(map(str, index))}] is {a.detach()[tuple(index)]}"
        )
    if limit < math.inf and bool((wide.where(wide != -math.inf, 0).abs() > limit).any()):
        raise InvalidInput(
            f"{neuron.label()} takes pre-activations between -{limit:.2g} and {limit:.2g} in {wide.dtype}: beyond, a sample "
            "overflows. Use smaller ones, a higher temperature or float64"
        )
    neuron.check(wide)
    return wide


def _is_mask(a: Tensor) -> bool:
    """Tell whether every entry is finite or -inf, and every unit has a finite class."""
    finite = torch.isfinite(a)
    return bool((finite | (a == -math.inf)).all() and finite.any(-1).all())


def check_form(a: Tensor, neuron: Neuron) -> Tensor:
    """Do what `check_pre_activations` does, for pre-activations that are known to be finite."""
    if not isinstance(a, Tensor):
        raise InvalidInput(f"pre-activations must be a torch tensor, not {type(a).__name__}; use torch.tensor(a)")
    if a.dtype not in _DTYPES:
        remedy = "a.real" if a.is_complex() else "a.float()"
        raise InvalidInput(
            f"pre-activations must be float16, bfloat16, float32 or float64, not {a.dtype}; use {remedy}"
        )
    if a.layout is not torch.strided or a.is_nested:
        remedy = "torch.nested.to_padded_tensor(a, 0.0)" if a.is_nested else "a.to_dense()"
        raise InvalidInput(f"pre-activations must be a dense tensor, not a nested or sparse one; use {remedy}")
    if a.is_meta:
        raise InvalidInput(
            "pre-activations are on the meta device, which holds no values; give the model memory by model.to_empty(device=...) "
            "and initialise its parameters"
        )
    if a.ndim < neuron.event_ndim:
        form = "[*batch, units, classes]; use a[None] for one unit" if neuron.event_ndim == 2 else "[*batch, units]"
        raise InvalidInput(f"{neuron.name} takes {form}, but this tensor has the shape {list(a.shape)}")
    if neuron.event_ndim == 2 and a.shape[-1] == 0:
        raise InvalidInput(f"{neuron.name} takes [*batch, units, classes] with at least one class, not {list(a.shape)}")
    return widen(a.detach())


def first_non_finite(x: Tensor) -> list[int] | None:
    """Return the index of the first entry that is infinite or NaN, or None if all are finite."""
    look = (
        all_finite if x.numel() < _MANY else select("all_finite", x.device)
    )  # finding a kernel takes as long as a small sum
    if look(x):
        return None
    bad = (~torch.isfinite(x)).nonzero()
    return [int(place) for place in bad[0]] if len(bad) else None


def at_least_float32(a: Tensor) -> torch.dtype:
    """Return the dtype of results for `a`: its own, but at least float32."""
    return torch.promote_types(a.dtype, torch.float32)


def loss_dtype(given: torch.dtype, least: torch.dtype) -> torch.dtype:
    """Return the dtype in which an estimator receives losses of the dtype `given`: one that holds them, and at least `least`."""
    return torch.promote_types(torch.float64 if given in (torch.int32, torch.int64) else given, least)


def check_count(name: str, value: int, least: int) -> None:
    """Raise InvalidInput unless `value`, the argument `name`, is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InvalidInput(f"{name} must be an integer of at least {least}, not {value!r}")
