"""The settings of a run."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from gradest.nn import Stochastic
from gradest.random import MAX_SEED
from gradest_experiments.engine.options import RunSettings, to_folder_name

__all__ = ["NEURON", "BeliefSettings"]

NEURON = "bernoulli"

Spec = Annotated[dict[str, Any], BeforeValidator(lambda given: {"name": given} if isinstance(given, str) else given)]


class BeliefSettings(RunSettings):
    """The settings of a run of the sigmoid belief network."""

    estimator: Spec = Field(
        "vimco", validate_default=True, description="the estimator of every layer: a name, or {name, **options}"
    )
    layers: int = Field(2, ge=1, description="the number of stochastic layers")
    units: int = Field(200, ge=1, description="the number of units of each layer")
    samples: int = Field(5, ge=1, description="the number K of whole-path samples of an image")
    seed: int = Field(0, ge=0, lt=MAX_SEED, description="the seed of weights, noise, data order and binarisation")
    epochs: int = Field(5, ge=1, description="passes over the training images")
    batch: int = Field(100, ge=1, description="the number of images in a minibatch")
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="the learning rate of Adam")
    valid_samples: int = Field(50, ge=1, description="the number of samples of the validation bound")

    def build_layer(self) -> Stochastic:
        """Return a stochastic layer, which emits samples in evaluation as well.

        Raises UnknownPlugin, Incompatible, and InvalidOptions or InvalidInput if the estimator cannot take K paths.
        """
        layer = Stochastic(NEURON, self.estimator, evaluation="sample")
        layer.sampler.of_samples(self.samples)
        return layer

    def describe(self) -> str:
        """Return the estimator, the number of samples and the seed, as a line of text."""
        return f"{self.build_layer().estimator.label()}, K = {self.samples}, seed {self.seed}"

    def folder(self) -> str:
        """Return the relative path of the run's folder, which is another one for every estimator and seed."""
        return f"{to_folder_name(self.build_layer().estimator.label())}/seed-{self.seed}"
