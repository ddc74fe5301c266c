"""One use of a stochastic layer: the sample it emits, and the gradient it gets once its loss is known.

Each use is one autograd node, `Emit(a) -> (h, port)`. The port stands for the pre-activations: what arrives at it in backward
goes to `a` unchanged. Once the loss is known, `tell` computes the estimator's gradient, and `Attach` adds it to a scalar: the
value of the scalar stays as it is, and its backward sends the gradient to the port. An estimator that needs dL/dh receives it in
Emit's backward; loss and dL/dh then add up, because the gradient of such an estimator is a sum of a term in each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, Feedback, State
from gradest.contract.neuron import Discrete, Neuron
from gradest.contract.score_function import ScoreFunction
from gradest.discovery.pairs import pair_of
from gradest.errors import Incompatible, InvalidInput, MissingLoss
from gradest.estimation.arguments import first_non_finite
from gradest.estimation.ask_tell import check_scores, tell_finite
from gradest.estimation.distributed import joined_credit_state, joined_state_of_paths, with_path_dim, world_size
from gradest.estimation.second_derivative import DifferentiateOnce
from gradest.kernels import transformed
from gradest.kernels.stable import cast, widen
from gradest.nn.sampler import Paths, Sampler
from gradest.nn.slopes import ExpectedSlopes, Slope, unreached

Reduction = Literal["mean", "sum"]
_SAW_A_PART = (
    "If the layer was called with a part of the examples, call it with all of them, and choose among its outputs afterwards, as "
    "by torch.where(mask[:, None], h, other)"
)
_USE = "gradest.nn.Stochastic"  # where the autograd graph of a sample keeps its use

__all__ = [
    "Emit",
    "EmitTransformed",
    "Recorded",
    "RecordedEagerly",
    "RecordedInTransform",
    "Reduction",
    "Use",
    "attach",
    "keep_alive",
    "leading_batch",
    "missing_loss",
    "reduce",
    "used_inside_loss",
]


class StatefulLayer(Protocol):
    """What a use needs of its layer, which is a `gradest.nn.Stochastic`."""

    def advance(self, state: State, since: int) -> None:
        """Set the next state, which a use computed from the state of step `since`."""


def missing_loss(estimator: Estimator) -> MissingLoss:
    """Return the error for a backward pass that reached a use whose loss was not told."""
    return MissingLoss(
        f"{estimator.label()} needs the loss of each example: call backward on gradest.nn.broadcast_loss(model, loss), with loss "
        "[*batch], instead of on the reduced loss, or on graph.surrogate() of a gradest.nn.StochasticGraph. A layer inside "
        "torch.utils.checkpoint needs use_reentrant=False and preserve_rng_state=True"
    )


def used_inside_loss(sampler: Sampler) -> Incompatible:
    """Return the error for a use inside the function f of an Expectation."""
    return Incompatible(
        f"a layer of {sampler.neuron.name} with {sampler.estimator.name} was called inside the function f of an Expectation, or "
        "of gradest.expect, which evaluates f at K points an example and cannot tell the layer the loss of each. Use a "
        "gradest.nn.Expectation in f, whose own f is the rest of the loss, or an estimator that needs only dL/dh"
    )


def leading_batch(what: str, x: Tensor, batch: Sequence[int], neuron: Neuron) -> Tensor:
    """Expand x, whose dims are the leading batch dims of a layer, to all of its batch dims, `[*batch]`."""
    if x.shape != batch[: x.ndim]:
        more = x.ndim == 1 == len(batch) and len(x) > batch[0]
        raise InvalidInput(
            f"{what} is one number an example, so its shape must be, or begin, the batch {list(batch)} of the layer "
            f"{neuron.label()}, the dims of its input before those of one event, which event_dims= sets; it is "
            f"{list(x.shape)}. {_SAW_A_PART if more else 'Do not reduce it over the batch'}. batch_dims says how many of its "
            "leading dims are the batch. For losses of several steps, add each to a gradest.nn.StochasticGraph with add_cost"
        )
    if x.requires_grad:
        x = x.detach()
    return x if x.ndim == len(batch) else x[(..., *[None] * (len(batch) - x.ndim))].expand(tuple(batch))


class Use:
    """What the layer's estimator drew at one use, and the state from which it drew.

    It keeps the sampler with which it was drawn: the options of the layer may change before its backward. `slope` is its dL/dh,
    if the estimator needs it.
    """

    def __init__(
        self, layer: StatefulLayer, sampler: Sampler, draw: Draw, state: State, step: int, paths: Paths
    ) -> None:
        self.layer, self.sampler, self.draw = layer, sampler, draw
        self.state, self.step, self.paths = state, step, paths
        self.emitted, self.intact = draw.points, 0  # what the caller has, and its version as long as nobody wrote to it
        self.version = draw.a._version
        self.slope = Slope(layer, sampler) if sampler.needs_slope else None

    @property
    def seed(self) -> int | Tensor:
        """The seed of the draw."""
        return self.draw.key.seed

    @property
    def batch(self) -> torch.Size:
        """The batch dims of the pre-activations."""
        return self.draw.a.shape[: self.draw.a.ndim - self.draw.neuron.event_ndim]

    def gradient_of_loss(self, loss: Tensor) -> Tensor:
        """Tell the estimator the loss `[*batch]`, and move the layer's state on. Return the gradient in a, `[*batch, *event]`.

        If the estimator credits paths against each other, the gradient is that of the value that combines them; else each row
        has the gradient of its own loss.
        """
        self._check_intact()
        estimator, draw, state = self.sampler.estimator, self.draw, self.state
        if self.sampler.credits_paths:
            gradient, moved = self._credit(loss)
        else:
            feedback = Feedback(loss[None], torch.zeros_like(draw.points) if "grad" in estimator.needs else None)
            gradient, moved = tell_finite(self.sampler.drawing, draw, feedback, state)
            if self.paths.samples and state and world_size() > 1:
                moved = joined_state_of_paths(estimator, draw, feedback, state, self.paths.samples, self.paths.flat)
        self.layer.advance(moved, self.step)
        return gradient

    def gradient_of_grad(self, grad_h: Tensor) -> Tensor:
        """Return the part of the gradient in a that is due to dL/dh `[*batch, *event]`.

        A dL/dh that is not finite, as loss scaling makes them, gives a gradient that is not finite, and the state stays.
        """
        self._check_intact()
        estimator, draw = self.sampler.estimator, self.draw
        if "loss" in estimator.needs:
            given = grad_h.resolve_neg() if grad_h.is_neg() else grad_h  # kernels read memory
            feedback = Feedback(draw.a.new_zeros((1, *self.batch)), cast(given[None], draw.a.dtype))
            with torch.no_grad():  # the state moved when the loss was told
                return estimator.backward(draw, feedback, self.state)[0]
        gradient, moved = tell_finite(self.sampler.drawing, draw, Feedback(None, grad_h[None]), self.state)
        if moved and (transformed() or first_non_finite(grad_h) is None):
            self.layer.advance(moved, self.step)
        return gradient

    def _credit(self, loss: Tensor) -> tuple[Tensor, State]:
        estimator = self.sampler.of_samples(self.paths.samples)
        assert isinstance(estimator, ScoreFunction)
        neuron, h, a = self.draw.neuron, self.draw.points[0], self.draw.a
        assert isinstance(neuron, Discrete)
        loss = loss.to(torch.promote_types(loss.dtype, a.dtype))  # differences of losses in their own precision
        if self.paths.flat:
            h, a, loss = (with_path_dim(x, 0, self.paths.samples) for x in (h, a, loss))
        with torch.no_grad():
            check_scores(pair_of(neuron, estimator), self.draw)
            features = estimator.features(neuron, h, a)
            weights, moved = estimator.credit(loss, self.state, features)
            if self.state and world_size() > 1:
                moved = joined_credit_state(estimator, loss, self.state, features)
            gradient = neuron.weighted_score(h[None], a, weights[None].to(a.dtype))
        return gradient.flatten(0, 1) if self.paths.flat else gradient, moved

    def _check_intact(self) -> None:
        draw = self.draw
        if draw.a._version != self.version:
            raise RuntimeError(
                f"the pre-activations of the layer {self.sampler.neuron.label()} were written to in place after the layer used "
                "them, so their gradient cannot be computed; write to a copy instead, as in relu(a.clone(), inplace=True)"
            )
        if self.emitted._version != self.intact:  # the caller has written to h, which shares memory with the points
            self.draw = self.sampler.draw(draw.a, self.state, self.paths, draw.key.seed)
            self.emitted, self.intact = self.draw.points, self.draw.points._version


class Recorded:
    """A use that waits for its loss: an element of a linked list, latest first. torch.compile can build such a list.

    port: the tensor whose gradient goes to the pre-activations. flag: in a compiled graph, a zero whose gradient says that the
    use was told. baseline: `[*batch]` or None, subtracted from the loss the first time.
    """

    def __init__(
        self,
        sampler: Sampler,
        port: Tensor,
        baseline: Tensor | None,
        paths: Paths,
        flag: Tensor | None = None,
    ) -> None:
        self.sampler, self.port, self.flag = sampler, port, flag
        self.baseline = None if baseline is None else self._checked(baseline, paths)
        self.previous: Any = None

    def _checked(self, baseline: Tensor, paths: Paths) -> Tensor:
        """Return a copy of the baseline, `[*batch]`: the caller may write to it."""
        if not isinstance(baseline, Tensor):
            raise InvalidInput(f"a baseline must be a torch tensor, [*batch], not {type(baseline).__name__}")
        if paths.samples and not paths.flat and baseline.ndim == 1 < len(self.batch):
            raise InvalidInput(
                f"with whole-path samples a baseline is [K, *batch], here {list(self.batch)}; this one is {list(baseline.shape)}"
            )
        if not (torch.compiler.is_compiling() or transformed()):
            index = first_non_finite(baseline.detach())
            if index is not None:
                raise InvalidInput(f"baselines must be finite, but at {index} this one is {baseline[tuple(index)]}")
        return leading_batch("a baseline", baseline.detach().clone(), self.batch, self.sampler.neuron)

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch dims of the pre-activations."""
        return tuple(self.port.shape[: self.port.ndim - self.sampler.neuron.event_ndim])

    def tell(self, loss: Tensor) -> Tensor:
        """Return the gradient in a `[*batch, *event]` at this loss `[*batch]`, and move the layer's state on."""
        if self.baseline is not None:
            loss, self.baseline = loss - self.baseline, None
        return self._gradient(loss)

    def _gradient(self, loss: Tensor) -> Tensor:
        raise NotImplementedError


