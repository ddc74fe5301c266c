"""The Bernoulli neuron, a stochastic binary unit."""

from gradest.contract.neuron import LogisticBinary


class Bernoulli(LogisticBinary):
    """A binary unit that is 1 with probability σ(a) and 0 otherwise.

    h = 1[z < σ(a)] with z uniform on (0, 1), so P(h = 1) = E[h] = σ(a). At fixed noise h is constant in a almost
    everywhere: dh/da = 0.

    Precision: mean, probability and log_prob are right to the last digits of the dtype of a, but a sample compares σ(a)
    with noise of 24 bits, an odd multiple of 2^-24, unless a is float64. So the share of ones differs from σ(a) by up
    to 2^-24 = 6e-8 where σ(a) is small, and 2^-23 where it is near 1. That is at most 0.2 % of σ(a) at a = -10, but up
    to 20 % at -15 and 80 % at -16.5, and below -16.7 a sample is never 1; likewise for zeros at large a. Where such rare
    outputs matter, pass a.double(): its noise has 53 bits, and the bound is 2^-53.

    This is the neuron of the proofs in Bengio, Léonard and Courville (2013), Estimating or Propagating Gradients
    Through Stochastic Neurons for Conditional Computation, arXiv 1308.3432. The paper prints h = 1[z > σ(a)], under
    which P(h = 1) would be 1 - σ(a), but its proofs use P(h = 1) = σ(a).
    """

    name = "bernoulli"
    summary = "binary unit, 1 with probability σ(a)"
    reference = "Bengio, Léonard, Courville 2013, arXiv 1308.3432"
    formula = r"h = \mathbf 1[z < \sigma(a)], \quad z \sim U(0, 1)"
