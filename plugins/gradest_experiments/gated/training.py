"""`train`: one run of the gated network, from its settings to its results."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor
from torch.nn.functional import cross_entropy

from gradest.errors import GradestError, InvalidInput
from gradest.estimation.distributed import rank, world_size
from gradest.nn import Stochastic
from gradest.nn.conditional import Computed
from gradest.random import Key
from gradest_experiments.engine.checkpoint import write_atomically
from gradest_experiments.engine.data import Dataset, Split, load
from gradest_experiments.engine.distributed import all_reduce_sum
from gradest_experiments.engine.folder import MetricsRow, MetricsWriter, RunFolder
from gradest_experiments.engine.loop import GlobalGenerator, Minibatches, TrainingRun, copy_weights, fit
from gradest_experiments.gated.display import Display
from gradest_experiments.gated.network import GatedNetwork
from gradest_experiments.gated.settings import GatedSettings, ResolvedGatedSettings
from gradest_experiments.gated.sparsity import build_penalty, limit_norm

__all__ = ["EXPERIMENT", "Epoch", "GatedRun", "Result", "Score", "build_network", "score", "train"]

EXPERIMENT = "gated-network"
_MODEL = "model.pt"
_CALIBRATION = 2000  # training images on which the threshold is set
_CHUNK = 1000  # images evaluated at once


class Score(BaseModel):
    """How a network in evaluation does on a split: mean loss, share of wrong answers, and share of open gates (h > 0)."""

    model_config = ConfigDict(frozen=True)

    loss: float
    error: float
    open_share: float


class Epoch(BaseModel):
    """One pass over the training images.

    loss: the training loss, L1 penalty included, averaged over the minibatches. open_share: the average of P(h > 0). valid: the
    score on the validation images after the epoch.
    """

    model_config = ConfigDict(frozen=True)

    loss: float
    open_share: float
    valid: Score

    def to_row(self) -> MetricsRow:
        """Return the epoch as a flat line of metrics."""
        valid = {f"valid_{name}": value for name, value in self.valid.model_dump().items()}
        return {"loss": self.loss, "open_share": self.open_share, **valid}

    @classmethod
    def from_row(cls, row: MetricsRow) -> Epoch:
        """Return the epoch of a line of metrics, in which null stands for NaN."""
        numbers = {name: math.nan if value is None else value for name, value in row.items()}
        valid = Score(**{name: numbers[f"valid_{name}"] for name in Score.model_fields})
        return cls(loss=numbers["loss"], open_share=numbers["open_share"], valid=valid)


class Result(BaseModel):
    """A finished run. train, valid and test are the scores of the network of the epoch with the least validation error.

    settings: the settings, with every default filled in. best_epoch: the number of that epoch, counted from 1. threshold: the
    level of P(h > 0) above which a gate was open in evaluation, if the settings' evaluation is "threshold". computed: the share
    of the experts' multiply-adds that training did, forward and backward. speedup: the time that dense experts take on a
    minibatch, forward and backward, divided by the time of the run's own; 1 if the run's own are dense.
    """

    model_config = ConfigDict(frozen=True)

    settings: ResolvedGatedSettings
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
    settings: GatedSettings,
    *,
    out: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    tensorboard: bool = False,
) -> Result:
    """Train, and score on the test images the network of the epoch with the least validation error.

    out: a folder for the run, with the files that `gradest_experiments.engine.folder` describes, a checkpoint after each epoch
        and at an interrupt, and model.pt, the weights of the network that was scored. If omitted, nothing is written.
    resume: continue from the checkpoint in `out`, if there is one. A run that was interrupted or killed and is then resumed has
        the same numbers as one that was not. For a finished run the results are returned again; if it is given more epochs than
        it had, it goes on, and has the numbers of a run that had them from the start.
    progress: show a progress bar on standard error.
    tensorboard: write the metrics as event files too.

    The same settings give the same numbers on the same machine; torch's global generator is left as it was. Under
    torch.distributed the processes share each minibatch: the numbers differ by the order in which gradients are added up.

    Raises InvalidInput if `out` holds another run, or a run and `resume` is not set, GradestError if training diverges, and
    what `load` and `GatedSettings.pair` raise. Ctrl-C raises KeyboardInterrupt after the minibatch and its checkpoint.
    """
    settings = settings.resolved()
    if resume and out is None:
        raise InvalidInput("resume needs the folder of the run: give out")
    if out is not None and RunFolder.exists(Path(out)) and not resume:
        raise InvalidInput(f"{out} holds a run already: resume it, or choose another folder")
    folder = RunFolder.open(None if out is None else Path(out), EXPERIMENT, settings, extendable="epochs")
    if folder.results:
        return _read_result(folder)
    data = load(settings.data, settings.data_dir).to(settings.device)
    with torch.random.fork_rng(devices=[]):
        run = GatedRun(settings, data)
        with Display(settings, enabled=progress) as display:
            fit(run, folder, on_step=lambda step: _show(display, run), tensorboard=tensorboard)
        result = run.finish(folder.versions)
    if folder.path and not rank():
        write_atomically(folder.path / _MODEL, lambda new: torch.save(run.network.state_dict(), new))
    folder.add_results(**result.model_dump(mode="json", exclude={"settings", "versions", "epochs"}))
    return result


def build_network(settings: ResolvedGatedSettings, inputs: int, outputs: int) -> GatedNetwork:
    """Return the network of a run, with initial weights from torch's global generator; load_state_dict sets those of model.pt."""
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
    """Score a network on a split, over all processes; the network is left in evaluation mode."""
    network.eval()
    loss = wrong = opened = 0.0
    own = slice(rank(), None, world_size())
    for images, labels in zip(torch.split(split.x, _CHUNK), torch.split(split.y, _CHUNK), strict=True):
        x, y = images[own], labels[own]
        logits, gates = network(x)
        loss += float(cross_entropy(logits, y, reduction="sum"))
        wrong += int((logits.argmax(-1) != y).sum())
        opened += float((gates > 0).double().mean(-1).sum())
    loss, wrong, opened = _sum_over_processes(loss, wrong, opened)
    return Score(loss=loss / len(split), error=wrong / len(split), open_share=opened / len(split))


