"""The limits on what a request multiplies: samples, draws, an estimator's K, outputs^units.

Each check looks at a whole job once, before anything is allocated for it, and raises a 413 that names the limit. What a plugin
takes beside its points, such as inner samples, nodes and state, it states itself: `cost`, `draw_size`, `mean_cost`, `law_size`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

import gradest
from gradest.analysis.comparison import comparable_estimators
from gradest.client.wire import SAFETENSORS
from gradest.contract.cost import Cost
from gradest.contract.estimator import Estimator, State
from gradest.contract.law import count_configurations, count_ways, in_words
from gradest.contract.neuron import PoissonCount
from gradest.contract.target import Target
from gradest.errors import GradestError, Inexact, PluginFault, TooManyPoints
from gradest.estimation.losses.evaluation import CHUNK
from gradest_service.admit.jobs import (
    ComparisonJob,
    CreditJob,
    EstimateJob,
    EstimatorJob,
    Job,
    NeuronJob,
    ObjectiveJob,
    SampleJob,
)
from gradest_service.admit.plugins import without_options
from gradest_service.admit.request_context import is_set_aside
from gradest_service.bodies.sizes import size
from gradest_service.problems import Problem
from gradest_service.resources.turns import Need
from gradest_service.settings import Settings

__all__ = [
    "affordable_estimators",
    "are_brief",
    "can_afford_exact",
    "check_comparison",
    "check_credit",
    "check_credit_state",
    "check_estimate",
    "check_estimator",
    "check_estimator_count",
    "check_mean",
    "check_measurement",
    "check_sample",
    "check_state",
    "exact_work",
    "light_need",
    "need_of",
    "rows_of_mean",
]

_CALL = 256  # elements that are computed in the time of one call of a pointwise objective, at least
_LAW = 4  # nodes of a law take so many times the memory of as many points, with the derivatives of their density
_MOMENT = 1 << 16  # elements, of whatever plugin
_BRIEF = 1 << 22  # bytes, on which the slowest plugin that was measured takes .6 s without kernels
_FEW = 16  # points of a draw, as some estimators take time for each pair of them
_SHORT = 256  # classes or items, as some neurons take a step for each of them, however few elements that is
_WARM_UP = 100  # steps that a stateful estimator takes before its draws


def need_of(settings: Settings, job: Job) -> Need:
    """Return what a job takes of the process. It is heavy if it computes or holds more than light work may."""
    held = min(job.cost.held * Cost.HELD_PER_ELEMENT * job.itemsize, settings.max_heavy_bytes)
    return Need(job.cost.work > settings.heavy_work or held > settings.max_light_bytes, held)


def are_brief(jobs: Sequence[Job]) -> bool:
    """Tell whether jobs of one kind, computed together, are known to end soon. `tests/service/moment.py` measures how soon.

    Such is little work of any kind, and more of one pass of gradest's own plugins without options, which may ask for much that
    counts as little.
    """
    first, elements = jobs[0], sum(max(job.cost.work, job.cost.held) for job in jobs)
    if isinstance(first, NeuronJob) and len(first.event) > 1 and first.event[-1] > _SHORT:
        return False
    if elements <= _MOMENT:
        return True
    if elements * first.itemsize > _BRIEF:
        return False
    if isinstance(first, CreditJob):
        return first.loss.shape[0] <= _FEW and without_options(first.estimator, {"samples"})
    if not isinstance(first, NeuronJob) or isinstance(first, ObjectiveJob) or isinstance(first.neuron, PoissonCount):
        return False  # a large count takes several times as long as any other output
    return without_options(first.neuron) and (
        not isinstance(first, EstimatorJob)
        or (without_options(first.estimator) and first.estimator.evaluations(first.neuron, first.event) <= _FEW)
    )


def light_need(settings: Settings) -> Need:
    """Return what decoding and light work take."""
    return Need(bytes=settings.max_light_bytes)


def check_sample(settings: Settings, job: SampleJob, as_json: bool) -> Cost:
    """Check the number of samples, and the size of the answer; returns what the samples take."""
    if job.samples > settings.max_samples:
        raise Problem(
            413, f"samples may be {settings.max_samples} at most. Send more requests, each with its own seed."
        )
    _check_answer(settings, job.samples * size(job.output_shape), "samples x a", as_json)
    drawn: int = gradest.registry.call(job.neuron, "draw_size", job.event, kind=int)
    held = job.samples * size(job.batch) * drawn
    _check_held(settings, f"samples x a of {job.neuron.name}", held, held)
    return Cost(held, job.samples * math.prod(job.output_shape))


def check_mean(settings: Settings, job: NeuronJob, as_json: bool) -> Cost:
    """Check the size of the answer, and what the mean of one row holds and that of all computes; returns what the mean takes."""
    outputs, row = size(job.output_shape), _row_of_mean(job)
    _check_answer(settings, outputs, "the mean", as_json)
    _check_held(settings, f"The mean of a row of {job.neuron.name}", row.held, size(job.output_event))
    work = row.work * size(job.batch)
    if work > settings.max_work:
        raise Problem(
            413,
            f"The mean of {job.neuron.name} would compute {in_words(work)} elements, its nodes or tables included; the limit "
            f"is {settings.max_work}. Send fewer rows or units in a request, and more requests.",
        )
    at_once = min(size(job.batch), rows_of_mean(settings, job))
    return Cost(max(outputs, row.held * at_once), work)


def rows_of_mean(settings: Settings, job: NeuronJob) -> int:
    """Return of how many rows the mean is computed at a time."""
    return max(1, settings.max_points // (_LAW * max(1, _row_of_mean(job).held)))


def _row_of_mean(job: NeuronJob) -> Cost:
    found: Cost = gradest.registry.call(job.neuron, "mean_cost", job.event, (1,), kind=Cost)
    return found


def check_estimator(settings: Settings, job: EstimatorJob, as_json: bool) -> Cost:
    """Check what one draw takes, and the size of the answer; returns the former. Raises TooManyPoints too."""
    points, cost = _check_points(settings, job, job.estimator)
    _check_answer(settings, points, "points", as_json)
    _check_work(settings, cost.work)
    return cost


def check_state(settings: Settings, job: EstimatorJob, as_json: bool) -> None:
    """Check the size of an estimator's state in the answer."""
    check_credit_state(settings, job.first_state, as_json)


