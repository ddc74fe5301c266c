"""The network, its loss as a function of points, and the bounds."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

import gradest
from gradest.contract.estimator import Estimator, State
from gradest.random import Key
from gradest_experiments.vae.settings import CATEGORICAL, NEURON, Kl, Network

__all__ = ["Vae", "kl_to_uniform"]

_SLOPE = 0.3  # the slope of LeakyReLU below 0
_RELU_UNITS = (512, 256)  # of the hidden layers of the network "relu"
_EDGE = 1e-3  # the least mean of a pixel: the logit of a pixel that is always 0 would be infinite


class Vae(nn.Module):
    """An autoencoder of images x `[batch, pixels]` from 0 to 1, whose encoder gives logits a of discrete latents.

    The latents are Bernoulli units, a `[batch, latents]`, or categorical ones, a `[batch, latents, classes]`. In shapes, *event
    stands for either.

    network: "linear" has no hidden layers; "nonlinear" has two of LeakyReLU in the encoder and two in the decoder; "relu" has
    two of relu units, of 512 and 256 in the encoder, and the reverse in the decoder. The encoder sees x minus the mean image, the
    decoder 2h - 1 for binary h, and h for one-hot ones. Initial weights are uniform as in Glorot and Bengio (2010), drawn from
    torch's global generator; biases are 0, except the decoder's last, which is the logit of the mean image, as in the published
    experiments.

    mean: the mean image, `[pixels]`.
    """

    mean: Tensor

    def __init__(
        self,
        mean: Tensor,
        network: Network,
        latents: int = 200,
        hidden: int = 200,
        kl: Kl = "sampled",
        classes: int | None = None,
    ) -> None:
        super().__init__()
        between: tuple[int, ...] = (hidden, hidden) if network == "nonlinear" else ()
        slope = _SLOPE
        if network == "relu":
            between, slope = _RELU_UNITS, 0.0
        self.kl, self.classes = kl, classes
        self.neuron = NEURON if classes is None else CATEGORICAL
        self.encoder = _stack([len(mean), *between, latents * (classes or 1)], slope)
        self.decoder = _stack([latents * (classes or 1), *reversed(between), len(mean)], slope)
        self.register_buffer("mean", mean)
        last = self.decoder[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias.copy_(mean.clamp(_EDGE, 1 - _EDGE).logit())

    def encode(self, x: Tensor) -> Tensor:
        """Return a, the logits of q(h | x)."""
        a: Tensor = self.encoder(x - self.mean)
        return a if self.classes is None else a.view(*a.shape[:-1], -1, self.classes)

    def log_likelihood(self, x: Tensor, h: Tensor) -> Tensor:
        """Return log p(x | h), `[K, batch]`, at h `[K, batch, *event]`, which may be between 0 and 1."""
        logits: Tensor = self.decoder(2 * h - 1 if self.classes is None else h.flatten(-2))
        return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    def log_weight(self, x: Tensor, h: Tensor, a: Tensor) -> Tensor:
        """Return log p(x, h) - log q(h | a), `[K, batch]`, whose mean over q is the ELBO. log q is linear in each unit of h."""
        if self.classes is None:
            log_prior = -h.shape[-1] * math.log(2)
            log_q = (h * a).sum(-1) - softplus(a).sum(-1)
        else:
            log_prior = -h.shape[-2] * math.log(self.classes)
            log_q = (h * a.log_softmax(-1)).sum((-2, -1))
        return self.log_likelihood(x, h) + log_prior - log_q

    def loss(
        self, x: Tensor, a: Tensor, estimator: Estimator, key: Key, state: State | None = None
    ) -> tuple[Tensor, State]:
        """Return an estimate of -ELBO, `[batch]`, differentiable in a and in the decoder, and the estimator's next state.

        kl "sampled": f(h) = -log_weight(h), in which a is held constant. Its derivative through log q(h | a) has mean 0, as
        E_q[d log q(h | a) / da] = 0, so backpropagating into it would only add noise to the gradient.
        kl "analytic": f(h) = -log p(x | h), and KL(q, prior) is added in closed form.
        """
        at = a.detach()

        def f(h: Tensor) -> Tensor:
            return -self.log_weight(x, h, at) if self.kl == "sampled" else -self.log_likelihood(x, h)

        loss, state = gradest.expect(f, a, self.neuron, estimator, key, state)
        return (loss if self.kl == "sampled" else loss + kl_to_uniform(a, self.classes)), state

    def elbo(self, x: Tensor, key: Key) -> Tensor:
        """Return an estimate of the ELBO, `[batch]`, from one sample each."""
        return self.bound(x, key, 1)

    @torch.no_grad()
    def bound(self, x: Tensor, key: Key, samples: int) -> Tensor:
        """Return log 1/S Σ_s p(x, h_s) / q(h_s | x), `[batch]`, for S samples each (Burda et al. 2016, arXiv 1509.00519).

        Its mean is the ELBO for S = 1, at least the ELBO for every S, and at most log p(x).
        """
        a = self.encode(x)
        weights = self.log_weight(x, gradest.sample(self.neuron, a, samples, key).to(a), a)
        return weights.logsumexp(0) - math.log(samples)


def kl_to_uniform(a: Tensor, classes: int | None = None) -> Tensor:
    """Return KL(q, uniform), `[batch]`: the sum over units of log 2, or log classes, less the entropy of the unit."""
    if classes is None:
        return (math.log(2) - (softplus(a) - a * torch.sigmoid(a))).sum(-1)
    log_q = a.log_softmax(-1)
    return (log_q.exp() * log_q).sum((-2, -1)) + a.shape[-2] * math.log(classes)


def _stack(sizes: list[int], slope: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(slope)]
    return nn.Sequential(*layers[:-1])
