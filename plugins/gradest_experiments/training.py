"""train: one run of the gated network, from its settings to its results."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradest.errors import GradestError, InvalidInput
from gradest.estimation.distributed import rank, world_size
from gradest.nn import Stochastic
from gradest.nn.conditional import Computed
from gradest.random import Key
from gradest_experiments.checkpoint import deferred_interrupt, write_atomically
from gradest_experiments.data import Dataset, Split, load
from gradest_experiments.display import Display
from gradest_experiments.engine.distributed import all_reduce_sum, any_rank, barrier
from gradest_experiments.folder import Metrics, MetricsRow, RunFolder
from gradest_experiments.gated import GatedNetwork
from gradest_experiments.settings import ResolvedSettings, Settings
from gradest_experiments.sparsity import build_penalty, limit_norm

__all__ = ["EXPERIMENT", "Epoch", "Result", "Score", "build_network", "score", "train"]

EXPERIMENT = "gated-network"
_MODEL = "model.pt"
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

    def to_row(self) -> MetricsRow:
        """As a line of metrics has it, flat."""
        valid = {f"valid_{name}": value for name, value in self.valid.model_dump().items()}
        return {"loss": self.loss, "open_share": self.open_share, **valid}

    @classmethod
    def from_row(cls, row: MetricsRow) -> Epoch:
        """What `to_row` gave; null stands for what is no number."""
        found = {name: math.nan if value is None else value for name, value in row.items()}
        valid = Score(**{name: found[f"valid_{name}"] for name in Score.model_fields})
        return cls(loss=found["loss"], open_share=found["open_share"], valid=valid)


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


def train(
    settings: Settings,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Train, and score on the test images the network of the best epoch by validation error.

    out: a folder for the run, as `gradest_experiments.folder` has it, with a checkpoint after each epoch and at an interrupt,
        and model.pt, the weights of the network that was scored. Without it nothing is written.
    resume: go on from the checkpoint in `out`, if there is one. A run that was interrupted, or killed, and resumed has the
        same numbers as one that was not. A finished run gives its results again; with more epochs than it had it goes on, and
        has the numbers of a run that had them from the start.
    progress: show a progress bar.
    tensorboard: write the metrics as event files too.

    The same settings give the same numbers on the same machine; torch's global generator is left as it was. Under
    torch.distributed the processes share each minibatch: the numbers differ by the order in which gradients are added up.

    Raises InvalidInput if `out` holds another run, or a run and `resume` is not set, GradestError if training diverges, and
    what `load` and `Settings.pair` raise. Ctrl-C raises KeyboardInterrupt after the minibatch and its checkpoint.
    """
    settings = settings.resolved()
    if resume and out is None:
        raise InvalidInput("resume needs the folder of the run: give out")
    if out is not None and RunFolder.is_at(Path(out)) and not resume:
        raise InvalidInput(f"{out} holds a run already: resume it, or choose another folder")
    folder = RunFolder.enter(None if out is None else Path(out), EXPERIMENT, settings, grows="epochs")
    if folder.results:
        return _read_result(folder)
    data = load(settings.data, settings.data_dir).to(settings.device)
    with torch.random.fork_rng(devices=[]):
        run = _Run(settings, data)
        state = folder.load()
        barrier()  # until all processes have read it
        with folder.record(state["metrics"] if state else 0, tensorboard=tensorboard) as metrics:
            if state:
                run.restore(state, folder.rows("epoch"))
            else:
                folder.save(run.state(), metrics)
            with Display(settings, len(run.history), progress) as display:
                _fit(run, display, folder, metrics)
        result = run.finish(folder.versions)
    if folder.path and not rank():
        write_atomically(folder.path / _MODEL, lambda new: torch.save(run.network.state_dict(), new))
    folder.add(**result.model_dump(mode="json", exclude={"settings", "versions", "epochs"}))
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
    own = slice(rank(), None, world_size())
    for images, labels in zip(torch.split(split.x, _CHUNK), torch.split(split.y, _CHUNK), strict=True):
        x, y = images[own], labels[own]
        logits, gates = network(x)
        loss += float(cross_entropy(logits, y, reduction="sum"))
        wrong += int((logits.argmax(-1) != y).sum())
        opened += float((gates > 0).double().mean(-1).sum())
    loss, wrong, opened = _over_processes(loss, wrong, opened)
    return Score(loss=loss / len(split), error=wrong / len(split), open_share=opened / len(split))


