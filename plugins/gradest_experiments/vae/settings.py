"""The settings of a run, and the estimators that are compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from gradest.contract.estimator import Estimator
from gradest.discovery.registry import registry
from gradest.errors import InvalidInput
from gradest.random import MAX_SEED
from gradest_experiments.engine.options import RunSettings, build_estimator, to_folder_name

__all__ = [
    "CATEGORICAL",
    "NETWORKS",
    "NEURON",
    "QUICK",
    "Kl",
    "Network",
    "VaeSettings",
    "choose_estimators",
    "default_estimators",
]

NEURON = "bernoulli"
CATEGORICAL = "categorical"

Network = Literal["linear", "nonlinear", "relu"]
NETWORKS: tuple[Network, ...] = ("linear", "nonlinear")
"""The networks of the binary autoencoder, which `gradest reproduce binary-vae` trains."""
Kl = Literal["sampled", "analytic"]

_ESTIMATORS: tuple[dict[str, Any], ...] = (
    {"name": "rloo"},
    {"name": "disarm"},
    {"name": "rebar"},
    {"name": "relax_rebar"},  # RELAX as published on this task: a network added to the relaxed loss
    {"name": "double_cv"},
    {"name": "rodeo"},
    {"name": "reinmax"},
    # with this derivative the gradient of the entropy of q is exact
    {"name": "straight_through", "derivative": "sigmoid"},
)

QUICK: dict[str, Any] = {"steps": 500, "eval_every": 100, "log_every": 20, "variance_draws": 20, "test_images": 500}
"""The settings that --quick sets."""


class VaeSettings(RunSettings):
    """The settings of a run of the autoencoder."""

    estimator: dict[str, Any] = Field(description="{name, **options}")
    network: Network = "nonlinear"
    kl: Kl = Field("sampled", description="log q inside f, as published, or KL(q, prior) in closed form outside of it")
    seed: int = Field(0, ge=0, lt=MAX_SEED, description="the seed of weights, noise, data order and binarisation")
    steps: int = Field(20_000, ge=1)
    batch: int = Field(100, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="the learning rate of the optimiser")
    optimiser: Literal["adam", "radam"] = "adam"
    grey: bool = Field(
        False, description="train on the grey values themselves, in place of dynamically binarised images"
    )
    latents: int = Field(200, ge=1)
    classes: int | None = Field(
        None,
        ge=2,
        description="the number of classes of each latent, for categorical latents; Bernoulli ones if omitted",
    )
    hidden: int = Field(200, ge=1, description="the number of units of each hidden layer of the nonlinear network")
    log_every: int = Field(100, ge=1, description="the number of steps over which the training ELBO is averaged")
    eval_every: int = Field(
        1000, ge=1, description="the number of steps between validations, variances and checkpoints"
    )
    variance_draws: int = Field(100, ge=2)
    test_samples: int = Field(100, ge=1, description="the number of samples of the importance-weighted bound")
    test_images: int | None = Field(None, ge=1, description="how many of the test images to score; all if omitted")

    @property
    def neuron(self) -> str:
        """The name of the latents' neuron."""
        return NEURON if self.classes is None else CATEGORICAL

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of an image's latents."""
        return (self.latents,) if self.classes is None else (self.latents, self.classes)

    def build_estimator(self) -> Estimator:
        """Return the estimator. Raises UnknownPlugin, InvalidOptions, or Incompatible."""
        return build_estimator(self.estimator, self.neuron)

    def folder(self) -> str:
        """Return the relative path of the run's folder, which is another one for every network, estimator and seed."""
        return f"{self.network}/{to_folder_name(self.build_estimator().label())}/seed-{self.seed}"


def default_estimators(samples: int) -> list[dict[str, Any]]:
    """Return the specs of eight estimators; for an odd number of samples, arms takes the place of disarm, which needs pairs."""
    chosen = [{"name": "arms"} if samples % 2 and spec["name"] == "disarm" else spec for spec in _ESTIMATORS]
    return choose_estimators(chosen, samples)


def choose_estimators(specs: Iterable[dict[str, Any]], samples: int) -> list[dict[str, Any]]:
    """Return the full specs of estimators, with `samples` set if the estimator has that option and its spec does not give it.

    Raises UnknownPlugin, InvalidOptions, Incompatible, and InvalidInput if an estimator is named twice.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for spec in specs:
        option = type(registry.estimator(spec)).model_fields.get("samples")
        full = {**spec, "samples": samples} if option and option.default != samples and "samples" not in spec else spec
        estimator = build_estimator(full, NEURON)
        if estimator.label() in chosen:
            raise InvalidInput(f"{estimator.label()} is named twice")
        chosen[estimator.label()] = estimator.spec()
    return list(chosen.values())
