"""StochasticGraph: several stochastic layers and several costs in one program."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor, maybe_current_level, maybe_get_level

from gradest.contract.neuron import Neuron
from gradest.contract.score_function import ScoreFunction
from gradest.errors import GradestWarning, Incompatible, InvalidInput, MissingLoss
from gradest.estimation.arguments import check_count, first_non_finite
from gradest.estimation.losses.evaluation import losses_in_progress
from gradest.kernels import transformed
from gradest.kernels.stable import widen
from gradest.nn.costs.checks import (
    as_real,
    check_reduction,
    complain_of_calls,
    stochastic_layers,
    warn_without_gradient,
)
from gradest.nn.costs.untold import UntoldGradients, untold_gradients_of_step
from gradest.nn.recomputation import refuse_recomputation
from gradest.nn.sampler import NO_PATHS, Paths
from gradest.nn.slopes import ExpectedSlopes, Slope, note_lost
from gradest.nn.uses import Recorded, RecordedEagerly, Reduction, attach, leading_batch, reduce, used_inside_loss

__all__ = ["StochasticGraph"]


class _Cost:
    """A cost in the list of uses and costs: `value` is `[*batch]`, or `[K, *batch]` of K paths."""

    def __init__(self, value: Tensor) -> None:
        self.value = value
        self.previous: Any = None


class StochasticGraph:
    """A scope in which stochastic layers are used and costs are added; its surrogate has the gradient of the expected total cost.

        with gradest.nn.StochasticGraph(model) as graph:
            for step in range(3):
                h = layer(a)                       # as often as wanted; h may die, as in h.argmax(-1)
                graph.add_cost(cost_of(h))         # [*batch]
            graph.surrogate().backward()

    A cost is credited to every use that was recorded before it was added. This is the cost-to-go of each use: it leaves the
    gradient unbiased, because a cost that was computed earlier cannot depend on a later use. The own gradient of a cost, in
    whatever it depends on differentiably, flows as ever.

    model: its `Stochastic` layers are recorded while the scope is open, in this thread, wherever their estimators need a loss.
        Passes under torch.no_grad() or in evaluation are not recorded, nor are copies of the model.
    samples: K, for K whole-path samples. The first dim of every layer's `a` and of every cost is then the path; `expand` makes
        it. Estimators that credit K samples against each other (`rloo`, `vimco`, ...) take the K paths as their samples. For
        estimators of one sample, paths are examples like others.

    Estimators whose target is a bound over K samples, such as `vimco`, get the total of all costs at every use; cost-to-go would
    be wrong there. They cannot be mixed with others that need a loss.

    A layer whose estimator needs dL/dh is trained by the graph that leads from the costs to its sample. If no cost added after
    its uses has such a graph, because it is computed in numpy, from h.detach() or from h.argmax(-1), backward raises
    NotDifferentiable, unless the layer is inside a compiled function whose other results reach the costs. It gives a
    GradestWarning if the costs reach some uses of the layer alone. Call a layer that is not to be trained by them under
    torch.no_grad(). A cost that has a graph to the sample, but depends on it in such a way as well, gets that of the graph alone.

    Leaving the scope without `surrogate()` raises MissingLoss, unless an exception passes or `discard()` was called. Scopes may
    be nested; a layer belongs to the innermost one whose model contains it. A cost is credited to the uses of its own scope
    alone, so one that depends on samples of an inner scope is added there, too. torch.compile(fullgraph=True) may have the scope
    inside or outside of the compiled function, and transforms of torch.func may contain the whole scope.

    Source: Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation Graphs, arXiv 1506.05254.

    >>> import torch, gradest
    >>> layer = gradest.nn.Stochastic("bernoulli", "rloo")
    >>> a = torch.zeros(4, 3, requires_grad=True)
    >>> with gradest.nn.StochasticGraph(layer, samples=2) as graph:
    ...     graph.add_cost(layer(graph.expand(a)).sum(-1))
    ...     graph.surrogate().backward()
    >>> a.grad.shape
    torch.Size([4, 3])
    """

    def __init__(self, model: nn.Module, samples: int | None = None) -> None:
        if samples is not None:
            check_count("samples", samples, least=1)
        self.samples = samples
        self._model = model
        self._layers = stochastic_layers("a StochasticGraph", model)
        self._outer: list[Any] | None = None  # the outer scope of each layer while this one is open
        # the head of a list of uses and costs, latest first, on whose length torch.compile does not specialise
        self._latest: Any = None
        self._paths = NO_PATHS if samples is None else Paths(samples)
        self._expanded = False
        self._batch = 0  # the batch that was expanded and flattened; torch.compile would specialise on it
        self._told = False
        self._used = False  # whether a layer was called in training mode
        self._level = 0
        self._untold: UntoldGradients | None = None
        self.slopes: list[Slope] = []  # of the eager uses
        self._credited = 0  # how many of them came before a cost
        self._expected: ExpectedSlopes | None = None

    def __enter__(self) -> Self:
        if self._outer is not None:
            raise InvalidInput("this StochasticGraph is open already; make a new one for each step")
        refuse_recomputation("a StochasticGraph cannot be opened")
        self._outer, self._told, self._expanded = [layer.enter_scope(self) for layer in self._layers], False, False
        self._used, self._level = False, losses_in_progress()
        self._untold = untold_gradients_of_step(self._layers)
        self.slopes, self._credited, self._expected = [], 0, None
        self._paths = NO_PATHS if self.samples is None else Paths(self.samples)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._outer is not None
        for layer, outer in zip(self._layers, self._outer, strict=True):
            layer.leave_scope(outer)
        latest, self._latest, self._outer = self._latest, None, None
        if self._untold is not None:
            self._untold.close()
        expected, self._expected, self.slopes = self._expected, None, []
        if kind is not None or not torch.is_grad_enabled():
            return
        while latest is not None:
            if isinstance(latest, _Cost) or not self._told:
                raise MissingLoss(
                    "the StochasticGraph was left with uses or costs of which no surrogate was made, so they would have no "
                    "gradient; call graph.surrogate().backward() inside it, or graph.discard() if none is wanted"
                )
            latest = latest.previous
        if expected is not None:
            expected.close()

    def expand(self, x: Tensor, flatten: bool = False) -> Tensor:
        """Return x `[batch, ...]` once for each path: `[K, batch, ...]`, or `[K·batch, ...]`, path by path, with flatten=True.

        flatten is for models that take a single batch dim, such as those with convolutions or BatchNorm. Every layer's `a` and
        every cost then has K·batch first. With samples=None, x is returned as it is. Raises InvalidInput if an earlier call
        disagrees.
        """
        if self.samples is None:
            return x
        if flatten and not x.ndim:
            raise InvalidInput("a tensor without dims has no batch to flatten; use expand(x) without flatten=True")
        batch = x.shape[0] if flatten else 0
        if self._expanded and (self._paths.flat, self._batch) != (flatten, batch):
            before, now = (
                f"a flattened batch of {n}" if flat else "flatten=False"
                for flat, n in ((self._paths.flat, self._batch), (flatten, batch))
            )
            raise InvalidInput(
                f"expand was called with {before} before and with {now} now; one scope has one form of paths"
            )
        self._expanded, self._batch, self._paths = True, batch, Paths(self.samples, flatten)
        paths = x.expand(self.samples, *x.shape)
        return paths.flatten(0, 1) if flatten else paths

    def add_cost(self, cost: Tensor, batch_dims: int = 1) -> None:
        """Add a cost, and credit it to every use recorded so far.

        cost: `[*batch, ...]`, or `[K, *batch, ...]` of K paths (`[K·batch, ...]` flattened). Its first `batch_dims` dims, not
            counting the path, are independent examples. The further dims are summed, so that positions that depend on each other
            are credited with all they influence. batch_dims=2 says that the elements of two dims are independent and credits
            each with its own. A cost need not be differentiable.

        Raises InvalidInput for a cost that lacks these dims, is not finite, or disagrees with the batch of an earlier cost.
        """
        check_count("batch_dims", batch_dims, least=0)
        self._check_open()
        value = widen(as_real("a cost", cost))
        if self.samples is not None:
            value = self._with_paths(value)
        dims = batch_dims + (self.samples is not None)
        if value.ndim < dims:
            raise InvalidInput(
                f"a cost has one number an example, {'[K, *batch]' if self.samples else '[*batch]'}, but this one is "
                f"{list(cost.shape)}. Do not reduce it over the batch; batch_dims=0 is for a model without a batch dim, and for "
                "a batch that shares one cost"
            )
        value = value.flatten(dims).sum(-1) if value.ndim > dims else value.clone()  # the caller may write to the cost
        earlier = self._latest
        while earlier is not None and not isinstance(earlier, _Cost):
            earlier = earlier.previous
        if earlier is not None and earlier.value.shape != value.shape:
            raise InvalidInput(
                f"the costs of one surrogate have one batch, but this cost has {list(value.shape)} and an earlier one "
                f"{list(earlier.value.shape)}; set batch_dims so that they agree"
            )
        if not (torch.compiler.is_compiling() or transformed()):
            index = first_non_finite(value.detach())
            if index is not None:
                raise InvalidInput(
                    f"costs must be finite, but at {index} of {list(value.shape)} this one is {value[tuple(index)]}"
                )
            if self._untold is not None and self.slopes and not value.requires_grad:
                self._note_lost(value)
        self._credited = len(self.slopes)
        added = _Cost(value)
        added.previous, self._latest = self._latest, added

    def surrogate(self, reduction: Reduction = "mean") -> Tensor:
        """Return the scalar to call backward on: the mean (or sum) over examples of the costs added since the last call.

        Over K paths the costs of an example are averaged, or combined into the estimator's bound. Its backward has the gradient
        of the expected costs, and may run after the scope; the scalar may be scaled, and added to others that do not depend on
        the samples (add_cost is for those that do; see `broadcast_loss`). The state of each layer's estimator moves here.

        Under torch.no_grad() only the value is computed, and the costs stay. Raises InvalidInput if no cost was added, or if the
        cost does not fit a layer, MissingLoss if no layer was called in the scope, and Incompatible if the targets of the
        estimators do not fit together.
        """
        check_reduction(reduction)
        self._check_open()
        uses, total = self._costs_to_go()
        bound = self._bound()
        if bound is not None and self._told:
            raise Incompatible(
                f"the target of {bound.label()} is a bound of the total cost, which several surrogates cannot share; add all "
                "costs before one surrogate()"
            )
        value = self._over_paths(total, bound)
        if not torch.is_grad_enabled():
            return reduce(value, reduction)
        if not torch.compiler.is_compiling():
            self._warn_of_uses_outside()
        if not self._used:
            complain_of_calls(self._layers, "inside this StochasticGraph")
        told, losses, shares = [], [], []
        if not torch.compiler.is_compiling() and any(_has_ended(x) for x in (value, *(use.port for use, _ in uses))):
            raise InvalidInput(
                "a layer was used, or a cost was computed, inside a transform of torch.func (such as vmap or grad) that has "
                "ended; open the StochasticGraph, and call surrogate(), inside the transform"
            )
        for use, to_go in uses:
            credited = to_go if bound is None else total
            if credited is None:  # nothing that was added later depends on this use
                continue
            if bound is not None and use.baseline is not None:
                raise Incompatible(
                    f"a baseline of a use would change the bound that {bound.label()} estimates; leave it out, since the other "
                    "paths are the baseline"
                )
            told.append(use)
            losses.append(leading_batch("a cost", self._for_use(credited), use.batch, use.sampler.neuron))
            shares.append(1.0 if use.sampler.credits_paths else 1 / (self.samples or 1))
        if self._credited and self._expected is None:
            self._expected = ExpectedSlopes(self._model)
        surrogate = attach(value, reduction, told, losses, shares, self._expected)
        if self._expected is not None and surrogate.requires_grad:
            self._expected.made(surrogate.grad_fn, self.slopes[: self._credited])
        warn_without_gradient(surrogate, self._layers)
        if self._untold is not None:
            self._untold.watch(surrogate, told)
        self._latest = None
        for use, _ in uses:
            self.record(use)
        self._told = True
        return surrogate

    def discard(self) -> None:
        """Forget the uses and costs recorded so far, so that the scope may be left without a surrogate."""
        self._latest = None

    def record(self, use: Recorded) -> None:
        """Record a use of a layer."""
        if losses_in_progress() > self._level:
            raise used_inside_loss(use.sampler)
        use.previous, self._latest = self._latest, use

    def paths_of(self, a: Tensor, neuron: Neuron) -> Paths:
        """Return how the batch of a layer's input holds the paths. Raises InvalidInput if it does not."""
        self._used = True
        if self.samples is None:
            return NO_PATHS
        # a size that is compared in compiled code has the code compiled again for every other; the operators notice a wrong one
        unread = torch.compiler.is_compiling() and self._paths.flat
        if not self._expanded or a.ndim <= neuron.event_ndim or not (unread or a.shape[0] == self._first_dim()):
            raise InvalidInput(
                f"in a StochasticGraph of {self.samples} paths, the first dim of every layer's input counts the paths; that of "
                f"{neuron.label()} is {list(a.shape)}. graph.expand(x) makes it, at the input of the model or after an encoder"
            )
        return self._paths

    def _note_lost(self, cost: Tensor) -> None:
        """Note the slopes that a cost without a graph may lack, unless it is the same for all and so depends on no sample."""
        if bool((cost == cost.flatten()[:1]).all()):
            return
        ports, element = [], self._latest
        while element is not None:
            if isinstance(element, RecordedEagerly):
                ports.append(element.port)
            element = element.previous
        note_lost(self.slopes, ports)

    def _check_open(self) -> None:
        if self._outer is None:
            raise InvalidInput(
                "this StochasticGraph is not open; add costs and make the surrogate inside its with block"
            )
        if losses_in_progress() > self._level:
            raise InvalidInput(
                "the function f of an Expectation, or of gradest.expect, is given K points an example, which a StochasticGraph "
                "opened outside of f does not know of; return the cost from f instead"
            )

    def _warn_of_uses_outside(self) -> None:
        for layer in self._layers:
            if layer.waits_outside():
                warnings.warn(
                    f"the layer {layer.neuron.label()} was used before this StochasticGraph was opened, and that use still waits "
                    "for its loss; it is not credited with the costs of the scope. Open the scope around the whole forward pass",
                    GradestWarning,
                    stacklevel=3,
                )

    def _first_dim(self) -> int:
        assert self.samples is not None
        return self.samples * self._batch if self._paths.flat else self.samples

    def _with_paths(self, cost: Tensor) -> Tensor:
        """Return the cost with the paths in a dim of their own."""
        assert self.samples is not None
        if not self._expanded or not cost.ndim or cost.shape[0] != self._first_dim():
            raise InvalidInput(
                f"in a StochasticGraph of {self.samples} paths, the first dim of a cost counts the paths, as that of "
                f"graph.expand(x) does; this cost is {list(cost.shape)}"
            )
        return cost.reshape(self.samples, self._batch, *cost.shape[1:]) if self._paths.flat else cost

    def _for_use(self, credit: Tensor) -> Tensor:
        return credit.flatten(0, 1) if self._paths.flat else credit

    def _costs_to_go(self) -> tuple[list[tuple[Recorded, Tensor | None]], Tensor]:
        """Return each use, in order, with the sum of the costs added after it (None without any), and the sum of all costs."""
        uses: list[tuple[Recorded, Tensor | None]] = []
        later: Tensor | None = None
        element = self._latest
        while element is not None:
            if isinstance(element, _Cost):
                later = element.value if later is None else element.value + later
            else:
                uses.append((element, None if later is None else later.detach()))
            element = element.previous
        if later is None:
            raise InvalidInput(
                "no cost was added since the last surrogate; call graph.add_cost first, and keep a surrogate to use it again"
            )
        uses.reverse()
        return uses, later

    def _over_paths(self, total: Tensor, bound: ScoreFunction | None) -> Tensor:
        if bound is not None:
            return bound.combine(total[None] if self.samples is None else total)
        return total if self.samples is None else total.mean(0)

    def _bound(self) -> ScoreFunction | None:
        """Return the estimator whose target is another than E[L], such as a bound over the paths, if there is one."""
        samplers = [layer.sampler for layer in self._layers if layer.sampler.needs_loss]
        for sampler in samplers[1:]:
            if sampler.target_kind != samplers[0].target_kind:
                raise Incompatible(
                    f"the estimators of the layers have different targets: {samplers[0].estimator.name} estimates "
                    f"{samplers[0].target_kind}, {sampler.estimator.name} {sampler.target_kind}. Use estimators of one target"
                )
        for sampler in samplers:
            if sampler.has_target:
                assert isinstance(sampler.estimator, ScoreFunction)
                return sampler.estimator
        return None


def _has_ended(x: Tensor) -> bool:
    """Return whether x belongs to a transform of torch.func that has ended."""
    if not is_functorch_wrapped_tensor(x):
        return False
    current = maybe_current_level()
    return current is None or maybe_get_level(x) > current
