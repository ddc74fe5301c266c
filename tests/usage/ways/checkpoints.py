"""Activation checkpoints, and saved tensors that are kept elsewhere."""

from __future__ import annotations

from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

import gradest
from tests.usage.programs import Case, gradients, seeded, step, x
from tests.usage.ways.entry import Both, way


def _checkpointed(case: Case, **options: bool) -> Both:
    program = case.build()
    program.wrap = partial(checkpoint, **options)
    with seeded(0):
        program(x().requires_grad_()).backward()  # a reentrant checkpoint needs an input that requires a gradient
    return gradients(program), step(case.build())


@way("activation checkpoint, use_reentrant=False")
def checkpoint_(case: Case) -> Both:
    return _checkpointed(case, use_reentrant=False)


@way("activation checkpoint, use_reentrant=True")
def checkpoint_reentrant(case: Case) -> Both:
    return _checkpointed(case, use_reentrant=True)


@way(
    "activation checkpoint, preserve_rng_state=False: what asks for f draws all again in backward, and is right for that noise"
)
def checkpoint_other_noise(case: Case) -> Both:
    found, wanted = _checkpointed(case, use_reentrant=False, preserve_rng_state=False)
    if case.call in ("expect", "Expectation"):
        program = case.build()
        with seeded(0):
            gradest.random.fresh_seed()
            program(x()).backward()
        # dL/dh was taken at the points of the forward pass, and so was the gradient of f's parameters
        wanted = {**wanted, "weight": gradients(program)["weight"]}
        if "grad" not in case.estimator.needs:
            wanted = gradients(program)
    return found, wanted


@way("torch.autograd.graph.save_on_cpu")
def save_on_cpu(case: Case) -> Both:
    program = case.build()
    with seeded(0), torch.autograd.graph.save_on_cpu():
        program(x()).backward()
    return gradients(program), step(case.build())
