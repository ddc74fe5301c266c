"""The sigmoid belief network with its inference network, the costs of a path, and the bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from gradest.nn import Stochastic

__all__ = ["BeliefNetwork", "multi_sample_bound"]

_EDGE = 1e-3  # the least mean of a pixel: the logit of a pixel that is always 0 would be infinite


class BeliefNetwork(nn.Module):
    """A sigmoid belief network of images x `[batch, pixels]` of 0 and 1, with layers h_1, ..., h_L of binary units.

    With h_0 = x, the model is p(x, h) = p(h_L) Π_l p(h_{l-1} | h_l); the inference network is q(h | x) = Π_l q(h_l | h_{l-1}).
    Every unit is Bernoulli, with a logit that is affine in the layer it depends on; the logits of p(h_L) are parameters.

    Layers are seen as 2h - 1, and x as x minus the mean image. Initial weights are uniform as in Glorot and Bengio (2010), drawn
    from torch's global generator; biases and the logits of p(h_L) are 0, except the logits of the pixels, which start at the
    logit of the mean image.

    mean: the mean image, `[pixels]`. layers: the stochastic layers, h_1 first. units: the number of units of each.
    """

    mean: Tensor

    def __init__(self, mean: Tensor, layers: Sequence[Stochastic], units: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        below = [len(mean), *[units] * (len(layers) - 1)]
        self.inference = nn.ModuleList(_linear(inputs, units) for inputs in below)
        self.generation = nn.ModuleList(_linear(units, outputs) for outputs in below)
        self.prior = nn.Parameter(torch.zeros(units))
        self.register_buffer("mean", mean)
        with torch.no_grad():
            self.generation[0].bias.copy_(mean.clamp(_EDGE, 1 - _EDGE).logit())  # type: ignore[operator]

    def costs(self, x: Tensor, expand: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
        """Sample K paths layer by layer, and yield the cost of each layer before the next one is sampled, `[K, batch]`.

        The cost of layer l is log q(h_l | h_{l-1}) - log p(h_{l-1} | h_l), less log p(h_L) for the last. The costs add up to the
        loss of a path, -log [p(x, h) / q(h | x)]. It is differentiable in all parameters, because its derivative through log q
        is a part of the gradient of a bound of K > 1 samples; for the mean loss this part has mean zero.

        expand: makes K paths of a tensor `[batch, units]`, as `StochasticGraph.expand` does.
        """
        below, a = x, expand(self.inference[0](x - self.mean))
        for level, (layer, generation) in enumerate(zip(self.layers, self.generation, strict=True), 1):
            h = layer(a)
            seen = 2 * h - 1
            cost = _log_prob(h, a) - _log_prob(below, generation(seen))
            if level == len(self.layers):
                yield cost - _log_prob(h, self.prior)
                return
            yield cost
            below, a = h, self.inference[level](seen)

    @torch.no_grad()
    def bound(self, x: Tensor, samples: int) -> Tensor:
        """Return an estimate of the bound of S samples, `[batch]`, from S new paths of each image."""
        costs = list(self.costs(x, lambda a: a.expand(samples, *a.shape)))
        return multi_sample_bound(torch.stack(costs).sum(0))


def multi_sample_bound(loss: Tensor) -> Tensor:
    """Return log 1/S Σ_s exp(-loss_s), `[batch]`, of the losses of S paths, `[S, batch]` (Burda et al. 2016, arXiv 1509.00519).

    Its mean is the ELBO for S = 1, grows with S, and is at most log p(x).
    """
    return (-loss).logsumexp(0) - math.log(len(loss))


def _log_prob(h: Tensor, logits: Tensor) -> Tensor:
    """Return log P(h) of Bernoulli units with these logits, summed over units."""
    return (h * logits - softplus(logits)).sum(-1)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
