"""The settings of a run, and the defaults that follow from the data and from what neuron and estimator can do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Differentiable, Neuron, Scored
from gradest.contract.plugin import Plugin
from gradest.discovery.registry import registry
from gradest.errors import InvalidOptions
from gradest.nn import Evaluation
from gradest.random import MAX_SEED
from gradest_experiments.engine.data import DatasetName
from gradest_experiments.engine.options import RunSettings
from gradest_experiments.gated.sparsity import PenaltyKind, default_penalty, probe_points

__all__ = ["GatedSettings", "ResolvedGatedSettings"]

Spec = Annotated[
    str | dict[str, Any], BeforeValidator(lambda given: given.spec() if isinstance(given, Plugin) else given)
]


class _Defaults(NamedTuple):
    """The defaults for a dataset."""

    hidden: int
    gates: int
    epochs: int
    scale_by_loss: float
    """gater_scale, if the estimator is given the loss."""
    weight_by_loss: float
    """penalty_weight of "kl", if the estimator is given the loss."""
    weight_half_smooth: float
    """penalty_weight of "kl", if the neuron has a random choice and a smooth part."""
    experts: Literal["sparse", "dense"]
    """Sparse if the experts are large enough for skipping to pay."""


# mnist: sizes and weight_half_smooth are those of Bengio et al. (2013). Their gater_scale and penalty_weight for an estimator
# that is given the loss, 0.01 and 1, close the gates before the gater has learned: the validation error after two epochs is
# 22 %, against 7 % with these. digits has a fortieth of the minibatches in an epoch, so its gater must learn faster.
_DEFAULTS: dict[DatasetName, _Defaults] = {
    "digits": _Defaults(64, 200, 100, 0.3, 0.03, 0.01, "dense"),
    "mnist": _Defaults(400, 2000, 100, 0.1, 0.01, 0.001, "sparse"),
}


class GatedSettings(RunSettings):
    """The settings of a run of the gated network. An option that is None or "auto" gets its default from `resolved`."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    data: DatasetName = Field("digits", description="the images: digits (offline) or mnist (from IDX files)")
    data_dir: Path | None = Field(
        None, exclude=True, description="the folder of the IDX files; $GRADEST_DATA if omitted"
    )
    neuron: Spec = Field("bernoulli", description="the neuron of the gates: a name, or {name, **options}")
    estimator: Spec = Field(
        "straight_through", description="the estimator of the gates' gradient: a name, or {name, **options}"
    )
    seed: int = Field(0, ge=0, lt=MAX_SEED, description="the seed of weights, noise and data order")
    epochs: int | None = Field(None, ge=1, description="passes over the training images")
    hidden: int | None = Field(None, ge=1, description="the number of tanh units of the gater")
    gates: int | None = Field(None, ge=1, description="the number of gates, and of experts")
    batch: int = Field(32, ge=1, description="the number of images in a minibatch")
    learning_rate: float = Field(0.1, gt=0, allow_inf_nan=False, description="the learning rate of SGD")
    gater_scale: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="the factor of learning_rate in the gater"
    )
    momentum: float | None = Field(None, ge=0, lt=1, description="the momentum of SGD")
    sparsity: float = Field(0.1, gt=0, lt=1, description="the share of gates that should be open")
    penalty: Literal["auto", PenaltyKind] = Field("auto", description="the penalty that drives the gates to that share")
    penalty_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="the factor of kl, or the coefficient that l1 starts from"
    )
    penalty_rate: float = Field(
        0.1, gt=0, lt=1, description="the relative change of the coefficient of l1 after a minibatch"
    )
    max_norm: float = Field(2.0, gt=0, description="the largest norm of a unit's incoming weights; inf is no limit")
    evaluation: Literal["auto", Evaluation] = Field("auto", description="what the gates emit in evaluation")
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the level of P(open) above which a gate is open in evaluation; calibrated to the share if omitted",
    )
    experts: Literal["auto", "sparse", "dense"] = Field(
        "auto", description="whether experts whose gates are closed are skipped (sparse) or computed (dense)"
    )
    device: str = Field("cpu", description="a torch device")

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"torch cannot use the device {device!r}: {str(error).splitlines()[0]}") from error
        return device

    def pair(self) -> tuple[Neuron, Estimator]:
        """Return the neuron and the estimator. Raises UnknownPlugin, InvalidOptions or Incompatible."""
        neuron, estimator = registry.neuron(self.neuron), registry.estimator(self.estimator)
        registry.check_fit(neuron, estimator)
        return neuron, estimator

    def resolved(self) -> ResolvedGatedSettings:
        """Return the settings with every default filled in, according to what neuron and estimator can do, never to their names.

        hidden, gates, epochs: 64, 200 and 100 for digits; 400, 2000 and 100 for mnist.
        gater_scale: an estimator that is given the loss has a noisier gradient than one that is given dL/dh, so with it the
            gater has 0.1 of the learning rate (digits: 0.3). Otherwise 1.
        momentum: 0.5 if the neuron has a random choice and a smooth part, as Bengio et al. (2013) have it for stochastic times
            smooth. Otherwise 0.
        penalty_weight: 1e-5, from where it is steered, for "l1". For "kl", 0.01 (digits: 0.03) if the estimator is given the
            loss, 0.001 (digits: 0.01) if the neuron has a random choice and a smooth part, otherwise 0.1.
        evaluation: a calibrated "threshold" if gates are open at random: as in Bengio et al. (2013), the wanted share is open,
            and an image always gets the same answer. Validation errors of four gaters on digits with two seeds each, averaged
            over the eight: calibrated threshold 2.3 %, mean (every gate a little open) 2.1 %, threshold at ½ 2.8 %, sample
            3.9 %. If gates are open by a rule without noise, or always, "mean", which then is the output itself.
        experts: "sparse" for mnist; "dense" for digits, whose experts are too small for skipping to pay.
        """
        neuron, estimator = self.pair()
        defaults = _DEFAULTS[self.data]
        half_smooth = isinstance(neuron, Scored) and isinstance(neuron, Differentiable)
        penalty = default_penalty(neuron) if self.penalty == "auto" else self.penalty
        scale, weight = 1.0, 0.1
        if half_smooth:
            weight = defaults.weight_half_smooth
        if "loss" in estimator.needs:
            scale, weight = defaults.scale_by_loss, defaults.weight_by_loss
        found = {
            "hidden": defaults.hidden,
            "gates": defaults.gates,
            "epochs": defaults.epochs,
            "gater_scale": scale,
            "momentum": 0.5 if half_smooth else 0.0,
            "penalty_weight": 1e-5 if penalty == "l1" else weight,
        }
        evaluation = _fitting_evaluation(neuron) if self.evaluation == "auto" else self.evaluation
        given = {name: value for name, value in dict(self).items() if value is not None}
        experts = defaults.experts if self.experts == "auto" else self.experts
        chosen = {"penalty": penalty, "evaluation": evaluation, "experts": experts}
        return ResolvedGatedSettings(**{**found, **given, **chosen})


