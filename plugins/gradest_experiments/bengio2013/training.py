"""`train_row`: one run of a row of the table, from its settings to its test error."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradest_experiments.bengio2013.noise import BetaNoise
from gradest_experiments.bengio2013.settings import RowSettings
from gradest_experiments.engine.data import Dataset
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.loop import OnStep, TrainingRun, fit
from gradest_experiments.gated.network import GatedNetwork
from gradest_experiments.gated.training import GatedRun, Score, build_network, score

__all__ = ["EXPERIMENT", "RowRun", "build_row", "time_step", "train_row"]

EXPERIMENT = "bengio2013"


def train_row(
    settings: RowSettings,
    data: Dataset,
    path: Path | None,
    on_step: OnStep = lambda step: None,
    *,
    test: bool = True,
    tensorboard: bool = False,
) -> RunFolder:
    """Train, or continue training, in the folder, whose files `gradest_experiments.engine.folder` describes.

    data: on the device of the settings. The metrics are one line of the kind "epoch" per epoch:

        loss, open      the training loss and P(open), averaged over the minibatches of the epoch
        valid_loss, valid_error, valid_open   of the deterministic network on the validation images
        seconds         of training so far, validation included

    The results are the scores of the weights with the least validation error, the earliest of equals. The test images are
    scored once, with those weights, and not at all if `test` is false. A run that was interrupted or killed and is then resumed
    has the same numbers, seconds apart, on the same machine; torch's global generator is left as it was.

    tensorboard: write the metrics as event files too.

    Raises InvalidInput if the folder holds other settings, and GradestError if training diverges. Ctrl-C raises
    KeyboardInterrupt after the step and its checkpoint.
    """
    folder = RunFolder.open(path, EXPERIMENT, settings)
    if "valid" in folder.results and ("test" in folder.results or not test):
        on_step(settings.epochs * settings.steps(data))
        return folder
    with torch.random.fork_rng(devices=[]):
        run = RowRun(settings, data)
        fit(run, folder, on_step=on_step, tensorboard=tensorboard)
        folder.add_results(**run.scores(test))
    return folder


def build_row(settings: RowSettings, inputs: int, outputs: int) -> GatedNetwork:
    """Return the network of a run, with initial weights from torch's global generator."""
    network = build_network(settings, inputs, outputs)
    if settings.input_noise is not None:
        network.gater.append(BetaNoise(settings.input_noise))
    return network.to(settings.device)


def time_step(settings: RowSettings, data: Dataset, steps: int = 100) -> float:
    """Return the seconds that a step takes: the median of the last half of the first `steps` steps."""
    with torch.random.fork_rng(devices=[]):
        run = RowRun(settings, data)
        seconds = []
        for _ in range(steps):
            began = time.perf_counter()
            run.advance()
            seconds.append(time.perf_counter() - began)
    return sorted(seconds[steps // 2 :])[len(seconds) // 4]


class RowRun(GatedRun):
    """A gated network in training whose learning rate falls to 0 at the end, and whose gater may have noise of its own."""

    settings: RowSettings

    def __init__(self, settings: RowSettings, data: Dataset) -> None:
        super().__init__(settings, data, settings.split(data), fused=True)

    def build_network(self) -> GatedNetwork:
        """Return the network of `build_row`."""
        return build_row(self.settings, self.data.pixels, self.data.classes)

    def learn(self, index: Tensor) -> None:
        """Take one step of SGD at the learning rate of the step."""
        rate = self.settings.learning_rate * self.settings.rate_at(self.step / self.steps)
        gater, rest = self.optimizer.param_groups
        gater["lr"], rest["lr"] = rate * self.settings.gater_scale, rate
        super().learn(index)

    def record(self, metrics: MetricsWriter) -> None:
        """Write a line at the end of an epoch."""
        if self.step and self.step % self.interval == 0:
            epoch = self.end_epoch()
            valid = {
                "valid_loss": epoch.valid.loss,
                "valid_error": epoch.valid.error,
                "valid_open": epoch.valid.open_share,
            }
            means = {"loss": epoch.loss, "open": epoch.open_share}
            metrics.write("epoch", self.step // self.interval, **means, **valid, seconds=self.seconds)

    def scores(self, test: bool) -> dict[str, Any]:
        """Give the network its best weights, and return their scores, by split."""
        self.network.load_state_dict(self.best_weights)
        scored = {"steps": self.step, "train": score(self.network, self.split).model_dump(), "valid": self._best()}
        return {**scored, "test": score(self.network, self.data.test).model_dump()} if test else scored

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds."""
        own = {"step": self.step, "loss": self.loss_sum, "opened": self.open_sum, "seconds": self.seconds}
        parts = {name: part.state_dict() for name, part in self.parts.items()}
        return {**own, **parts, "best": self._best(), "best_weights": self.best_weights}

    def restore(self, state: Mapping[str, Any], folder: RunFolder) -> None:
        """Return to the state of a checkpoint."""
        best = state["best"]
        given = {"loss_sum": state["loss"], "open_sum": state["opened"], "best_epoch": best.get("epoch", 0)}
        TrainingRun.restore(self, {**state, **given}, folder)
        self.step = state["step"]
        if best:
            self.best = Score(**{name: best[name] for name in Score.model_fields})

    def _best(self) -> dict[str, Any]:
        """The best epoch and its validation score; nothing before the first epoch has ended."""
        return {"epoch": self.best_epoch, **self.best.model_dump()} if self.best_epoch else {}
