"""A small data set, and Ctrl-C at a given moment of a run."""

from __future__ import annotations

import os
import signal

import torch

from gradest_experiments.engine.data import Dataset, Split


def bright_pixels(train: int) -> Dataset:
    """Images of 12 pixels, of 4 classes that each brighten a pixel of their own: so many to train, and 20 and 20 others."""
    generator = torch.Generator().manual_seed(0)
    splits = []
    for n in (train, 20, 20):
        y = torch.randint(0, 4, (n,), generator=generator)
        x = torch.rand(n, 12, generator=generator)
        x[torch.arange(n), y] += 1
        splits.append(Split(x, y))
    return Dataset(*splits, classes=4)


class InterruptedAt(list[float]):
    """The progress of a run, by steps or epochs, which the run calls this with; at `moment` it presses Ctrl-C."""

    def __init__(self, moment: float) -> None:
        super().__init__()
        self.moment = moment

    def __call__(self, done: float) -> None:
        self.append(done)
        if done == self.moment:
            os.kill(os.getpid(), signal.SIGINT)
