"""Gradients of expected losses through neurons whose output is random.

A stochastic neuron turns a pre-activation a and a noise z into an output h = f(a, z). A network that contains such neurons has
no single loss; it has an expectation

    E(a) = E_z[ L(f(a, z)) ],

and training needs its gradient dE/da. Backpropagation gives that gradient only where h moves smoothly with a at fixed noise. A
binary unit does not move at all, then jumps, and backpropagation says 0. An estimator is a rule that gets an estimate of dE/da
from a few evaluations of L, or of L and dL/dh, at well chosen points. Two are enough to see the kinds there are:

    reinforce          L(h) · (h - p)      for a binary h with P(h = 1) = p = σ(a): unbiased for every L, noisy
    straight_through   L'(h) · 1           as if h were a itself: one smooth signal, biased, and it often trains better

Everything in gradest is a plugin with one interface:

    a neuron      forward(a, noise) -> h             backward(a, noise, dL/dh) -> dL/da at fixed noise
    an estimator  forward(neuron, a, key, state)     says at which points it wants L: it asks
                  backward(draw, feedback, state)    turns the answers into the gradient, and the next state: it is told
    an objective  a loss L with a name

The ask/tell pair is the whole of it. `expect` wraps it for autograd, `estimate` averages it, `compare` measures its bias and its
variance against `exact`, `gradest.nn` puts it in layers, and the HTTP service sends it to programs that keep their loss to
themselves. Noise is a pure function of (seed, row, unit, draw): backward regenerates what forward drew, and a row's result never
depends on the batch around it.

    >>> import torch, gradest
    >>> a = torch.zeros(3)
    >>> gradest.sample("bernoulli", a, samples=2, seed=7).shape
    torch.Size([2, 3])
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)  # the public names stand in __init__.pyi
