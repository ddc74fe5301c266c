"""What the settings of all kinds of runs share."""

from __future__ import annotations

import re
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from gradest.contract.estimator import Estimator
from gradest.discovery.registry import registry
from gradest.errors import Incompatible, InvalidOptions

__all__ = ["Options", "build_estimator", "to_folder_name"]


class Options(BaseModel):
    """Settings of a run. These and the versions, and nothing else, decide its numbers, seconds apart."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def build(cls, **options: Any) -> Self:
        """Settings of these options; raises InvalidOptions that names each fault."""
        try:
            return cls(**options)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            raise InvalidOptions(f"settings of a run: {faults}. There are: {', '.join(cls.model_fields)}.") from error


def build_estimator(spec: dict[str, Any], neuron: str) -> Estimator:
    """The estimator of the mean loss, for this neuron; raises UnknownPlugin, InvalidOptions, or Incompatible."""
    estimator = registry.estimator(spec)
    registry.check_fit(registry.neuron(neuron), estimator)
    if estimator.target().samples != 1:
        raise Incompatible(
            f"{estimator.label()} estimates {estimator.target()}, a bound of several samples; here all train by the mean loss"
        )
    return estimator


def to_folder_name(label: str) -> str:
    """A label without what file systems dislike."""
    return re.sub(r"[^\w.+-]+", "-", label).strip("-")