class RecordedEagerly(Recorded):
    """A use in eager code, whose draw is kept."""

    def __init__(self, use: Use, port: Tensor, baseline: Tensor | None) -> None:
        super().__init__(use.sampler, port, baseline, use.paths)
        self.use = use

    def _gradient(self, loss: Tensor) -> Tensor:
        return self.use.gradient_of_loss(loss)


class RecordedInTransform(Recorded):
    """A use inside a transform of torch.func, of a layer without state: it draws again from the seed."""

    def __init__(
        self,
        layer: StatefulLayer,
        sampler: Sampler,
        port: Tensor,
        baseline: Tensor | None,
        a: Tensor,
        seed: Tensor,
        paths: Paths,
    ) -> None:
        super().__init__(sampler, port, baseline, paths)
        self.layer, self.a, self.seed, self.paths = layer, a, seed, paths

    def _gradient(self, loss: Tensor) -> Tensor:
        return _drawn_again(self.layer, self.sampler, self.a, self.seed, self.paths).gradient_of_loss(loss)


def keep_alive(h: Tensor, use: Recorded) -> None:
    """Have the use live for as long as any graph leads back to h, its sample, of at least one dim.

    An operation in place that changes nothing adds a node to the graph; that of a view would forbid callers to write to h.
    """
    node = h.transpose_(0, 0).grad_fn
    assert node is not None
    node.metadata[_USE] = use  # type: ignore[index]


