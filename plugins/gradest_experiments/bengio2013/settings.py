"""The settings of a run of a row."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field

from gradest_experiments.engine.data import Dataset, Split
from gradest_experiments.gated.settings import GatedSettings, ResolvedGatedSettings

__all__ = ["RowSettings"]


class RowSettings(ResolvedGatedSettings):
    """The settings of a run of a row: those of the gated network, and three more."""

    row: str = Field(description="the name of the row")
    decay: float = Field(
        0.5, ge=0, le=1, description="the part of the run, at its end, in which the learning rate falls linearly to 0"
    )
    images: int | None = Field(None, ge=1, description="how many of the training images to learn from; all if omitted")
    input_noise: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="β of the noise Beta(1, β) on the gates' pre-activations in training",
    )

    @classmethod
    def for_row(cls, row: str, **options: Any) -> Self:
        """Return the settings of a row.

        Raises InvalidOptions, which names every fault, and what `GatedSettings.resolved` raises.
        """
        own = {name: options.pop(name) for name in ("decay", "images", "input_noise") if name in options}
        resolved = GatedSettings.build(**options).resolved()
        return cls.build(**dict(resolved), row=row, **own)

    def rate_at(self, done: float) -> float:
        """Return the factor of the learning rate after this share of the run: 1, then a line to 0."""
        return 1.0 if done < 1 - self.decay else (1 - done) / self.decay

    def split(self, data: Dataset) -> Split:
        """Return the images to learn from."""
        return Split(data.train.x[: self.images], data.train.y[: self.images])

    def steps(self, data: Dataset) -> int:
        """Return the number of minibatches in an epoch."""
        return -(-len(self.split(data)) // self.batch)

    def target(self) -> float | None:
        """Return the share of gates that should be open; None if there is no penalty that closes them."""
        return None if self.penalty == "none" else self.sparsity
