"""The reference kernels: plain torch on any device, which defines the bits that the fused kernels of the other backends give.

Samplers have no reference kernel: without a fused kernel a neuron draws `uniform` noise and computes its output in torch.

    noise          the counter-based generator
    scores         sums of scores of binary units, weighted by losses
    statistics     checks and moments of whole tensors
    sparse         maps of several classes to the simplex with most entries 0
    derivatives    derivatives of outputs, multiplied by the gradient with respect to them
    conditional    the linear layer that skips closed gates; no kernel itself, and equal to the other backends up to rounding

`select` and `fused` look kernels up here by name, so no module of this package may have the name of a kernel.
"""

from gradest.kernels.reference.derivatives import (
    concrete_backward,
    logistic_backward,
    rectified_backward,
    softmax_backward,
    surrogate_backward,
    times_smooth_backward,
)
from gradest.kernels.reference.noise import uniform
from gradest.kernels.reference.scores import antithetic_score, leave_one_out_score, logistic_score
from gradest.kernels.reference.sparse import entmax, top_softmax
from gradest.kernels.reference.statistics import all_finite, moments

__all__ = [
    "all_finite",
    "antithetic_score",
    "concrete_backward",
    "entmax",
    "leave_one_out_score",
    "logistic_backward",
    "logistic_score",
    "moments",
    "rectified_backward",
    "softmax_backward",
    "surrogate_backward",
    "times_smooth_backward",
    "top_softmax",
    "uniform",
]
