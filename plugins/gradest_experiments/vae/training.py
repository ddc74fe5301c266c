"""`train_vae`: one run, from its settings to its test bound."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradest.contract.estimator import State
from gradest.discovery.registry import registry
from gradest.errors import GradestError, InvalidInput
from gradest.estimation.distributed import rank, world_size
from gradest.random import Key
from gradest_experiments.checkpoint import deferred_interrupt
from gradest_experiments.engine.distributed import all_reduce_sum, any_rank, barrier
from gradest_experiments.folder import Metrics, RunFolder
from gradest_experiments.vae.images import Images, binarise
from gradest_experiments.vae.model import BinaryVae
from gradest_experiments.vae.settings import NEURON, VaeSettings
from gradest_experiments.vae.variance import measure_variance

__all__ = ["EXPERIMENT", "train_vae"]

EXPERIMENT = "binary-vae"
_WEIGHTS, _ORDER, _BINARISATION, _NOISE, _VALIDATION, _VARIANCE, _TEST = range(7)  # what a seed is for
_VALID_CHUNK, _TEST_CHUNK = 500, 20  # images at once


def train_vae(
    settings: VaeSettings,
    images: Images,
    path: Path,
    tick: Callable[[int], object] = lambda step: None,
    *,
    tensorboard: bool = False,
) -> None:
    """Train, or go on training, in the folder `path`, which is as `gradest_experiments.folder` has it.

    A checkpoint is written at each validation and at an interrupt. The metrics are

        train     elbo: mean of the training estimate over the last log_every steps, at the parameters of each; of the K
                  samples' mean, not a K-sample bound. seconds: of training so far, measurements left out
        valid     elbo: of all validation images, binarised once, at one sample each
        variance  of the encoder's gradient on one fixed batch of training images, at the current parameters and state;
                  parameters, logits: see `measure_variance`
        test      bound: importance-weighted, of test_samples samples an image

    Weights, order, binarisation and noise follow from the seed and the step, the same for all estimators. A run that was
    interrupted or killed goes on to the same numbers, seconds apart, on the same machine, and so does a finished one that is
    given more steps; torch's global generator is left as it was. tick(step) is told how far it is. Under torch.distributed
    the processes share each batch: the numbers differ by the order in which gradients are added up.

    tensorboard: write the metrics as event files too.

    Raises InvalidInput where the folder holds other settings, GradestError where training diverges. Ctrl-C raises
    KeyboardInterrupt after the step and its checkpoint.
    """
    folder = RunFolder.enter(path, EXPERIMENT, settings, grows="steps")
    if "test" in folder.results:
        tick(settings.steps)
        return
    run = _Run(settings, images)
    state = folder.load()
    barrier()  # until all processes have read it
    if state:
        run.restore(state)
    kept = state["metrics"] if state else 0
    with folder.record(kept, tensorboard=tensorboard) as metrics, deferred_interrupt() as interrupted:
        folder.add(evaluations=run.evaluations)

        def save() -> None:
            folder.save(run.state(), metrics)

        def stop() -> bool:
            return any_rank(interrupted())

        tick(run.step)
        if not state:
            run.measure(metrics)
            save()
        while run.step < settings.steps:
            if stop():
                save()
                raise KeyboardInterrupt
            run.learn()
            if run.step % settings.log_every == 0:
                run.log(metrics)
            if run.step % settings.eval_every == 0:
                run.measure(metrics)
            if run.step % settings.eval_every == 0 or run.step == settings.steps:
                save()
            tick(run.step)
        # What follows is after the checkpoint: a run with more steps has none of it here.
        if run.count:
            run.log(metrics)
        if run.step % settings.eval_every:
            run.measure(metrics)
        bound = run.test(stop)
        if bound is None:
            raise KeyboardInterrupt
        metrics.write("test", run.step, bound=bound)
        metrics.sync()
        folder.add(test=bound)


class _Run:
    """All that changes while a run goes on, and what is measured of it."""

    def __init__(self, settings: VaeSettings, images: Images) -> None:
        if settings.batch > len(images.train):
            raise InvalidInput(f"a batch of {settings.batch} is more than the {len(images.train)} training images")
        self.settings, self.images, self.key = settings, images, Key(settings.seed)
        self.estimator = settings.build_estimator()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_seed(self._key(_WEIGHTS)))
            self.vae = BinaryVae(images.mean(), settings.network, settings.latents, settings.hidden, settings.kl)
        self.optimiser = torch.optim.Adam(self.vae.parameters(), settings.learning_rate, fused=True)
        self.memory: State | None = None  # the estimator's state
        self.step = 0
        self.total, self.count = 0.0, 0  # of the loss, since the last line
        self.seconds = 0.0
        self._binarisation, self._noise = self._key(_BINARISATION), self._key(_NOISE)
        self._order = (-1, torch.empty(0, dtype=torch.int64))  # of an epoch

    @property
    def evaluations(self) -> int:
        """Of f, in a step."""
        return self.estimator.evaluations(registry.neuron(NEURON), (self.settings.latents,))

    def learn(self) -> None:
        """One step of Adam, of which each process does its part."""
        began = time.perf_counter()
        size, own = self.settings.batch, slice(rank(), None, world_size())
        # the images seen are counted, and have their noise by it
        rows = torch.arange(self.step * size, (self.step + 1) * size)[own]
        pixels = self.images.train[self._minibatch(self.step)[own]]
        x = binarise(pixels, replace(self._binarisation, rows=rows))
        noise = replace(self._noise, rows=rows, shared=True)
        losses, self.memory = self.vae.loss(x, self.vae.encode(x), self.estimator, noise, self.memory)
        loss = losses.sum() / size
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        loss = loss.detach()
        all_reduce_sum([loss, *(parameter.grad for parameter in self.vae.parameters() if parameter.grad is not None)])
        self.optimiser.step()
        self.step += 1
        self.total += float(loss)
        self.count += 1
        self.seconds += time.perf_counter() - began
        if not math.isfinite(self.total):
            raise GradestError(f"training diverged in step {self.step}: the loss is {float(loss)}; lower learning_rate")

    def log(self, metrics: Metrics) -> None:
        """The mean ELBO since the last line."""
        metrics.write("train", self.step, elbo=-self.total / self.count, seconds=self.seconds)
        self.total, self.count = 0.0, 0

    def measure(self, metrics: Metrics) -> None:
        """Validation and variance."""
        found = [self.vae.elbo(x, key) for x, key in self._binary(self.images.valid, _VALIDATION, _VALID_CHUNK)]
        metrics.write("valid", self.step, elbo=float(torch.cat(found).double().mean()))
        x = binarise(self.images.train[: self.settings.batch], self._key(_VARIANCE))
        key = self._key(_VARIANCE, self.step)
        draws = self.settings.variance_draws
        metrics.write("variance", self.step, **measure_variance(self.vae, x, self.estimator, key, self.memory, draws))

    def test(self, interrupted: Callable[[], bool]) -> float | None:
        """The mean bound over the test images; None if an interrupt came first."""
        found = []
        for x, key in self._binary(self.images.test[: self.settings.test_images], _TEST, _TEST_CHUNK):
            if interrupted():
                return None
            found.append(self.vae.bound(x, key, self.settings.test_samples))
        return float(torch.cat(found).double().mean())

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "step": self.step,
            "vae": self.vae.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "memory": None if self.memory is None else dict(self.memory),
            "total": self.total,
            "count": self.count,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was."""
        self.vae.load_state_dict(state["vae"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.memory, self.seconds = state["step"], state["memory"], state["seconds"]
        self.total, self.count = state["total"], state["count"]

    def _minibatch(self, step: int) -> Tensor:
        """The indices of a step: epochs are permutations, less what does not fill a batch."""
        size = self.settings.batch
        epoch, place = divmod(step, len(self.images.train) // size)
        if self._order[0] != epoch:
            generator = torch.Generator().manual_seed(_seed(self._key(_ORDER, epoch)))
            self._order = epoch, torch.randperm(len(self.images.train), generator=generator)
        return self._order[1][place * size : (place + 1) * size]

    def _binary(self, pixels: Tensor, use: int, chunk: int) -> Iterator[tuple[Tensor, Key]]:
        """Chunks of images, binarised once for the whole run, and keys of their noise, which no chunk's size moves."""
        for first in range(0, len(pixels), chunk):
            part = pixels[first : first + chunk]
            key = replace(self._key(use), rows=torch.arange(first, first + len(part)))
            yield binarise(part, key.with_stream(1)), key

    def _key(self, *numbers: int) -> Key:
        key = self.key
        for number in numbers:
            key = key.fold_in(number)
        return key


def _seed(key: Key) -> int:
    assert isinstance(key.seed, int)
    return key.seed
