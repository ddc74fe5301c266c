"""exact: the expectation of a loss and its gradient, as a sum over the joint law of the units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gradest.contract.estimator import Feedback
from gradest.contract.law import (
    FINEST_LEVEL,
    configurations,
    count_configurations,
    count_ways,
    error_scale,
    law_in_words,
    levels_of_law,
)
from gradest.contract.neuron import Continuous, Neuron, event_shape
from gradest.contract.objective import Loss, Objective
from gradest.contract.target import Target
from gradest.discovery.registry import NeuronSpec, registry
from gradest.errors import Incompatible, Inexact, InvalidInput, NotDifferentiable, TooManyPoints
from gradest.estimation.arguments import at_least_float32, check_pre_activations
from gradest.estimation.ask_tell import check_feedback_finite
from gradest.estimation.events import EventDims, EventLayout
from gradest.estimation.losses.checks import checked_loss
from gradest.estimation.losses.evaluation import CHUNK, flattened, leads_to, losses_at
from gradest.kernels import transformed
from gradest.kernels.stable import drop_impossible

__all__ = ["closed_form", "exact", "exact_checked", "exact_or_raise"]

_GOAL = 1e-6  # a law that is an approximation and is closer than this is not refined further
_TOLERANCE = 1e-3
_MEAN = Target()
_MAX_HELD = 1 << 24  # elements of the points that a target of the whole law holds at once
_MAX_REFINED_POINTS = 1 << 16  # of a quadrature that is refined; level 0 may have up to law.MAX_POINTS
_Law = Callable[[], tuple[Tensor, Tensor]]
_Progress = Callable[[int, int], None] | None


def exact(
    f: Loss,
    a: Tensor,
    neuron: NeuronSpec = "bernoulli",
    target: Target | None = None,
    *,
    flatten: bool = False,
    allow_inf: bool = False,
    event_dims: EventDims | None = None,
    tolerance: float = _TOLERANCE,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute E[f(h)] `[*batch]` and its gradient in `a` `[*batch, *event]` as a sum over the joint law of the units, in chunks.

    The result is exact for units with finitely many outputs, up to 20 binary units. For `Continuous` units it is a quadrature, up
    to 3 units, and for counts without an upper limit a sum that leaves out the least likely. Two levels of such a law are
    compared on f, of which the finer one reaches further into the tails, and for one or two units it is refined until they agree
    to 1e-6. If their difference, which bounds the error of the finer one for all but pathological f, is above the tolerance,
    Inexact is raised: as where E[f(h)] is infinite, or lies so far in a tail that no level reaches it. f is evaluated in the
    dtype of `a`; the sum is in float64. Where the outputs move with `a`, f must be differentiable.

    Raises TooManyPoints if it would take more than 2^20 points, NotDifferentiable if it takes dL/dh that f does not have,
    Incompatible inside a transform of torch.func, and InvalidInput if f is random (dropout), normalises over points (BatchNorm in
    training mode), or if rows of the batch share a loss, which `event_dims` is for. f is checked for these once, at a few points.
    Buffers of the modules that f refers to are left as they were.

    target: another quantity than E[f(h)], such as `gradest.Risk()` or `estimator.target()`. One of n samples takes the n-th power
        of the points. One that is no mean, as a risk, holds the losses of all of them at once, and of fewer.
    flatten: whether f takes `[K·batch, *event]`, as for `expect`.
    allow_inf: whether a loss may be infinite. Otherwise it raises InvalidInput, as NaN always does. An infinite loss of an output
        of probability 0, as of a masked class, is no part of the expectation and of its gradient.
    event_dims: as for `expect`. The gradient has the shape of `a`.
    tolerance: the largest error of such a law, as a share of the standard deviation of f(h) for the loss, or of ten times its
        mean absolute deviation if that is less, as where f gives most weight to a tail; for the gradient, as a share of that plus
        the largest entry of the row's gradient. The rounding error of f in its dtype is allowed besides.
    progress: progress(done, points) is called after each chunk of each level. An exception that it raises ends the computation.

    >>> import torch, gradest
    >>> gradest.exact(lambda h: h.sum(-1), torch.zeros(2), "bernoulli")
    (tensor(1.), tensor([0.2500, 0.2500]))
    """
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float) or not tolerance > 0:
        raise InvalidInput(f"tolerance must be a number above 0, not {tolerance!r}")
    check_outside_transforms("exact")
    neuron = registry.neuron(neuron)
    if event_dims is not None:
        layout = EventLayout.of(neuron, a, event_dims)
        f = layout.loss(flattened(f, len(layout.output_given), flatten))
        value, slope = exact(
            f, layout.flatten(a), neuron, target, allow_inf=allow_inf, tolerance=tolerance, progress=progress
        )
        return value, layout.restore(slope)
    f = flattened(f, neuron.output_ndim, flatten)
    wide = check_pre_activations(a, neuron)
    with checked_loss(f, wide, neuron, a.dtype, refuse=True):
        return exact_checked(f, a, neuron, target, allow_inf, progress, tolerance)


