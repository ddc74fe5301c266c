"""The arguments of every call, checked: pre-activations, and counts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradest.contract.neuron import Neuron, event_shape, keeps_event
from gradest.errors import InvalidInput
from gradest.kernels import recorded, select, transformed
from gradest.kernels.reference import all_finite
from gradest.kernels.stable import widen

__all__ = [
    "at_least_float32",
    "check_count",
    "check_form",
    "check_pre_activations",
    "checked_pre_activations",
    "first_non_finite",
    "is_surely_finite",
    "loss_dtype",
]

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)  # in the order in which they are looked for

_SUMMED = (torch.float32, torch.float64)  # whose sum is finite only if all terms are

_MANY = 1 << 16  # elements that a kernel looks at faster than torch


def check_pre_activations(a: Tensor, neuron: Neuron, finite: bool = False) -> Tensor:
    """Return `a`, detached and widened to at least float32.

    finite: whether the entries of `a` are known to be finite, which is then not checked again.
    Raises InvalidInput with the reason, or with the index of the first entry that is not finite, and what the neuron's own
    `output_event` and `check` raise.
    """
    return checked_pre_activations(a, neuron, finite)[0]


def checked_pre_activations(a: Tensor, neuron: Neuron, finite: bool = False) -> tuple[Tensor, bool]:
    """Do what `check_pre_activations` does. Return also whether some entries are -inf, or may be where values cannot be read."""
    wide = check_form(a, neuron)
    if transformed() or recorded():  # which does not allow reading values
        return wide, neuron.maskable
    masked = _check_values(a, wide, neuron, finite)
    neuron.check(wide)
    return wide, masked


def _check_values(a: Tensor, wide: Tensor, neuron: Neuron, finite: bool) -> bool:
    """Raise InvalidInput unless the pre-activations are finite, or -inf where that is allowed, and within the limit.

    Returns whether some are -inf.
    """
    limit = neuron.limit(wide.dtype)
    if limit == math.inf and (finite or is_surely_finite(wide)):
        return False
    if limit < math.inf and wide.numel():
        low, high = wide.aminmax()
        if -limit <= low and high <= limit:
            return False
    index = first_non_finite(wide)
    if index is not None and not (neuron.maskable and _is_mask(wide)):
        allowed = ", or -inf for some classes of a unit, but not all" if neuron.maskable else ""
        remedy = ""
        if not neuron.maskable and neuron.event_ndim == 2 and bool((wide == -math.inf).any()):
            remedy = f". {neuron.name} takes no mask of -inf; a large negative number, such as -1e9 (-1e4 in float16), is one"
        raise InvalidInput(
            f"pre-activations must be finite{allowed}, but a[{', '.join(map(str, index))}] is {a.detach()[tuple(index)]}{remedy}"
        )
    if limit < math.inf and bool((wide.where(wide != -math.inf, 0).abs() > limit).any()):
        raise InvalidInput(
            f"{neuron.label()} takes pre-activations between -{limit:.2g} and {limit:.2g} in {wide.dtype}: beyond, a sample "
            "overflows. Use smaller ones, a higher temperature or float64"
        )
    return index is not None


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
    if type(a).__torch_dispatch__ is not Tensor.__torch_dispatch__ and not torch.compiler.is_compiling():
        raise InvalidInput(
            f"pre-activations must be an ordinary tensor, not a {type(a).__name__}, whose numbers are elsewhere; pass the tensor "
            "that it stands for, such as a.to_local() or a.full_tensor() of a DTensor, or a.get_data() of a MaskedTensor"
        )
    if a.ndim < neuron.event_ndim:
        hint = "; use a[None] for one unit" if neuron.event_ndim > 1 else ""
        raise InvalidInput(f"{neuron.name} takes {_form(neuron)}{hint}, but this tensor has the shape {list(a.shape)}")
    if neuron.event_ndim > 1 and 0 in a.shape[a.ndim - neuron.event_ndim + 1 :]:
        raise InvalidInput(
            f"{neuron.name} takes {_form(neuron)} with at least one {_within(neuron)}, not {list(a.shape)}"
        )
    if not keeps_event(neuron):
        neuron.output_event(event_shape(neuron, a))  # raises for an event that the neuron cannot take
    a = a.detach()
    return widen(a.resolve_neg() if a.is_neg() else a)  # kernels read memory, where the sign of such a view is not


def _form(neuron: Neuron) -> str:
    """Return the shape of pre-activations in words."""
    if not keeps_event(neuron):
        return f"[*batch, *event], with events such as {list(neuron.example_events[0])}"
    return {1: "[*batch, units]", 2: "[*batch, units, classes]"}.get(neuron.event_ndim, "[*batch, units, ...]")


def _within(neuron: Neuron) -> str:
    return "class" if neuron.event_ndim == 2 and keeps_event(neuron) else "entry in each dim of a unit"


def first_non_finite(x: Tensor) -> list[int] | None:
    """Return the index of the first entry that is infinite or NaN, or None if all are finite."""
    look = (
        all_finite if x.numel() < _MANY else select("all_finite", x.device)
    )  # finding a kernel takes as long as a small sum
    if look(x):
        return None
    bad = (~torch.isfinite(x)).nonzero()
    return [int(place) for place in bad[0]] if len(bad) else None


def is_surely_finite(x: Tensor) -> bool:
    """Tell quickly whether no entry is infinite or NaN; False is no answer. x requires no gradient."""
    if x.dtype in _SUMMED:
        return x.numel() < _MANY and math.isfinite(x.sum().item())
    return not (x.is_floating_point() or x.is_complex())


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
