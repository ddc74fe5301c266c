"""`train_vae`: one run, from its settings to its test bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradest.contract.estimator import State
from gradest.discovery.registry import registry
from gradest.errors import GradestError, InvalidInput
from gradest.estimation.distributed import rank, world_size
from gradest.random import Key
from gradest_experiments.engine.distributed import all_reduce_sum
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.images import Images, binarise, grey
from gradest_experiments.engine.loop import Minibatches, OnStep, TrainingRun, fit
from gradest_experiments.engine.seeds import derive_key, derive_seed
from gradest_experiments.vae.model import Vae
from gradest_experiments.vae.settings import VaeSettings
from gradest_experiments.vae.variance import measure_variance

__all__ = ["EXPERIMENT", "VaeRun", "train_vae"]

EXPERIMENT = "binary-vae"
_WEIGHTS, _ORDER, _BINARISATION, _NOISE, _VALIDATION, _VARIANCE, _TEST, _FINAL = range(8)  # what a seed is for
_OPTIMISERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),
    "radam": torch.optim.RAdam,
}
_ELBO_CHUNK, _TEST_CHUNK = 500, 20  # images evaluated at once


def train_vae(
    settings: VaeSettings,
    images: Images,
    path: Path,
    on_step: OnStep = lambda step: None,
    *,
    tensorboard: bool = False,
) -> None:
    """Train, or continue training, in the folder `path`, whose files `gradest_experiments.engine.folder` describes.

    A checkpoint is written at each validation and at an interrupt. The metrics are

        train     elbo: the training estimate averaged over the last log_every steps, at the parameters of each; the average of
                  K samples, not a K-sample bound, and no ELBO at all if the estimator evaluates relaxed outputs, as
                  gumbel_softmax does. seconds: of training so far, measurements excluded
        valid     elbo: of all validation images, binarised once, with one sample each
        variance  of the encoder's gradient on one fixed batch of training images, at the current parameters and state;
                  parameters, logits: see `measure_variance`
        final     elbo: of all training images, with one sample each, after the last step
        test      bound: the importance-weighted bound with test_samples samples per image

    Weights, order, binarisation and noise follow from the seed and the step, and are the same for all estimators. A run that
    was interrupted or killed and is then resumed has the same numbers, seconds apart, on the same machine, and so has a
    finished run that is given more steps; torch's global generator is left as it was. Under torch.distributed the processes
    share each batch: the numbers differ by the order in which gradients are added up.

    tensorboard: write the metrics as event files too.

    Raises InvalidInput if the folder holds other settings, and GradestError if training diverges. Ctrl-C raises
    KeyboardInterrupt after the step and its checkpoint.
    """
    folder = RunFolder.open(path, EXPERIMENT, settings, extendable="steps")
    if "test" in folder.results:
        on_step(settings.steps)
        return
    run = VaeRun(settings, images)
    folder.add_results(evaluations=run.evaluations)
    fit(run, folder, on_step=on_step, conclude=partial(run.conclude, folder), tensorboard=tensorboard)


class VaeRun(TrainingRun):
    """An autoencoder in training.

    memory: the estimator's state. total, count: the sum of the losses since the last line of the kind "train", and their number.
    """

    KEPT: ClassVar[tuple[str, ...]] = ("step", "memory", "total", "count", "seconds")

    def __init__(self, settings: VaeSettings, images: Images) -> None:
        if settings.batch > len(images.train):
            raise InvalidInput(f"a batch of {settings.batch} is more than the {len(images.train)} training images")
        self.settings, self.images = settings, images
        self.estimator = settings.build_estimator()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(settings.seed, _WEIGHTS))
            self.vae = Vae(
                images.mean(), settings.network, settings.latents, settings.hidden, settings.kl, settings.classes
            )
        self.optimiser = _OPTIMISERS[settings.optimiser](self.vae.parameters(), settings.learning_rate)
        minibatches = Minibatches(len(images.train), settings.batch, settings.seed, _ORDER, drop_last=True)
        parts = {"vae": self.vae, "optimiser": self.optimiser}
        super().__init__(minibatches, settings.steps, settings.eval_every, parts)
        self.memory: State | None = None
        self.total, self.count = 0.0, 0
        self._binarisation, self._noise = self._key(_BINARISATION), self._key(_NOISE)

    @property
    def evaluations(self) -> int:
        """The number of evaluations of f in a step."""
        return self.estimator.evaluations(registry.neuron(self.settings.neuron), self.settings.event)

    def learn(self, index: Tensor) -> None:
        """Take one step of the optimiser, in which each process does its part of the batch."""
        size, own = self.settings.batch, slice(rank(), None, world_size())
        # the row of an image in all noise is the number of images seen before it
        rows = torch.arange(self.step * size, (self.step + 1) * size)[own]
        x = self._inputs(self.images.train[index[own]], replace(self._binarisation, rows=rows))
        noise = replace(self._noise, rows=rows, shared=True)
        with self._finite():
            losses, self.memory = self.vae.loss(x, self.vae.encode(x), self.estimator, noise, self.memory)
        loss = losses.sum() / size
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        all_reduce_sum([loss, *(parameter.grad for parameter in self.vae.parameters() if parameter.grad is not None)])
        self.optimiser.step()
        self.total += float(loss)
        self.count += 1
        if not math.isfinite(self.total):
            raise GradestError(
                f"training diverged in step {self.step + 1}: the loss is {float(loss)}; lower learning_rate"
            )

    def record(self, metrics: MetricsWriter) -> None:
        """Write the training ELBO every log_every steps, and the measurements every eval_every steps."""
        if self.step and self.step % self.settings.log_every == 0:
            self._write_training(metrics)
        if self.step % self.settings.eval_every == 0:
            self._measure(metrics)

    def conclude(self, folder: RunFolder, metrics: MetricsWriter, interrupted: Callable[[], bool]) -> None:
        """Write what the last steps have not written yet, and the test bound, which is the result."""
        if self.count:
            self._write_training(metrics)
        if self.step % self.settings.eval_every:
            self._measure(metrics)
        bounds = []
        for x, key in self._binary(self.images.test[: self.settings.test_images], _TEST, _TEST_CHUNK):
            if interrupted():
                raise KeyboardInterrupt
            with self._finite():
                bounds.append(self.vae.bound(x, key, self.settings.test_samples))
        bound = float(torch.cat(bounds).double().mean())
        metrics.write("final", self.step, elbo=self._elbo(self.images.train, _FINAL))
        metrics.write("test", self.step, bound=bound)
        metrics.sync()
        folder.add_results(test=bound)

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds."""
        return {**super().state(), "memory": None if self.memory is None else dict(self.memory)}

    def _write_training(self, metrics: MetricsWriter) -> None:
        metrics.write("train", self.step, elbo=-self.total / self.count, seconds=self.seconds)
        self.total, self.count = 0.0, 0

    def _measure(self, metrics: MetricsWriter) -> None:
        """Measure the validation ELBO, and the variance of the encoder's gradient."""
        metrics.write("valid", self.step, elbo=self._elbo(self.images.valid, _VALIDATION))
        x = self._inputs(self.images.train[: self.settings.batch], self._key(_VARIANCE))
        key = self._key(_VARIANCE, self.step)
        draws = self.settings.variance_draws
        with self._finite():
            found = measure_variance(self.vae, x, self.estimator, key, self.memory, draws)
        metrics.write("variance", self.step, **found)

    def _elbo(self, pixels: Tensor, purpose: int) -> float:
        """Return the mean ELBO of images, with one sample each."""
        with self._finite():
            elbos = [self.vae.elbo(x, key) for x, key in self._binary(pixels, purpose, _ELBO_CHUNK)]
        return float(torch.cat(elbos).double().mean())

    @contextmanager
    def _finite(self) -> Iterator[None]:
        """Say that training diverged where the encoder's outputs are refused after the first step, when they were not."""
        try:
            yield
        except InvalidInput as error:
            if not self.step:
                raise
            raise GradestError(f"training diverged in step {self.step}: {error}; lower learning_rate") from error

    def _binary(self, pixels: Tensor, purpose: int, chunk: int) -> Iterator[tuple[Tensor, Key]]:
        """Yield chunks of images, binarised once for the run or grey, and keys of their noise, whatever the chunks."""
        for first in range(0, len(pixels), chunk):
            part = pixels[first : first + chunk]
            key = replace(self._key(purpose), rows=torch.arange(first, first + len(part)))
            yield self._inputs(part, key.with_stream(1)), key

    def _inputs(self, pixels: Tensor, key: Key) -> Tensor:
        return grey(pixels) if self.settings.grey else binarise(pixels, key)

    def _key(self, *numbers: int) -> Key:
        return derive_key(self.settings.seed, *numbers)
