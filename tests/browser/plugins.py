"""Plugins that tests show on the page: a stranger's, and some that wait until a test lets them go on."""

import gradest
from gradest.contract.estimator import Bias, MonteCarlo
from gradest.contract.objective import Separable


class Acme(MonteCarlo):
    """ĝ = gain · dL/dh."""

    name, summary, needs = "acme_gain", "passes dL/dh on, times a gain", frozenset({"grad"})
    gain: float = 0.5

    def bias(self, neuron):
        return Bias.BIASED

    def backward(self, draw, feedback, state):
        return self.gain * feedback.get_grad().mean(0), state


class Shifted(Separable):
    """L(h) = mean_i (h_i + shift)."""

    name, summary = "acme_shifted", "the mean, shifted"
    shift: float = 0.0

    def per_unit(self, h):
        return h + self.shift


class Gate(gradest.Objective):
    """Lets nothing through until it is opened."""

    name, summary = "acme_gate", "waits"

    def __call__(self, points):
        if points.shape[0]:
            type(self).asked.release()
            assert type(self).open.wait(30)
        return points.mean(-1)


class Slow(Acme):
    """`Acme`, once the gate is open."""

    name, summary = "acme_slow", "waits"

    def backward(self, draw, feedback, state):
        assert Gate.open.wait(30)
        return super().backward(draw, feedback, state)


class Wide(Acme):
    """A formula that cannot be broken, and is wider than any card."""

    name = "acme_wide"
    formula = (
        rf"\hat g = \left({' + '.join(f'L_{{{at}}}(h)' for at in range(40))}\right), \quad L_i \sim \mathcal N(0, 1)"
    )


class Long(Acme):
    """A formula that is long, and may be broken."""

    name = "acme_long"
    formula = rf"\hat g = {' + '.join(f'L_{{{at}}}(h)' for at in range(40))}"


class Misspelt(Acme):
    """A formula that is no LaTeX."""

    name = "acme_misspelt"
    formula = rf"\hat g = \{'lambda' * 40}"
