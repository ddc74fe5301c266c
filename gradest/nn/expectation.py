"""Expectation: the module that takes a loss, and estimates its expectation over the outputs of stochastic neurons."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradest.contract.objective import Loss
from gradest.discovery.registry import EstimatorSpec, NeuronSpec
from gradest.errors import Incompatible
from gradest.estimation.distributed import fresh_key
from gradest.estimation.events import EventDims, EventLayout
from gradest.estimation.expectation import expect
from gradest.estimation.losses.evaluation import flattened, losses_at
from gradest.estimation.losses.repetition import is_recomputed
from gradest.kernels import transformed
from gradest.nn.module import Evaluation, StochasticModule
from gradest.nn.recomputation import PlainRun

__all__ = ["Expectation"]

_RUN = "gradest.nn.Expectation"  # where the autograd graph of a value keeps its first run


class Expectation(StochasticModule):
    """A layer for estimators of any K: `layer(f, a)` is `gradest.expect`, with the estimator's state in buffers.

    f maps points `[K, *batch, *event']` to losses `[K, *batch]`, where event' is that of the neuron's outputs, by default the
    event of `a`; it is the rest of the network and the loss. The result, `[*batch]`, is differentiable in `a` and in the
    parameters of f.

    The arguments are those of `Stochastic`, but `evaluation` is "sample" unless it is given. After `layer.eval()` the result is
    then f at one fresh sample, whose mean is E[f(h)], as in training; for an estimator with a bound of n samples as its target,
    such as `vimco`, it is that bound at n samples. "mean" is f at E[h] and "threshold" is f at the thresholded output. Unless f
    is linear these have another expectation: the test bound of a VAE at E[h] is plausible and wrong.

    >>> import torch, gradest
    >>> layer = gradest.nn.Expectation("bernoulli", "disarm")
    >>> a = torch.zeros(4, 3, requires_grad=True)
    >>> layer(lambda h: h.sum(-1), a).mean().backward()
    >>> a.grad.shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        neuron: NeuronSpec,
        estimator: EstimatorSpec,
        evaluation: Evaluation = "sample",
        threshold: float = 0.5,
        event: Sequence[int] | None = None,
        event_dims: EventDims | None = None,
    ) -> None:
        super().__init__(neuron, estimator, evaluation, threshold, event, event_dims)

    def forward(
        self, f: Loss, a: Tensor, rows: Tensor | None = None, *, flatten: bool = False, allow_inf: bool = False
    ) -> Tensor:
        """Return the estimate of E[f(h)], or of the estimator's own target, `[*batch]`.

        rows: as for `Stochastic`. flatten, allow_inf: as for `gradest.expect`.
        """
        if torch.compiler.is_compiling():
            from gradest.nn.outside import expectation_forward  # noqa: PLC0415  # it imports the compiler

            value: Tensor = expectation_forward(self, f, a, rows, flatten=flatten, allow_inf=allow_inf)
            return value
        if self.event_dims is not None:
            layout = EventLayout.of(self.neuron, a, self.event_dims)
            f, a = layout.loss(flattened(f, len(layout.output_given), flatten)), layout.flatten(a)
        else:
            f = flattened(f, self.neuron.output_ndim, flatten)
        self._check_event(a)
        if not self.training:
            return self._evaluate_loss(f, a, rows)
        if transformed():
            self._refuse_state_in_transform(a)
        key, learns = fresh_key(a, self.neuron.event_ndim, examples=rows), torch.is_grad_enabled()
        state = self.state_for(a)
        pair, first = self._pair, None
        if state and learns and is_recomputed():
            first = self._runs.recorded(key.seed)
            run = first or self._runs.without_graph(key.seed, state, self.steps)
            pair, state = run.sampler, run.state
        value, following = expect(f, a, pair.neuron, pair.estimator, key, state, allow_inf=allow_inf)
        if state and not learns:
            self._runs.record_without_graph(pair, key.seed, self.steps)
        elif state and first is None:
            self.steps += 1
            self._set_state(following)
            if value.grad_fn is not None:
                begun = PlainRun(pair, key.seed, state)
                value.grad_fn.metadata[_RUN] = begun  # type: ignore[index]  # which keeps it alive for as long as the graph
                self._runs.record(begun)
        return value

    def _evaluate_loss(self, f: Loss, a: Tensor, rows: Tensor | None) -> Tensor:
        if self.evaluation != "sample":
            return losses_at(f, self.emit(a)[None], self.neuron.output_ndim)[0].clone()  # f may use its memory again
        target = self.estimator.target()
        if not target.is_mean:
            raise Incompatible(
                f"{target}, the target of {self.estimator.label()}, is not the mean of what a sample gives, so that a layer in "
                'evaluation mode has no estimate of it. Give the layer evaluation="mean" or "threshold", or call '
                "gradest.exact(f, a, neuron, estimator.target())"
            )
        loss = losses_at(f, self._samples(a, target.samples, rows), self.neuron.output_ndim)
        return target.combine(loss.clone())
