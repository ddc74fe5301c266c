"""`train_experts`: one run, from its settings to its test error."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradest.errors import GradestError
from gradest.nn.conditional import Computed
from gradest_experiments.engine.data import Dataset, Split
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.loop import ClassifierRun, fit
from gradest_experiments.engine.seeds import derive_seed
from gradest_experiments.experts.network import ExpertNetwork
from gradest_experiments.experts.settings import ExpertSettings

__all__ = ["EXPERIMENT", "ExpertRun", "evaluate", "train_experts"]

EXPERIMENT = "experts"
_WEIGHTS, _ORDER, _NOISE = range(3)  # what a seed is for
_CHUNK = 1000  # images evaluated at once


def train_experts(
    settings: ExpertSettings,
    data: Dataset,
    path: Path,
    on_progress: Callable[[float], object] = lambda epochs: None,
    *,
    tensorboard: bool = False,
) -> RunFolder:
    """Train, or continue training, in the folder, whose files `gradest_experiments.engine.folder` describes, and return it.

    The results are the epoch of the least validation error, that error, what `evaluate` returns for it on the test images, and
    whether closed gates receive a gradient.
    The metrics are, for each epoch,

        train     loss: the average over the epoch, at the weights of each step. seconds: of training so far, validation excluded
        valid     error, balance: of the validation images

    A run that was interrupted or killed and is then resumed has the same numbers, seconds apart, on the same machine; torch's
    global generator is left as it was.

    on_progress: called with the number of epochs done, after each step. tensorboard: write the metrics as event files too.

    Raises InvalidInput if the folder holds other settings, and GradestError if training diverges. Ctrl-C raises
    KeyboardInterrupt after the step and its checkpoint.
    """
    folder = RunFolder.open(path, EXPERIMENT, settings, extendable="epochs")
    if "test" not in folder.results:
        with torch.random.fork_rng(devices=[]):
            run = ExpertRun(settings, data)
            fit(run, folder, on_step=lambda step: on_progress(step / run.interval), tensorboard=tensorboard)
            run.network.load_state_dict(run.best_weights)
            folder.add_results(
                best_epoch=run.best_epoch,
                valid=run.best_error,
                test=evaluate(run.network, data.test),
                closed_gate_gradient=run.network.hidden.closed_gate_gradient,
            )
    on_progress(settings.epochs)
    return folder


@torch.no_grad()
def evaluate(network: ExpertNetwork, split: Split) -> dict[str, Any]:
    """Measure a network on a split, with the gates of its router without noise.

    error: the share of wrong answers. load: the share of images that each expert is open for. balance: the squared coefficient of
    variation of the load, 0 if it is even. computed: multiply-adds per image: those of the hidden layer as the layer counts them,
    and those of router and readout. dense: multiply-adds with all units and no router.
    """
    network.eval()
    hidden, wrong, opened = network.hidden, 0, []
    hidden.computed = Computed()
    for first in range(0, len(split), _CHUNK):
        x, y = split.x[first : first + _CHUNK], split.y[first : first + _CHUNK]
        gates = network.gates(x)
        wrong += int((network(x, gates).argmax(-1) != y).sum())
        opened.append(torch.ones(len(x), 1) if gates is None else (gates > 0).to(gates.dtype))
    load = torch.cat(opened).double().mean(0)
    # without gates the hidden layer is torch's, and counts nothing
    done = len(split) * hidden.weight.numel() if network.router is None else hidden.computed.done
    layers = [network.readout.weight, *([] if network.router is None else [network.router.weight])]
    return {
        "error": wrong / len(split),
        "load": load.tolist(),
        "balance": float((load / load.mean() - 1).square().mean()),
        "computed": done / len(split) + sum(weight.numel() for weight in layers),
        "dense": hidden.weight.numel() + network.readout.weight.numel(),
    }


class ExpertRun(ClassifierRun):
    """A mixture of experts in training by Adam. loss: the sum of the mean losses of the epoch's minibatches so far."""

    network: ExpertNetwork

    def __init__(self, settings: ExpertSettings, data: Dataset) -> None:
        self.settings = settings
        torch.default_generator.manual_seed(derive_seed(settings.seed, _WEIGHTS))
        network = ExpertNetwork(data.pixels, data.classes, settings)
        torch.default_generator.manual_seed(derive_seed(settings.seed, _NOISE))
        optimiser = torch.optim.Adam(network.parameters(), lr=settings.learning_rate)
        super().__init__(settings, data, network, optimiser, _ORDER)

    def learn(self, index: Tensor) -> None:
        """Take one step of Adam."""
        self.network.train()
        self.differentiate(*self.network.objective(self.train.x[index], self.train.y[index]))
        if not math.isfinite(self.loss):
            raise GradestError(f"training diverged in epoch {self.step // self.interval + 1}; lower learning_rate")

    def validate(self, epoch: int, metrics: MetricsWriter) -> float:
        """Write the metrics of the epoch that ends, and return the validation error."""
        metrics.write("train", epoch, loss=self.loss / self.interval, seconds=self.seconds)
        valid = evaluate(self.network, self.valid)
        metrics.write("valid", epoch, error=valid["error"], balance=valid["balance"])
        return float(valid["error"])