def _over_processes(*numbers: float) -> list[float]:
    sums = torch.tensor(numbers, dtype=torch.float64)
    all_reduce_sum([sums])
    found: list[float] = sums.tolist()
    return found


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
        """One step of SGD, of which each process does its part."""
        network, split, own = self.network, self.data.train, index[rank() :: world_size()]
        network.train()
        network.experts.computed = computed = Computed()
        try:
            objective = network.objective(split.x[own], split.y[own], len(index))
        except InvalidInput:  # the layer looks at its pre-activations, so that the weights need no look in every step
            if all(bool(torch.isfinite(weights).all()) for weights in network.parameters()):
                raise
            raise self._diverged("a weight is no longer finite") from None
        self.optimizer.zero_grad()
        objective.total.backward()  # type: ignore[no-untyped-call]
        loss, done, of = _over_processes(float(objective.loss), computed.done, computed.of)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        all_reduce_sum(weights.grad for weights in network.parameters() if weights.grad is not None)
        self.optimizer.step()
        limit_norm(network, self.settings.max_norm)
        open_share = float(objective.open_share)
        network.penalty.steer(open_share)
        self.computed = Computed(self.computed.done + int(done), self.computed.of + int(of))
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

    def finish(self, versions: dict[str, str]) -> Result:
        """The result, by the best weights, which the network is given."""
        network, settings = self.network, self.settings
        network.load_state_dict(self.best_weights)
        return Result(
            settings=settings,
            versions=versions,
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
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": torch.get_rng_state(),
            "epoch": len(self.history),
            "step": self.step,
            "loss_sum": self.loss_sum,
            "open_sum": self.open_sum,
            "computed": (self.computed.done, self.computed.of),
            "best_epoch": self.best_epoch,
            "best_weights": self.best_weights,
            "seconds": self.seconds,
        }

    def restore(self, state: dict[str, Any], epochs: list[MetricsRow]) -> None:
        """Go back to where a checkpoint was, with the lines of the epochs before it."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["generator"])
        self.history = [Epoch.from_row(row) for row in epochs[: state["epoch"]]]
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


def _fit(run: _Run, display: Display, folder: RunFolder, metrics: Metrics) -> None:
    """Train until the last epoch; a checkpoint an epoch, and one where Ctrl-C stops it."""
    began = time.perf_counter() - run.seconds

    def save() -> None:
        run.seconds = time.perf_counter() - began
        folder.save(run.state(), metrics)

    with deferred_interrupt() as interrupted:
        while len(run.history) < run.settings.epochs:
            for index in run.minibatches():
                if any_rank(interrupted()):
                    save()
                    raise KeyboardInterrupt
                run.learn(index)
                display.minibatch(run.step / run.steps, *run.means())
            run.end_epoch()
            metrics.write("epoch", len(run.history), **run.history[-1].to_row())
            display.epoch(run.history[-1].valid.error)
            save()


def _read_result(folder: RunFolder) -> Result:
    """The result of a finished run."""
    epochs = tuple(Epoch.from_row(row) for row in folder.rows("epoch"))
    try:
        return Result(
            settings=ResolvedSettings(**folder.settings), versions=folder.versions, epochs=epochs, **folder.results
        )
    except (ValidationError, TypeError) as error:
        raise InvalidInput(f"the results in {folder.path} are damaged; delete the folder to run it again") from error
