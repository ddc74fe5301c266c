"""Forward passes that run again in backward, as an activation checkpoint has them do: from the same noise and the same state."""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Protocol

import torch

from gradest.contract.estimator import State
from gradest.errors import Incompatible, InvalidInput
from gradest.estimation.losses.repetition import is_recomputed
from gradest.nn.sampler import NO_PATHS, Pair, Paths

__all__ = ["FirstRun", "FirstRuns", "PlainRun", "refuse_recomputation"]

_MOST_UNRECORDED = 4096  # forward passes without gradient that a layer remembers


def refuse_recomputation(what: str) -> None:
    """Raise InvalidInput if backward is running: an estimator's state would move a second time for one step."""
    if not torch.compiler.is_compiling() and is_recomputed():
        raise InvalidInput(
            f"{what} while backward is running, as inside torch.utils.checkpoint or a hook; put the checkpoint inside the scope, "
            "around layers alone"
        )


class FirstRun(Protocol):
    """What a forward pass of a layer is repeated from."""

    @property
    def sampler(self) -> Pair:
        """The neuron and the estimator, with the options of then."""

    @property
    def seed(self) -> object:
        """The seed of its noise."""

    @property
    def state(self) -> State:
        """The estimator's state when it ran."""

    @property
    def step(self) -> int:
        """How often that state had moved."""

    @property
    def paths(self) -> Paths:
        """How its batch held whole-path samples."""


@dataclass(frozen=True, eq=False)
class PlainRun:
    """A first run, for layers that keep nothing else of a forward pass."""

    sampler: Pair
    seed: object
    state: State
    step: int = 0
    paths: Paths = NO_PATHS


class FirstRuns:
    """The forward passes of one layer that backward may run again.

    Those that recorded a graph are known for as long as the graph is alive. A reentrant checkpoint records none: its first run is
    under torch.no_grad(). Of such runs the last 4096 are remembered, without their states.
    """

    def __init__(self) -> None:
        self._recorded: dict[int, weakref.ref[FirstRun]] = {}  # in the order of the calls
        self._numbers = count(1)
        self._unrecorded: deque[PlainRun] = deque(maxlen=_MOST_UNRECORDED)

    def record(self, run: FirstRun) -> None:
        """Remember a run for as long as it is alive, which its autograd graph decides."""
        number = next(self._numbers)  # several threads may run the layer
        # a WeakSet would take several times as long
        self._recorded[number] = weakref.ref(run, partial(self._recorded.pop, number))

    def record_without_graph(self, sampler: Pair, seed: object, step: int, paths: Paths = NO_PATHS) -> None:
        """Remember a run under torch.no_grad()."""
        self._unrecorded.append(PlainRun(sampler, seed, {}, step, paths))

    def recorded(self, seed: object) -> FirstRun | None:
        """Return the run with this seed whose graph is alive."""
        alive = (reference() for reference in list(self._recorded.values()))
        return next((run for run in alive if run is not None and run.seed == seed), None)

    def without_graph(self, seed: object, state: State, step: int) -> PlainRun:
        """Return the run with this seed under torch.no_grad(), with the state of now, which must still be that of then.

        Raises Incompatible if there was no such run, or if the state has moved since.
        """
        run = next((run for run in reversed(self._unrecorded) if run.seed == seed), None)
        if run is None:
            raise Incompatible(
                "a stochastic layer runs while backward is running, with other noise than in the forward pass, so its gradient "
                "would be wrong; torch.utils.checkpoint needs preserve_rng_state=True"
            )
        if state and run.step != step:
            raise Incompatible(
                "a checkpoint runs a stochastic layer again after the state of its estimator has moved, so its gradient would be "
                "wrong; torch.utils.checkpoint needs use_reentrant=False"
            )
        return replace(run, state=state)
