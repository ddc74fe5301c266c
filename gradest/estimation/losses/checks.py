"""What `estimate`, `exact` and `compare` check of a loss before they use it: that each loss depends on its own point alone.

A function f from points `[K, *batch, *event']` to losses `[K, *batch]` breaks that in three ways, none of which shows in its
shapes: it is random, as with dropout; it normalises over the points of one call, as with BatchNorm in training mode; or the rows
of the batch share one loss. f is evaluated a few times at a few points to find out.
"""

from __future__ import annotations

import functools
import math
import types
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from gradest.contract.neuron import Discrete, Neuron, output_shape
from gradest.contract.objective import Loss, Objective
from gradest.errors import GradestWarning, InvalidInput
from gradest.estimation.losses.evaluation import CHUNK, losses_at
from gradest.kernels import transformed
from gradest.random import Key

__all__ = ["checked_loss", "modules_of"]

_POINTS = 16  # enough to tell every two of 256 rows apart
_SEED = 0  # of torch's generators, while f is checked
_EVAL = "call .eval() on its modules, or give it noise of its own that is the same in every call"


@contextmanager
def checked_loss(f: Loss, wide: Tensor, neuron: Neuron, dtype: torch.dtype, refuse: bool = False) -> Iterator[bool]:
    """Check a loss, and keep the buffers of its modules as they are while the context lasts. Yield whether it is a function.

    wide: pre-activations `[*batch, *event]`. dtype: that of the points which f receives. refuse: whether a loss that is random,
        or that depends on the other points of a call, is refused; otherwise a GradestWarning says so. A loss that depends on the
        points of other rows, and on nothing else, is refused in any case, since it has no gradient row by row.

    torch's generators are as before afterwards. An Objective is not checked: its contract demands what is checked here. Nothing
    is checked inside a transform of torch.func, which does not allow reading values. Raises InvalidInput, and what f raises.
    """
    if isinstance(f, Objective) or transformed() or not wide.numel():
        yield True
        return
    with _kept_buffers(modules_of(f)):
        found = _examine(f, wide, neuron, dtype)
        if found is not None:
            if refuse:
                raise InvalidInput(f"{found}; so it has no exact expectation over the outputs of the neuron: {_EVAL}")
            warnings.warn(
                f"{found}. That is taken as part of the loss; if it is not meant, {_EVAL}", GradestWarning, stacklevel=4
            )
        yield found is None


