"""Problems that are experiments of their own: autoencoders, the sigmoid belief network and the router, on MNIST."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field

from gradest.analysis.comparison import within_point_limit
from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.contract.target import Target
from gradest.discovery.registry import registry
from gradest.errors import GradestError, Incompatible, InvalidInput, InvalidOptions
from gradest_experiments.belief.settings import NEURON as BELIEF_NEURON
from gradest_experiments.belief.settings import BeliefSettings
from gradest_experiments.belief.training import train_belief
from gradest_experiments.benchmark.problem import OnProgress, Outcome, Problem
from gradest_experiments.engine.data import DatasetName, load
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.images import Images, load_images
from gradest_experiments.engine.options import build_estimator
from gradest_experiments.experts.settings import ExpertSettings, settings_for
from gradest_experiments.experts.training import train_experts
from gradest_experiments.vae.settings import CATEGORICAL, VaeSettings
from gradest_experiments.vae.settings import NEURON as BERNOULLI
from gradest_experiments.vae.training import train_vae

__all__ = ["BeliefProblem", "BinaryVaeProblem", "CategoricalVaeProblem", "RouterProblem"]

_MOST_EVALUATIONS = 4
_VARIANCE_DRAWS = 10  # of each measurement of the encoder's gradient
_LATENTS = {1: BERNOULLI, 2: CATEGORICAL}  # by the dims of an event
_IMAGES = {"images", "valid_images"}  # the fields that say how many images there are


class NetworkProblem(Problem):
    """The training of a network on MNIST by an experiment of its own, whose run folder is within that of the benchmark.

    A subclass states which metric of the lines "valid" is the curve, and implements `train` and `value_of`.
    """

    data: ClassVar[DatasetName | None] = "mnist"
    tuned: ClassVar = "nothing; the learning rate of Adam is 1e-3 for all, and estimators have their default options."
    curve: ClassVar[str]

    @abstractmethod
    def train(self, path: Path, estimator: Estimator, seed: int, on_progress: OnProgress) -> tuple[RunFolder, int]:
        """Train, or continue, in the folder; return it, and the number of evaluations of the loss."""

    @abstractmethod
    def value_of(self, run: RunFolder) -> float:
        """Return the value of a finished run, in the unit of its metrics."""

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Train, and return the value, with the values on validation images during training as the curve."""
        assert folder.path is not None
        run, evaluations = self.train(folder.path / "training", estimator, seed, on_progress)
        scale = 100 if self.unit == "%" else 1
        found = ((row["step"], row[self.curve]) for row in run.rows("valid"))
        curve = tuple((step, scale * value) for step, value in found if value is not None)  # null if it was not finite
        return Outcome(scale * self.value_of(run), evaluations, run.rows("train")[-1]["seconds"], curve)


class _VaeProblem(NetworkProblem):
    """An autoencoder with discrete latents."""

    curve: ClassVar = "elbo"

    images: int = Field(50_000, ge=100)
    valid_images: int = Field(10_000, ge=1)

    @abstractmethod
    def settings(self, estimator: Estimator, seed: int) -> VaeSettings:
        """Return the settings of a run."""

    def neuron_for(self, estimator: Estimator) -> Neuron:
        """Return the latents' neuron. Raises Incompatible if the estimator does not fit, or evaluates the loss too often."""
        neuron, label = registry.neuron(_LATENTS[len(self.event())]), registry.label(estimator)
        build_estimator(estimator.spec(), neuron.name)
        if not within_point_limit(estimator, neuron, torch.zeros(self.event())):
            raise Incompatible(f"{label} would enumerate too many outputs")
        asked = estimator.evaluations(neuron, self.event())
        if asked > _MOST_EVALUATIONS:
            raise Incompatible(f"{label} asks for {asked} evaluations, and at most {_MOST_EVALUATIONS} are run")
        return neuron

    def train(self, path: Path, estimator: Estimator, seed: int, on_progress: OnProgress) -> tuple[RunFolder, int]:
        """Train, or continue, in the folder; return it, and the number of evaluations of the loss."""
        settings = self.settings(estimator, seed)
        images = _first_images(self.images, self.valid_images)
        train_vae(settings, images, path, lambda step: on_progress(step / settings.steps))
        run = RunFolder.read(path)
        return run, run.results["evaluations"] * settings.batch * settings.steps


