"""train: one run of the gated network, from its settings to its results."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradest.conditional import Computed
from gradest.errors import GradestError, InvalidInput
from gradest.experiments.checkpoint import deferred_interrupt, load_checkpoint, save_checkpoint, write_atomically
from gradest.experiments.data import Dataset, Split, load
from gradest.experiments.display import Display
from gradest.experiments.gated import GatedNetwork
from gradest.experiments.settings import ResolvedSettings, Settings
from gradest.experiments.sparsity import build_penalty, limit_norm
from gradest.nn import Stochastic
from gradest.random import Key

__all__ = ["Epoch", "Result", "Score", "build_network", "score", "train"]

_CALIBRATION = 2000  # training images by which the threshold is set
_CHUNK = 1000  # images evaluated at once


class Score(BaseModel):
    """How a network does on a split, in evaluation: mean loss, share of wrong answers, share of open gates (h > 0)."""

    model_config = ConfigDict(frozen=True)

    loss: float
    error: float
    open_share: float


class Epoch(BaseModel):
    """One pass over the training images.

    loss: the mean over its minibatches of the training loss, L1 penalty included. open_share: of P(h > 0). valid: the
    validation score after it.
    """

    model_config = ConfigDict(frozen=True)

    loss: float
    open_share: float
    valid: Score


class Result(BaseModel):
    """A finished run. train, valid and test are the scores of the network that had the best validation error.

    settings: with every default filled in. best_epoch: counted from 1. threshold: the level of P(h > 0) that it was evaluated
    with, where its evaluation is "threshold". computed: the share of the experts' multiply-adds that training did, forward and
    backward. speedup: the time that dense experts take, forward and backward on a minibatch, over that of those it had; 1 for
    dense ones.
    """

    model_config = ConfigDict(frozen=True)

    settings: ResolvedSettings
    versions: dict[str, str]
    best_epoch: int
    threshold: float | None
    train: Score
    valid: Score
    test: Score
    computed: float
    speedup: float
    epochs: tuple[Epoch, ...]
    seconds: float


def train(settings: Settings, *, out: Path | None = None, resume: bool = False, progress: bool = False) -> Result:
    """Train, and score on the test images the network of the best epoch by validation error.

    out: a folder for checkpoint.pt (after each epoch, and at an interrupt), results.json and model.pt (the weights of the
        network that was scored). Without it nothing is written.
    resume: go on from the checkpoint in `out`, if there is one. A run that was interrupted, or killed, and resumed has the
        same numbers as one that was not. A finished run gives its results again.
    progress: show a progress bar.

    The same settings give the same numbers on the same machine; torch's global generator is left as it was.

    Raises InvalidInput if `out` holds another run, or a run and `resume` is not set, GradestError if training diverges, and
    what `load` and `Settings.pair` raise. Ctrl-C raises KeyboardInterrupt after the minibatch and its checkpoint.
    """
    settings = settings.resolved()
    if resume and out is None:
        raise InvalidInput("resume needs the folder of the run: give out")
    files = None if out is None else _Files(Path(out))
    if files:
        files.check(settings, resume)
        if files.results.exists():
            return files.read_results()
    data = load(settings.data, settings.data_dir).to(settings.device)
    with torch.random.fork_rng(devices=[]):
        run = _Run(settings, data)
        if files and files.checkpoint.exists():
            run.restore(load_checkpoint(files.checkpoint))
        elif files:
            save_checkpoint(files.checkpoint, run.state())  # so that resume knows the settings from the first moment on
        with Display(settings, len(run.history), progress) as display:
            _fit(run, display, files)
        result = run.finish()
    if files:
        write_atomically(files.model, lambda new: torch.save(run.network.state_dict(), new))
        write_atomically(files.results, lambda new: new.write_text(result.model_dump_json(indent=2) + "\n"))
    return result


def build_network(settings: ResolvedSettings, inputs: int, outputs: int) -> GatedNetwork:
    """The network of a run, with fresh weights from torch's global generator; load_state_dict gives it those of model.pt."""
    neuron, estimator = settings.pair()
    return GatedNetwork(
        inputs,
        outputs,
        neuron,
        estimator,
        hidden=settings.hidden,
        event=settings.event(),
        penalty=build_penalty(settings.penalty, settings.sparsity, settings.penalty_weight, settings.penalty_rate),
        evaluation=settings.evaluation,
        sparse_experts=settings.experts == "sparse",
    )