class Emit(torch.autograd.Function):
    """Emits the sample h of a use, and its port if the estimator needs the loss."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, use: Use) -> tuple[Tensor, Tensor | None]:
        """Return h and the port, whose numbers nobody reads: those of a, so that it takes no memory."""
        ctx.use, ctx.dtype = use, a.dtype
        ctx.save_for_backward(a)
        ctx.set_materialize_grads(False)  # an output that received no gradient gets None
        points, given = use.draw.points, use.draw.a
        if torch._C._is_alias_of(points, given):  # type: ignore[attr-defined]
            points = points.clone()  # a neuron may emit `a` itself
        h = cast(points[0], a.dtype).data  # shares memory with the points but is no view, so callers may write to h
        use.emitted = h.detach()  # its version counter counts those writes
        return h, given.data if use.sampler.needs_loss else None

    @staticmethod
    def backward(ctx: Any, grad_h: Tensor | None, grad_port: Tensor | None) -> tuple[Tensor | None, None]:
        """Return the gradient in a."""
        if grad_h is not None and ctx.use.slope is not None:
            ctx.use.slope.reached = True
        gradient = _emitted_gradient(ctx.use, grad_h, grad_port)
        if gradient is not None:
            gradient = cast(gradient, ctx.dtype)
            if torch.is_grad_enabled():
                sources = (*ctx.saved_tensors, *(() if grad_h is None else (grad_h,)))
                gradient = DifferentiateOnce.apply(gradient, *sources)  # type: ignore[no-untyped-call]
        return gradient, None


class EmitTransformed(torch.autograd.Function):
    """Does what `Emit` does, in a form that transforms of torch.func accept: it draws, and backward draws again from the seed."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, seed: Tensor, layer: StatefulLayer, sampler: Sampler, paths: Paths) -> tuple[Tensor, Tensor]:
        """Return h and the port."""
        draw = sampler.draw(a, {}, paths, seed)
        return draw.points[0].to(a.dtype, copy=True), torch.zeros_like(draw.a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep what backward needs to draw again."""
        a, seed, ctx.layer, ctx.sampler, ctx.paths = inputs
        ctx.save_for_backward(a, seed)
        ctx.set_materialize_grads(False)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """Raise Incompatible: an estimate is a gradient, which forward mode does not carry."""
        raise Incompatible(
            "a stochastic layer has no forward-mode derivative, which torch.func.jvp and jacfwd ask for; use "
            "torch.func.grad, vjp or jacrev"
        )

    @staticmethod
    def backward(
        ctx: Any, grad_h: Tensor | None, grad_port: Tensor | None
    ) -> tuple[Tensor | None, None, None, None, None]:
        """Return the gradient in a."""
        a, seed = ctx.saved_tensors
        use = _drawn_again(ctx.layer, ctx.sampler, a, seed, ctx.paths)
        gradient = _emitted_gradient(use, grad_h, grad_port)
        if gradient is not None:
            gradient = DifferentiateOnce.apply(gradient.to(a.dtype), a)  # type: ignore[no-untyped-call]
        return gradient, None, None, None, None


def _drawn_again(layer: StatefulLayer, sampler: Sampler, a: Tensor, seed: Tensor, paths: Paths) -> Use:
    """Return a use of a layer without state, drawn again from its seed."""
    return Use(layer, sampler, sampler.draw(a, {}, paths, seed), {}, 0, paths)


def _emitted_gradient(use: Use, grad_h: Tensor | None, grad_port: Tensor | None) -> Tensor | None:
    """Return the gradient in a: what came through the port, and what the estimator makes of dL/dh."""
    estimator = use.sampler.estimator
    if grad_port is None and "loss" in estimator.needs:
        raise missing_loss(estimator)
    if grad_h is None or "grad" not in estimator.needs:
        if "grad" in estimator.needs and transformed():
            raise unreached(use.sampler)
        return grad_port
    gradient = use.gradient_of_grad(grad_h)
    return gradient if grad_port is None else gradient + grad_port


class Attach(torch.autograd.Function):
    """The mean or the sum of losses. Backward also sends the told gradients, times the gradient of each loss, to their ports."""

    @staticmethod
    def forward(
        ctx: Any,
        losses: Tensor,
        reduction: Reduction,
        slopes: ExpectedSlopes | None,
        shares: tuple[float, ...],
        *tensors: Tensor,
    ) -> Tensor:
        """Return the scalar.

        slopes: what is to be told when backward begins. tensors: n told gradients, then their n ports, then the flags of compiled
        uses.
        """
        ctx.shape, ctx.dtype, ctx.mean = losses.shape, losses.dtype, reduction == "mean"
        ctx.slopes, ctx.shares, ctx.flags = slopes, shares, tensors[2 * len(shares) :]
        ctx.save_for_backward(*tensors[: len(shares)])
        return reduce(losses, reduction)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the losses, of the ports and of the flags."""
        if ctx.slopes is not None:
            ctx.slopes.backward_begins(ctx)
        of_each, told, losses = widen(grad), ctx.saved_tensors, ctx.shape.numel()
        if ctx.mean and losses > 1:
            of_each = of_each / losses
        sent = [
            gradient * (of_each if share == 1 else of_each * share)
            for gradient, share in zip(told, ctx.shares, strict=True)
        ]
        of_losses = cast(of_each, ctx.dtype).expand(ctx.shape)
        return of_losses, None, None, None, *[None] * len(told), *sent, *[torch.ones_like(flag) for flag in ctx.flags]


def reduce(losses: Tensor, reduction: Reduction) -> Tensor:
    """Return the mean or the sum of the losses."""
    return losses.mean() if reduction == "mean" else losses.sum()


def attach(
    value: Tensor,
    reduction: Reduction,
    uses: Iterable[Recorded],
    losses: Iterable[Tensor],
    shares: Sequence[float],
    slopes: ExpectedSlopes | None = None,
) -> Tensor:
    """Tell each use its loss `[*batch]`. Return the mean or the sum of `value`, the losses of the caller.

    Backward gives each use `share` times its gradient in a, which is that of the sum of its losses, times the gradient of a loss
    of `value`. slopes: in eager code, what is to look at the backward pass.
    """
    gradients: list[Tensor] = []
    ports: list[Tensor] = []
    flags: list[Tensor] = []
    for use, loss in zip(uses, losses, strict=True):
        gradients.append(use.tell(loss))
        ports.append(use.port)
        if use.flag is not None:
            flags.append(use.flag)
    if transformed():
        total, each = reduce(value, reduction), max(1, value.numel()) if reduction == "mean" else 1
        for port, gradient, share in zip(ports, gradients, shares, strict=True):
            total = total + (port * gradient).sum() * (share / each)
        return total
    if not ports and slopes is None:
        return reduce(value, reduction)
    scalar: Tensor = Attach.apply(value, reduction, slopes, tuple(shares), *gradients, *ports, *flags)  # type: ignore[no-untyped-call]
    return scalar
