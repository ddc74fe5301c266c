"""Copies of a model, saved models, and models that are made without memory."""

from __future__ import annotations

import copy
import io
import pickle

import torch
from torch.optim.swa_utils import AveragedModel

from tests.usage.programs import Case, Function, by_hand, gradients, seeded, step, x
from tests.usage.ways.entry import Both, moved_on, way


@way("a deep copy, made before the step")
def deepcopy(case: Case) -> Both:
    program = moved_on(case)
    return step(copy.deepcopy(program)), step(program)


@way("a deep copy, made between forward and backward: the original goes on, and the copy takes a step of its own")
def deepcopy_between(case: Case) -> Both:
    program, other = moved_on(case), moved_on(case)
    with seeded(0):
        scalar = program(x())
    copied = copy.deepcopy(program)
    copied_wanted = by_hand(copied, seed=5)
    scalar.backward()
    found = {**gradients(program), "copy": step(copied, seed=5)["weight"]}
    return found, {**step(other), "copy": copied_wanted["weight"]}


@way("pickled and loaded")
def pickled(case: Case) -> Both:
    program = moved_on(case)
    again = pickle.loads(pickle.dumps(program))
    return step(again), step(program)


@way("state_dict saved after a step and loaded into a new model, strictly")
def state_dict(case: Case) -> Both:
    program, again = moved_on(case), case.build()
    file = io.BytesIO()
    torch.save(program.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True), strict=True)
    if isinstance(program, Function) and isinstance(again, Function):
        again.kept = program.kept
    return step(again), step(program)


@way("AveragedModel(use_buffers=True), made before the first step and updated after each")
def averaged(case: Case) -> Both:
    program = case.build()
    average = AveragedModel(program, use_buffers=True)
    for seed in (98, 99):
        step(program, seed)
        average.update_parameters(program)
    other = case.build()
    for seed in (98, 99):
        step(other, seed)
    inside = by_hand(average.module, seed=3)
    found = step(average.module, seed=3)
    return {**step(program), "average": found["weight"]}, {**step(other), "average": inside["weight"]}


@way("made on the meta device, then to_empty and reset_parameters")
def meta(case: Case) -> Both:
    with torch.device("meta"):
        program = case.build()
    program = program.to_empty(device="cpu")
    for module in program.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return step(program), step(case.build())
