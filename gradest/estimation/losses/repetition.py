"""Calls with a state that an activation checkpoint runs again in backward: they run from the state with which they ran first.

The caller keeps the state of `gradest.expect`. One who keeps it in a variable has the next state in it when the checkpoint runs
the call again. From that state the gradient would be wrong, since it has seen the losses of these very samples.
"""

from __future__ import annotations

from weakref import WeakSet

import torch
from torch import Tensor

from gradest.contract.estimator import State
from gradest.errors import Incompatible
from gradest.kernels import transformed

__all__ = ["is_recomputed", "refuse_moved_state", "remember_first_call", "state_of_first_call"]

_FIRST_CALL = "gradest.expect"  # where the autograd graph of a value keeps its first call


def is_recomputed() -> bool:
    """Return whether backward is running, as it is when an activation checkpoint runs a function again."""
    return torch._C._current_graph_task_id() != -1


class _FirstCall:
    """The call that drew from a seed, with its shape and its state."""

    def __init__(self, seed: object, shape: torch.Size, state: State) -> None:
        self.seed, self.shape, self.state = seed, shape, state


_first_calls: WeakSet[_FirstCall] = WeakSet()


def remember_first_call(value: Tensor, seed: object, a: Tensor, state: State) -> None:
    """Remember a call with a state for as long as the graph of its value is alive."""
    if value.grad_fn is None or transformed():
        return
    call = _FirstCall(seed, a.shape, state)
    value.grad_fn.metadata[_FIRST_CALL] = call  # type: ignore[index]
    _first_calls.add(call)


def state_of_first_call(seed: object, a: Tensor, given: State) -> State:
    """Return the state of the call that backward now runs again, or the given one if this is no such call.

    Raises Incompatible if several calls with this seed, from different states, wait for their backward pass.
    """
    if transformed():
        return given
    states = [call.state for call in list(_first_calls) if call.shape == a.shape and _same(call.seed, seed)]
    if not states:
        return given
    if not all(_equal(state, states[0]) for state in states[1:]):
        raise Incompatible(
            f"a checkpoint runs gradest.expect again, and several calls with its seed {seed}, from different states, wait for "
            "their backward pass, so that its state is unknown. Give each call another seed, or use gradest.nn.Expectation"
        )
    return states[0]


def _equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def refuse_moved_state(name: str, state: State | None) -> None:
    """Raise Incompatible for a call with a state that an activation checkpoint runs again."""
    if state and not torch.compiler.is_compiling() and is_recomputed():
        raise Incompatible(
            f"{name} with a state cannot run inside torch.utils.checkpoint, which runs it again when the state has moved; "
            "compute the log-probabilities inside the checkpoint, and call it outside"
        )
