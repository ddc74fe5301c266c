"""`train_blocks`: one run, from its settings to its test error."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradest.discovery.registry import registry
from gradest.errors import GradestError
from gradest.nn.conditional import Computed
from gradest.random import Key
from gradest_experiments.blocks.network import BlockNetwork
from gradest_experiments.blocks.settings import NEURON, BlockSettings
from gradest_experiments.checkpoint import deferred_interrupt
from gradest_experiments.data import Dataset, Split
from gradest_experiments.folder import Metrics, RunFolder

__all__ = ["EXPERIMENT", "evaluate", "open_gates", "train_blocks"]

EXPERIMENT = "block-gated"
_WEIGHTS, _ORDER, _NOISE, _VALIDATION, _TEST = range(5)  # what a seed is for
_CHUNK = 1000  # images evaluated at once
_KEPT = ("epoch", "step", "loss", "best_epoch", "best_error", "best_weights", "seconds")  # in a checkpoint, as they are


def train_blocks(
    settings: BlockSettings,
    data: Dataset,
    path: Path,
    tick: Callable[[float], object] = lambda epochs: None,
    *,
    tensorboard: bool = False,
) -> BlockNetwork:
    """Train, or go on training, in the folder, which is as `gradest_experiments.folder` has it.

    Returns the network of the epoch with the best validation error. Results are that epoch, its validation error, and what
    `evaluate` says of it on the test images: `test`, with sampled gates, and `threshold`. The metrics are, each epoch,

        train     loss: mean over the epoch, at the weights of each step. seconds: of training so far, measurements left out
        valid     error, open: of the validation images

    A run that was interrupted or killed goes on to the same numbers, seconds apart, on the same machine, and so does a finished
    one that is given more epochs; torch's global generator is left as it was. tick(epochs) is told how far it is.

    tensorboard: write the metrics as event files too.

    Raises InvalidInput where the folder holds other settings, GradestError where training diverges. Ctrl-C raises
    KeyboardInterrupt after the step and its checkpoint.
    """
    folder = RunFolder.enter(path, EXPERIMENT, settings, grows="epochs")
    with torch.random.fork_rng(devices=[]):
        run, state = _Run(settings, data), folder.load()
        if state:
            run.restore(state)
        if "test" not in folder.results:
            kept = state["metrics"] if state else 0
            with folder.record(kept, tensorboard=tensorboard) as metrics, deferred_interrupt() as interrupted:
                _fit(run, lambda: folder.save(run.state(), metrics), metrics, interrupted, tick)
        network = run.network
        network.load_state_dict(run.best_weights)
        if "test" not in folder.results:
            likely, sampled = (evaluate(network, data.test, key) for key in (None, run.key.fold_in(_TEST)))
            folder.add(best_epoch=run.best_epoch, valid=run.best_error, threshold=likely, test=sampled)
    tick(settings.epochs)
    return network


def _fit(
    run: _Run,
    save: Callable[[], None],
    metrics: Metrics,
    interrupted: Callable[[], bool],
    tick: Callable[[float], object],
) -> None:
    while run.epoch < run.settings.epochs:
        order = run.order()
        for index in order[run.step :]:
            if interrupted():
                save()
                return
            run.learn(index)
            tick(run.epoch + run.step / len(order))
        run.end_epoch(metrics)
        save()


def open_gates(network: BlockNetwork, x: Tensor, key: Key | None = None) -> Tensor | None:
    """The gates `[batch, blocks]` that the policy opens: at random, or those more likely open than not; None without a policy."""
    if network.policy is None:
        return None
    a: Tensor = network.policy(x)
    return (a > 0).to(a.dtype) if key is None else registry.neuron(NEURON).sample(key, a, 1)[0].to(a.dtype)


@torch.no_grad()
def evaluate(network: BlockNetwork, split: Split, key: Key | None = None) -> dict[str, Any]:
    """How the network does on a split.

    error: the share of wrong answers. open: of open blocks. use: `[classes, blocks]`, the share of a class's images for which
    a block is open. classes: the share of images of each. computed: multiply-adds an image, counted by the hidden layer as they
    are done, with policy and readout. dense: those of all units, without a policy.
    """
    network.eval()
    hidden, classes, wrong, opened = network.hidden, len(network.readout.weight), 0, []
    hidden.computed = Computed()
    for first in range(0, len(split), _CHUNK):
        x, y = split.x[first : first + _CHUNK], split.y[first : first + _CHUNK]
        gates = open_gates(network, x, key and replace(key, rows=torch.arange(first, first + len(x))))
        wrong += int((network(x, gates).argmax(-1) != y).sum())
        opened.append(torch.ones(len(x), 1) if gates is None else gates)
    gates = torch.cat(opened)
    # a layer without gates is torch's, and counts nothing
    done = len(split) * hidden.weight.numel() if network.policy is None else hidden.computed.done
    layers = [network.readout.weight, *([] if network.policy is None else [network.policy.weight])]
    return {
        "error": wrong / len(split),
        "open": float(gates.double().mean()),
        "use": [gates[split.y == c].double().mean(0).tolist() for c in range(classes)],
        "classes": split.y.bincount(minlength=classes).div(len(split)).tolist(),
        "computed": done / len(split) + sum(weight.numel() for weight in layers),
        "dense": hidden.weight.numel() + network.readout.weight.numel(),
    }


class _Run:
    """All that changes while a run goes on."""

    def __init__(self, settings: BlockSettings, data: Dataset) -> None:
        self.settings, self.train, self.valid, self.key = settings, data.train, data.valid, Key(settings.seed)
        if settings.images is not None:
            self.train = Split(data.train.x[: settings.images], data.train.y[: settings.images])
        torch.default_generator.manual_seed(self._seed(_WEIGHTS))
        self.network = BlockNetwork(data.pixels, data.classes, settings)
        torch.default_generator.manual_seed(self._seed(_NOISE))
        policy = [] if self.network.policy is None else list(self.network.policy.parameters())
        rest = [*self.network.hidden.parameters(), *self.network.readout.parameters()]
        groups = [{"params": rest, "lr": settings.learning_rate}, {"params": policy, "lr": settings.policy_rate}]
        # the gradient of λ|θ|² is 2λθ
        self.optimiser = torch.optim.SGD(
            [group for group in groups if group["params"]], weight_decay=2 * settings.decay
        )
        self.epoch = self.step = self.best_epoch = 0
        self.loss = 0.0  # of the epoch so far
        self.best_error, self.best_weights = math.inf, self._weights()
        self.seconds = 0.0

    def order(self) -> tuple[Tensor, ...]:
        """The minibatches of the epoch under way."""
        generator = torch.Generator().manual_seed(self._seed(_ORDER, self.epoch))
        return torch.split(torch.randperm(len(self.train), generator=generator), self.settings.batch)

    def learn(self, index: Tensor) -> None:
        """One step of SGD."""
        began = time.perf_counter()
        self.network.train()
        objective = self.network.objective(self.train.x[index], self.train.y[index])
        self.optimiser.zero_grad()
        objective.total.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.step += 1
        self.loss += float(objective.loss)
        self.seconds += time.perf_counter() - began
        if not math.isfinite(self.loss):
            raise GradestError(f"training diverged in epoch {self.epoch + 1}; lower learning_rate or policy_rate")

    def end_epoch(self, metrics: Metrics) -> None:
        """Validate, and keep the weights if they are the best so far."""
        self.epoch += 1
        metrics.write("train", self.epoch, loss=self.loss / len(self.train), seconds=self.seconds)
        found = evaluate(self.network, self.valid, self.key.fold_in(_VALIDATION))
        metrics.write("valid", self.epoch, error=found["error"], open=found["open"])
        if found["error"] < self.best_error:
            self.best_epoch, self.best_error, self.best_weights = self.epoch, found["error"], self._weights()
        self.step, self.loss = 0, 0.0

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        kept = {name: getattr(self, name) for name in _KEPT}
        parts = {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}
        return {**kept, **parts, "generator": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["generator"])
        for name in _KEPT:
            setattr(self, name, state[name])

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.clone() for name, value in self.network.state_dict().items()}

    def _seed(self, *numbers: int) -> int:
        key = self.key
        for number in numbers:
            key = key.fold_in(number)
        assert isinstance(key.seed, int)
        return key.seed