def _examine(f: Loss, wide: Tensor, neuron: Neuron, dtype: torch.dtype) -> str | None:
    """Return in words why f is no function of each point, or None if nothing was found."""
    n = max(2, min(_POINTS, CHUNK // max(1, math.prod(output_shape(neuron, wide)))))
    if isinstance(neuron, Discrete):  # outputs of equal chances tell more; classes that are ruled out stay so
        wide = torch.where(wide.isinf(), wide, torch.zeros_like(wide))
    with torch.no_grad():
        one, other = torch.split(neuron.sample(Key(_SEED), wide, 2 * n).to(dtype), n)

    def losses(points: Tensor, seed: int = _SEED) -> Tensor:
        for generator in generators:
            generator.manual_seed(seed)
        with torch.enable_grad():
            return losses_at(f, points.clone(), neuron.output_ndim).detach().clone()  # f may use its memory again

    with _kept_generators(wide.device) as generators:
        given = losses(one)
        random = _differ(given, losses(one, _SEED + 1))
        if random and _differ(given, losses(one)):  # with a generator of its own, so that nothing else can be told
            return _RANDOM
        half = n // 2
        if _differ(given[:half], losses(torch.cat([one[:half], other[half:]]))[:half]):
            return _MIXES_POINTS
        batch = wide.shape[: wide.ndim - neuron.event_ndim]
        if batch.numel() > 1:
            moved = _some_rows(n, batch, wide.device)
            mixed = torch.where(moved[(..., *[None] * neuron.output_ndim)], other, one)
            if _differ(given[~moved], losses(mixed)[~moved]):
                raise InvalidInput(_SHARES_ROWS)
    return _RANDOM if random else None


_RANDOM = "f gives different losses at the same points, as dropout in training mode does"
_MIXES_POINTS = (
    "f gives a point another loss if the other points of the call change, as BatchNorm in training mode does"
)
_SHARES_ROWS = (
    "the loss of a row changes with the points of other rows, but rows of the batch are independent examples, each with a loss "
    "of its own. If rows share a loss, event_dims= says how many trailing dims of `a` are one event, for which f returns one "
    'number: 2 for [batch, positions, units] with one loss per element of the batch, "all" for parameters. If f normalises over '
    "the batch, as BatchNorm does, call .eval() on it"
)


def _some_rows(n: int, batch: torch.Size, device: torch.device) -> Tensor:
    """Return a mask `[n, *batch]` of rows: for any two of up to 2^(n/2) rows, each is alone in it at some point."""
    bits = max(1, (batch.numel() - 1).bit_length())
    point = torch.arange(n, device=device)[:, None]
    row = torch.arange(batch.numel(), device=device)
    return ((row >> (point // 2 % bits)) % 2 == point % 2).reshape(n, *batch)


def _differ(one: Tensor, other: Tensor) -> bool:
    """Return whether losses differ by more than rounding, in any order of their sums. `one` has finite ones to compare with."""
    wide = one.double() if one.is_floating_point() else one.to(torch.float64)
    finite, same = torch.isfinite(wide), other.double()
    if not bool((finite == torch.isfinite(same)).all()):
        return True
    wide, same = wide[finite], same[finite]
    if not wide.numel():
        return False
    rounding = 8 * torch.finfo(one.dtype).eps if one.is_floating_point() else 0.0
    allowed = 1e-4 * (wide.max() - wide.min()) + rounding * wide.abs().max()
    return bool((wide - same).abs().max() > allowed)


@contextmanager
def _kept_generators(device: torch.device) -> Iterator[list[torch.Generator]]:
    """Yield torch's global generators, of the CPU and of the device, and put them back in the end."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    try:
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


@contextmanager
def _kept_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put the buffers of the modules back in the end, as objects and in their values."""
    before = [(module, dict(module._buffers)) for module in modules]
    copies = {id(x): (x, x.detach().clone()) for _, own in before for x in own.values() if x is not None}
    try:
        yield
    finally:
        with torch.no_grad():
            for x, copy in copies.values():
                if not torch.equal(x, copy):
                    x.copy_(copy)
        for module, own in before:
            module._buffers.clear()
            module._buffers.update(own)


_DEPTH = 5  # of references from f that are followed
_MOST = 1000  # elements of a container that are looked at


def modules_of(f: Any) -> list[nn.Module]:
    """Return the modules that f refers to: f itself, what it is bound to, closes over, holds, or names among its globals."""
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    level = [f]
    for _ in range(_DEPTH):
        further: list[Any] = []
        for x in level:
            if id(x) in seen:
                continue
            seen.add(id(x))
            if isinstance(x, nn.Module):
                found.update((id(module), module) for module in x.modules())
            else:
                further += _referred(x)
        level = further
    return list(found.values())


def _referred(x: Any) -> list[Any]:
    """Return the objects that one object refers to, where those may lead to a module."""
    match x:
        case functools.partial():
            found = [x.func, *x.args, *x.keywords.values()]
        case types.MethodType():
            found = [x.__self__, x.__func__]
        case types.FunctionType():
            cells = [cell.cell_contents for cell in x.__closure__ or () if cell != types.CellType()]
            defaults = [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
            found = [*cells, *defaults, *vars(x).values(), *_globals(x)]
        case dict():
            found = list(islice(x.values(), _MOST))
        case list() | tuple():
            found = list(x[:_MOST])
        case type() | types.ModuleType() | Tensor():
            found = []
        case _:
            found = list(getattr(x, "__dict__", {}).values())
    return found


def _globals(function: types.FunctionType) -> list[Any]:
    """Return the globals that a function names, and what it names in modules of Python that are among them."""
    names, codes = set[str](), [function.__code__]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
    found = [function.__globals__[name] for name in names if name in function.__globals__]
    inside = [vars(x) for x in found if isinstance(x, types.ModuleType) and x.__name__.partition(".")[0] != "torch"]
    return [*found, *(members[name] for members in inside for name in names if name in members)]
