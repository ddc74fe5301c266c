"""The training loop of every experiment: steps, measurements, checkpoints, interrupts and exact resumption."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from gradest_experiments.engine.checkpoint import deferred_interrupt
from gradest_experiments.engine.data import Dataset, Split
from gradest_experiments.engine.distributed import any_rank, barrier
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.seeds import derive_seed

__all__ = [
    "ClassifierRun",
    "Conclude",
    "GlobalGenerator",
    "Minibatches",
    "NoExamples",
    "OnStep",
    "TrainingRun",
    "copy_weights",
    "fit",
]

OnStep = Callable[[int], object]
"""Called with the number of steps that are done: at the start, and after each step."""

Conclude = Callable[[MetricsWriter, Callable[[], bool]], object]
"""Called after the last step and its checkpoint, with the metrics and a function that says whether Ctrl-C was pressed."""


class GlobalGenerator:
    """torch's global generator, from which stochastic layers draw their seeds, as a part of a checkpoint."""

    def state_dict(self) -> Tensor:
        """Return the state of the generator."""
        return torch.get_rng_state()

    def load_state_dict(self, state_dict: Tensor) -> None:
        """Set the state of the generator."""
        torch.set_rng_state(state_dict)


class Minibatches:
    """The indices of each step's examples: every epoch is a permutation of its own, which follows from the seed and the epoch.

    numbers: what `derive_seed` is given before the epoch. drop_last: leave out the examples that do not fill a minibatch.
    per_epoch: the number of minibatches in an epoch.
    """

    def __init__(
        self,
        examples: int,
        size: int,
        seed: int,
        *numbers: int,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.per_epoch = examples // size if drop_last else -(-examples // size)
        self._examples, self._size, self._seed, self._device = examples, size, (seed, *numbers), device
        self._epoch, self._order = -1, tuple[Tensor, ...]()

    def __getitem__(self, step: int) -> Tensor:
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derive_seed(*self._seed, epoch))
            order = torch.randperm(self._examples, generator=generator).to(self._device)
            self._epoch, self._order = epoch, torch.split(order, self._size)
        return self._order[place]


class NoExamples:
    """The minibatches of a run that learns from no examples: the indices of each step are empty."""

    def __getitem__(self, step: int) -> Tensor:
        return torch.empty(0, dtype=torch.int64)


class TrainingRun(ABC):
    """A model in training: everything that changes from step to step, and how one step changes it.

    An experiment implements `learn` and `record`; `fit` does the rest.

    minibatches: the examples of each step. steps: the length of the run. interval: the number of steps between checkpoints.
    parts: the modules, optimisers and the like that a checkpoint holds by their `state_dict`, by the checkpoint's keys.
    KEPT: the attributes that a checkpoint holds as they are.
    step: the number of steps done. seconds: the time they took, and what else ran under `timed`.
    """

    KEPT: ClassVar[tuple[str, ...]] = ("step", "seconds")

    def __init__(
        self, minibatches: Minibatches | NoExamples, steps: int, interval: int, parts: Mapping[str, Any]
    ) -> None:
        self.minibatches, self.steps, self.interval, self.parts = minibatches, steps, interval, parts
        self.step, self.seconds = 0, 0.0

    @abstractmethod
    def learn(self, index: Tensor) -> None:
        """Take one step of the optimiser on the examples `index`, `[batch]`. Raises GradestError if training diverges."""

    @abstractmethod
    def record(self, metrics: MetricsWriter) -> None:
        """Measure what is due now that `step` steps are done, and write it. `fit` calls this before the first step as well."""

    def advance(self) -> None:
        """Take the next step."""
        with self.timed():
            self.learn(self.minibatches[self.step])
            self.step += 1

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Add the time that the block takes to `seconds`."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds."""
        kept = {name: getattr(self, name) for name in self.KEPT}
        return {**kept, **{name: part.state_dict() for name, part in self.parts.items()}}

    def restore(self, state: Mapping[str, Any], folder: RunFolder) -> None:
        """Return to the state of a checkpoint; the folder has the metrics that were written before it."""
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        for name in self.KEPT:
            setattr(self, name, state[name])


