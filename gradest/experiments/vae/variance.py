"""How much the encoder's gradient varies."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradest.estimator import Estimator, State
from gradest.experiments.vae.model import BinaryVae
from gradest.random import Key

__all__ = ["draw_gradients", "measure_variance"]


def draw_gradients(
    vae: BinaryVae, x: Tensor, estimator: Estimator, key: Key, state: State | None, draws: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Independent gradients of the mean loss of x, at one state: in the logits, `[batch, latents]`, and in the encoder's
    parameters, flat.
    """
    a = vae.encode(x)
    parameters = list(vae.encoder.parameters())
    for draw in range(draws):
        loss, _ = vae.loss(x, a, estimator, key.fold_in(draw), state)
        at_a, *rest = torch.autograd.grad(loss.mean(), [a, *parameters], retain_graph=True)
        yield at_a, torch.cat([part.flatten() for part in rest])


def measure_variance(
    vae: BinaryVae, x: Tensor, estimator: Estimator, key: Key, state: State | None, draws: int
) -> dict[str, float]:
    """The variance of one draw, per coordinate, the mean over coordinates: of the encoder's parameters, and of the logits."""
    count = 0
    means: list[Tensor] = []
    squares: list[Tensor] = []
    for found in draw_gradients(vae, x, estimator, key, state, draws):
        count += 1
        if count == 1:
            means, squares = [part.double() for part in found], [torch.zeros_like(part).double() for part in found]
            continue
        for part, mean, square in zip(found, means, squares, strict=True):
            gap = part - mean
            mean += gap / count
            square += gap * (part - mean)
    logits, parameters = (float(square.mean()) / (count - 1) for square in squares)
    return {"parameters": parameters, "logits": logits}
