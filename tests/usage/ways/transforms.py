"""torch.compile and the transforms of torch.func."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor

from tests.usage.programs import BATCH, Case, ExpectationLayer, Function, Program, gradients, seeded, step, x
from tests.usage.ways.entry import Both, moved_on, way


def _compiled(case: Case, backend: str) -> Both:
    program = moved_on(case)
    wanted = step(copy.deepcopy(program))
    torch._dynamo.reset()
    whole = not isinstance(program, Function | ExpectationLayer)  # those call back into f, and break the graph
    run = torch.compile(program, fullgraph=whole, backend=backend)
    with seeded(0):
        run(x()).backward()
    return gradients(program), wanted


@way("torch.compile, in a whole graph where a layer can be", slow=True)
def compiled(case: Case) -> Both:
    return _compiled(case, "aot_eager")


def _parameters(program: Program) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in program.named_parameters()}


def _loss_of(program: Program, parameters: dict[str, Tensor], given: Tensor) -> Tensor:
    loss: Tensor = torch.func.functional_call(program, parameters, (given,))
    return loss


@way("torch.func.grad of functional_call")
def func_grad(case: Case) -> Both:
    program = case.build()
    with seeded(0):
        found = torch.func.grad(partial(_loss_of, program))(_parameters(program), x())
    return found, step(case.build())


@way("torch.func.vmap of torch.func.grad: a gradient for each example, all with the same noise")
def func_vmap(case: Case) -> Both:
    program = case.build()
    each = torch.func.vmap(torch.func.grad(partial(_loss_of, program)), in_dims=(None, 0), randomness="same")
    with seeded(0):
        found = each(_parameters(program), x()[:, None])
    wanted = [step(case.build(), given=x()[row : row + 1]) for row in range(BATCH)]
    return found, {name: torch.stack([given[name] for given in wanted]) for name in wanted[0]}


@way("torch.func.jvp, forward-mode differentiation")
def func_jvp(case: Case) -> Both:
    program = case.build()
    given = _parameters(program)
    with seeded(0):
        _, found = torch.func.jvp(lambda p: _loss_of(program, p, x()), (given,), (given,))
    wanted = step(case.build())
    return {"along": found}, {"along": sum((wanted[name] * given[name]).sum() for name in given)}  # type: ignore[dict-item]
