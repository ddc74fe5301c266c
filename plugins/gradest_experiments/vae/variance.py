"""The variance of the encoder's gradient."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from gradest.contract.estimator import Estimator, State
from gradest.random import Key
from gradest_experiments.vae.model import Vae

__all__ = ["draw_gradients", "measure_variance"]


def draw_gradients(
    vae: Vae, x: Tensor, estimator: Estimator, key: Key, state: State | None, draws: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield independent gradients of the mean loss of x at one state of the estimator.

    Each is a pair: in the logits, `[batch, *event]`, and in the encoder's parameters, flattened into one vector.
    """
    a = vae.encode(x)
    parameters = list(vae.encoder.parameters())
    for draw in range(draws):
        loss, _ = vae.loss(x, a, estimator, key.fold_in(draw), state)
        at_a, *rest = torch.autograd.grad(loss.mean(), [a, *parameters], retain_graph=True)
        yield at_a, torch.cat([part.flatten() for part in rest])


def measure_variance(
    vae: Vae, x: Tensor, estimator: Estimator, key: Key, state: State | None, draws: int
) -> dict[str, float]:
    """Return the variance of one draw, averaged over coordinates, in the encoder's parameters and in the logits."""
    moments: list[tuple[Tensor, Tensor]] = []  # the running mean, and the sum of squared deviations from it
    for count, found in enumerate(draw_gradients(vae, x, estimator, key, state, draws), 1):
        for part, (mean, square) in zip(found, moments, strict=True) if moments else ():
            gap = part - mean
            mean.add_(gap / count)
            square.add_(gap * (part - mean))
        moments = moments or [(part.double(), torch.zeros_like(part).double()) for part in found]
    logits, parameters = (float(square.mean()) / (draws - 1) for _, square in moments)
    return {"parameters": parameters, "logits": logits}