class BinaryVaeProblem(_VaeProblem):
    """The binary autoencoder of `gradest reproduce binary-vae`."""

    title: ClassVar = "Binary variational autoencoder"
    text: ClassVar = """`gradest reproduce binary-vae`: Bernoulli latents, nonlinear networks, dynamically binarised MNIST, and
Adam, with log q inside the loss. The value is the importance-weighted bound on test images after training."""
    metric: ClassVar = "importance-weighted bound on test images"
    unit: ClassVar = "nats"
    better: ClassVar = "higher"
    seconds: ClassVar = 20
    quick: ClassVar = {"steps": 500, "test_images": 200}

    steps: int = Field(20_000, ge=1)
    latents: int = Field(200, ge=1)
    hidden: int = Field(200, ge=1)
    test_samples: int = Field(100, ge=1)
    test_images: int | None = Field(None, ge=1)

    @property
    def name(self) -> str:
        """The name of the problem."""
        return "binary-vae"

    def event(self) -> tuple[int, ...]:
        """Return the shape of the latents."""
        return (self.latents,)

    def settings(self, estimator: Estimator, seed: int) -> VaeSettings:
        """Return the settings of a run, with ten measurements in it."""
        every = max(1, self.steps // 10)
        often = {"eval_every": every, "log_every": every, "variance_draws": _VARIANCE_DRAWS}
        return VaeSettings.build(estimator=estimator.spec(), seed=seed, **often, **self.model_dump(exclude=_IMAGES))

    def value_of(self, run: RunFolder) -> float:
        """Return the test bound."""
        return _number(run.results["test"])


class CategoricalVaeProblem(_VaeProblem):
    """The categorical autoencoder by which the authors of ReinMax compare estimators."""

    title: ClassVar = "Categorical variational autoencoder"
    text: ClassVar = """The experiment of Liu et al. (2023, ReinMax, arXiv 2304.08612), at the settings of their public code:
L latents of C classes, for which the name gives C x L; relu layers of 512 and 256 units in the encoder and the reverse in the
decoder; grey MNIST images, batches of 100, and KL in closed form. The value is the mean of -ELBO of the training images after
training, with one sample each. Theirs is the mean of the training loss over the last epoch, which is no -ELBO for estimators that
evaluate relaxed outputs. Unlike theirs, training has 50,000 of the 60,000 images, initial weights are those of Glorot, the
encoder sees an image less the mean one, and the last bias begins at the mean image. The size full has their 160 epochs. The size
quick has 5 epochs of 5,000 images, which is the beginning of learning: nothing published stands beside it. Published, as means
over the six sizes and as others quote them: ReinMax 103.21, gapped straight-through 104.24, straight-through Gumbel 105.20,
Gumbel-Rao 107.06."""
    metric: ClassVar = "mean of -ELBO of the training images after training"
    unit: ClassVar = "nats"
    tuned: ClassVar = """the optimiser, the learning rate, and the temperature of estimators that have this option and do not set
it, are those that Liu et al. chose for ReinMax; nothing was tuned for any other estimator."""
    seconds: ClassVar = 5
    quick: ClassVar = {"epochs": 5, "images": 5_000, "valid_images": 1_000}

    classes: int = Field(8, ge=2)
    latents: int = Field(4, ge=1)
    optimiser: Literal["adam", "radam"] = "adam"
    learning_rate: float = Field(5e-4, gt=0, allow_inf_nan=False)
    temperature: float = Field(1.3, gt=0, allow_inf_nan=False)
    batch: int = Field(100, ge=1)
    epochs: int = Field(160, ge=1)

    @property
    def name(self) -> str:
        """The name of the problem, with the sizes."""
        return f"categorical-vae-{self.classes}x{self.latents}"

    def event(self) -> tuple[int, ...]:
        """Return the shape of the latents."""
        return self.latents, self.classes

    def settings(self, estimator: Estimator, seed: int) -> VaeSettings:
        """Return the settings of a run, which measures ten times, and logs each epoch."""
        an_epoch = self.images // self.batch
        spec = estimator.spec()
        if "temperature" in type(estimator).model_fields:
            spec = {"temperature": self.temperature, **spec}
        return VaeSettings.build(
            estimator=spec,
            seed=seed,
            network="relu",
            kl="analytic",
            grey=True,
            steps=self.epochs * an_epoch,
            log_every=an_epoch,
            eval_every=max(1, self.epochs // 10) * an_epoch,
            variance_draws=_VARIANCE_DRAWS,
            test_samples=1,
            **self.model_dump(exclude={"epochs", "temperature", *_IMAGES}),
        )

    def value_of(self, run: RunFolder) -> float:
        """Return the mean of -ELBO of the training images."""
        return -_number(run.rows("final")[-1]["elbo"])


class BeliefProblem(NetworkProblem):
    """The sigmoid belief network of `gradest train belief`."""

    title: ClassVar = "Sigmoid belief network"
    text: ClassVar = """`gradest train belief`: two layers of Bernoulli units in the model and in its inference network, K
whole-path samples of an image, dynamically binarised MNIST, and Adam. Estimators of one sample take the paths as examples. A path
has one sample of each layer, so estimators that compare several points of a layer on one image, such as disarm, double_cv, arms
or rebar, cannot train from paths: each layer would need paths of its own, whose number doubles with every layer. The value is the
bound of several samples on validation images after training."""
    metric: ClassVar = "bound of several samples on validation images"
    unit: ClassVar = "nats"
    better: ClassVar = "higher"
    seconds: ClassVar = 60
    quick: ClassVar = {"units": 50, "epochs": 1, "valid_samples": 10, "images": 20_000, "valid_images": 1000}
    curve: ClassVar = "bound"

    units: int = Field(200, ge=1)
    samples: int = Field(5, ge=1)
    epochs: int = Field(5, ge=1)
    valid_samples: int = Field(50, ge=1)
    images: int = Field(50_000, ge=100)
    valid_images: int = Field(10_000, ge=1)

    @property
    def name(self) -> str:
        """The name of the problem."""
        return "belief-network"

    def event(self) -> tuple[int, ...]:
        """Return the shape of a layer."""
        return (self.units,)

    def per_draw(self, estimator: Estimator) -> int:
        """Return K, the number of paths."""
        return self.samples

    def neuron_for(self, estimator: Estimator) -> Neuron:
        """Return Bernoulli units. Raises Incompatible if the estimator cannot train a layer from K paths, or on a likelihood."""
        neuron, target = registry.neuron(BELIEF_NEURON), estimator.target()
        registry.check_fit(neuron, estimator)
        if type(target) is not Target:
            raise Incompatible(
                f"{registry.label(estimator)} estimates {target}, which is not a bound of the likelihood"
            )
        try:
            self.settings(estimator, 0).build_layer()
        except (InvalidInput, InvalidOptions) as error:
            raise Incompatible(f"{registry.label(estimator)} cannot train a layer from whole paths: {error}") from error
        return neuron

    def settings(self, estimator: Estimator, seed: int) -> BeliefSettings:
        """Return the settings of a run."""
        sizes = self.model_dump(exclude=_IMAGES)
        return BeliefSettings.build(estimator=estimator.spec(), seed=seed, **sizes)

    def train(self, path: Path, estimator: Estimator, seed: int, on_progress: OnProgress) -> tuple[RunFolder, int]:
        """Train, or continue, in the folder; return it, and the number of evaluations of the loss."""
        settings, images = self.settings(estimator, seed), _first_images(self.images, self.valid_images)
        steps = self.epochs * (len(images.train) // settings.batch)
        run = train_belief(settings, images, path, lambda step: on_progress(step / steps))
        return run, self.samples * settings.batch * steps

    def value_of(self, run: RunFolder) -> float:
        """Return the validation bound."""
        return _number(run.results["valid"])


class RouterProblem(NetworkProblem):
    """The mixture of experts of `gradest reproduce experts`."""

    title: ClassVar = "Router of a mixture of experts"
    text: ClassVar = """`gradest reproduce experts`: a router, linear in the image, opens one or two of 16 experts of 16
units, with the penalty `load_balance`, on MNIST. An estimator gets the first neuron that it fits of a noisy top 2 of 16, a
subset of 2 and one class. The value is the error on test images, at the epoch of the least validation error. The estimators
are those by dL/dh at one sample, because the gates are within the network."""
    metric: ClassVar = "error on test images"
    unit: ClassVar = "%"
    tuned: ClassVar = "nothing; the learning rate of Adam is 2e-3 for all, and estimators have their default options."
    seconds: ClassVar = 10
    quick: ClassVar = {"epochs": 2, "images": 6400}
    curve: ClassVar = "error"

    experts: int = Field(16, ge=1)
    expert_units: int = Field(16, ge=1)
    balance: float = Field(0.1, ge=0, allow_inf_nan=False)
    epochs: int = Field(10, ge=1)
    images: int | None = Field(None, ge=1)

    @property
    def name(self) -> str:
        """The name of the problem."""
        return "router"

    def event(self) -> tuple[int, ...]:
        """Return the shape of the gates of an image."""
        return 1, self.experts

    def neuron_for(self, estimator: Estimator) -> Neuron:
        """Return the first kind of gates that the estimator can train. Raises Incompatible if there is none."""
        gates = self.settings(estimator, 0).gates()
        assert gates is not None
        return gates[0]

    def settings(self, estimator: Estimator, seed: int) -> ExpertSettings:
        """Return the settings of a run. Raises Incompatible if the estimator fits no gates."""
        return settings_for(estimator.spec(), seed=seed, **self.model_dump())

    def train(self, path: Path, estimator: Estimator, seed: int, on_progress: OnProgress) -> tuple[RunFolder, int]:
        """Train, or continue, in the folder; return it, and the number of evaluations of the loss."""
        settings, data = self.settings(estimator, seed), load("mnist")
        run = train_experts(settings, data, path, lambda epochs: on_progress(epochs / settings.epochs))
        return run, settings.epochs * (self.images or len(data.train))

    def value_of(self, run: RunFolder) -> float:
        """Return the share of errors on test images."""
        return _number(run.results["test"]["error"])


def _first_images(train: int, valid: int) -> Images:
    """Return MNIST with so many of the images to learn from and to validate on."""
    whole = load_images()
    return Images(whole.train[:train], whole.valid[:valid], whole.test)


def _number(found: float | None) -> float:
    """Return a metric, which is None in a run's folder if it was not finite."""
    if found is None:
        raise GradestError("training diverged: the value is not finite")
    return float(found)
