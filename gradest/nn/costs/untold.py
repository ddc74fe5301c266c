"""A warning where a gradient reaches the sample of a layer beyond that of the loss the layer was told.

The score part of a gradient needs the whole loss. A penalty in h that is added to the scalar after the loss was told has a
path to h, but no score part, and its gradient is wrong. So the gradient that arrives at each node between the scalar and the
samples is compared with the sum of what the told losses send there; what is left over came from elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gradest.errors import GradestWarning
from gradest.kernels import transformed
from gradest.nn.layers import Stochastic
from gradest.nn.uses import Recorded, RecordedEagerly

__all__ = ["UntoldGradients", "untold_gradients_of_step"]

_Node = Any  # a node of torch's graph of autograd
_Place = tuple[int, int]  # the number of a node, and which of its outputs


class UntoldGradients:
    """Watches the backward passes through the scalars of one step, and warns of what was added to them.

    It holds hooks on the graph and the gradients on their way, never a node after `close`, so it lives no longer than the graph.
    """

    def __init__(self) -> None:
        self._numbers: dict[_Node, int] = {}
        self._sent: dict[tuple[int, _Place], list[Tensor]] = {}  # by the number of the backward pass
        self._foreign: set[tuple[int, int]] = set()  # nodes that received a gradient from elsewhere, by backward pass

    def watch(self, scalar: Tensor, told: Iterable[Recorded]) -> None:
        """Watch the graph from a scalar to the samples of the uses that were told their loss by it."""
        emitted = {use.port.grad_fn: use.sampler.neuron.label() for use in told if isinstance(use, RecordedEagerly)}
        if not emitted:
            return
        root, numbers = scalar.grad_fn, self._numbers
        nodes = [node for node in _leading_to(root, emitted) if node not in numbers]
        for node in nodes:
            numbers[node] = len(numbers)
        for node in nodes:
            children = [
                (place, (numbers[child], output))
                for place, (child, output) in enumerate(node.next_functions)
                if child in numbers
            ]
            if node is not root:
                node.register_prehook(partial(self._receive, numbers[node], emitted.get(node)))
            node.register_hook(partial(self._send, numbers[node], node in emitted, children))

    def close(self) -> None:
        """Forget the nodes: no further scalar is watched."""
        self._numbers = {}

    def _receive(self, number: int, layer: str | None, gradients: tuple[Tensor | None, ...]) -> None:
        task = torch._C._current_graph_task_id()
        foreign = (task, number) in self._foreign
        for output, gradient in enumerate(gradients):
            sent = self._sent.pop((task, (number, output)), [])
            foreign = foreign or (gradient is not None and _differs(gradient, sent))
        self._foreign.discard((task, number))
        if not foreign:
            return
        if layer is None:
            self._foreign.add((task, number))
            return
        warnings.warn(
            f"a gradient reached the sample of the layer {layer} that is no part of the loss this layer was told, such as that "
            "of a penalty added to the scalar. The estimator needs the whole loss, so this gradient is wrong. Add what "
            "depends on the sample to the loss, one number an example: broadcast_loss(model, loss + penalty), or "
            "graph.add_cost(penalty)",
            GradestWarning,
            stacklevel=2,
        )

    def _send(
        self,
        number: int,
        emits: bool,
        children: list[tuple[int, _Place]],
        gradients: tuple[Tensor | None, ...],
        _: tuple[Tensor | None, ...],
    ) -> None:
        task = torch._C._current_graph_task_id()
        foreign = (task, number) in self._foreign
        self._foreign.discard((task, number))
        for place, child in children:
            gradient = gradients[place]
            if gradient is not None:
                self._sent.setdefault((task, child), []).append(gradient.detach())
                if foreign and not emits:
                    self._foreign.add((task, child[0]))


def untold_gradients_of_step(layers: list[Stochastic]) -> UntoldGradients | None:
    """Return what watches this step, if it is the first, second, fourth, eighth, ... step of the model in this thread.

    What a program adds to its scalar it adds at every step, or from some step on, so looking at few of them is enough.
    """
    if not layers or torch.compiler.is_compiling() or transformed():
        return None
    step = layers[0].count_step()
    return None if step & (step - 1) else UntoldGradients()


def _leading_to(root: _Node, targets: Iterable[_Node]) -> list[_Node]:
    """Return the nodes of the graph of `root` from which a target can be reached."""
    leading, seen, stack = set(targets), set(), [(root, False)]
    while stack:
        node, below = stack.pop()
        if below:
            if any(child in leading for child, _ in node.next_functions):
                leading.add(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(child, False) for child, _ in node.next_functions if child is not None and child not in seen]
    return [node for node in leading if node in seen]


def _differs(gradient: Tensor, sent: list[Tensor]) -> bool:
    """Return whether a gradient is not the sum of those that were sent, up to rounding."""
    parts = [gradient, *sent]
    if any(part.layout is not torch.strided or part.shape != gradient.shape for part in parts):
        return False
    if len(sent) == 1 and sent[0].data_ptr() == gradient.data_ptr():
        return False
    wide = [part.detach().to(torch.promote_types(part.dtype, torch.float32)) for part in parts]
    rest = wide[0] - sum(wide[1:])
    scale = max(float(part.abs().max()) for part in wide) if gradient.numel() else 0.0
    tolerance = max(1e-3, len(parts) * max(torch.finfo(part.dtype).eps for part in parts))
    return gradient.numel() > 0 and float(rest.abs().max()) > tolerance * scale