def check_credit_state(settings: Settings, state: State, as_json: bool) -> None:
    """Check the size of the largest tensor of a state in the answer."""
    _check_answer(settings, max((x.numel() for x in state.values()), default=0), "the state", as_json)


def check_credit(settings: Settings, job: CreditJob, as_json: bool) -> Cost:
    """Check the size of the answer, and the work if each sample is compared with all others; returns what the credit takes."""
    elements = size(job.loss.shape)
    _check_answer(settings, elements, "the weights", as_json)
    cost: Cost = gradest.registry.call(job.estimator, "credit_cost", job.loss, job.features, kind=Cost)
    _check_held(settings, f"The credit of {job.estimator.name}", cost.held, elements)
    pairs = job.loss.shape[0] * elements
    if (work := max(pairs, cost.work)) > settings.max_work:
        what = "K x loss would be" if work == pairs else f"The credit of {job.estimator.name} would compute"
        raise Problem(
            413,
            f"{what} {in_words(work)} elements; the limit is {settings.max_work}. Send fewer elements of the batch in a request, "
            "or fewer samples.",
        )
    return Cost(max(elements, cost.held), max(elements, cost.work))


def check_estimate(settings: Settings, job: EstimateJob, as_json: bool) -> Cost:
    """Check the size of the answer, the draws and their work; returns what the estimate takes, with its exact values.

    The exact values, which are optional, have a limit of their own, so that they refuse no estimate.
    """
    _check_answer(settings, size(job.a.shape), "the gradient", as_json)
    _check_draws(settings, job.draws)
    cost = _cost_of_estimate(settings, job, job.estimator)
    _check_work(settings, cost.work)
    exact = _affordable_exact_work(settings, job)
    if exact is None:
        return cost
    return Cost(max(cost.held, _held_by_exact(settings, job, job.estimator.target())), cost.work + exact)


def check_estimator_count(settings: Settings, estimators: int) -> None:
    """Check how many estimators a comparison names, before they are built."""
    if estimators > settings.max_estimators:
        raise Problem(413, f"estimators may be {settings.max_estimators} at most. Send more requests.")


def check_comparison(settings: Settings, job: ComparisonJob) -> Cost:
    """Check the size of the answer, the draws, the work for the exact gradient and for all estimators; returns what all take."""
    _check_answer(settings, size(job.a.shape), "the exact gradient", as_json=True)
    _check_draws(settings, job.draws)
    costs = [_cost_of_estimate(settings, job, estimator) for estimator in job.estimators]
    targets = {estimator.target() for estimator in job.estimators} | {Target()}
    exact = sum(exact_work(job, target) for target in targets)
    if _law_is_too_large(settings, job) or exact > settings.max_work:
        raise Problem(
            413,
            "The exact gradient of this comparison would take too many points or nodes. Send fewer rows or units, or use an "
            "objective with a closed form.",
        )
    work = sum(cost.work for cost in costs)
    _check_work(settings, work)
    held = [*(cost.held for cost in costs), *(_held_by_exact(settings, job, target) for target in targets)]
    return Cost(max(held), work + exact)


