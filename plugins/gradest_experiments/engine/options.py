"""What the settings of all experiments have in common."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gradest.contract.estimator import Estimator
from gradest.contract.target import Target
from gradest.discovery.registry import registry
from gradest.errors import Incompatible, InvalidOptions

__all__ = ["RunSettings", "build_estimator", "to_folder_name"]


class RunSettings(BaseModel):
    """The settings of a run. Together with the versions they determine all its numbers, measured times apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def build(cls, **options: Any) -> Self:
        """Return the settings with these options. Raises InvalidOptions, which names every fault."""
        try:
            return cls(**options)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise InvalidOptions(f"settings of a run: {faults}. There are: {', '.join(cls.model_fields)}.") from error


def build_estimator(spec: dict[str, Any], neuron: str | dict[str, Any]) -> Estimator:
    """Return the estimator of a spec {name, **options}, for the neuron of this name or spec.

    Raises UnknownPlugin, InvalidOptions, and Incompatible if the estimator does not fit the neuron or estimates another target
    than the mean loss.
    """
    estimator = registry.estimator(spec)
    registry.check_fit(registry.neuron(neuron), estimator)
    if estimator.target() != Target():
        raise Incompatible(
            f"{estimator.label()} estimates {estimator.target()}; this experiment trains on the mean loss"
        )
    return estimator


def to_folder_name(label: str) -> str:
    """Return a label with every run of characters that a file name should not have replaced by a hyphen."""
    return re.sub(r"[^\w.+-]+", "-", label).strip("-")