def _sum_over_processes(*numbers: float) -> list[float]:
    sums = torch.tensor(numbers, dtype=torch.float64)
    all_reduce_sum([sums])
    summed: list[float] = sums.tolist()
    return summed


class GatedRun(TrainingRun):
    """A gated network in training by SGD.

    split: the images to learn from; all training images if omitted. fused: torch's option of SGD, whose two ways round
    differently.
    """

    KEPT: ClassVar[tuple[str, ...]] = ("loss_sum", "open_sum", "best_epoch", "best_weights", "seconds")

    def __init__(
        self, settings: ResolvedGatedSettings, data: Dataset, split: Split | None = None, *, fused: bool | None = None
    ) -> None:
        self.settings, self.data, self.split = settings, data, data.train if split is None else split
        torch.default_generator.manual_seed(settings.seed)
        self.network = self.build_network().to(settings.device)
        gater = list(self.network.gater.parameters())
        rest = [*self.network.experts.parameters(), *self.network.readout.parameters()]
        rate = settings.learning_rate
        self.optimizer = torch.optim.SGD(
            [{"params": gater, "lr": rate * settings.gater_scale}, {"params": rest, "lr": rate}],
            momentum=settings.momentum,
            fused=fused,
        )
        minibatches = Minibatches(len(self.split), settings.batch, settings.seed, device=settings.device)
        parts = {"network": self.network, "optimizer": self.optimizer, "generator": GlobalGenerator()}
        super().__init__(minibatches, settings.epochs * minibatches.per_epoch, minibatches.per_epoch, parts)
        self.history: list[Epoch] = []
        self.loss_sum = self.open_sum = 0.0  # over the minibatches of the epoch under way
        self.computed = Computed()
        self.best_epoch, self.best = 0, Score(loss=math.inf, error=math.inf, open_share=math.nan)
        self.best_weights: dict[str, Tensor] = {}

    def build_network(self) -> GatedNetwork:
        """Return the network that is trained, with initial weights from torch's global generator."""
        return build_network(self.settings, self.data.pixels, self.data.classes)

    def learn(self, index: Tensor) -> None:
        """Take one step of SGD, in which each process does its part of the minibatch."""
        network, split, own = self.network, self.split, index[rank() :: world_size()]
        network.train()
        network.experts.computed = computed = Computed()
        try:
            objective = network.objective(split.x[own], split.y[own], len(index))
        except InvalidInput:  # the layer checks its pre-activations, so the weights need no check in every step
            if all(bool(torch.isfinite(weights).all()) for weights in network.parameters()):
                raise
            raise self._diverged("a weight is no longer finite") from None
        self.optimizer.zero_grad()
        objective.total.backward()  # type: ignore[no-untyped-call]
        loss, open_share = torch.stack([objective.loss, objective.open_share]).tolist()  # waits for the device once
        loss, done, of = _sum_over_processes(loss, computed.done, computed.of)
        if not math.isfinite(loss):
            raise self._diverged(f"the loss is {loss}")
        all_reduce_sum(weights.grad for weights in network.parameters() if weights.grad is not None)
        self.optimizer.step()
        limit_norm(network, self.settings.max_norm)
        network.penalty.steer(open_share)
        self.computed = Computed(self.computed.done + int(done), self.computed.of + int(of))
        self.loss_sum += loss
        self.open_sum += open_share

    def record(self, metrics: MetricsWriter) -> None:
        """Write a line at the end of an epoch."""
        if self.step and self.step % self.interval == 0:
            self.history.append(self.end_epoch())
            metrics.write("epoch", len(self.history), **self.history[-1].to_row())

    def end_epoch(self) -> Epoch:
        """Validate, and keep the weights if their validation error is less than that of every epoch before."""
        with self.timed():
            self._calibrate()
            valid = score(self.network, self.data.valid)
        loss, open_share = (total / self.interval for total in (self.loss_sum, self.open_sum))
        if valid.error < self.best.error:
            self.best_epoch, self.best = self.step // self.interval, valid
            self.best_weights = copy_weights(self.network)
        self.loss_sum = self.open_sum = 0.0
        return Epoch(loss=loss, open_share=open_share, valid=valid)

    def finish(self, versions: dict[str, str]) -> Result:
        """Give the network its best weights, and return their scores."""
        network, settings = self.network, self.settings
        network.load_state_dict(self.best_weights)
        return Result(
            settings=settings,
            versions=versions,
            best_epoch=self.best_epoch,
            threshold=float(network.unit.threshold) if settings.evaluation == "threshold" else None,
            train=score(network, self.data.train),
            valid=self.best,
            test=score(network, self.data.test),
            computed=self.computed.share,
            speedup=_measure_speedup(network, self.data.train.x[: settings.batch]),
            epochs=tuple(self.history),
            seconds=self.seconds,
        )

    def state(self) -> dict[str, Any]:
        """Return everything that a checkpoint holds; the epochs themselves are in the metrics."""
        epoch, step = divmod(self.step, self.interval)
        computed = (self.computed.done, self.computed.of)
        return {**super().state(), "epoch": epoch, "step": step, "computed": computed}

    def restore(self, state: Mapping[str, Any], folder: RunFolder) -> None:
        """Return to the state of a checkpoint."""
        super().restore(state, folder)
        self.step = state["epoch"] * self.interval + state["step"]
        self.computed = Computed(*state["computed"])
        self.history = [Epoch.from_row(row) for row in folder.rows("epoch")[: state["epoch"]]]
        if self.best_epoch:
            self.best = self.history[self.best_epoch - 1].valid

    def _diverged(self, how: str) -> GradestError:
        epoch, step = divmod(self.step, self.interval)
        where = f"epoch {epoch + 1}, minibatch {step + 1}"
        return GradestError(f"training diverged in {where}: {how}; lower learning_rate or gater_scale")

    def _calibrate(self) -> None:
        """Set the threshold above which gates are open in evaluation."""
        self.network.eval()
        self.network.experts.computed = Computed()  # what evaluation computes is not counted
        if self.settings.threshold is not None:
            self.network.unit.threshold.fill_(self.settings.threshold)
        elif self.settings.evaluation == "threshold":
            self.network.calibrate(self.split.x[:_CALIBRATION], self.settings.sparsity)


def _show(display: Display, run: GatedRun) -> None:
    """Show how far the run is, and the averages over the epoch under way, or over the last one between two epochs."""
    within = run.step % run.interval
    last = run.history[-1] if run.history else None
    if within or last is None:
        loss, open_share = (total / within if within else math.nan for total in (run.loss_sum, run.open_sum))
    else:
        loss, open_share = last.loss, last.open_share
    display.update(run.step / run.interval, loss, open_share, None if last is None else last.valid.error)


def _measure_speedup(network: GatedNetwork, x: Tensor) -> float:
    """Return how many times as fast as dense experts the network's own are, on gates sampled as in training on these inputs."""
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


def _read_result(folder: RunFolder) -> Result:
    """Return the result of a finished run."""
    epochs = tuple(Epoch.from_row(row) for row in folder.rows("epoch"))
    try:
        return Result(
            settings=ResolvedGatedSettings(**folder.settings),
            versions=folder.versions,
            epochs=epochs,
            **folder.results,
        )
    except (ValidationError, TypeError) as error:
        raise InvalidInput(f"the results in {folder.path} are damaged; delete the folder to run it again") from error