def affordable_estimators(settings: Settings, job: ObjectiveJob) -> list[Estimator]:
    """Return the estimators that `gradest.compare` takes by default and that are within the limits on this job."""
    affordable = []
    for estimator in comparable_estimators(job.neuron):
        if is_set_aside(estimator.name):
            continue
        try:
            work = _cost_of_estimate(settings, job, estimator).work
        except (TooManyPoints, Problem, PluginFault):  # GET /v1/estimators states the fault
            continue
        if work <= settings.max_work:
            affordable.append(estimator)
    return affordable


def check_measurement(settings: Settings, job: ObjectiveJob, evaluations: int) -> Cost:
    """Check the draws, and what it takes to measure every estimator that takes at most so many evaluations a draw; returns it."""
    _check_draws(settings, job.draws)
    rows = size(job.a.shape) // size(job.event)
    of_one = (job.draws + _WARM_UP) * evaluations * rows * _point_work(job)
    estimators = comparable_estimators(job.neuron)
    work, exact, held = of_one * len(estimators), exact_work(job, Target()), [_held_by_exact(settings, job, Target())]
    if _law_is_too_large(settings, job) or work + exact > settings.max_work:
        raise _too_much_work(work, settings)
    for estimator in estimators:
        with suppress(TooManyPoints, PluginFault):  # such an estimator is not measured
            if gradest.registry.call(estimator, "evaluations", job.neuron, job.event, kind=int) <= evaluations:
                held.append(_cost_of_estimate(settings, job, estimator).held)
    return Cost(max(held), work + exact)


def can_afford_exact(settings: Settings, job: EstimateJob) -> bool:
    """Tell whether the exact values of the estimator's target are within the limit on work."""
    return _affordable_exact_work(settings, job) is not None


def _affordable_exact_work(settings: Settings, job: EstimateJob) -> int | None:
    """Return the elements that the exact values of the estimator's target compute; None if they are beyond the limits."""
    if _law_is_too_large(settings, job):
        return None
    work = exact_work(job, job.estimator.target())
    return work if work <= settings.max_work else None


def _law_is_too_large(settings: Settings, job: ObjectiveJob) -> bool:
    """Tell whether the law of all units, of which a closed form may be a sum, has more elements than may be held."""
    return _LAW * _law_nodes(job) > settings.max_points


def _law_nodes(job: ObjectiveJob) -> int:
    """Return the nodes of the law of all units."""
    nodes: int = gradest.registry.call(job.neuron, "law_size", job.wide, kind=int)
    return nodes


def _held_by_exact(settings: Settings, job: ObjectiveJob, target: Target) -> int:
    """Return the elements that the exact values hold: the nodes of the law, and as many points as are evaluated at once.

    A target of several samples, or of the whole law at once, holds all points, and the losses of the ways to draw its samples.
    """
    elements = _LAW * _law_nodes(job)
    if elements > settings.max_points:
        return 0
    try:
        total = count_configurations(job.neuron, job.event)
    except TooManyPoints:
        total = 0
    points = total * size(job.a.shape)
    if target.samples == 1 and target.is_mean:
        return elements + min(CHUNK, points)
    try:
        ways = count_ways(total, target)
    except TooManyPoints:  # which is refused before any is held
        return elements
    losses = ways * size(job.batch)
    at_once = min(CHUNK, losses) if target.is_mean else losses
    return elements + points + (target.samples + 1) * at_once  # those of each sample, and what they combine to


def exact_work(job: ObjectiveJob, target: Target) -> int:
    """Return the elements that the exact gradient computes, of a closed form the nodes of the law; 0 if it cannot be computed."""
    neuron, a, event = job.neuron, job.wide, job.event
    try:
        count_configurations(neuron, event)  # before a law of many outputs takes memory
        if target == Target() and _has_closed_form(job):
            return _law_nodes(job)
        rows = torch.cat([a.new_zeros(1, *event), a.reshape(a.shape[: a.ndim - len(event)].numel(), *event)])
        values, _ = neuron.law(rows.amax(0))  # the number of outputs may grow with a
        points = count_ways(count_configurations(neuron, event, values.shape[0]), target)
    except TooManyPoints:
        return 0
    return points * size(a.shape) // size(event) * _point_work(job)


