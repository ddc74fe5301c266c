"""What broadcast_loss and a StochasticGraph check: the model, the losses, and the scalar that they return."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from gradest.errors import GradestWarning, InvalidInput, MissingLoss
from gradest.kernels import transformed
from gradest.nn.expectation import Expectation
from gradest.nn.layers import Stochastic

__all__ = ["as_real", "check_reduction", "complain_of_calls", "stochastic_layers", "warn_without_gradient"]


def stochastic_layers(caller: str, model: nn.Module) -> list[Stochastic]:
    """Return the `Stochastic` layers of the model. Raises InvalidInput unless it is a module with a layer that is stochastic."""
    if not isinstance(model, nn.Module):
        raise InvalidInput(
            f"{caller} takes a torch.nn.Module, not {type(model).__name__}; put layers into a torch.nn.ModuleList"
        )
    layers = [layer for layer in model.modules() if isinstance(layer, Stochastic)]
    if not layers and not any(isinstance(layer, Expectation) for layer in model.modules()):
        raise InvalidInput(
            f"{caller} was given a {type(model).__name__} without a gradest.nn.Stochastic or Expectation layer. Give it the "
            "model that contains the layers; those in a list or a dict need a torch.nn.ModuleList or ModuleDict. A loss without "
            "stochastic layers is trained by loss.mean().backward()"
        )
    return layers


def as_real(what: str, x: Tensor) -> Tensor:
    """Return x as a floating-point tensor. Raises InvalidInput unless it is a tensor of real numbers."""
    if not isinstance(x, Tensor) or x.is_complex():
        found = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise InvalidInput(f"{what} must be a torch tensor of real numbers, not {found}")
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def complain_of_calls(layers: list[Stochastic], where: str) -> None:
    """Raise MissingLoss, if a layer in training mode needs the loss, because none was called `where` its loss is told."""
    for layer in layers:
        if layer.training and layer.sampler.needs_loss:
            raise MissingLoss(
                f"none of the stochastic layers of the model was called {where}, so none can be told its loss. Give the model "
                "whose layers were called (not a copy of it, such as a replica in another thread), and call it in the thread and "
                "in the scope in which the loss is told; if the layers have no part in the loss, use loss.mean().backward()"
            )


def warn_without_gradient(scalar: Tensor, layers: list[Stochastic]) -> None:
    """Warn that the scalar has no gradient, if a layer is in training mode."""
    if scalar.requires_grad or torch.compiler.is_compiling() or transformed():
        return
    if any(layer.training for layer in layers):
        warnings.warn(
            "this scalar has no gradient: the loss is not differentiable, and no use of a stochastic layer came before it whose "
            "pre-activations require a gradient. Train the parameters before the layers, or use torch.no_grad()",
            GradestWarning,
            stacklevel=3,
        )


def check_reduction(reduction: str) -> None:
    """Raise InvalidInput unless this is a way to reduce losses."""
    if reduction not in ("mean", "sum"):
        raise InvalidInput(f'reduction must be "mean" or "sum", not {reduction!r}')
