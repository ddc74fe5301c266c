"""The largest requests that the limits of a service accept, of every route and plugin: what it must hold in memory at worst.

They are found by asking `admission` itself, which computes nothing of their size: each request has one size, that of the batch,
of a dim of the event, of an option or of the samples, and the largest power of two that is accepted is taken.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

import gradest
from gradest.client.wire import SAFETENSORS, pack, split_tensors
from gradest.contract.neuron import output_shape
from gradest.contract.score_function import ScoreFunction
from gradest.errors import GradestError
from gradest_service.admit import admission
from gradest_service.bodies import schemas
from gradest_service.problems import Problem
from gradest_service.settings import Settings

__all__ = ["ROUTES", "WorstRequest", "WorstRequests"]

_MOST = 1 << 22
"""The largest size that is tried, which is that of the largest tensor by default."""

ROUTES: dict[str, tuple[type[Any], Callable[..., Any]]] = {
    "/v1/sample": (schemas.SampleRequest, lambda r, s: admission.admit_sample(r, s, False)),
    "/v1/mean": (schemas.MeanRequest, lambda r, s: admission.admit_mean(r, s, False)),
    "/v1/forward": (schemas.ForwardRequest, lambda r, s: admission.admit_forward(r, s, False)),
    "/v1/backward": (schemas.BackwardRequest, lambda r, s: admission.admit_backward(r, s, False)),
    "/v1/estimate": (schemas.EstimateRequest, lambda r, s: admission.admit_estimate(r, s, False)),
    "/v1/compare": (schemas.CompareRequest, admission.admit_comparison),
    "/v1/credit": (schemas.CreditRequest, lambda r, s: admission.admit_credit(r, s, False)),
    "/v1/recommend": (schemas.MeasureRequest, admission.admit_recommendation),
}

Fields = Mapping[str, Any]

_LOSSES: dict[str, Callable[[int], tuple[int, ...]]] = {
    "samples": lambda n: (n, 1),
    "batch": lambda n: (4, n // 4),
    "square": lambda n: (int(n**0.5), int(n**0.5)),
}
"""Shapes of losses, `[K, *batch]`."""


@dataclass(frozen=True)
class WorstRequest:
    """One request: its route, what it tries, and its fields."""

    path: str
    what: str
    fields: Fields = field(repr=False)

    def body(self) -> bytes:
        """Return the body, as safetensors."""
        rest, tensors = split_tensors(self.fields)
        return pack(tensors, {"request": json.dumps(rest)})

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the request."""
        return {"Content-Type": SAFETENSORS, "Accept": "application/json" if self.answers_json else SAFETENSORS}

    @property
    def answers_json(self) -> bool:
        """Whether the route answers in JSON alone."""
        return self.path in ("/v1/compare", "/v1/recommend")


