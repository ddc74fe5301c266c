"""The categorical neuron, a stochastic one-hot unit."""

from gradest.contract.neuron import SoftmaxOneHot


class Categorical(SoftmaxOneHot):
    """A one-hot unit that takes class c with probability softmax(a)_c.

    a and h are `[*batch, units, classes]`, and h is one-hot over the last dimension, so
    E[h_c] = P(h_c = 1) = softmax(a)_c. It is drawn by the Gumbel-max trick: the class with the largest
    a_c - log(-log z_c), with z_c uniform on (0, 1), independent for each class. At fixed noise h is constant in a
    almost everywhere: dh/da = 0.

    Precision: with the 24 bits of float32 noise the share of a class differs from softmax(a)_c by about 2^-24 = 6e-8, so
    that classes below that are hardly ever drawn. Pass a.double() where they matter. A class whose a is -inf is masked:
    it is never drawn and has no gradient. Each unit needs a finite class.

    The Gumbel-max trick goes back to Gumbel (1954), Statistical Theory of Extreme Values and Some Practical
    Applications; see also Maddison, Tarlow and Minka (2014), A* Sampling, arXiv 1411.0030.
    """

    name = "categorical"
    summary = "one of several classes, one-hot, with probabilities softmax(a)"
    reference = "Gumbel 1954; Maddison, Tarlow, Minka 2014, arXiv 1411.0030"
    formula = r"P(h = e_c) = \mathrm{softmax}(a)_c"
