"""The ways of use. Each runs a program in its own way and says which gradients the same step has without it.

A way is a function of a case that returns (found, wanted). All draws come from torch's generator, which both sides seed alike, so
the two agree to rounding or something is wrong: no statistics, and no false alarms. `plain` alone compares with another
implementation, ask and tell by hand, whose gradients the conformance kit holds against enumeration.
"""

from __future__ import annotations

import copy
import io
import os
import pickle
import threading
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import gradest
from tests.usage.programs import (
    BATCH,
    Case,
    ExpectationLayer,
    Function,
    Gradients,
    Layer,
    Program,
    by_hand,
    gradients,
    seeded,
    step,
    x,
)

Both = tuple[Gradients, Gradients]
Way = Callable[[Case], Both]

WAYS: dict[str, Way] = {}
MEANING: dict[str, str] = {}
SLOW = {"compiled", "forked"}  # a cell takes a second


def way(meaning: str) -> Callable[[Way], Way]:
    """Enter a way under its function's name, with the words that a user reads in the table."""

    def enter(function: Way) -> Way:
        name = function.__name__.replace("_", " ").strip()
        WAYS[name], MEANING[name] = function, meaning
        return function

    return enter


def added(*all_gradients: Gradients) -> Gradients:
    return {name: sum(given[name] for given in all_gradients) for name in all_gradients[0]}  # type: ignore[misc]


def moved_on(case: Case) -> Program:
    """A program after one step, which may have given it a state."""
    program = case.build()
    step(program, seed=99)
    program.zero_grad()
    return program


# --- alone ----------------------------------------------------------------------------------------


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


# --- transformations of the program ---------------------------------------------------------------


def _compiled(case: Case, backend: str) -> Both:
    program = moved_on(case)
    wanted = step(copy.deepcopy(program))
    torch._dynamo.reset()
    whole = not isinstance(program, Function | ExpectationLayer)  # those call back into f, and break the graph
    run = torch.compile(program, fullgraph=whole, backend=backend)
    with seeded(0):
        run(x()).backward()
    return gradients(program), wanted


@way("torch.compile, in a whole graph where a layer can be")
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


# --- memory ---------------------------------------------------------------------------------------


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


# --- precision ------------------------------------------------------------------------------------


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


# --- copies ---------------------------------------------------------------------------------------


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


# --- autograd -------------------------------------------------------------------------------------


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


# --- memory written to in place -------------------------------------------------------------------


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


# --- threads and processes ------------------------------------------------------------------------


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


@way("a step in a forked process, as in a worker of a DataLoader")
def forked(case: Case) -> Both:
    program = moved_on(case)
    wanted = step(copy.deepcopy(program))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer: object = {name: value.tolist() for name, value in step(program).items()}
        except BaseException as error:
            answer = error
        try:
            os.write(writer, pickle.dumps(answer))
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answered = pickle.loads(stream.read())
    os.waitpid(child, 0)
    if isinstance(answered, BaseException):
        raise answered
    return {name: torch.tensor(value) for name, value in answered.items()}, wanted
