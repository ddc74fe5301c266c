"""`train_blocks`: one run, from its settings to its test error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradest.errors import GradestError
from gradest.nn.conditional import Computed
from gradest.random import Key
from gradest_experiments.blocks.network import BlockNetwork
from gradest_experiments.blocks.settings import BlockSettings
from gradest_experiments.engine.data import Dataset, Split
from gradest_experiments.engine.folder import MetricsWriter, RunFolder
from gradest_experiments.engine.loop import ClassifierRun, fit
from gradest_experiments.engine.seeds import derive_key, derive_seed

__all__ = ["EXPERIMENT", "BlockRun", "evaluate", "open_gates", "train_blocks"]

EXPERIMENT = "block-gated"
_WEIGHTS, _ORDER, _NOISE, _VALIDATION, _TEST = range(5)  # what a seed is for
_CHUNK = 1000  # images evaluated at once


def train_blocks(
    settings: BlockSettings,
    data: Dataset,
    path: Path,
    on_progress: Callable[[float], object] = lambda epochs: None,
    *,
    tensorboard: bool = False,
) -> BlockNetwork:
    """Train, or continue training, in the folder, whose files `gradest_experiments.engine.folder` describes.

    Returns the network of the epoch with the least validation error. The results are that epoch, its validation error, and what
    `evaluate` returns for it on the test images: `test` with sampled gates, `threshold` with the gates more likely open than
    not. The metrics are, for each epoch,

        train     loss: the average over the epoch, at the weights of each step. seconds: of training so far, validation excluded
        valid     error, open: of the validation images

    A run that was interrupted or killed and is then resumed has the same numbers, seconds apart, on the same machine, and so
    has a finished run that is given more epochs; torch's global generator is left as it was.

    on_progress: called with the number of epochs done, after each step. tensorboard: write the metrics as event files too.

    Raises InvalidInput if the folder holds other settings, and GradestError if training diverges. Ctrl-C raises
    KeyboardInterrupt after the step and its checkpoint.
    """
    folder = RunFolder.open(path, EXPERIMENT, settings, extendable="epochs")
    with torch.random.fork_rng(devices=[]):
        run, finished = BlockRun(settings, data), "test" in folder.results
        network = run.network
        if not finished:
            fit(run, folder, on_step=lambda step: on_progress(step / run.interval), tensorboard=tensorboard)
        elif state := folder.load():
            run.restore(state, folder)
        network.load_state_dict(run.best_weights)
        if not finished:
            keys = None, derive_key(settings.seed, _TEST)
            likely, sampled = (evaluate(network, data.test, key) for key in keys)
            folder.add_results(best_epoch=run.best_epoch, valid=run.best_error, threshold=likely, test=sampled)
    on_progress(settings.epochs)
    return network


def open_gates(network: BlockNetwork, x: Tensor, key: Key | None = None) -> Tensor | None:
    """Return the gates `[batch, blocks]` that the policy opens; None if the network has no policy.

    key: of the noise with which gates are sampled. If omitted, the likeliest gates are open: of independent ones those more
        likely open than not, else the likeliest one or the likeliest k.
    """
    if network.policy is None:
        return None
    a, neuron = network.pre_activations(x), network.neuron
    units = neuron.threshold(a, 0.5) if key is None else neuron.sample(key, a, 1)[0]
    return network.flat(units.to(a.dtype))


@torch.no_grad()
def evaluate(network: BlockNetwork, split: Split, key: Key | None = None) -> dict[str, Any]:
    """Measure a network on a split, with the gates of `open_gates`.

    error: the share of wrong answers. open: the share of open blocks. use: `[classes, blocks]`, the share of a class's images
    for which a block is open. unopened: the share of images for which no block is open, so that all have the same answer.
    unopened_errors: the share of images that are among these and have a wrong answer. classes: the share of each class in the
    images. computed: multiply-adds per image: those of the hidden layer as the layer counts them, and those of policy and
    readout. dense: multiply-adds with all units and no policy.
    """
    network.eval()
    hidden, classes, wrongs, opened = network.hidden, len(network.readout.weight), [], []
    hidden.computed = Computed()
    for first in range(0, len(split), _CHUNK):
        x, y = split.x[first : first + _CHUNK], split.y[first : first + _CHUNK]
        gates = open_gates(network, x, key and replace(key, rows=torch.arange(first, first + len(x))))
        wrongs.append(network(x, gates).argmax(-1) != y)
        opened.append(torch.ones(len(x), 1) if gates is None else gates)
    gates, wrong = torch.cat(opened), torch.cat(wrongs)
    unopened = gates.sum(-1) == 0
    # without gates the hidden layer is torch's, and counts nothing
    done = len(split) * hidden.weight.numel() if network.policy is None else hidden.computed.done
    layers = [network.readout.weight, *([] if network.policy is None else [network.policy.weight])]
    return {
        "error": int(wrong.sum()) / len(split),
        "open": float(gates.double().mean()),
        "use": [gates[split.y == c].double().mean(0).tolist() for c in range(classes)],
        "unopened": int(unopened.sum()) / len(split),
        "unopened_errors": int((unopened & wrong).sum()) / len(split),
        "classes": split.y.bincount(minlength=classes).div(len(split)).tolist(),
        "computed": done / len(split) + sum(weight.numel() for weight in layers),
        "dense": hidden.weight.numel() + network.readout.weight.numel(),
    }


class BlockRun(ClassifierRun):
    """A block-gated network in training by SGD. loss: the sum of the losses of the epoch so far."""

    KEPT: ClassVar[tuple[str, ...]] = tuple(name for name in ClassifierRun.KEPT if name != "step")
    network: BlockNetwork

    def __init__(self, settings: BlockSettings, data: Dataset) -> None:
        self.settings = settings
        torch.default_generator.manual_seed(derive_seed(settings.seed, _WEIGHTS))
        network = BlockNetwork(data.pixels, data.classes, settings)
        torch.default_generator.manual_seed(derive_seed(settings.seed, _NOISE))
        policy = [] if network.policy is None else list(network.policy.parameters())
        rest = [*network.hidden.parameters(), *network.readout.parameters()]
        groups = [{"params": rest, "lr": settings.learning_rate}, {"params": policy, "lr": settings.policy_rate}]
        # the gradient of λ|θ|² is 2λθ
        optimiser = torch.optim.SGD([group for group in groups if group["params"]], weight_decay=2 * settings.decay)
        super().__init__(settings, data, network, optimiser, _ORDER)

    def learn(self, index: Tensor) -> None:
        """Take one step of SGD."""
        self.network.train()
        objective = self.network.objective(self.train.x[index], self.train.y[index])
        self.differentiate(objective.total, objective.loss)
        if not math.isfinite(self.loss):
            epoch = self.step // self.interval + 1
            raise GradestError(f"training diverged in epoch {epoch}; lower learning_rate or policy_rate")

    def validate(self, epoch: int, metrics: MetricsWriter) -> float:
        """Write the metrics of the epoch that ends, and return the validation error."""
        metrics.write("train", epoch, loss=self.loss / len(self.train), seconds=self.seconds)
        valid = evaluate(self.network, self.valid, derive_key(self.settings.seed, _VALIDATION))
        metrics.write("valid", epoch, error=valid["error"], open=valid["open"])
        return float(valid["error"])

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds."""
        epoch, step = divmod(self.step, self.interval)
        return {**super().state(), "epoch": epoch, "step": step}

    def restore(self, state: Mapping[str, Any], folder: RunFolder) -> None:
        """Return to the state of a checkpoint."""
        super().restore(state, folder)
        self.step = state["epoch"] * self.interval + state["step"]
