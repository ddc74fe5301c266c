"""What a run is made of, and the defaults that follow from the data and from a pair's capabilities."""

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
from gradest_experiments.data import DatasetName
from gradest_experiments.options import Options
from gradest_experiments.sparsity import PenaltyKind, fitting_penalty, probe

__all__ = ["ResolvedSettings", "Settings"]

Spec = Annotated[
    str | dict[str, Any], BeforeValidator(lambda given: given.spec() if isinstance(given, Plugin) else given)
]


class _Defaults(NamedTuple):
    """Of one dataset."""

    hidden: int
    gates: int
    epochs: int
    scale_by_loss: float
    """gater_scale where the gradient goes by the loss."""
    weight_by_loss: float
    """penalty_weight of "kl" there."""
    weight_half_smooth: float
    """penalty_weight of "kl" for a choice with a smooth part."""
    experts: Literal["sparse", "dense"]
    """Sparse where experts are large enough to gain by it."""


# mnist: the source's sizes and weight of a choice with a smooth part. The source's scale and weight by the loss, 0.01 and 1,
# close the gates before the gater has learned: 22 % validation error after two epochs, against 7 % with these. digits has a
# fortieth of the minibatches an epoch, so its gater must learn faster.
_DEFAULTS: dict[DatasetName, _Defaults] = {
    "digits": _Defaults(64, 200, 100, 0.3, 0.03, 0.01, "dense"),
    "mnist": _Defaults(400, 2000, 100, 0.1, 0.01, 0.001, "sparse"),
}


class Settings(Options):
    """A run of the gated network. An option that is None or "auto" gets its default from `resolved`."""

    model_config = ConfigDict(ser_json_inf_nan="strings")

    data: DatasetName = Field("digits", description="digits (offline) or mnist (from IDX files)")
    data_dir: Path | None = Field(None, exclude=True, description="where the IDX files are; else $GRADEST_DATA")
    neuron: Spec = Field("bernoulli", description="the gates: a name, or {name, **options}")
    estimator: Spec = Field("straight_through", description="of the gates' gradient: a name, or {name, **options}")
    seed: int = Field(0, ge=0, lt=MAX_SEED, description="of weights, noise and data order")
    epochs: int | None = Field(None, ge=1, description="passes over the training images")
    hidden: int | None = Field(None, ge=1, description="tanh units of the gater")
    gates: int | None = Field(None, ge=1, description="gates, and experts")
    batch: int = Field(32, ge=1, description="images in a minibatch")
    learning_rate: float = Field(0.1, gt=0, allow_inf_nan=False, description="of SGD")
    gater_scale: float | None = Field(None, gt=0, allow_inf_nan=False, description="the gater's share of learning_rate")
    momentum: float | None = Field(None, ge=0, lt=1, description="of SGD")
    sparsity: float = Field(0.1, gt=0, lt=1, description="the share of gates that should be open")
    penalty: Literal["auto", PenaltyKind] = Field("auto", description="what drives the gates to that share")
    penalty_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="the factor of kl, or the coefficient that l1 starts from"
    )
    penalty_rate: float = Field(0.1, gt=0, lt=1, description="by which a minibatch moves the coefficient of l1")
    max_norm: float = Field(2.0, gt=0, description="limit of the norm of a unit's incoming weights; inf is none")
    evaluation: Literal["auto", Evaluation] = Field("auto", description="what the gates emit in evaluation")
    threshold: float | None = Field(None, ge=0, le=1, description="level of P(open); None calibrates it to the share")
    experts: Literal["auto", "sparse", "dense"] = Field(
        "auto", description="compute what open gates let through, or all"
    )
    device: str = Field("cpu", description="a torch device")

    @field_validator("device")
    @classmethod
    def _check_device(cls, device: str) -> str:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise ValueError(f"torch cannot use the device {device!r} here: {str(error).splitlines()[0]}") from error
        return device

    def pair(self) -> tuple[Neuron, Estimator]:
        """The neuron and the estimator; raises UnknownPlugin, InvalidOptions or Incompatible."""
        neuron, estimator = registry.neuron(self.neuron), registry.estimator(self.estimator)
        registry.check_fit(neuron, estimator)
        return neuron, estimator

    def resolved(self) -> ResolvedSettings:
        """The same run with every default filled in, by what the pair can do and never by its name.

        hidden, gates, epochs: 64, 200 and 100 for digits; 400, 2000 and 100 for mnist.
        gater_scale: an estimator that goes by the loss is noisy where one that is given dL/dh is not, so the gater then
            learns with a part of the learning rate, 0.1 of it (digits: 0.3). Else 1.
        momentum: 0.5 for a neuron with a choice and a smooth part, as in the source for stochastic times smooth. Else 0.
        penalty_weight: "l1" starts from 1e-5. For "kl" 0.01 (digits: 0.03) where the gradient goes by the loss, 0.001
            (digits: 0.01) for a choice with a smooth part, else 0.1.
        evaluation: "threshold", calibrated, where gates are open at random: as in the source, it meets the share and gives an
            image one answer. Validation error of four gaters on digits, two seeds, in %, mean of the eight: calibrated
            threshold 2.3, mean (every gate a little open) 2.1, threshold at ½ 2.8, sample 3.9. "mean", the output itself,
            where gates are open by a rule without noise or always.
        experts: "sparse" for mnist; "dense" for digits, whose experts are too small to gain by it.
        """
        neuron, estimator = self.pair()
        defaults = _DEFAULTS[self.data]
        half_smooth = isinstance(neuron, Scored) and isinstance(neuron, Differentiable)
        penalty = fitting_penalty(neuron) if self.penalty == "auto" else self.penalty
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
        return ResolvedSettings(**{**found, **given, **chosen})


class ResolvedSettings(Settings):
    """A run with nothing left to choose."""

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
        """The shape of the gates, `(gates,)`; for a neuron of several classes `(units, classes)` with 1 / sparsity classes."""
        neuron, _ = self.pair()
        if neuron.event_ndim == 1:
            return (self.gates,)
        classes = max(2, round(1 / self.sparsity))
        if neuron.event_ndim > 2 or self.gates % classes:
            raise InvalidOptions(
                f"{neuron.name} has events of {neuron.event_ndim} dims: its {self.gates} gates must be units of {classes} "
                "classes, one over the sparsity; choose gates that are a multiple of that"
            )
        return (self.gates // classes, classes)


def _fitting_evaluation(neuron: Neuron) -> Evaluation:
    probability = neuron.active_probability(probe(neuron))
    graded = bool(((probability > 0) & (probability < 1)).any())
    return "threshold" if graded else "mean"
