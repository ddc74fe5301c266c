"""The Gumbel-softmax estimator."""

from __future__ import annotations

from gradest.contract.neuron import SoftmaxOneHot
from gradest_estimators.concrete import Concrete


class GumbelSoftmax(Concrete):
    """`concrete` for units of several classes: ĝ = L'(s) · ds/da at s = softmax((a + G)/τ), where L is evaluated as well.

    It is the unbiased gradient of E[L(s)], the relaxed objective, and biased for E[L(h)]; so is the value. L must make sense
    inside the simplex. G is the Gumbel noise that gives h, so s is largest where h is 1.
    """

    name = "gumbel_softmax"
    summary = "loss and gradient at a softmax relaxation of the one-hot unit"
    reference = "Jang, Gu, Poole 2017, arXiv 1611.01144; Maddison, Mnih, Teh 2017, arXiv 1611.00712"
    formula = r"\hat g = L'(s)\,\frac{ds}{da}, \quad s = \mathrm{softmax}\!\left(\frac{a + G}{\tau}\right)"
    capabilities = (SoftmaxOneHot,)
