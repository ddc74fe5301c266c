"""Threads, forks, workers of a DataLoader, and DistributedDataParallel."""

from __future__ import annotations

import copy
import threading

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.usage.programs import Case, Gradients, gradients, seeded, step, x
from tests.usage.ways.entry import Both, moved_on, way
from tests.usage.ways.forks import PARALLEL_ROWS, in_fork, in_parallel


@way("two threads with one model, whose forward and backward passes alternate")
def threads(case: Case) -> Both:
    program, other = moved_on(case), moved_on(case)
    parameters = list(program.parameters())
    turns = [threading.Event() for _ in range(4)]
    found: dict[int, tuple[Tensor, ...]] = {}
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            turns[number].wait(30)
            with seeded(number):
                scalar = program(x()) if number else 3 * program(x())
            turns[number + 1].set()
            turns[number + 2].wait(30)
            found[number] = torch.autograd.grad(scalar, parameters)
        except BaseException as error:
            errors.append(error)
        finally:
            for turn in turns:
                turn.set()

    both = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
    for thread in both:
        thread.start()
    turns[0].set()
    for thread in both:
        thread.join(60)
    if errors:
        raise errors[0]
    wanted = step(other, 0)["weight"] * 3
    return {"first": found[0][0]}, {"first": wanted}


@way("a step in a forked process", slow=True)
def forked(case: Case) -> Both:
    program = moved_on(case)
    wanted = step(copy.deepcopy(program))
    return in_fork(lambda: step(program)), wanted


@way("two workers of a DataLoader, each of which takes a step with the seed that the loader gave it", slow=True)
def data_loader(case: Case) -> Both:
    """The workers' gradients are those of plain steps with their two seeds, which differ; so the workers share no noise."""
    program = moved_on(case)

    def take_a_step(_: list[int]) -> tuple[int, dict[str, list[float]]]:
        worker = copy.deepcopy(program)
        worker(x()).backward()
        return torch.initial_seed(), {name: value.tolist() for name, value in gradients(worker).items()}

    loader = DataLoader(range(2), num_workers=2, collate_fn=take_a_step, multiprocessing_context="fork")
    (one, _), (two, _) = answers = list(loader)
    assert one != two
    found, wanted = {}, {}
    for number, (seed, given) in enumerate(answers):
        for name, value in step(copy.deepcopy(program), seed).items():
            found[f"{number} {name}"], wanted[f"{number} {name}"] = torch.tensor(given[name]), value
    return found, wanted


@way("DistributedDataParallel, two processes with half of the batch each: the gradient of the whole batch")
def ddp(case: Case) -> Both:
    """After a first step, whose state the processes share. The state of `expect` is the caller's, who takes one step here."""
    steps = 1 if case.call == "expect" else 2
    program = case.build()
    wanted: Gradients = {}
    for seed in range(steps):
        wanted = step(program, seed, PARALLEL_ROWS)
    one, two = in_parallel(case, steps)
    return {**one, "other": two["weight"]}, {**wanted, "other": wanted["weight"]}