class _Settings(Protocol):
    """What a run needs of its settings. images: the number of training images, or None for all."""

    @property
    def batch(self) -> int: ...
    @property
    def epochs(self) -> int: ...
    @property
    def images(self) -> int | None: ...
    @property
    def seed(self) -> int: ...


class ClassifierRun(TrainingRun):
    """A classifier in training. An experiment implements `learn` and `validate`.

    order: the number that `derive_seed` is given for the order of the examples.
    loss: the sum of what `learn` has added in the epoch so far. best_epoch, best_error, best_weights: those of the epoch of the
    least validation error so far; before the first, the initial weights.
    """

    KEPT: ClassVar[tuple[str, ...]] = ("step", "loss", "best_epoch", "best_error", "best_weights", "seconds")

    def __init__(
        self, settings: _Settings, data: Dataset, network: nn.Module, optimiser: torch.optim.Optimizer, order: int
    ) -> None:
        self.train, self.valid, self.network, self.optimiser = data.train, data.valid, network, optimiser
        if settings.images is not None:
            self.train = Split(data.train.x[: settings.images], data.train.y[: settings.images])
        minibatches = Minibatches(len(self.train), settings.batch, settings.seed, order)
        parts = {"network": network, "optimiser": optimiser, "generator": GlobalGenerator()}
        super().__init__(minibatches, settings.epochs * minibatches.per_epoch, minibatches.per_epoch, parts)
        self.loss = 0.0
        self.best_epoch, self.best_error, self.best_weights = 0, math.inf, copy_weights(network)

    @abstractmethod
    def validate(self, epoch: int, metrics: MetricsWriter) -> float:
        """Write the metrics of the epoch that ends, and return the validation error."""

    def record(self, metrics: MetricsWriter) -> None:
        """At the end of an epoch validate, and keep the weights if their error is less than that of every epoch before."""
        epoch, within = divmod(self.step, self.interval)
        if within or not epoch:
            return
        error = self.validate(epoch, metrics)
        if error < self.best_error:
            self.best_epoch, self.best_error, self.best_weights = epoch, error, copy_weights(self.network)
        self.loss = 0.0

    def differentiate(self, total: Tensor, loss: Tensor) -> None:
        """Take one step of the optimiser along the gradient of `total`, and add `loss` to the sum of the epoch."""
        self.optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.loss += float(loss)


def fit(
    run: TrainingRun,
    folder: RunFolder,
    *,
    on_step: OnStep = lambda step: None,
    conclude: Conclude = lambda metrics, interrupted: None,
    tensorboard: bool = False,
) -> None:
    """Train to the last step, from the checkpoint in the folder if it has one.

    A checkpoint is written before the first step, every `run.interval` steps, after the last one, and at an interrupt. A run
    that was interrupted or killed and is then resumed takes the same steps, bit for bit, and has the same metrics, times apart,
    as one that was not. Under torch.distributed all processes call this, stop at the same step, and the first one writes.

    conclude: measures the finished model. The checkpoint holds nothing of it, so a run that is given more steps goes on as if
        it had never ended.
    tensorboard: write the metrics as event files too.

    Ctrl-C raises KeyboardInterrupt after the step under way and its checkpoint; a second Ctrl-C raises it at once.
    """
    state = folder.load()
    if state:
        run.restore(state, folder)
    barrier()  # the first process may cut the metrics as soon as every process has read them
    kept = state["metrics"] if state else 0
    with folder.record(kept, tensorboard=tensorboard) as metrics, deferred_interrupt() as waiting:

        def save() -> None:
            folder.save(run.state(), metrics)

        def interrupted() -> bool:
            return any_rank(waiting())

        if not state:
            run.record(metrics)
            save()
        on_step(run.step)
        while run.step < run.steps:
            if interrupted():
                save()
                raise KeyboardInterrupt
            run.advance()
            run.record(metrics)
            if run.step % run.interval == 0 or run.step == run.steps:
                save()
            on_step(run.step)
        conclude(metrics, interrupted)


def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of the module's state, which further training does not change."""
    return {name: value.clone() for name, value in module.state_dict().items()}
