"""What a run is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field

from gradest.contract.estimator import Estimator
from gradest.discovery.registry import registry
from gradest.errors import InvalidInput
from gradest.random import MAX_SEED
from gradest_experiments.options import Options, build_estimator, to_folder_name

__all__ = ["NETWORKS", "NEURON", "QUICK", "Kl", "Network", "VaeSettings", "choose_estimators", "default_estimators"]

NEURON = "bernoulli"

Network = Literal["linear", "nonlinear"]
NETWORKS: tuple[Network, ...] = ("linear", "nonlinear")
Kl = Literal["sampled", "analytic"]

_ESTIMATORS: tuple[dict[str, Any], ...] = (
    {"name": "rloo"},
    {"name": "disarm"},
    {"name": "rebar"},
    {"name": "relax_rebar"},  # as RELAX was published on this task: a network on top of the relaxed loss
    {"name": "double_cv"},
    {"name": "rodeo"},
    {"name": "reinmax"},
    # the derivative under which the entropy of q gets its exact gradient
    {"name": "straight_through", "derivative": "sigmoid"},
)

QUICK: dict[str, Any] = {"steps": 500, "eval_every": 100, "log_every": 20, "variance_draws": 20, "test_images": 500}
"""The settings of a run of seconds."""


class VaeSettings(Options):
    """One run."""

    estimator: dict[str, Any] = Field(description="{name, **options}")
    network: Network = "nonlinear"
    kl: Kl = Field("sampled", description="log q in f, as published, or KL(q, prior) in closed form beside f")
    seed: int = Field(0, ge=0, lt=MAX_SEED, description="of weights, noise, data order and binarisation")
    steps: int = Field(20_000, ge=1)
    batch: int = Field(100, ge=1)
    learning_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="of Adam")
    latents: int = Field(200, ge=1)
    hidden: int = Field(200, ge=1, description="units of each hidden layer of the nonlinear network")
    log_every: int = Field(100, ge=1, description="steps whose mean ELBO is one number")
    eval_every: int = Field(1000, ge=1, description="steps between validations, variances and checkpoints")
    variance_draws: int = Field(100, ge=2)
    test_samples: int = Field(100, ge=1, description="of the importance-weighted bound")
    test_images: int | None = Field(None, ge=1, description="the first of them; None is all")

    def build_estimator(self) -> Estimator:
        """The estimator; raises UnknownPlugin, InvalidOptions, or Incompatible."""
        return build_estimator(self.estimator, NEURON)

    def folder(self) -> str:
        """A name for the folder of this run, beside which those of other networks, estimators and seeds have room."""
        return f"{self.network}/{to_folder_name(self.build_estimator().label())}/seed-{self.seed}"


def default_estimators(samples: int) -> list[dict[str, Any]]:
    """The specs of eight; arms, which is disarm for two samples, in its place where they do not come in pairs."""
    chosen = [{"name": "arms"} if samples % 2 and spec["name"] == "disarm" else spec for spec in _ESTIMATORS]
    return choose_estimators(chosen, samples)


def choose_estimators(specs: Iterable[dict[str, Any]], samples: int) -> list[dict[str, Any]]:
    """The specs of these estimators, with `samples` where the estimator has that option and it is not given.

    Raises UnknownPlugin, InvalidOptions, Incompatible, and InvalidInput for one that is named twice.
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
