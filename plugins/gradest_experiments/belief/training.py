"""`train_belief`: one run, from its settings to its validation bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from gradest.errors import GradestError, InvalidInput
from gradest.estimation.distributed import rank, world_size
from gradest.nn import StochasticGraph
from gradest_experiments.belief.network import BeliefNetwork, multi_sample_bound
from gradest_experiments.belief.settings import BeliefSettings
from gradest_experiments.engine.distributed import all_reduce_sum
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.images import Images, binarise
from gradest_experiments.engine.loop import GlobalGenerator, Minibatches, OnStep, TrainingRun, fit
from gradest_experiments.engine.seeds import derive_key, derive_seed

__all__ = ["EXPERIMENT", "BeliefRun", "train_belief"]

EXPERIMENT = "sigmoid-belief-network"
_WEIGHTS, _ORDER, _BINARISATION, _NOISE, _VALIDATION = range(5)  # what a seed is for
_CHUNK = 20  # images evaluated at once


def train_belief(
    settings: BeliefSettings,
    images: Images,
    path: Path,
    on_step: OnStep = lambda step: None,
    *,
    tensorboard: bool = False,
) -> RunFolder:
    """Train, or continue training, in the folder `path`, whose files `gradest_experiments.engine.folder` describes; return it.

    A checkpoint is written after each epoch and at an interrupt. The metrics after each epoch are

        train  elbo, bound: the means of -loss and of the bound of K samples over the epoch, at the parameters of each step.
               seconds: of training so far, validation excluded
        valid  bound: the mean over all validation images, binarised once, of the bound of valid_samples samples

    Weights, order and binarisation follow from the seed and the step, and are the same for all estimators. A run that was
    interrupted or killed and is then resumed has the same numbers, seconds apart, on the same machine, and so has a finished run
    that is given more epochs; torch's global generator is left as it was. Under torch.distributed the processes share each
    batch: the numbers differ by the order in which gradients are added up.

    tensorboard: write the metrics as event files too.

    Raises InvalidInput if the folder holds other settings, GradestError if training diverges, and what
    `BeliefSettings.build_layer` raises. Ctrl-C raises KeyboardInterrupt after the step and its checkpoint.
    """
    folder = RunFolder.open(path, EXPERIMENT, settings, extendable="epochs")
    with torch.random.fork_rng(devices=[]):
        run = BeliefRun(settings, images)
        if folder.results:
            on_step(run.steps)
            return folder

        def conclude(metrics: MetricsWriter, interrupted: Callable[[], bool]) -> None:
            folder.add_results(valid=run.valid)

        fit(run, folder, on_step=on_step, conclude=conclude, tensorboard=tensorboard)
    return folder


class BeliefRun(TrainingRun):
    """A sigmoid belief network in training by Adam. It draws its noise from torch's global generator, which it seeds.

    elbo, bound: the sums over the steps of the epoch under way. valid: the last validation bound.
    """

    KEPT: ClassVar[tuple[str, ...]] = ("step", "elbo", "bound", "valid", "seconds")

    def __init__(self, settings: BeliefSettings, images: Images) -> None:
        if settings.batch > len(images.train):
            raise InvalidInput(f"a batch of {settings.batch} is more than the {len(images.train)} training images")
        self.settings, self.images = settings, images
        torch.default_generator.manual_seed(derive_seed(settings.seed, _WEIGHTS))
        layers = [settings.build_layer() for _ in range(settings.layers)]
        self.network = BeliefNetwork(images.mean(), layers, settings.units)
        torch.default_generator.manual_seed(derive_seed(settings.seed, _NOISE))
        self.optimiser = torch.optim.Adam(self.network.parameters(), settings.learning_rate, fused=True)
        minibatches = Minibatches(len(images.train), settings.batch, settings.seed, _ORDER, drop_last=True)
        parts = {"network": self.network, "optimiser": self.optimiser, "generator": GlobalGenerator()}
        super().__init__(minibatches, settings.epochs * minibatches.per_epoch, minibatches.per_epoch, parts)
        self.elbo = self.bound = self.valid = 0.0
        self._binarisation = derive_key(settings.seed, _BINARISATION)

    def learn(self, index: Tensor) -> None:
        """Take one step of Adam, in which each process does its part of the batch."""
        size, own = len(index), slice(rank(), None, world_size())
        # the row of an image in the noise of binarisation is the number of images seen before it
        rows = torch.arange(self.step * size, (self.step + 1) * size)[own]
        x = binarise(self.images.train[index[own]], replace(self._binarisation, rows=rows))
        self.network.train()
        self.optimiser.zero_grad()
        try:
            loss = self._backward(x, size)
        except InvalidInput as error:  # the settings were checked before, so it is a number that is not finite
            raise GradestError(f"training diverged in step {self.step + 1}: {error}; lower learning_rate") from error
        sums = torch.stack([-loss.mean(0).sum(), multi_sample_bound(loss).sum()])
        all_reduce_sum([sums, *(weight.grad for weight in self.network.parameters() if weight.grad is not None)])
        self.optimiser.step()
        elbo, bound = (sums / size).tolist()
        self.elbo += elbo
        self.bound += bound

    def _backward(self, x: Tensor, size: int) -> Tensor:
        """Compute the gradient of the loss summed over images and divided by `size`; return the losses of all paths."""
        costs = []
        with StochasticGraph(self.network, samples=self.settings.samples) as graph:
            for cost in self.network.costs(x, graph.expand):
                graph.add_cost(cost)
                costs.append(cost.detach())
            (graph.surrogate("sum") / size).backward()  # type: ignore[no-untyped-call]
        return torch.stack(costs).sum(0)

    def record(self, metrics: MetricsWriter) -> None:
        """Write the averages of an epoch at its end, and validate."""
        epoch, within = divmod(self.step, self.interval)
        if within or not epoch:
            return
        elbo, bound = self.elbo / self.interval, self.bound / self.interval
        metrics.write("train", self.step, epoch=epoch, elbo=elbo, bound=bound, seconds=self.seconds)
        self.elbo = self.bound = 0.0
        self.valid = self.validate()
        metrics.write("valid", self.step, epoch=epoch, bound=self.valid)

    def validate(self) -> float:
        """Return the validation bound, over all processes. Its noise is the same each time."""
        self.network.eval()
        key = derive_key(self.settings.seed, _VALIDATION)
        total = torch.zeros((), dtype=torch.float64)
        images, own = self.images.valid, slice(rank(), None, world_size())
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.settings.seed, _VALIDATION))
            for rows in torch.split(torch.arange(len(images)), _CHUNK):
                x = binarise(images[rows[own]], replace(key, rows=rows[own]))
                total += self.network.bound(x, self.settings.valid_samples).double().sum()
        all_reduce_sum([total])
        return float(total) / len(images)
