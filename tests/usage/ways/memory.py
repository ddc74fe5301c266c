"""Tensors that are written to in place, and tensors of another layout."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.usage.programs import Case, ExpectationLayer, Function, Layer, gradients, seeded, step, x
from tests.usage.ways.entry import Both, way


@way("pre-activations written to in place before the call")
def written_before(case: Case) -> Both:
    program = case.build()
    before = program.pre_activations
    program.pre_activations = lambda given: before(given).mul_(1.0)  # type: ignore[method-assign]
    return step(program), step(case.build())


@way("pre-activations written to in place between the call and backward")
def written_after(case: Case) -> Both:
    program, kept = case.build(), []
    before, finish = program.pre_activations, program.finish

    def keep(given: Tensor) -> Tensor:
        a = before(given)
        a = a * 1  # no operation before the call needs its value
        kept.append(a)
        return a

    program.pre_activations = keep  # type: ignore[method-assign]
    program.finish = lambda out: (kept[0].detach().zero_(), finish(out))[1]  # type: ignore[method-assign]
    if isinstance(program, Layer | Function | ExpectationLayer):
        return step(program), step(case.build())
    with seeded(0):
        scalar = program(x())
    kept[0].detach().zero_()
    scalar.backward()
    return gradients(program), step(case.build())


@way("outputs, or the points that f is given, written to in place")
def written_output(case: Case) -> Both:
    program, other = case.build(), case.build()
    f, g = program.f, other.f
    if case.call in ("expect", "Expectation"):
        program.f = lambda h: f(h.mul_(1.5))  # type: ignore[method-assign]
    else:
        body = program.body
        program.body = lambda given: body(given).mul_(1.5)  # type: ignore[method-assign]
    other.f = lambda h: g(h * 1.5)  # type: ignore[method-assign]
    return step(program), step(other)


@way("pre-activations that are not contiguous")
def strided(case: Case) -> Both:
    program = case.build()
    before = program.pre_activations

    def turned(given: Tensor) -> Tensor:
        return before(given).transpose(0, -1).contiguous().transpose(0, -1)

    program.pre_activations = turned  # type: ignore[method-assign]
    return step(program), step(case.build())


@way("an empty batch")
def empty(case: Case) -> Both:
    program = case.build()
    found = step(program, given=x()[:0])
    return found, {name: torch.zeros_like(value) for name, value in found.items()}