class WorstRequests:
    """Finds the worst requests; what it has found once, it builds again without a search.

    order: shuffles the neurons and estimators, so that the first requests are of all kinds. By default they come by name.
    share: of the requests, chosen by `order`; the others are not searched.
    until: when the search ends, by the monotonic clock.
    """

    def __init__(
        self, settings: Settings, order: random.Random | None = None, share: float = 1.0, until: float = math.inf
    ) -> None:
        self._settings = settings
        self._order = order
        self._share = share
        self._until = until
        self._sizes: dict[tuple[str, str], int] = {}

    def __iter__(self) -> Iterator[WorstRequest]:
        """Yield the worst requests of every route and plugin."""
        parts = list(self._parts())
        if self._order is not None:
            self._order.shuffle(parts)
        for part in parts:
            yield from part()

    def _parts(self) -> Iterator[Callable[[], Iterator[WorstRequest]]]:
        """Yield what finds the requests of each neuron, of each estimator on the first neuron that it fits, and of its credit."""
        seen = set[str]()
        for neuron in _plugins(gradest.registry.neurons):
            yield partial(self._of_neuron, neuron)
            for estimator in _plugins(gradest.registry.estimators):
                if estimator.name not in seen and gradest.registry.call(estimator, "accepts", neuron):
                    seen.add(estimator.name)
                    yield partial(self._of_estimator, neuron, estimator)
        for estimator in _plugins(gradest.registry.estimators):
            if isinstance(estimator, ScoreFunction):
                yield partial(self._of_credit, estimator)

    def _of_neuron(self, neuron: Any) -> Iterator[WorstRequest]:
        spec, name = _spec(neuron), neuron.name
        for what, shape in _shapes(neuron):
            for value in (0.5, 30.0):
                fields = _with_a(_filled(shape, value), neuron=spec)
                yield from self._largest("/v1/mean", f"{name}, {what}, a = {value}", fields)
            yield from self._largest("/v1/sample", f"{name}, {what}", _with_a(_filled(shape, 0.5), neuron=spec))
            fields = _with_a(_filled(shape, 0.5), neuron=spec, objective=_objective(neuron), draws=1)
            yield from self._largest("/v1/compare", f"{name}, {what}", fields)
            measured = {"objective": _objective(neuron), "draws": 1, "bring": ["loss", "grad", "relaxed"]}
            yield from self._largest(
                "/v1/recommend", f"{name}, {what}", partial(_measured, spec, _filled(shape, 0.5), measured)
            )
        small = torch.full((1, *neuron.example_events[0]), 0.5)
        yield from self._largest(
            "/v1/sample", f"{name}, samples", lambda n: {"neuron": spec, "a": small, "samples": n, "dtype": "float64"}
        )

    def _of_estimator(self, neuron: Any, estimator: Any) -> Iterator[WorstRequest]:
        name, spec = f"{estimator.name} on {neuron.name}", _spec(estimator)
        for what, shape in _shapes(neuron):
            yield from self._pair(f"{name}, {what}", neuron, lambda n: spec, _filled(shape, 0.5))
        small = torch.full((1, *neuron.example_events[0]), 0.5)
        for option, info in type(estimator).model_fields.items():
            if info.annotation is int:
                options = partial(_with_option, spec, option)
                yield from self._pair(f"{name}, {option}", neuron, options, lambda n: small)

    def _pair(
        self, what: str, neuron: Any, estimator: Callable[[int], Any], a: Callable[[int], Tensor]
    ) -> Iterator[WorstRequest]:
        def fields(n: int) -> Fields:
            return {"neuron": _spec(neuron), "estimator": estimator(n), "a": a(n), "dtype": "float64"}

        def with_losses(n: int) -> Fields:
            found, built = fields(n), gradest.registry.estimator(estimator(n))
            split = found["a"].ndim - neuron.event_ndim
            k = built.evaluations(neuron, tuple(found["a"].shape[split:]))
            if k * found["a"].numel() > self._settings.max_elements:
                raise Problem(413, "the losses or their gradients are too large to be sent")
            loss = {"loss": torch.zeros(k, *found["a"].shape[:split])} if "loss" in built.needs else {}
            grad = {"grad": torch.zeros(k, *output_shape(neuron, found["a"]))} if "grad" in built.needs else {}
            return {**found, "seed": 1, **loss, **grad}

        yield from self._largest("/v1/forward", what, fields)
        yield from self._largest("/v1/backward", what, with_losses)
        for draws in (1, 100):
            objective = {"objective": _objective(neuron), "draws": draws}
            yield from self._largest("/v1/estimate", f"{what}, {draws} draws", partial(_joined, fields, objective))

    def _of_credit(self, estimator: Any) -> Iterator[WorstRequest]:
        for what, shape in _LOSSES.items():
            fields = partial(_losses, _spec(estimator), shape)
            yield from self._largest("/v1/credit", f"{estimator.name}, {what}", fields)

    def _largest(self, path: str, what: str, fields: Callable[[int], Fields]) -> Iterator[WorstRequest]:
        """Yield the request of the largest size that is accepted; nothing if none is."""
        if time.monotonic() > self._until or (self._order is not None and self._order.random() >= self._share):
            return
        schema, admit = ROUTES[path]
        size = self._sizes.get((path, what), _MOST)
        searched = (path, what) in self._sizes
        while size:
            with suppress(Problem, GradestError):
                found = fields(size)
                if not searched:
                    admit(schema.model_validate(found), self._settings)
                self._sizes[path, what] = size
                yield WorstRequest(path, f"{what}: {size}", found)
                return
            size //= 2
        self._sizes[path, what] = 0


def _plugins(registered: Mapping[str, type[Any]]) -> Iterator[Any]:
    for cls in registered.values():
        yield cls.build(**cls.examples[0])


def _shapes(neuron: Any) -> Iterator[tuple[str, Callable[[int], tuple[int, ...]]]]:
    """Yield ways to make `a` large: by its batch, and by each dim of its event."""
    event = tuple(neuron.example_events[0])
    yield "batch", lambda n: (max(1, n // torch.Size(event).numel()), *event)
    for dim in range(len(event)):
        others = torch.Size(event).numel() // event[dim]
        yield f"dim {dim}", lambda n, dim=dim, others=others: (1, *event[:dim], max(1, n // others), *event[dim + 1 :])


def _filled(shape: Callable[[int], tuple[int, ...]], value: float) -> Callable[[int], Tensor]:
    return lambda n: torch.full(shape(n), value)


def _with_a(a: Callable[[int], Tensor], **fields: Any) -> Callable[[int], Fields]:
    return lambda n: {**fields, "a": a(n), "dtype": "float64"}


def _spec(plugin: Any) -> dict[str, Any]:
    return {"name": plugin.name, **plugin.model_dump(mode="json", exclude_unset=True)}


def _objective(neuron: Any) -> dict[str, Any]:
    return {"name": "linear", "event_ndim": neuron.output_ndim}


def _measured(neuron: Fields, a: Callable[[int], Tensor], more: Fields, n: int) -> Fields:
    return {**more, "neuron": neuron, "a": a(n)}


def _with_option(spec: Fields, option: str, n: int) -> Fields:
    return {**spec, option: n}


def _joined(fields: Callable[[int], Fields], more: Fields, n: int) -> Fields:
    return {**fields(n), **more}


def _losses(spec: Fields, shape: Callable[[int], tuple[int, ...]], n: int) -> Fields:
    return {"estimator": spec, "loss": torch.ones(shape(n)), "dtype": "float64"}
