"""Ways to call backward, and forward passes that are not followed by one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.usage.programs import BATCH, Case, Function, Layer, gradients, seeded, step, x
from tests.usage.ways.entry import Both, added, moved_on, way


def _left_without(case: Case, without: Callable[[], object]) -> Both:
    program = moved_on(case)
    other = moved_on(case)
    with without():  # type: ignore[attr-defined]
        program(x())
    return step(program), step(other)


@way("a forward pass under no_grad, then a step")
def no_grad(case: Case) -> Both:
    return _left_without(case, torch.no_grad)


@way("a forward pass under inference_mode, then a step")
def inference_mode(case: Case) -> Both:
    return _left_without(case, torch.inference_mode)


@way("an evaluation, model.eval(), then a step")
def evaluation(case: Case) -> Both:
    program, other = moved_on(case), moved_on(case)
    program.eval()
    with torch.set_grad_enabled(not isinstance(program, Function)):  # a function knows no mode of evaluation
        program.body(x())
    program.train()
    return step(program), step(other)


@way("gradient accumulation over two steps")
def accumulation(case: Case) -> Both:
    program, other = case.build(), case.build()
    for seed in (0, 1):
        with seeded(seed):
            program(x()).backward()
    return gradients(program), added(step(other, 0), step(other, 1))


@way("a batch in two parts, with rows=, each from the state and the generator of the whole")
def in_parts(case: Case) -> Both:
    wanted = step(moved_on(case))
    parts = []
    for rows in (torch.tensor([0, 2]), torch.tensor([1])):
        program = moved_on(case)
        program.rows = rows
        parts.append(step(program, given=x()[rows]))
    return added(*parts), wanted


@way("backward twice, with retain_graph=True")
def retain_graph(case: Case) -> Both:
    program = case.build()
    with seeded(0):
        scalar = program(x())
    scalar.backward(retain_graph=True)
    scalar.backward()
    wanted = step(case.build())
    return gradients(program), added(wanted, wanted)


@way("torch.autograd.grad instead of backward")
def autograd_grad(case: Case) -> Both:
    program = case.build()
    names, parameters = zip(*program.named_parameters(), strict=True)
    with seeded(0):
        found = torch.autograd.grad(program(x()), parameters)
    return dict(zip(names, found, strict=True)), step(case.build())


@way("create_graph=True")
def create_graph(case: Case) -> Both:
    program = case.build()
    names, parameters = zip(*program.named_parameters(), strict=True)
    with seeded(0):
        found = torch.autograd.grad(program(x()), parameters, create_graph=True)
    return {name: given.detach() for name, given in zip(names, found, strict=True)}, step(case.build())


@way("torch.autograd.detect_anomaly")
def anomaly_mode(case: Case) -> Both:
    program = case.build()
    with seeded(0), torch.autograd.set_detect_anomaly(True):
        program(x()).backward()
    return gradients(program), step(case.build())


@way("hooks on modules and tensors, which see what passes")
def hooks(case: Case) -> Both:
    program, seen = case.build(), []
    before = program.pre_activations

    def watched(given: Tensor) -> Tensor:
        a = before(given)
        a.register_hook(seen.append)
        return a

    program.pre_activations = watched  # type: ignore[method-assign]
    for module in program.modules():
        module.register_forward_pre_hook(lambda *_: None)
        module.register_forward_hook(lambda *_: None)
    if isinstance(program, Layer):
        program.unit.register_full_backward_hook(lambda *_: None)
    with seeded(0):
        program(x()).backward()
    wanted = step(case.build())
    at_a = seen[0].flatten(-len(case.event)).reshape(-1, BATCH, wanted["weight"].shape[1]).sum(0)  # over paths, if any
    return {**gradients(program), "a": at_a}, {**wanted, "a": wanted["weight"]}


@way("the weight frozen, f's own parameter trained")
def frozen(case: Case) -> Both:
    program = case.build()
    program.weight.requires_grad_(False)
    with seeded(0):
        program(x()).backward()
    wanted = step(case.build())
    return {"scale": gradients(program)["scale"]}, {"scale": wanted["scale"]}
