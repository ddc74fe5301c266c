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
from gradest_experiments.vae.settings import NEURON, Kl, Network

__all__ = ["BinaryVae", "kl_to_uniform"]

_SLOPE = 0.3  # the slope of LeakyReLU below 0
_EDGE = 1e-3  # the least mean of a pixel: the logit of a pixel that is always 0 would be infinite


class BinaryVae(nn.Module):
    """An autoencoder of images x `[batch, pixels]` of 0 and 1, whose encoder gives logits a `[batch, latents]`.

    network: "linear" has no hidden layers; "nonlinear" has two of LeakyReLU in the encoder and two in the decoder. The encoder
    sees x minus the mean image, the decoder 2h - 1. Initial weights are uniform as in Glorot and Bengio (2010), drawn from
    torch's global generator; biases are 0, except the decoder's last, which is the logit of the mean image, as in the published
    experiments.

    mean: the mean image, `[pixels]`.
    """

    mean: Tensor

    def __init__(
        self, mean: Tensor, network: Network, latents: int = 200, hidden: int = 200, kl: Kl = "sampled"
    ) -> None:
        super().__init__()
        between = [hidden, hidden] if network == "nonlinear" else []
        self.kl = kl
        self.encoder = _stack([len(mean), *between, latents])
        self.decoder = _stack([latents, *between, len(mean)])
        self.register_buffer("mean", mean)
        last = self.decoder[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.bias.copy_(mean.clamp(_EDGE, 1 - _EDGE).logit())

    def encode(self, x: Tensor) -> Tensor:
        """Return a, the logits of q(h | x)."""
        a: Tensor = self.encoder(x - self.mean)
        return a

    def log_likelihood(self, x: Tensor, h: Tensor) -> Tensor:
        """Return log p(x | h), `[K, batch]`, at h `[K, batch, latents]`, which may be between 0 and 1."""
        logits: Tensor = self.decoder(2 * h - 1)
        return -binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1)

    def log_weight(self, x: Tensor, h: Tensor, a: Tensor) -> Tensor:
        """Return log p(x, h) - log q(h | a), `[K, batch]`, whose mean over q is the ELBO. log q is linear in each unit of h."""
        log_prior = -h.shape[-1] * math.log(2)
        log_q = (h * a).sum(-1) - softplus(a).sum(-1)
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

        loss, state = gradest.expect(f, a, NEURON, estimator, key, state)
        return (loss if self.kl == "sampled" else loss + kl_to_uniform(a)), state

    def elbo(self, x: Tensor, key: Key) -> Tensor:
        """Return an estimate of the ELBO, `[batch]`, from one sample each."""
        return self.bound(x, key, 1)

    @torch.no_grad()
    def bound(self, x: Tensor, key: Key, samples: int) -> Tensor:
        """Return log 1/S Σ_s p(x, h_s) / q(h_s | x), `[batch]`, for S samples each (Burda et al. 2016, arXiv 1509.00519).

        Its mean is the ELBO for S = 1, at least the ELBO for every S, and at most log p(x).
        """
        a = self.encode(x)
        weights = self.log_weight(x, gradest.sample(NEURON, a, samples, key), a)
        return weights.logsumexp(0) - math.log(samples)


def kl_to_uniform(a: Tensor) -> Tensor:
    """Return KL(q, uniform), `[batch]`: Σ p log p + (1 - p) log(1 - p) + log 2 with p = σ(a)."""
    entropy = softplus(a) - a * torch.sigmoid(a)
    return (math.log(2) - entropy).sum(-1)


def _stack(sizes: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        linear = nn.Linear(inputs, outputs)
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.LeakyReLU(_SLOPE)]
    return nn.Sequential(*layers[:-1])
