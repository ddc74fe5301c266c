"""broadcast_loss: one forward pass through stochastic layers, and its one cost."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from gradest.contract.estimator import Feedback
from gradest.errors import GradestWarning, InvalidInput, MissingLoss, ToldAlready
from gradest.estimation.arguments import check_count
from gradest.estimation.ask_tell import check_feedback_finite
from gradest.kernels import transformed
from gradest.kernels.stable import widen
from gradest.nn.costs.checks import (
    as_real,
    check_reduction,
    complain_of_calls,
    stochastic_layers,
    warn_without_gradient,
)
from gradest.nn.costs.untold import untold_gradients_of_step
from gradest.nn.layers import Stochastic
from gradest.nn.recomputation import refuse_recomputation
from gradest.nn.slopes import ExpectedSlopes
from gradest.nn.uses import Recorded, Reduction, attach, leading_batch, reduce

__all__ = ["broadcast_loss"]

_REMEDY = (
    "Open gradest.nn.StochasticGraph(model), in which outputs may die and costs are added one by one; a pass that is not to be "
    "told a loss belongs under torch.no_grad(). A use inside a transform of torch.func is told inside the same transform"
)


def broadcast_loss(model: nn.Module, loss: Tensor, reduction: Reduction = "mean", *, batch_dims: int = 1) -> Tensor:
    """Return the scalar to call backward on: the mean (or sum) of `loss`. Its backward pass gives each stochastic layer its loss.

    It is the shorthand for one forward pass with one cost; `StochasticGraph` is for several of either.

    loss: `[*batch, ...]`, at least one number an example, and finite. It need not be differentiable. Its first `batch_dims` dims
        are the leading dims of each layer's batch (a layer may have more of them, such as positions in an image, which then
        share their example's loss).
    batch_dims: how many leading dims of the loss count independent examples. The loss is summed over its other dims before it is
        credited, so with a loss `[batch, positions]` each position is credited with the whole loss of its example. This is right
        if positions attend to each other. If they do not, batch_dims=2 credits each with its own loss, which has less variance.
        batch_dims=0 is for a loss with dims of a model without a batch.

    The scalar may be scaled, as gradient accumulation and loss scaling do. The loss goes to every use of a layer since the last
    call whose output is still alive, and the state of each layer's estimator moves. In compiled code and inside transforms of
    torch.func it goes to every use, alive or not; run under torch.no_grad() what is not to receive it there. A use inside such a
    transform receives its loss inside the same transform. Uses wait in the thread in which the layer was called, and
    broadcast_loss is called in that thread. Under torch.no_grad() only the value is computed.

    Whatever depends on a sample belongs into the loss: a penalty in h that is added to the scalar has no score part. If the
    gradient of such a term reaches the sample of an eager layer that needs the loss, backward gives a GradestWarning. It looks at
    the first, second, fourth, eighth, ... step, and notices terms that make up a thousandth of a gradient (2 % in bfloat16).

    A layer whose estimator needs dL/dh is trained by the graph that leads from the loss to its sample. If there is none, backward
    raises NotDifferentiable; in transforms of torch.func, and in a compiled function whose other results reach the loss, only if
    the estimator needs the loss as well. See `StochasticGraph`.

    If some uses of a layer died before they were told a loss, it gives a GradestWarning; if all of them did, or if the layers of
    the model were never called in this thread, it raises MissingLoss: an output that died, such as that of `h.argmax(-1)`, may
    still have decided the loss. Raises ToldAlready if every use since the last forward pass was told before, and InvalidInput for
    a model without a stochastic layer or a loss that does not fit a layer or is not finite. A loss that is not finite leaves the
    states as they were and ends the step: the uses that waited for it are forgotten.

    >>> import torch, gradest
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), gradest.nn.Stochastic("bernoulli", "reinforce_centered"))
    >>> loss = model(torch.randn(4, 2)).sum(-1)  # one for each example
    >>> gradest.nn.broadcast_loss(model, loss).backward()
    >>> model[0].weight.grad.shape
    torch.Size([3, 2])
    """
    check_reduction(reduction)
    check_count("batch_dims", batch_dims, least=0)
    refuse_recomputation("broadcast_loss cannot be called")
    layers, loss = stochastic_layers("broadcast_loss", model), as_real("the loss", loss)
    if not torch.is_grad_enabled():
        return reduce(loss, reduction)
    compiling = torch.compiler.is_compiling()
    eager = not (compiling or transformed())
    waiting: list[tuple[list[Recorded], int]] = []
    told: list[Recorded] = []
    for layer in layers:
        if layer.scope is not None:
            raise InvalidInput(
                "broadcast_loss tells nothing inside a StochasticGraph, which records the uses of the model; call "
                "graph.add_cost(loss) and graph.surrogate()"
            )
        waiting.append(layer.waiting_uses())
        told += waiting[-1][0]
    if not told and any(layer.was_told() for layer in layers):
        raise ToldAlready(
            "every use of a stochastic layer since the last forward pass has been told its loss. Add up the losses of one "
            "forward pass and call broadcast_loss once, or under torch.no_grad() where you only look at the value. For several "
            "costs use gradest.nn.StochasticGraph"
        )
    if not told and not any(layer.was_called() for layer in layers):
        complain_of_calls(layers, "in this thread")
    if loss.ndim < batch_dims and (loss.ndim or batch_dims > 1 or any(use.batch for use in told)):
        raise InvalidInput(
            "the loss is a single number, but the layers have a batch; do not reduce the loss, which is one number an example. "
            "If the whole batch shares this one loss, say so: broadcast_loss(model, loss, batch_dims=0)"
            if not loss.ndim
            else f"batch_dims is {batch_dims}, but the loss has {loss.ndim} dim(s), {list(loss.shape)}"
        )
    value = loss.detach()
    credit = value if value.ndim <= batch_dims else widen(value).flatten(batch_dims).sum(-1)
    losses = [leading_batch("the loss", credit, use.batch, use.sampler.neuron) for use in told]
    if told and not compiling:
        _check_finite(value, layers)
    for layer, (uses, died) in zip(layers, waiting, strict=True):
        if died:
            _complain(layer, died, len(uses))
    slopes = [slope for layer in layers for slope in layer.awaited_slopes()] if eager else []
    expected = ExpectedSlopes(model, each=bool(told)) if slopes else None
    scalar = attach(loss, reduction, told, losses, [1.0] * len(told), expected)
    if expected is not None and scalar.requires_grad:
        expected.made(scalar.grad_fn, slopes)
        expected.close()
    warn_without_gradient(scalar, layers)
    untold = untold_gradients_of_step(layers) if told and eager else None
    if untold is not None:
        untold.watch(scalar, told)
        untold.close()
    for layer, (uses, _) in zip(layers, waiting, strict=True):
        layer.forget_uses(len(uses))
    return scalar


def _check_finite(loss: Tensor, layers: list[Stochastic]) -> None:
    """Raise InvalidInput for a loss that is not finite. The layers then forget the uses that waited for it."""
    try:
        check_feedback_finite(Feedback(loss))
    except InvalidInput:
        for layer in layers:
            layer.forget_uses()  # or the loss of the next step would be told to them as well
        raise


def _complain(layer: Stochastic, died: int, alive: int) -> None:
    """Raise or warn that uses of a layer died before they were told a loss."""
    text = (
        f"{died} of {died + alive} uses of the layer {layer.neuron.label()} died before they were told a loss: nothing that "
        f"backward could start from leads to their output, although it may have decided the loss, as h.argmax(-1) does. {_REMEDY}"
    )
    if not alive:
        layer.forget_uses()
        raise MissingLoss(text)
    warnings.warn(text, GradestWarning, stacklevel=3)
