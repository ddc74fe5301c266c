"""The settings of a run, and the list of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron
from gradest.discovery.registry import registry
from gradest.errors import Incompatible
from gradest.nn import Stochastic
from gradest.random import MAX_SEED
from gradest_experiments.engine.options import RunSettings, to_folder_name

__all__ = ["PENALTY", "QUICK", "ROUTERS", "ExpertSettings", "list_runs", "settings_for"]

ROUTERS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"name": "noisy_top_k", "k": 2}, {"name": "held_noise"}),
    ({"name": "noisy_top_k", "k": 2}, {"name": "dense_mixer"}),
    ({"name": "k_subset", "k": 2}, {"name": "gumbel_top_k"}),
    ({"name": "categorical"}, {"name": "sparse_mixer"}),
    ({"name": "categorical"}, {"name": "straight_through"}),
)
"""The neuron and the estimator of each router."""

PENALTY = "load_balance"
"""The objective that is added to the loss, for even loads."""

QUICK: dict[str, Any] = {"epochs": 2, "images": 6400}
"""The settings that --quick sets."""


class ExpertSettings(RunSettings):
    """The settings of a run of a mixture of experts. A dense network is one expert without a router."""

    neuron: dict[str, Any] | None = Field(description="the gates: {name, **options}; without one there is no router")
    estimator: dict[str, Any] | None = Field(description="the estimator of the router's gradient: {name, **options}")
    experts: int = Field(16, ge=1)
    expert_units: int = Field(16, ge=1, description="the number of units of an expert")
    balance: float = Field(0.1, ge=0, allow_inf_nan=False, description="the weight of the objective load_balance")
    seed: int = Field(0, ge=0, lt=MAX_SEED, description="the seed of weights, noise and data order")
    epochs: int = Field(10, ge=1)
    batch: int = Field(128, ge=1)
    learning_rate: float = Field(2e-3, gt=0, allow_inf_nan=False, description="the learning rate of Adam")
    images: int | None = Field(None, ge=1, description="how many of the training images to learn from; all if omitted")

    @property
    def units(self) -> int:
        """The number of units of the hidden layer."""
        return self.experts * self.expert_units

    def gates(self) -> tuple[Neuron, Estimator] | None:
        """Return neuron and estimator, if there is a router.

        Raises UnknownPlugin, InvalidOptions, or Incompatible for an estimator that a layer within the network cannot use.
        """
        if self.neuron is None or self.estimator is None:
            return None
        neuron, estimator = registry.neuron(self.neuron), registry.estimator(self.estimator)
        Stochastic(neuron, estimator)  # raises if it cannot
        if (
            estimator.needs != {"grad"}
            or estimator.evaluations(neuron, (1, self.experts)) != 1
            or neuron.event_ndim != 2
        ):
            raise Incompatible(
                f"{estimator.label()} on {neuron.label()} cannot train a router, which takes gates [groups, experts] "
                "and an estimator of one sample that needs dL/dh alone"
            )
        return neuron, estimator

    def label(self) -> str:
        """Return the name of the network in tables."""
        gates = self.gates()
        return f"dense, {self.units} units" if gates is None else " + ".join(part.label() for part in gates)

    def folder(self) -> str:
        """Return the relative path of the run's folder, which is another one for every network and seed."""
        return f"{to_folder_name(self.label())}/seed-{self.seed}"


def settings_for(estimator: dict[str, Any], **options: Any) -> ExpertSettings:
    """Return the settings of a run by an estimator: on the first neuron of ROUTERS that it can train.

    Raises UnknownPlugin, InvalidOptions, and Incompatible, with the reasons, if there is none.
    """
    reasons = []
    for neuron, _ in ROUTERS:
        settings = ExpertSettings.build(neuron=neuron, estimator=estimator, **options)
        try:
            settings.gates()
        except Incompatible as error:
            reasons.append(str(error))
        else:
            return settings
    raise Incompatible("; ".join(dict.fromkeys(reasons)))


def list_runs(
    estimators: Sequence[dict[str, Any]] | None = None, *, seeds: int = 1, quick: bool = False, **options: Any
) -> list[ExpertSettings]:
    """Return the settings of every run: the routers, and three dense networks.

    The dense ones have as many units as all experts, and as many as compute what a router and its two experts, or its one, do.

    estimators: specs, each for a router by `settings_for`, in place of ROUTERS. Raises what that raises.
    """
    options = {**(QUICK if quick else {}), **options}
    base = ExpertSettings.build(neuron=None, estimator=None, **options)
    networks: list[dict[str, Any]] = [{"neuron": neuron, "estimator": estimator} for neuron, estimator in ROUTERS]
    if estimators is not None:
        named = [settings_for(spec, **options) for spec in estimators]
        networks = [{"neuron": one.neuron, "estimator": one.estimator} for one in named]
    networks += [
        {"neuron": None, "estimator": None, "experts": 1, "expert_units": units}
        for units in (base.units, 2 * base.expert_units + base.experts, base.expert_units + base.experts)
    ]
    return [
        ExpertSettings.build(**{**options, **network, "seed": seed}) for seed in range(seeds) for network in networks
    ]
