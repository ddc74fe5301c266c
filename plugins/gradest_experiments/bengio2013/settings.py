"""What a run of a row is made of."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field

from gradest_experiments.data import Dataset, Split
from gradest_experiments.settings import ResolvedSettings, Settings

__all__ = ["RowSettings"]


class RowSettings(ResolvedSettings):
    """A run. These and the versions, and nothing else, decide its numbers."""

    row: str = Field(description="of the table")
    decay: float = Field(0.5, ge=0, le=1, description="the last part of the run, in which the learning rate falls to 0")
    images: int | None = Field(None, ge=1, description="the first of the training images; None is all")
    input_noise: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="β of noise, Beta(1, β), on the gates' pre-activations in training"
    )

    @classmethod
    def of(cls, row: str, **options: Any) -> Self:
        """The settings of a row. Raises InvalidOptions, which names each fault, and what `Settings.resolved` raises."""
        own = {name: options.pop(name) for name in ("decay", "images", "input_noise") if name in options}
        resolved = Settings.build(**options).resolved()
        return cls.build(**dict(resolved), row=row, **own)

    def rate_at(self, done: float) -> float:
        """The factor of the learning rate when this share of the run is done: 1, then a line to 0."""
        return 1.0 if done < 1 - self.decay else (1 - done) / self.decay

    def split(self, data: Dataset) -> Split:
        """The images to learn from."""
        return Split(data.train.x[: self.images], data.train.y[: self.images])

    def steps(self, data: Dataset) -> int:
        """Minibatches an epoch."""
        return -(-len(self.split(data)) // self.batch)

    def target(self) -> float | None:
        """The share of gates that should be open; None where nothing closes them."""
        return None if self.penalty == "none" else self.sparsity
