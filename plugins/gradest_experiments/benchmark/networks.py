"""Problems that are experiments of their own: the autoencoder, the sigmoid belief network and the router, on MNIST."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.errors import Incompatible, InvalidInput, InvalidOptions
from gradest_experiments.belief.settings import NEURON as BELIEF_NEURON
from gradest_experiments.belief.settings import BeliefSettings
from gradest_experiments.belief.training import train_belief
from gradest_experiments.benchmark.problem import OnProgress, Outcome, Problem
from gradest_experiments.engine.data import load
from gradest_experiments.engine.folder import RunFolder
from gradest_experiments.engine.images import Images, load_images
from gradest_experiments.engine.options import build_estimator
from gradest_experiments.experts.settings import ExpertSettings, settings_for
from gradest_experiments.experts.training import train_experts
from gradest_experiments.vae.settings import NEURON as VAE_NEURON
from gradest_experiments.vae.settings import VaeSettings
from gradest_experiments.vae.training import train_vae

__all__ = ["BeliefProblem", "RouterProblem", "VaeProblem"]

_MOST_EVALUATIONS = 4


class VaeProblem(Problem):
    """The binary autoencoder of `gradest reproduce binary-vae`."""

    title: ClassVar = "Binary variational autoencoder"
    text: ClassVar = """`gradest reproduce binary-vae`: Bernoulli latents, nonlinear networks, dynamically binarised MNIST, and
Adam, with log q inside the loss. The value is the importance-weighted bound on test images after training."""
    metric: ClassVar = "importance-weighted bound on test images"
    unit: ClassVar = "nats"
    better: ClassVar = "higher"
    tuned: ClassVar = "nothing; the learning rate of Adam is 1e-3 for all, and estimators have their default options."
    data: ClassVar = "mnist"
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

    def neuron_for(self, estimator: Estimator) -> Neuron:
        """Return Bernoulli units. Raises Incompatible if the estimator does not fit, or evaluates the loss more than 4 times."""
        build_estimator(estimator.spec(), VAE_NEURON)
        neuron = registry.neuron(VAE_NEURON)
        return _affordable(estimator, neuron, self.event())

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Train, and return the test bound."""
        assert folder.path is not None
        sizes: dict[str, Any] = self.model_dump()
        every = max(1, self.steps // 10)
        settings = VaeSettings.build(
            estimator=estimator.spec(), seed=seed, eval_every=every, log_every=every, variance_draws=10, **sizes
        )
        path = folder.path / "training"
        train_vae(settings, _images(), path, lambda step: on_progress(step / self.steps))
        run = RunFolder.read(path)
        curve = tuple((row["step"], row["elbo"]) for row in run.rows("valid"))
        evaluations = run.results["evaluations"] * settings.batch * settings.steps
        return Outcome(run.results["test"], evaluations, run.rows("train")[-1]["seconds"], curve)


class BeliefProblem(Problem):
    """The sigmoid belief network of `gradest train belief`."""

    title: ClassVar = "Sigmoid belief network"
    text: ClassVar = """`gradest train belief`: two layers of Bernoulli units in the model and in its inference network, K
whole-path samples of an image, dynamically binarised MNIST, and Adam. Estimators of one sample take the paths as examples. The
value is the bound of several samples on validation images after training."""
    metric: ClassVar = "bound of several samples on validation images"
    unit: ClassVar = "nats"
    better: ClassVar = "higher"
    tuned: ClassVar = "nothing; the learning rate of Adam is 1e-3 for all, and estimators have their default options."
    data: ClassVar = "mnist"
    seconds: ClassVar = 60
    quick: ClassVar = {"units": 50, "epochs": 1, "valid_samples": 10, "images": 20_000, "valid_images": 1000}

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
        """Return Bernoulli units. Raises Incompatible if the estimator cannot train a layer from K paths."""
        neuron = registry.neuron(BELIEF_NEURON)
        registry.check_fit(neuron, estimator)
        try:
            self._settings(estimator, 0).build_layer()
        except (InvalidInput, InvalidOptions) as error:
            raise Incompatible(f"{registry.label(estimator)} cannot train a layer from whole paths: {error}") from error
        return neuron

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Train, and return the validation bound."""
        assert folder.path is not None
        settings, whole = self._settings(estimator, seed), _images()
        images = Images(whole.train[: self.images], whole.valid[: self.valid_images], whole.test)
        steps = self.epochs * (len(images.train) // settings.batch)
        run = train_belief(settings, images, folder.path / "training", lambda step: on_progress(step / steps))
        curve = tuple((row["step"], row["bound"]) for row in run.rows("valid"))
        seconds = run.rows("train")[-1]["seconds"]
        return Outcome(run.results["valid"], self.samples * settings.batch * steps, seconds, curve)

    def _settings(self, estimator: Estimator, seed: int) -> BeliefSettings:
        sizes = self.model_dump(exclude={"images", "valid_images"})
        return BeliefSettings.build(estimator=estimator.spec(), seed=seed, **sizes)


class RouterProblem(Problem):
    """The mixture of experts of `gradest reproduce experts`."""

    title: ClassVar = "Router of a mixture of experts"
    text: ClassVar = """`gradest reproduce experts`: a router, linear in the image, opens one or two of 16 experts of 16
units, with the penalty `load_balance`, on MNIST. An estimator gets the first neuron that it fits of a noisy top 2 of 16, a
subset of 2 and one class. The value is the error on test images, at the epoch of the least validation error. The estimators
are those by dL/dh at one sample, because the gates are within the network."""
    metric: ClassVar = "error on test images"
    unit: ClassVar = "%"
    tuned: ClassVar = "nothing; the learning rate of Adam is 2e-3 for all, and estimators have their default options."
    data: ClassVar = "mnist"
    seconds: ClassVar = 10
    quick: ClassVar = {"epochs": 2, "images": 6400}

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
        gates = self._settings(estimator, 0).gates()
        assert gates is not None
        return gates[0]

    def run(self, folder: RunFolder, estimator: Estimator, seed: int, on_progress: OnProgress) -> Outcome:
        """Train, and return the test error."""
        assert folder.path is not None
        settings, data = self._settings(estimator, seed), load("mnist")
        run = train_experts(
            settings, data, folder.path / "training", lambda epochs: on_progress(epochs / settings.epochs)
        )
        curve = tuple((row["step"], 100 * row["error"]) for row in run.rows("valid"))
        asked = settings.epochs * (self.images or len(data.train))
        return Outcome(100 * run.results["test"]["error"], asked, run.rows("train")[-1]["seconds"], curve)

    def _settings(self, estimator: Estimator, seed: int) -> ExpertSettings:
        return settings_for(estimator.spec(), seed=seed, **self.model_dump())


def _affordable(estimator: Estimator, neuron: Neuron, event: tuple[int, ...]) -> Neuron:
    asked = estimator.evaluations(neuron, event)
    if asked > _MOST_EVALUATIONS:
        label = registry.label(estimator)
        raise Incompatible(f"{label} asks for {asked} evaluations, and at most {_MOST_EVALUATIONS} are run")
    return neuron


def _images() -> Images:
    """Return MNIST from $GRADEST_DATA."""
    return load_images()
