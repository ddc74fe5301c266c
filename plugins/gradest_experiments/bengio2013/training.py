"""`train_row`: one run, from its settings to its test error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradest.errors import GradestError
from gradest.random import Key
from gradest_experiments.bengio2013.noise import BetaNoise
from gradest_experiments.bengio2013.settings import RowSettings
from gradest_experiments.checkpoint import deferred_interrupt
from gradest_experiments.data import Dataset
from gradest_experiments.folder import RunFolder
from gradest_experiments.gated import GatedNetwork
from gradest_experiments.sparsity import limit_norm
from gradest_experiments.training import build_network, score

__all__ = ["EXPERIMENT", "build_row", "time_step", "train_row"]

EXPERIMENT = "bengio2013"
_CALIBRATION = 2000  # training images by which the threshold is set

Tick = Callable[[int], object]


def train_row(
    settings: RowSettings,
    data: Dataset,
    path: Path | None,
    tick: Tick = lambda step: None,
    *,
    test: bool = True,
    tensorboard: bool = False,
) -> RunFolder:
    """Train, or go on training, in the folder, which is as `gradest_experiments.folder` has it. `data` is on the device of the
    settings.

    The metrics are a line an epoch, of the kind "epoch":

        loss, open      means over its minibatches of the training loss and of P(open)
        valid_loss, valid_error, valid_open   of the deterministic network on the validation images
        seconds         of training so far, validation included

    Results are the scores of the weights with the least validation error, the earliest of equals. Test images are looked at once,
    by those weights, and not at all if `test` is not set. A run that was interrupted or killed goes on to the same numbers,
    seconds apart, on the same machine; torch's global generator is left as it was. tick(step) is told how far it is.

    tensorboard: write the metrics as event files too.

    Raises InvalidInput where the folder holds other settings, GradestError where training diverges. Ctrl-C raises
    KeyboardInterrupt after the step and its checkpoint.
    """
    folder, steps = RunFolder.enter(path, EXPERIMENT, settings), settings.epochs * settings.steps(data)
    if "valid" in folder.results and ("test" in folder.results or not test):
        tick(steps)
        return folder
    with torch.random.fork_rng(devices=[]):
        run, state = _Run(settings, data), folder.load()
        if state:
            run.restore(state)
        kept = state["metrics"] if state else 0
        with folder.record(kept, tensorboard=tensorboard) as metrics, deferred_interrupt() as interrupted:
            while run.step < steps:
                if interrupted():
                    folder.save(run.state(), metrics)
                    return folder
                run.learn()
                if run.step % run.steps == 0:
                    metrics.write("epoch", run.step // run.steps, **run.end_epoch())
                    folder.save(run.state(), metrics)
                tick(run.step)
        folder.add(**run.finish(test))
    return folder


def build_row(settings: RowSettings, inputs: int, outputs: int) -> GatedNetwork:
    """The network of a run, with fresh weights from torch's global generator."""
    network = build_network(settings, inputs, outputs)
    if settings.input_noise is not None:
        network.gater.append(BetaNoise(settings.input_noise))
    return network.to(settings.device)


def time_step(settings: RowSettings, data: Dataset, steps: int = 100) -> float:
    """Seconds of a step: the median of the last half of so many first steps."""
    with torch.random.fork_rng(devices=[]):
        run = _Run(settings, data)
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            run.learn()
            seconds.append(time.perf_counter() - began)
    return sorted(seconds[steps // 2 :])[len(seconds) // 4]


class _Run:
    """All that changes while a run goes on."""

    def __init__(self, settings: RowSettings, data: Dataset) -> None:
        self.settings, self.data, self.train = settings, data, settings.split(data)
        self.steps = settings.steps(data)
        torch.default_generator.manual_seed(settings.seed)
        self.network = build_row(settings, data.pixels, data.classes)
        gater = list(self.network.gater.parameters())
        rest = [*self.network.experts.parameters(), *self.network.readout.parameters()]
        self.scales = settings.gater_scale, 1.0
        self.optimizer = torch.optim.SGD(
            [{"params": gater}, {"params": rest}], settings.learning_rate, momentum=settings.momentum, fused=True
        )
        self.step = 0
        self.loss = self.opened = 0.0  # sums over the minibatches of the epoch under way
        self.best: dict[str, Any] = {}
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0
        self._order: tuple[Tensor, ...] = ()  # of the epoch under way

    def learn(self) -> None:
        """One step of SGD."""
        began = time.perf_counter()
        network, split, optimizer = self.network, self.train, self.optimizer
        if not network.training:
            network.train()
        rate = self.settings.learning_rate * self.settings.rate_at(self.step / (self.settings.epochs * self.steps))
        for group, scale in zip(optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        index = self._minibatch()
        objective = network.objective(split.x[index], split.y[index])
        optimizer.zero_grad()
        objective.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        limit_norm(network, self.settings.max_norm)
        loss, opened = torch.stack([objective.loss, objective.open_share]).tolist()
        network.penalty.steer(opened)
        self.step += 1
        self.loss += loss
        self.opened += opened
        self.seconds += time.perf_counter() - began
        if not math.isfinite(loss):
            raise GradestError(f"training diverged in step {self.step}: the loss is {loss}; lower the learning rate")

    def end_epoch(self) -> dict[str, float]:
        """Validate, and keep the weights if they are the best so far."""
        began = time.perf_counter()
        network, epoch = self.network, self.step // self.steps
        network.eval()
        if self.settings.threshold is not None:
            network.unit.threshold.fill_(self.settings.threshold)
        elif self.settings.evaluation == "threshold":
            network.calibrate(self.train.x[:_CALIBRATION], self.settings.sparsity)
        valid = score(network, self.data.valid)
        if not self.best or valid.error < self.best["error"]:
            self.best = {"epoch": epoch, **valid.model_dump()}
            self.best_weights = {name: value.clone() for name, value in network.state_dict().items()}
        found = {"loss": self.loss / self.steps, "open": self.opened / self.steps}
        found |= {f"valid_{name}": value for name, value in (("loss", valid.loss), ("error", valid.error))}
        self.loss = self.opened = 0.0
        self.seconds += time.perf_counter() - began
        return {**found, "valid_open": valid.open_share, "seconds": self.seconds}

    def finish(self, test: bool) -> dict[str, Any]:
        """The scores of the best weights, which the network is given."""
        self.network.load_state_dict(self.best_weights)
        found = {"steps": self.step, "train": score(self.network, self.train).model_dump(), "valid": self.best}
        return {**found, "test": score(self.network, self.data.test).model_dump()} if test else found

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "loss": self.loss,
            "opened": self.opened,
            "best": self.best,
            "best_weights": self.best_weights,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        self.step, self.loss, self.opened, self.seconds = (
            state[name] for name in ("step", "loss", "opened", "seconds")
        )
        self.best, self.best_weights = state["best"], state["best_weights"]

    def _minibatch(self) -> Tensor:
        """The indices of a step. Each epoch has an order of its own, which follows from seed and epoch."""
        epoch, place = divmod(self.step, self.steps)
        if not self._order or place == 0:
            seed = Key(self.settings.seed).fold_in(epoch).seed
            assert isinstance(seed, int)
            order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
            self._order = torch.split(order.to(self.settings.device), self.settings.batch)
        return self._order[place]