def check_outside_transforms(name: str) -> None:
    """Raise Incompatible inside a transform of torch.func, where torch.autograd does not work, by which exact gradients come."""
    if transformed():
        raise Incompatible(
            f"{name} does not run inside a transform of torch.func, such as vmap or grad. Call it outside of the transform, "
            "with all examples in one batch"
        )


def exact_checked(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    target: Target | None = None,
    allow_inf: bool = False,
    progress: _Progress = None,
    tolerance: float = _TOLERANCE,
    goal: float = _GOAL,
) -> tuple[Tensor, Tensor]:
    """Do what `exact` does, for a loss that has been checked. A law that has come closer than the goal is not refined further."""
    wide = check_pre_activations(a, neuron).double().requires_grad_()
    levels = levels_of_law(neuron, wide)

    def sums(law: _Law, centre: Tensor | None = None) -> _Sums:
        return _sums(f, a, wide, neuron, law, target or _MEAN, allow_inf, progress, centre)

    if levels is None:
        found = sums(lambda: neuron.law(wide))
    else:
        _check_size(neuron, wide, levels)
        found = _refined(levels, sums, neuron, tolerance, goal, a.dtype)
    dtype = at_least_float32(a)
    return found.loss.to(dtype), found.gradient.to(dtype)


def _refined(
    levels: Callable[[int], tuple[Tensor, Tensor]],
    sums: Callable[[_Law, Tensor | None], _Sums],
    neuron: Neuron,
    tolerance: float,
    goal: float,
    dtype: torch.dtype,
) -> _Sums:
    """Return the sums at the first level that agrees with the one before, or raise Inexact."""
    before = sums(partial(levels, -1), None)
    found, level, ended = sums(partial(levels, 0), before.moments.mean), 0, None
    while not found.agrees(before, goal, dtype) and found.next_points <= _MAX_REFINED_POINTS and level < FINEST_LEVEL:
        level += 1
        try:
            finer = sums(partial(levels, level), found.moments.mean)
        except InvalidInput as error:  # f overflows further out, or there are too many points
            ended = error
            break
        before, found = found, finer
    if not found.agrees(before, tolerance, dtype):
        raise Inexact(found.explain(before, neuron, tolerance)) from ended
    return found


