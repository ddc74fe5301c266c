"""Autocast, scaled gradients, and models that are converted to another dtype."""

from __future__ import annotations

import torch

from tests.usage.programs import Case, by_hand, gradients, seeded, step, x
from tests.usage.ways.entry import Both, moved_on, way


@way("torch.autocast to bfloat16")
def autocast(case: Case) -> Both:
    program, other = case.build(), case.build()
    other.cast = torch.bfloat16
    with seeded(0), torch.autocast("cpu", dtype=torch.bfloat16):
        scalar = program(x())
    scalar.backward()
    # the sum over paths, if there are any, rounds in bfloat16 too
    return {name: value.bfloat16() for name, value in gradients(program).items()}, by_hand(other)


@way("torch.amp.GradScaler")
def scaled(case: Case) -> Both:
    program = case.build()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimiser = torch.optim.SGD(program.parameters(), lr=0.1)
    with seeded(0):
        scaler.scale(program(x())).backward()
    scaler.unscale_(optimiser)
    return gradients(program), step(case.build())


def _converted(case: Case, dtype: torch.dtype) -> Both:
    program = moved_on(case).to(dtype)
    wanted = by_hand(program, seed=1)
    return step(program, seed=1), wanted


@way("model.double() after a step")
def double(case: Case) -> Both:
    return _converted(case, torch.float64)


@way("model.bfloat16() after a step")
def bfloat16(case: Case) -> Both:
    return _converted(case, torch.bfloat16)


@way("model.half() after a step")
def half(case: Case) -> Both:
    return _converted(case, torch.float16)