class ResolvedGatedSettings(GatedSettings):
    """Settings in which nothing is left to choose."""

    epochs: int
    hidden: int
    gates: int
    gater_scale: float
    momentum: float
    penalty: PenaltyKind
    penalty_weight: float
    evaluation: Evaluation
    experts: Literal["sparse", "dense"]

    def event(self) -> tuple[int, ...]:
        """Return the shape of the gates: `(gates,)`, or `(units, classes)` for a neuron of classes, with 1 / sparsity classes.

        Raises InvalidOptions if the gates are not a multiple of the classes, or if an event has more than two dims.
        """
        neuron, _ = self.pair()
        if neuron.event_ndim == 1:
            return (self.gates,)
        classes = max(2, round(1 / self.sparsity))
        if neuron.event_ndim > 2 or self.gates % classes:
            raise InvalidOptions(
                f"an event of {neuron.name} has {neuron.event_ndim} dims: its {self.gates} gates must be units of {classes} "
                f"classes (1 / sparsity); choose a number of gates that is a multiple of {classes}"
            )
        return (self.gates // classes, classes)


def _fitting_evaluation(neuron: Neuron) -> Evaluation:
    probability = neuron.active_probability(probe_points(neuron))
    graded = bool(((probability > 0) & (probability < 1)).any())
    return "threshold" if graded else "mean"