def _check_size(neuron: Neuron, wide: Tensor, levels: Callable[[int], tuple[Tensor, Tensor]]) -> None:
    """Raise TooManyPoints if level 0 of a law has too many, before the loss is evaluated at a coarser one."""
    event = event_shape(neuron, wide)
    count_configurations(neuron, event)  # refuses too many before the law takes memory
    with torch.no_grad():
        count_configurations(neuron, event, len(levels(0)[0]))


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a sum over a law has: the target, by default E[f(h)], its gradient, and the points of the next level. In float64.

    moments: those of what is averaged, f(h) or `Target.combine`.
    """

    loss: Tensor
    gradient: Tensor
    moments: _Moments
    event_ndim: int
    next_points: int

    def errors(self, coarser: _Sums) -> tuple[Tensor, Tensor]:
        """Return how far two levels are apart, `[*batch]`: the loss, and the largest entry of the gradient of each row."""
        return (self.loss - coarser.loss).abs(), _largest(self.gradient - coarser.gradient, self.event_ndim)

    def scales(self) -> tuple[Tensor, Tensor]:
        """Return what an error is compared with, `[*batch]`: `error_scale` of f, and that plus the gradient."""
        scale = error_scale(self.moments.spread, self.moments.deviation)
        return scale, scale + _largest(self.gradient, self.event_ndim)

    def agrees(self, coarser: _Sums, tolerance: float, dtype: torch.dtype) -> bool:
        """Tell whether two levels agree, apart from the rounding error of f in this dtype."""
        rounding = 8 * torch.finfo(dtype).eps * self.moments.size
        pairs = zip(self.errors(coarser), self.scales(), strict=True)
        return all(bool((error <= tolerance * scale + rounding).all()) for error, scale in pairs)

    def explain(self, coarser: _Sums, neuron: Neuron, tolerance: float) -> str:
        """Return the message of Inexact."""
        loss, gradient = (
            float((error / scale.clamp(min=torch.finfo(scale.dtype).tiny)).nan_to_num(nan=torch.inf).max())
            for error, scale in zip(self.errors(coarser), self.scales(), strict=True)
        )
        finer = "The loss may jump between the nodes, or vary on a finer scale than they have. Or it"
        return (
            f"the {law_in_words(neuron)} is not accurate for this loss: two levels of it differ by {loss:.1g} of the "
            f"deviation of the loss, and by {gradient:.1g} of the size of the gradient, and the tolerance is {tolerance:g}. "
            f"{finer if isinstance(neuron, Continuous) else 'It'} may give most weight to outputs that are next to impossible, "
            "so that its expectation is infinite, or lies beyond the outputs that are evaluated. Use gradest.estimate with an "
            "unbiased estimator, fewer units, for which there are more levels, a loss that grows less, or a larger tolerance"
        )


def _largest(x: Tensor, event_ndim: int) -> Tensor:
    """Return the largest magnitude in each event, `[*batch]`; 0 for an empty event."""
    flat = x.abs().flatten(x.ndim - event_ndim)
    return flat.amax(-1) if flat.shape[-1] else flat.sum(-1)


def _sums(
    f: Loss,
    a: Tensor,
    wide: Tensor,
    neuron: Neuron,
    law: _Law,
    target: Target,
    allow_inf: bool,
    progress: _Progress,
    centre: Tensor | None,
) -> _Sums:
    """Sum over the joint law of the units, in chunks. centre: about the mean, from which deviations are taken; by default 0."""
    event, split = event_shape(neuron, wide), wide.ndim - neuron.event_ndim
    count_configurations(neuron, event)  # refuses too many before the law takes memory
    with torch.enable_grad():
        values, _ = law()
        moves = values.requires_grad  # the outputs move with a, so the gradient contains dL/dh too
        total = count_configurations(neuron, event, values.shape[0])
        units, of_one = neuron.output_event(event)[0], values[0].numel()
        next_points = (2 * values.shape[0]) ** (units * target.samples)
        del values
        if target.samples > 1 or not target.is_mean:
            return _sums_of_samples(f, a, wide, neuron, law, total, target, allow_inf, progress, centre, next_points)
        chunk = max(1, CHUNK // max(1, of_one))
        moments = _Moments.about(wide.new_zeros(wide.shape[:split]) if centre is None else centre)
        gradient = torch.zeros_like(wide)
        for first in range(0, total, chunk):
            points, weights = configurations(neuron, wide, law(), first, min(first + chunk, total))
            at = points.to(a.dtype)
            at = at if moves else at.detach()
            losses = _moving_losses(f, at, weights, wide, neuron, allow_inf)
            losses = drop_impossible(losses if moves else losses.detach(), weights)
            combined = drop_impossible(_combined(target, losses[None], allow_inf), weights)
            part = (weights * combined).sum(0)
            if part.requires_grad:  # otherwise nothing in the law depends on a
                (step,) = torch.autograd.grad(part.sum(), wide)
                gradient += step
            moments.add(weights.detach(), combined.detach())
            if progress:
                progress(min(first + chunk, total), total)
    return _Sums(moments.mean, gradient.detach(), moments, neuron.event_ndim, next_points)


@dataclass(frozen=True, eq=False)
class _Moments:
    """The sums of w v, w |v|, w (v - c)² and w |v - c| over values v with the weights w, `[4, *batch]`, for a centre c."""

    sums: Tensor
    centre: Tensor

    @classmethod
    def about(cls, centre: Tensor) -> _Moments:
        """Return the moments about a centre, `[*batch]`, of no values."""
        return cls(centre.new_zeros(4, *centre.shape), centre.detach())

    def add(self, weights: Tensor, values: Tensor) -> None:
        """Add values `[n, *batch]` with their weights."""
        away = values - self.centre
        for place, x in enumerate((values, values.abs(), away.square(), away.abs())):
            self.sums[place] += (weights * x).sum(0)

    @property
    def mean(self) -> Tensor:
        """E[v]."""
        return self.sums[0]

    @property
    def size(self) -> Tensor:
        """E|v|."""
        return self.sums[1]

    @property
    def spread(self) -> Tensor:
        """The standard deviation of v."""
        return (self.sums[2] - (self.sums[0] - self.centre).square()).clamp(min=0).sqrt()

    @property
    def deviation(self) -> Tensor:
        """E|v - c|."""
        return self.sums[3]


def _moving_losses(f: Loss, points: Tensor, weights: Tensor, wide: Tensor, neuron: Neuron, allow_inf: bool) -> Tensor:
    """Return the losses, with a graph to the points if these move with a. weights: of the points, their probabilities.

    Raises NotDifferentiable if they do, and f has no derivative in them.
    """
    impossible = weights.detach() == 0
    if points.requires_grad:  # dL/dh may be infinite where a loss is, and 0 · inf would reach a
        points = points + 0
        mask = impossible[(..., *[None] * neuron.output_ndim)]
        points.register_hook(lambda slope: slope.masked_fill(mask, 0))  # type: ignore[no-untyped-call]
    source, states_none = points.grad_fn, isinstance(f, Objective) and not f.differentiable
    loss = losses_at(f, points.detach() if states_none else points, neuron.output_ndim)
    check_feedback_finite(Feedback(loss), allow_inf, lambda index: bool(impossible[tuple(index)]))
    if allow_inf and weights.requires_grad:
        _check_stays_impossible(weights, impossible & loss.detach().isinf(), wide, neuron)
    if source is None or not points.numel() or leads_to(loss, source):
        return loss.double()
    if len(loss) > 1 and bool((loss == loss[:1]).all()):
        return loss.detach().double()  # a constant; where a unit has one output, that cannot be told
    raise NotDifferentiable(
        f"the outputs of {neuron.label()} move with a, so its exact gradient takes dL/dh at them, but the loss is not "
        "differentiable. Use gradest.estimate with an estimator that needs the loss alone, or a unit whose outputs are fixed"
    )


def _check_stays_impossible(weights: Tensor, infinite: Tensor, wide: Tensor, neuron: Neuron) -> None:
    """Raise InvalidInput if an output of probability 0 and an infinite loss becomes possible with the least step of a."""
    if not bool(infinite.any()):
        return
    several = 1 + torch.arange(
        len(weights), device=weights.device
    )  # so that derivatives of different outputs do not cancel
    chosen = (weights * infinite * several[(..., *[None] * (weights.ndim - 1))]).sum()
    (slope,) = torch.autograd.grad(chosen, wide, retain_graph=True)
    if bool((slope.abs() > torch.finfo(slope.dtype).tiny).any()):
        raise InvalidInput(
            f"an output of {neuron.label()} with an infinite loss has probability 0 at these pre-activations, but not next to "
            "them, so the gradient of the expectation is infinite; give f a finite loss there, or change the pre-activations"
        )


def _instead_of_impossible(losses: Tensor, weights: Tensor) -> Tensor:
    """Return losses `[n, *batch]` with that of the most probable output in place of those of probability 0.

    The law of the losses stays what it is, so that any function of it does, while 0 · inf does not arise.
    """
    weights = weights.detach()
    likely = losses.detach().gather(0, weights.argmax(0, keepdim=True))
    return torch.where(weights == 0, likely, losses)


def _combined(target: Target, losses: Tensor, allow_inf: bool) -> Tensor:
    """Return `target.combine`, checked, of losses `[samples, n, *batch]`."""
    if target == _MEAN:
        return losses[0]
    combined = target.combine(losses)
    _check_of_target(target, "combine", combined, losses[0].shape, allow_inf)
    return combined


def _check_of_target(target: Target, method: str, found: Tensor, shape: torch.Size, allow_inf: bool) -> None:
    """Raise InvalidInput unless a method of the target has returned finite numbers of this shape."""
    name = f"{type(target).__name__}.{method}"
    if not isinstance(found, Tensor) or found.shape != shape:
        got = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInput(f"{name} must return a tensor {list(shape)}, its argument without the first dim, not {got}")
    if not allow_inf and not bool(torch.isfinite(found).all()):
        raise InvalidInput(
            f"{name} is not finite for these losses; scale the loss, or shift values before an exponential"
        )


def _sums_of_samples(
    f: Loss,
    a: Tensor,
    wide: Tensor,
    neuron: Neuron,
    law: _Law,
    total: int,
    target: Target,
    allow_inf: bool,
    progress: _Progress,
    centre: Tensor | None,
    next_points: int,
) -> _Sums:
    """Compute `_sums` for a target of several samples, or of the whole law at once.

    The losses of all configurations are computed first, and then every way to draw that many.
    """
    ways = count_ways(total, target)
    held = 0 if target.is_mean else max(ways, total) * max(1, wide.numel())
    if held > _MAX_HELD:
        raise TooManyPoints(
            f"{target} is no mean over outputs, so all {ways} of them are held at once, with {wide.numel()} pre-activations "
            "each; the limit of their product is 2^24. Use fewer rows or units"
        )
    points, weights = configurations(neuron, wide, law(), 0, total)
    losses = _moving_losses(f, points.to(a.dtype), weights, wide, neuron, allow_inf)
    losses = _instead_of_impossible(losses, weights)
    given = [x.detach().requires_grad_() for x in (weights, losses)]
    value = torch.zeros_like(losses[0]).detach()
    slopes = [torch.zeros_like(x) for x in given]
    moments = _Moments.about(torch.zeros_like(value) if centre is None else centre)
    place = total ** torch.arange(target.samples, device=a.device)[:, None]
    chunk = max(1, CHUNK // max(1, value.numel())) if target.is_mean else ways
    for first in range(0, ways, chunk):
        way = torch.arange(first, min(first + chunk, ways), device=a.device)
        drawn = way.div(place, rounding_mode="floor") % total  # [samples, n]
        probability, loss = (x[drawn] for x in given)
        probability, combined = probability.prod(0), _combined(target, loss, allow_inf)
        part = target.outer(combined, probability)
        _check_of_target(target, "outer", part, value.shape, allow_inf)
        value += part.detach()
        if not part.requires_grad:
            raise InvalidInput(f"{type(target).__name__}.outer must be differentiable in the probabilities")
        moments.add(probability.detach(), drop_impossible(combined.detach(), probability))
        steps = torch.autograd.grad(part.sum(), given, allow_unused=True)
        slopes = [slope if step is None else slope + step for slope, step in zip(slopes, steps, strict=True)]
        if progress:
            progress(min(first + chunk, ways), ways)
    moving = [(x, slope) for x, slope in zip((weights, losses), slopes, strict=True) if x.requires_grad]
    gradient = torch.zeros_like(wide)
    if moving:
        (gradient,) = torch.autograd.grad([x for x, _ in moving], wide, [slope for _, slope in moving])
    return _Sums(value, gradient.detach(), moments, neuron.event_ndim, next_points)


def exact_or_raise(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    target: Target | None = None,
    *,
    allow_inf: bool = False,
    checked: bool = False,
    progress: _Progress = None,
) -> tuple[Tensor, Tensor]:
    """Return the result of `exact`, by the objective's closed form if it has one.

    checked: whether f is known to be what `exact` asks for.
    """
    if isinstance(f, Objective) and (target is None or target == _MEAN):
        wide = check_pre_activations(a, neuron).double().requires_grad_()
        with torch.enable_grad():
            loss = f.expectation(neuron, wide)
            if loss is not None:
                check_feedback_finite(Feedback(loss), allow_inf)
                still = torch.zeros_like(wide)
                (gradient,) = torch.autograd.grad(loss.sum(), wide) if loss.requires_grad else (still,)
                dtype = at_least_float32(a)
                return loss.detach().to(dtype), gradient.to(dtype)
    if checked:
        return exact_checked(f, a, neuron, target, allow_inf, progress)
    return exact(f, a, neuron, target, allow_inf=allow_inf, progress=progress)


def closed_form(
    f: Loss,
    a: Tensor,
    neuron: Neuron,
    target: Target | None = None,
    *,
    allow_inf: bool = False,
    checked: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Tensor, Tensor] | None:
    """Return the result of `exact_or_raise`, or None if the sum has too many points, is not accurate, or lacks dL/dh."""
    try:
        return exact_or_raise(f, a, neuron, target, allow_inf=allow_inf, checked=checked, progress=progress)
    except (TooManyPoints, Inexact, NotDifferentiable):
        return None
