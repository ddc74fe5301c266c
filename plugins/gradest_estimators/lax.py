"""LAX: the score function of a continuous unit with a learned network of its output as control variate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gradest.contract.estimator import Draw, Feedback, MonteCarlo, State
from gradest.contract.neuron import Density, Neuron, output_shape, per_event
from gradest.contract.numerics import leading_mean
from gradest_estimators._learning import NetworkControlVariate


class Lax(NetworkControlVariate, MonteCarlo):
    """The score function of the unit's density, with a learned network c of the output as control variate.

    ĝ = (L(h) - c(h)) d log q(h)/da + c'(h) dh/da, where q is the density of h, with h held, and dh/da is at fixed noise.
    So the loss is needed only at h and may be a black box: it may jump, as a simulator or a reward does, where `pathwise`
    would be wrong.

    Unbiased for every loss that is bounded by a power of h, and every c: E[c(h) d log q(h)/da] and E[c'(h) dh/da] are both
    the gradient of E[c(h)]. With c = L for a smooth loss it would be `pathwise`.

    c starts as 0, where ĝ is REINFORCE for densities. It is learned by Adam along the gradient of ĝ², summed over the
    event and averaged over the batch, and moved only after its use. E[ĝ] does not depend on c, so this lowers the
    variance. c is a linear function of the outputs of all units plus a layer of tanh units. Its output moves by about
    `learning_rate` per step in units of the loss, so choose the rate by the range of the loss. `network` puts a
    torch.nn.Module in its place, in Python alone: `gradest.estimator("lax", network=nn.Sequential(...))`.

    Introduced by Grathwohl, Choi, Wu, Roeder and Duvenaud (2018), Backpropagation through the Void: Optimizing Control
    Variates for Black-Box Gradient Estimation, arXiv 1711.00123.
    """

    name = "lax"
    summary = "score of a unit's density with a learned network of its output as control variate"
    reference = "Grathwohl, Choi, Wu, Roeder, Duvenaud 2018, arXiv 1711.00123"
    formula = r"\hat g = \bigl(L(h) - c(h)\bigr)\nabla_a \log q(h) + c'(h)\,\frac{\partial h}{\partial a}\Big|_z"
    needs = frozenset({"loss"})
    capabilities = (Density,)

    examples = ({}, {"samples": 3, "hidden": 2, "learning_rate": 0.1})

    def init(self, neuron: Neuron, a: Tensor) -> State:
        """Return the network's parameters with Adam's averages of them."""
        outputs = output_shape(neuron, a)
        return self.learned_network(math.prod(outputs[len(outputs) - neuron.output_ndim :]), a.device)

    def gradient(self, draw: Draw, feedback: Feedback, state: State, parameters: State) -> Tensor:
        """Return the mean over samples of the score's part and the path's part."""
        neuron, a = draw.neuron, draw.a
        assert isinstance(neuron, Density)
        noise = draw.noise()
        with torch.enable_grad():
            h = draw.points.detach().requires_grad_()
            c = self.apply_network({**state, **parameters}, h.flatten(-neuron.output_ndim))
            (slope,) = torch.autograd.grad(c.sum(), h, create_graph=True)
        left = per_event(feedback.get_loss() - c, neuron)
        return leading_mean(left * neuron.density_score(a, noise) + neuron.backward(a, noise, slope)).to(a.dtype)