@torch.no_grad()
def score(network: GatedNetwork, split: Split) -> Score:
    """The scores of a network in evaluation; it is left in evaluation."""
    network.eval()
    loss = wrong = opened = 0.0
    for x, y in zip(torch.split(split.x, _CHUNK), torch.split(split.y, _CHUNK), strict=True):
        logits, gates = network(x)
        loss += float(cross_entropy(logits, y, reduction="sum"))
        wrong += int((logits.argmax(-1) != y).sum())
        opened += float((gates > 0).double().mean(-1).sum())
    return Score(loss=loss / len(split), error=wrong / len(split), open_share=opened / len(split))


class _Run:
    """All that changes while a run goes on, and how it goes on by a minibatch or an epoch."""

    def __init__(self, settings: ResolvedSettings, data: Dataset) -> None:
        self.settings, self.data = settings, data
        torch.default_generator.manual_seed(settings.seed)
        self.network = build_network(settings, data.pixels, data.classes).to(settings.device)
        gater = list(self.network.gater.parameters())
        rest = [*self.network.experts.parameters(), *self.network.readout.parameters()]
        rate = settings.learning_rate
        self.optimizer = torch.optim.SGD(
            [{"params": gater, "lr": rate * settings.gater_scale}, {"params": rest, "lr": rate}],
            momentum=settings.momentum,
        )
        self.history: list[Epoch] = []
        self.step = 0  # minibatches done in the epoch that is under way
        self.loss_sum = self.open_sum = 0.0
        self.computed = Computed()
        self.best_epoch = 0
        self.best_weights: dict[str, Tensor] = {}
        self.seconds = 0.0

    @property
    def steps(self) -> int:
        """Minibatches an epoch."""
        return -(-len(self.data.train) // self.settings.batch)

    def minibatches(self) -> Iterator[Tensor]:
        """The indices of the minibatches that the epoch under way has left. Their order follows from seed and epoch alone."""
        seed = Key(self.settings.seed).fold_in(len(self.history)).seed
        assert isinstance(seed, int)
        order = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(seed))
        yield from torch.split(order.to(self.settings.device), self.settings.batch)[self.step :]

    def learn(self, index: Tensor) -> None:
        """One step of SGD."""
        network, split = self.network, self.data.train
        network.train()
        network.experts.computed = self.computed
        try:
            objective = network.objective(split.x[index], split.y[index])
        except InvalidInput:  # the layer looks at its pre-activations, so that the weights need no look in every step
            if all(bool(torch.isfinite(weights).all()) for weights in network.parameters()):
                raise
            raise self._diverged("a weight is no longer finite") from None
        loss = float(objective.loss)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        self.optimizer.zero_grad()
        objective.total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        limit_norm(network, self.settings.max_norm)
        open_share = float(objective.open_share)
        network.penalty.steer(open_share)
        self.step += 1
        self.loss_sum += loss
        self.open_sum += open_share

    def end_epoch(self) -> None:
        """Validate, and keep the weights if they are the best so far."""
        self.network.experts.computed = Computed()
        self._calibrate()
        valid = score(self.network, self.data.valid)
        means = self.means()
        if not self.history or valid.error < self.history[self.best_epoch - 1].valid.error:
            self.best_epoch = len(self.history) + 1
            self.best_weights = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.history.append(Epoch(loss=means[0], open_share=means[1], valid=valid))
        self.step, self.loss_sum, self.open_sum = 0, 0.0, 0.0

    def means(self) -> tuple[float, float]:
        """Training loss and open share, over the minibatches of the epoch so far."""
        done = max(1, self.step)
        return self.loss_sum / done, self.open_sum / done

    def finish(self) -> Result:
        """The result, by the best weights, which the network is given."""
        network, settings = self.network, self.settings
        network.load_state_dict(self.best_weights)
        return Result(
            settings=settings,
            versions={"gradest": version("gradest"), "torch": torch.__version__, "python": platform.python_version()},
            best_epoch=self.best_epoch,
            threshold=float(network.unit.threshold) if settings.evaluation == "threshold" else None,
            train=score(network, self.data.train),
            valid=self.history[self.best_epoch - 1].valid,
            test=score(network, self.data.test),
            computed=self.computed.share,
            speedup=_speedup(network, self.data.train.x[: settings.batch]),
            epochs=tuple(self.history),
            seconds=self.seconds,
        )

    def state(self) -> dict[str, Any]:
        """All of it, for a checkpoint."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "history": [epoch.model_dump() for epoch in self.history],
            "step": self.step,
            "loss_sum": self.loss_sum,
            "open_sum": self.open_sum,
            "computed": (self.computed.done, self.computed.of),
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where a checkpoint was."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        self.history = [Epoch(**epoch) for epoch in state["history"]]
        self.step, self.loss_sum, self.open_sum = state["step"], state["loss_sum"], state["open_sum"]
        self.computed = Computed(*state["computed"])
        self.best_epoch, self.best_weights = state["best_epoch"], state["best_weights"]
        self.seconds = state["seconds"]

    def _diverged(self, how: str) -> GradestError:
        where = f"epoch {len(self.history) + 1}, minibatch {self.step + 1}"
        return GradestError(f"training diverged in {where}: {how}; lower learning_rate or gater_scale")

    def _calibrate(self) -> None:
        if self.settings.threshold is not None:
            self.network.unit.threshold.fill_(self.settings.threshold)
        elif self.settings.evaluation == "threshold":
            self.network.calibrate(self.data.train.x[:_CALIBRATION], self.settings.sparsity)


def _speedup(network: GatedNetwork, x: Tensor) -> float:
    """Of the experts by their method over dense ones, on samples of the gates that these inputs have in training."""
    layer = network.experts
    if layer.method == "dense" or not isinstance(network.unit, Stochastic):
        return 1.0
    with torch.no_grad():
        a = network.pre_activations(x)
        gates = network.neuron.sample(Key(0), a, 1)[0].reshape(len(x), -1).to(a.dtype)
    gates.requires_grad_()
    methods: list[Any] = [layer.method, "dense"]
    seconds = dict.fromkeys(methods, math.inf)
    for _ in range(7):
        for layer.method in methods:
            start = time.perf_counter()
            torch.autograd.grad(layer(x, gates).sum(), (gates, *layer.parameters()))
            seconds[layer.method] = min(seconds[layer.method], time.perf_counter() - start)
    layer.method = methods[0]
    return seconds["dense"] / seconds[layer.method]


def _fit(run: _Run, display: Display, files: _Files | None) -> None:
    """Train until the last epoch; with files, a checkpoint an epoch, and one where Ctrl-C stops it."""
    began = time.perf_counter() - run.seconds

    def save() -> None:
        run.seconds = time.perf_counter() - began
        if files:
            save_checkpoint(files.checkpoint, run.state())

    with deferred_interrupt() as interrupted:
        while len(run.history) < run.settings.epochs:
            for index in run.minibatches():
                if interrupted():
                    save()
                    return
                run.learn(index)
                display.minibatch(run.step / run.steps, *run.means())
            run.end_epoch()
            display.epoch(run.history[-1].valid.error)
            save()


@dataclass(frozen=True)
class _Files:
    """The files of a run in its folder."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    @property
    def results(self) -> Path:
        return self.folder / "results.json"

    @property
    def model(self) -> Path:
        return self.folder / "model.pt"

    def check(self, settings: ResolvedSettings, resume: bool) -> None:
        """Raise InvalidInput unless the folder is empty of runs, or holds this one and it may be resumed."""
        if self.results.exists():
            found = self.read_results().settings.model_dump(mode="json")
        elif self.checkpoint.exists():
            found = load_checkpoint(self.checkpoint)["settings"]
        else:
            return
        if not resume:
            raise InvalidInput(f"{self.folder} holds a run already: resume it, or choose another folder")
        wanted = settings.model_dump(mode="json")
        if found != wanted:
            names = [name for name in wanted if found.get(name) != wanted[name]]
            changes = ", ".join(f"{name} {found.get(name)!r} (now {wanted[name]!r})" for name in names)
            raise InvalidInput(f"{self.folder} holds a run with other settings: {changes}. Choose another folder")

    def read_results(self) -> Result:
        """The results of the finished run."""
        try:
            return Result.model_validate_json(self.results.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{self.results} is damaged; delete it to score the run again") from error
