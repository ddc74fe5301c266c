"""The conformance kit must fail, with a diagnosis, on estimators and objectives that have the faults that they commonly have."""

import pytest
import torch

from gradest import Bias
from gradest.contract.estimator import Feedback, MonteCarlo
from gradest.contract.neuron import Discrete
from gradest.errors import Incompatible
from gradest.kernels.stable import sigmoid
from gradest.nn import Stochastic
from gradest.testing import checks
from gradest_estimators.pathwise import Pathwise
from gradest_estimators.pathwise_score import PathwiseScore
from gradest_estimators.rebar import Rebar
from gradest_estimators.reinforce import Reinforce
from gradest_estimators.reinforce_average import ReinforceAverage
from gradest_estimators.rloo import Rloo
from gradest_estimators.straight_through import StraightThrough
from gradest_neurons.bernoulli import Bernoulli
from gradest_neurons.categorical import Categorical
from gradest_neurons.noisy_rectifier import NoisyRectifier
from gradest_neurons.stochastic_times_smooth import StochasticTimesSmooth
from gradest_objectives.quadratic import Quadratic


class SignFlipped(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return -gradient, state


class FactorTwo(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return 2 * gradient, state


class PeekingBaseline(ReinforceAverage):
    def backward(self, draw, feedback, state):
        _, after = super().backward(draw, feedback, state)
        return super().backward(draw, feedback, after)[0], after


class RowPeekingBaseline(Reinforce):
    """Each row's baseline is a part of its own loss."""

    def backward(self, draw, feedback, state):
        return super().backward(draw, Feedback(0.5 * feedback.loss), state)


class GlobalNoise(Reinforce):
    def forward(self, neuron, a, key, state):
        draw = super().forward(neuron, a, key, state)
        points = (torch.rand(draw.points.shape) < neuron.probability(a)).to(a.dtype)
        return type(draw)(neuron, a, key, points, draw.weights, draw.saved)


class IgnoresTheKey(Reinforce):
    def forward(self, neuron, a, key, state):
        return super().forward(neuron, a, type(key)(0), state)


class InPlace(Reinforce):
    def backward(self, draw, feedback, state):
        feedback.loss.sub_(feedback.loss.mean())
        return super().backward(draw, feedback, state)


class MisstatedK(Reinforce):
    def evaluations(self, neuron, event_shape):
        return 2


class BatchDependent(Reinforce):
    def backward(self, draw, feedback, state):
        loss = feedback.loss - (feedback.loss.mean() if feedback.loss.numel() else 0)
        return super().backward(draw, Feedback(loss), state)


class NanAtSaturation(Reinforce):
    def backward(self, draw, feedback, state):
        p = sigmoid(draw.a)
        gradient = (feedback.loss[..., None] * (draw.points - p) / (p * (1 - p)) * (p * (1 - p))).mean(0)
        return gradient, state


class WrongDtype(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return gradient.float(), state


class HidesItsBias(StraightThrough):
    def bias(self, neuron):
        return Bias.NONE


class DeniesItsExactness(Reinforce):
    def bias(self, neuron):
        return Bias.BIASED


class OverstatesItsOrder(StraightThrough):
    def bias(self, neuron):
        return Bias.exact_to_order(1)


class LeaksState(Reinforce):
    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return gradient, {**state, "seen": feedback.loss.sum()}


class CreditsOtherwise(Rloo):
    def credit(self, loss, state, features=None):
        weights, state = super().credit(loss, state, features)
        return -weights, state


class CombinesOtherwise(Rloo):
    def combine(self, loss):
        return loss.sum(0)


@pytest.mark.parametrize(
    ("broken", "check", "diagnosis"),
    [
        (SignFlipped, checks.estimator_bias_is_as_claimed, "standard errors off"),
        (FactorTwo, checks.estimator_bias_is_as_claimed, "standard errors off"),
        (PeekingBaseline, checks.estimator_rows_are_independent, "alone differs"),
        (RowPeekingBaseline, checks.estimator_bias_is_as_claimed, "standard errors off"),
        (GlobalNoise, checks.estimator_is_pure, "global generator"),
        (IgnoresTheKey, checks.estimator_uses_the_key, "another seed"),
        (InPlace, checks.estimator_is_pure, "changed in place"),
        (MisstatedK, checks.estimator_shapes_and_dtypes, "K = 2"),
        (BatchDependent, checks.estimator_rows_are_independent, "alone differs"),
        (NanAtSaturation, checks.estimator_survives_saturation, "not finite"),
        (WrongDtype, checks.estimator_shapes_and_dtypes, "float32 for an input of torch.float64"),
        (HidesItsBias, checks.estimator_bias_is_as_claimed, "claims bias none"),
        (DeniesItsExactness, checks.estimator_bias_is_as_claimed, "no loss shows any"),
        (OverstatesItsOrder, checks.estimator_bias_is_as_claimed, "linear"),
        (LeaksState, checks.estimator_shapes_and_dtypes, "state has"),
        (CreditsOtherwise, checks.estimator_fits_layers, "credited scores differ"),
        (CombinesOtherwise, checks.estimator_fits_layers, "value and combine differ"),
    ],
)
def test_kit_finds_broken_estimators(broken, check, diagnosis):
    with pytest.raises(AssertionError, match=diagnosis):
        check(broken(), Bernoulli())


class Multiplies(PathwiseScore):
    """Its gradient is no sum of a term in the loss and a term in dL/dh."""

    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return gradient * (1 + feedback.loss.mean(0)[..., None]), state


def test_kit_finds_what_a_layer_cannot_use():
    checks.estimator_fits_layers(PathwiseScore(), StochasticTimesSmooth())
    with pytest.raises(AssertionError, match="parts in loss and dL/dh differ"):
        checks.estimator_fits_layers(Multiplies(), StochasticTimesSmooth())


class Clips(StraightThrough):
    """Its gradient does not grow with dL/dh."""

    def backward(self, draw, feedback, state):
        gradient, state = super().backward(draw, feedback, state)
        return gradient.clamp(-0.01, 0.01), state


def test_kit_finds_what_a_layer_would_scale():
    with pytest.raises(AssertionError, match=r"three times dL/dh, unless linear = False"):
        checks.estimator_fits_layers(Clips(), Bernoulli())
    Clips.linear = False
    checks.estimator_fits_layers(Clips(), Bernoulli())
    with pytest.raises(Incompatible, match=r"not linear in dL/dh.*use gradest\.nn\.Expectation"):
        Stochastic(Bernoulli(), Clips())


class Plain(MonteCarlo):
    """The score-function estimator, but no ScoreFunction."""

    name, summary, needs, capabilities = "plain", "loss times score", frozenset({"loss"}), (Discrete,)

    def bias(self, neuron):
        return Bias.NONE

    def backward(self, draw, feedback, state):
        return draw.neuron.weighted_score(draw.points, draw.a, feedback.loss / self.samples), state


class WritesToItsState(ReinforceAverage):
    """Without a change of its values."""

    def backward(self, draw, feedback, state):
        for tensor in state.values():
            tensor.mul_(1)
        return super().backward(draw, feedback, state)


class WritesToItsMapping(Plain):
    """Returns its argument as the state."""

    def backward(self, draw, feedback, state):
        state["seen"] = torch.ones(())
        return super().backward(draw, feedback, state)

    def init(self, neuron, a):
        return {}


class ClampsPoints(Plain):
    """Writes to the points without a change of their values."""

    def backward(self, draw, feedback, state):
        draw.points.clamp_(0, 1)
        return super().backward(draw, feedback, state)


class KeepsTheLoss(Plain):
    """Its state is a view of the caller's loss, which the caller may write to."""

    def init(self, neuron, a):
        return {"last": a.new_zeros(())}

    def backward(self, draw, feedback, state):
        gradient, _ = super().backward(draw, feedback, state)
        return gradient, {"last": feedback.loss.flatten()[0]} if feedback.loss.numel() else state


class AsksAtItsInput(Plain):
    """Its points are `a` itself: a loss that writes to its points would change the pre-activations."""

    off_support = True

    def forward(self, neuron, a, key, state):
        return type(super().forward(neuron, a, key, state))(neuron, a, key, a[None], a.new_ones(1))


class LearnsASpread(Plain):
    """The spread of a batch of one row is NaN, and then that of all later ones."""

    def init(self, neuron, a):
        return {"spread": a.new_ones(())}

    def backward(self, draw, feedback, state):
        gradient, _ = super().backward(draw, feedback, state)
        loss = feedback.loss
        if not loss.numel():
            return gradient, state
        variance = (loss - loss.mean()).square().sum() / (loss.numel() - 1)
        return gradient, {"spread": 0.9 * state["spread"] + 0.1 * variance}


class SquaresLosses(LearnsASpread):
    """The squares of losses overflow, though the losses do not."""

    def backward(self, draw, feedback, state):
        gradient, _ = Plain.backward(self, draw, feedback, state)
        loss = feedback.loss
        return gradient, {"spread": 0.9 * state["spread"] + 0.1 * (loss * loss).mean()} if loss.numel() else state


class MixesRows(Plain):
    """Adds 0 times the losses of other rows, which is NaN if one is infinite."""

    def backward(self, draw, feedback, state):
        loss = feedback.loss + 0 * feedback.loss.sum()
        return super().backward(draw, Feedback(loss), state)


class PromotesItsState(Plain):
    """A float64 loss makes its float32 state float64."""

    def init(self, neuron, a):
        return {"level": a.new_zeros(())}

    def backward(self, draw, feedback, state):
        gradient, _ = super().backward(draw, feedback, state)
        loss = feedback.loss.mean() if feedback.loss.numel() else torch.zeros_like(state["level"])
        return gradient, {"level": 0.9 * state["level"] + 0.1 * loss}


class PromotesItsStateByTheLoss(PromotesItsState):
    """It converts its state where the pre-activations have another dtype, but not where only the losses have."""

    def backward(self, draw, feedback, state):
        gradient, after = super().backward(draw, feedback, state)
        same = feedback.loss.dtype == draw.a.dtype
        return gradient, {"level": after["level"].to(state["level"])} if same else after


class RowsInItsValue(Plain):
    def value(self, draw, loss):
        value = super().value(draw, loss)
        return value + 1e-3 * value.mean() if value.numel() else value


NEW_IN_ESTIMATORS = [
    (WritesToItsState, checks.estimator_is_pure, "changed in place by backward"),
    (WritesToItsMapping, checks.estimator_is_pure, "the mapping of the state was changed in place by backward"),
    (ClampsPoints, checks.estimator_is_pure, "changed in place by backward"),
    (KeepsTheLoss, checks.estimator_is_pure, "the next state last shares memory with an argument"),
    (AsksAtItsInput, checks.estimator_is_pure, "points shares memory with an argument"),
    (LearnsASpread, checks.estimator_state_stays_finite, "spread is not finite after steps with a single row"),
    (SquaresLosses, checks.estimator_state_stays_finite, "spread is not finite after steps with losses of 1e25"),
    (MixesRows, checks.estimator_state_stays_finite, "the infinite loss of one row changed the gradient of another"),
    (PromotesItsState, checks.estimator_keeps_dtypes, "state level of a torch.float32 state"),
    (
        PromotesItsStateByTheLoss,
        checks.estimator_keeps_dtypes,
        "state level of a torch.float32 state at torch.float32 with torch.float64 losses",
    ),
    (RowsInItsValue, checks.estimator_rows_are_independent, "^value: a"),
]


@pytest.mark.parametrize(("broken", "check", "diagnosis"), NEW_IN_ESTIMATORS)
def test_kit_finds_writes_states_that_end_and_casts(broken, check, diagnosis):
    with pytest.raises(AssertionError, match=diagnosis):
        check(broken(), Bernoulli())


class ClaimsEveryLoss(Pathwise):
    def bias(self, neuron):
        return Bias.NONE


class RebarClaimsEveryLoss(Rebar):
    def bias(self, neuron):
        return Bias.NONE


@pytest.mark.parametrize(
    ("broken", "neuron"),
    [
        (ClaimsEveryLoss(), NoisyRectifier()),
        pytest.param(RebarClaimsEveryLoss(), Bernoulli(), marks=pytest.mark.deep),
        pytest.param(RebarClaimsEveryLoss(), Categorical(), marks=pytest.mark.deep),
    ],
)
def test_kit_finds_a_claim_for_every_loss_that_holds_for_continuous_ones(broken, neuron):
    checks.estimator_bias_is_as_claimed(type(broken).__base__(), neuron)
    with pytest.raises(AssertionError, match="biased on a loss that jumps"):
        checks.estimator_bias_is_as_claimed(broken, neuron)


class OffByALittle(Quadratic):
    def expectation(self, neuron, a):
        return super().expectation(neuron, a) * 1.001


class WritesToPoints(Quadratic):
    def __call__(self, points):
        return super().__call__(points.mul_(1))


def test_kit_finds_broken_objectives():
    with pytest.raises(AssertionError, match="expectation and the sum over the outputs of bernoulli differ"):
        checks.objective_expectation_agrees(OffByALittle())
    with pytest.raises(AssertionError, match="changed in place by __call__"):
        checks.objective_shapes_and_values(WritesToPoints())


@pytest.mark.parametrize("broken", [SignFlipped, FactorTwo, RowPeekingBaseline])
def test_kit_finds_estimators_that_are_broken_on_units_of_several_classes(broken):
    with pytest.raises(AssertionError, match="standard errors off"):
        checks.estimator_bias_is_as_claimed(broken(), Categorical())
