"""A classifier in training: it is validated after each epoch, and the weights of the best epoch are kept."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from gradest_experiments.engine.data import Dataset, Split
from gradest_experiments.engine.folder import MetricsWriter
from gradest_experiments.engine.loop import GlobalGenerator, Minibatches, TrainingRun, copy_weights

__all__ = ["ClassifierRun"]


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
