"""MNIST as bytes, and its binarisation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradest.random import Key
from gradest_experiments.engine.data import load

__all__ = ["Images", "binarise", "grey", "load_images"]

_LEVELS = 255


@dataclass(frozen=True, eq=False)
class Images:
    """Three splits of pixels, `[N, pixels]` uint8."""

    train: Tensor
    valid: Tensor
    test: Tensor

    def mean(self) -> Tensor:
        """Return the mean of the training images, `[pixels]`, in [0, 1]."""
        return self.train.float().mean(0) / _LEVELS


def load_images(data_dir: Path | None = None) -> Images:
    """Return MNIST: 50,000, 10,000 and 10,000 images. Raises what `gradest_experiments.engine.data.load` raises."""
    data = load("mnist", data_dir)
    return Images(*((split.x * _LEVELS).round().byte() for split in (data.train, data.valid, data.test)))


def binarise(pixels: Tensor, key: Key) -> Tensor:
    """Draw images `[N, pixels]` of 0 and 1, float32, in which a pixel is 1 with probability pixel / 255."""
    return (key.uniform(pixels.shape[:1], pixels.shape[1:])[0] < pixels.to(torch.float32) / _LEVELS).float()


def grey(pixels: Tensor) -> Tensor:
    """Return images `[N, pixels]` of the values pixel / 255, float32."""
    return pixels.to(torch.float32) / _LEVELS
