"""An error where no dL/dh reaches a layer that needs it, although the loss that its sample may have decided was told.

Such a layer would not be trained, or by the score part alone, without a word. autograd says so itself only if it is the one layer
of the program. Backward is the moment to tell: a gradient may also come from what the caller added to the scalar.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.autograd import Variable
from torch.autograd.function import BackwardCFunction

from gradest.errors import GradestWarning, NotDifferentiable
from gradest.nn.sampler import Sampler

__all__ = ["ExpectedSlopes", "Slope", "check_led", "note_lost", "unreached"]

_Node = Any  # a node of torch's graph of autograd


class Slope:
    """The dL/dh of one use of a layer, and whether it reached the use. It keeps nothing else of the use alive.

    layer: the identity of the layer. sampler: its neuron and estimator. compiled: whether compiled code drew the sample, whose
        graph then does not show the use. lost: whether a cost without a graph, which may depend on the sample, was added later.
    """

    __slots__ = ("compiled", "layer", "lost", "reached", "sampler")

    def __init__(self, layer: object, sampler: Sampler, compiled: bool = False) -> None:
        self.layer, self.sampler, self.compiled, self.reached = id(layer), sampler, compiled, False
        self.lost = False


class ExpectedSlopes:
    """The slopes that backward through the scalars of one step is to reach.

    They are looked at once backward has gone through all scalars that were made, and no other will be made. Every layer must have
    been reached at one use; otherwise NotDifferentiable is raised from backward. For uses that were not reached, of a layer that
    was reached at others, it gives a GradestWarning.

    model: contains the layers. each: whether each layer is looked at, or only whether none of them was reached.
    """

    def __init__(self, model: nn.Module, each: bool = True) -> None:
        self._model, self._each = model, each
        self._slopes: dict[Slope, None] = {}
        self._scalars: WeakSet[_Node] = WeakSet()  # through which backward has not gone yet
        self._made = 0
        self._open = True

    def made(self, scalar: _Node, slopes: Iterable[Slope]) -> None:
        """Expect these slopes, and backward through a further scalar, of which this is the node."""
        self._slopes.update(dict.fromkeys(slopes))
        self._scalars.add(scalar)
        self._made += 1

    def close(self) -> None:
        """State that no further scalar will be made."""
        self._open = False
        self._look()

    def backward_begins(self, scalar: _Node) -> None:
        """Look at the slopes at the end of this backward pass, which goes through the node of a scalar."""
        if self._slopes:
            Variable._execution_engine.queue_callback(partial(self._backward_ended, scalar))

    def _backward_ended(self, scalar: _Node) -> None:
        if scalar in self._scalars:
            self._scalars.discard(scalar)
            self._made -= 1
        missing = {slope for slope in self._slopes if not slope.reached}
        if missing:  # a pass for some inputs alone, as of torch.autograd.grad, need not go where the graph leads
            for slope in _slopes_below(scalar):
                slope.reached = True
            if any(slope.compiled for slope in missing) and _holds_functions(scalar):
                for slope in missing:
                    slope.reached = slope.reached or slope.compiled  # a compiled function may lead to it
        self._look()

    def _look(self) -> None:
        if self._open or self._made:
            return
        slopes, self._slopes = list(self._slopes), {}
        reached = {slope.layer for slope in slopes if slope.reached}
        missing = {slope.layer: slope for slope in slopes if not slope.reached}
        for layer, slope in missing.items():
            if layer not in reached and (self._each or not reached):
                raise unreached(slope.sampler, self._name(layer))
        for layer in missing.keys() & reached:
            warnings.warn(
                f"no dL/dh reached some uses of the layer {self._name(layer)}{missing[layer].sampler.neuron.label()}, whose "
                f"other uses it reached. {_REMEDY}",
                GradestWarning,
                stacklevel=2,
            )
        for layer, slope in {slope.layer: slope for slope in slopes if slope.reached and slope.lost}.items():
            warnings.warn(
                f"a cost without a graph was added after a use of the layer {self._name(layer)}{slope.sampler.neuron.label()}, "
                f"whose estimator {slope.sampler.estimator.label()} needs dL/dh. The other costs train the layer, and this one "
                "does not. Give it a graph to the sample if it depends on it; if it does not, add it before the layer is called",
                GradestWarning,
                stacklevel=2,
            )

    def _name(self, layer: int) -> str:
        """Return the name of a layer in the model, quoted and with a space, or nothing for the model itself."""
        return next((f'"{name}" ' for name, module in self._model.named_modules() if name and id(module) == layer), "")


_REMEDY = (
    "If the loss depends on these samples by a detached tensor, an integer such as h.argmax(-1), a comparison or a computation "
    "outside of torch, use a differentiable loss, or an estimator that needs the loss alone: "
    'gradest.recommend(neuron, bring=["loss"]) ranks them. If it does not depend on them, call the layer under torch.no_grad(), '
    "or give it a.detach(), where it is not to be trained"
)


def check_led(slopes: list[Slope], loss: Tensor) -> None:
    """Raise NotDifferentiable unless the graph of the losses of an f leads to every layer that f used."""
    led = {slope.layer for slope in _slopes_below(loss.grad_fn)}
    for slope in slopes:
        if slope.layer not in led:
            raise unreached(slope.sampler)


def note_lost(slopes: list[Slope], ports: Iterable[Tensor]) -> None:
    """Note that a cost without a graph is added after these uses.

    ports: those of the uses that are told the cost. They pass its gradient on to the samples below them, which so lack nothing.
    """
    told = {slope for port in ports for slope in _slopes_below(port.grad_fn, port.output_nr)}
    for slope in slopes:
        slope.lost = slope.lost or slope not in told


def unreached(sampler: Sampler, name: str = "") -> NotDifferentiable:
    """Return the error for a layer that no dL/dh reached. name: that of the layer, quoted and with a space."""
    return NotDifferentiable(
        f"no dL/dh reached the layer {name}{sampler.neuron.label()}, whose estimator {sampler.estimator.label()} needs it: no "
        f"graph leads from the loss to a sample of the layer, so backward trains it wrongly or not at all. {_REMEDY}"
    )


def _holds_functions(root: _Node) -> bool:
    """Tell whether the graph of a scalar holds a function of Python that is not gradest's own, as compiled code is."""
    nodes, seen = [root], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(type(node), "_forward_cls", None)
        if isinstance(node, BackwardCFunction) and not str(getattr(function, "__module__", "")).startswith("gradest."):
            return True
        nodes += [child for child, _ in node.next_functions]
    return False


def _slopes_below(root: _Node, output: int = 0) -> Iterator[Slope]:
    """Yield the slopes of the uses to whose samples the graph of an output of a node leads."""
    nodes: list[tuple[_Node, int]] = [] if root is None else [(root, output)]
    seen: set[_Node] = set()
    while nodes:
        node, output = nodes.pop()
        slope = getattr(getattr(node, "use", None), "slope", None)
        if slope is not None and output == 0:  # the other output is the port
            yield slope
        if node not in seen:
            seen.add(node)
            nodes += [edge for edge in node.next_functions if edge[0] is not None]
