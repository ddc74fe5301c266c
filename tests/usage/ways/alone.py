"""Plain steps, which the other ways are compared with."""

from __future__ import annotations

from tests.usage.programs import Case, Layer, by_hand, gradients, seeded, step, x
from tests.usage.ways.entry import Both, added, moved_on, way


@way("one step in eager code, compared with ask and tell by hand")
def plain(case: Case) -> Both:
    wanted = by_hand(case.build())
    return step(case.build()), wanted


@way("the second step, whose state the first has moved")
def second_step(case: Case) -> Both:
    program = moved_on(case)
    wanted = by_hand(program, seed=1)
    return step(program, seed=1), wanted


@way("the layer used twice in one forward pass")
def used_twice(case: Case) -> Both:
    program = case.build()
    with seeded(0):
        (program(x()) + 2 * program(x())).backward()
    first, second = case.build(), case.build()
    with seeded(0):
        first(x()).backward()
        wanted = gradients(first)
        if not (
            isinstance(first, Layer) and case.needs == "grad"
        ):  # the state of those moves in backward, after both uses
            second = first
            second.zero_grad()
        second(x()).backward()
    return gradients(program), added(wanted, gradients(second), gradients(second))