def _has_closed_form(job: ObjectiveJob) -> bool:
    """Tell whether the expectation has a closed form, which is asked for no rows, because that of the rows may take seconds.

    One that fails without rows is taken to exist. If it fails with rows too, the computation has the error.
    """
    try:
        return job.objective.expectation(job.neuron, job.wide.new_empty((0, *job.wide.shape))) is not None
    except Inexact:
        return True
    except GradestError:
        raise
    except Exception:
        return True


def _cost_of_estimate(settings: Settings, job: ObjectiveJob, estimator: Estimator) -> Cost:
    """Return what an estimate takes. It holds some draws at once, and computes draws x K x size of a, with the objective's
    tensors.
    """
    points, cost = _check_points(settings, job, estimator)
    steps = job.draws + (_WARM_UP if gradest.registry.call(estimator, "init", job.neuron, job.wide) else 0)
    held = max(cost.held, min(CHUNK, steps * cost.held))
    return Cost(held, steps * max(cost.work, points // _point_size(job) * _point_work(job)))


def _check_work(settings: Settings, work: int) -> None:
    if work > settings.max_work:
        raise _too_much_work(work, settings)


def _check_draws(settings: Settings, draws: int) -> None:
    if draws > settings.max_draws:
        raise Problem(413, f"draws may be {settings.max_draws} at most. Send more requests, each with its own seed.")


def _check_points(settings: Settings, job: NeuronJob, estimator: Estimator) -> tuple[int, Cost]:
    """Check what a draw holds; returns K x size of a, and the cost of a draw, which is that at least."""
    evaluations: int = gradest.registry.call(estimator, "evaluations", job.neuron, job.event, kind=int)
    if evaluations < 1:
        raise PluginFault(f"{estimator.name}.evaluations must return a whole number above 0")
    batch = tuple(max(1, dim) for dim in job.batch)
    points = evaluations * size(job.batch) * _point_size(job)
    cost: Cost = gradest.registry.call(estimator, "cost", job.neuron, job.event, batch, kind=Cost)
    cost = Cost(max(points, cost.held), max(points, cost.work))
    _check_held(settings, f"A draw of {estimator.name}", cost.held, points)
    return points, cost


def _check_held(settings: Settings, what: str, held: int, points: int) -> None:
    """Check how many elements are held at once, of which so many are points or outputs."""
    if held > settings.max_points:
        more = "" if held <= points else f", beside K x a = {in_words(points)} what the plugin needs for them"
        raise Problem(
            413,
            f"{what} would hold {'K x a = ' if held <= points else ''}{in_words(held)} elements{more}; the limit is "
            f"{settings.max_points}. Send fewer rows or units, or choose options or an estimator that take less.",
        )


def _check_answer(settings: Settings, elements: int, what: str, as_json: bool) -> None:
    """Check the size of one tensor of an answer."""
    if as_json and elements > settings.max_json_elements:
        raise Problem(
            413,
            f"{what} would be {in_words(elements)} elements; an answer in JSON holds {settings.max_json_elements}. "
            f"Ask for safetensors, with Accept: {SAFETENSORS}, or for less in a request.",
        )
    if elements > settings.max_elements:
        raise Problem(
            413,
            f"{what} would be {in_words(elements)} elements; an answer holds {settings.max_elements}. "
            "Send fewer rows, or ask for less in a request, and send more requests.",
        )


def _point_work(job: ObjectiveJob) -> int:
    """Return the elements of one point, and of those tensors of the objective that do not merely broadcast onto points.

    The call of a pointwise objective counts as some elements too.
    """
    options = [value for value in dict(job.objective).values() if isinstance(value, Tensor)]
    beyond = [option.numel() for option in options if not _broadcasts(option.shape, job.output_shape)]
    return _point_size(job) + sum(beyond) + (_CALL if job.objective.pointwise else 0)


def _point_size(job: NeuronJob) -> int:
    """Return the elements of one point of one row, or of its pre-activations if those are more."""
    return max(size(job.event), size(job.output_event))


def _broadcasts(shape: Sequence[int], onto: Sequence[int]) -> bool:
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(small in (1, large) for small, large in pairs)


def _too_much_work(work: int, settings: Settings) -> Problem:
    return Problem(
        413,
        f"draws x K x a, over all estimators, would be {work} elements; the limit is {settings.max_work}. Ask for fewer "
        "draws, rows or estimators in a request, and send more requests, each with its own seed.",
    )
