"""A neuron and an estimator that fits it, as a layer holds them: a use keeps the options with which it was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from torch import Tensor

from gradest.contract.estimator import Draw, Estimator, MonteCarlo, State
from gradest.contract.neuron import Neuron
from gradest.contract.score_function import ScoreFunction
from gradest.contract.target import Target
from gradest.discovery.pairs import pair_of
from gradest.discovery.registry import registry
from gradest.errors import Incompatible, InvalidInput, InvalidOptions, TooManyPoints
from gradest.estimation.arguments import check_form
from gradest.estimation.ask_tell import ask_pair
from gradest.estimation.distributed import fresh_key, fresh_path_key
from gradest.estimation.losses.evaluation import refuse_noise_of_points
from gradest.random import Key

__all__ = ["NO_PATHS", "Pair", "Paths", "Sampler"]

_MOST_ITEMS = 1 << 12  # beyond those of an example event that are tried for options that ask for more


@dataclass(frozen=True, eq=False)
class Paths:
    """How a batch holds whole-path samples and examples.

    samples: K, or 0 if the batch holds no paths. flat: whether its first dim counts K·batch, path by path, instead of K.
    rows: the numbers of its examples in the whole batch, or None if it is the whole batch.
    """

    samples: int = 0
    flat: bool = False
    rows: Tensor | None = None


NO_PATHS = Paths()


class Pair:
    """A neuron and an estimator that fits it. Raises Incompatible if it does not."""

    def __init__(self, neuron: Neuron, estimator: Estimator) -> None:
        registry.check_fit(neuron, estimator)
        self.neuron, self.estimator = neuron, estimator

    def __reduce__(self) -> tuple[type[Self], tuple[Neuron, Estimator]]:
        """Return how a copy is made: from the two alone."""
        return type(self), (self.neuron, self.estimator)


class Sampler(Pair):
    """A pair that draws one sample, for a `gradest.nn.Stochastic`. Raises Incompatible for an estimator that needs other points.

    drawing: the neuron, and the estimator with one sample.
    credits_paths: whether the estimator credits several samples against each other, which are the paths of a scope.
    draws_points_alone: whether a draw is known from its points, by `draw_of`.
    has_target, target_kind: whether it estimates something else than E[L], and what.
    """

    def __init__(self, neuron: Neuron, estimator: Estimator) -> None:
        super().__init__(neuron, estimator)
        asked = _points_asked(neuron, estimator)
        self.credits_paths = isinstance(estimator, ScoreFunction) and asked > 1
        if asked != 1 and not self.credits_paths:
            raise Incompatible(
                f"{estimator.label()} asks for the loss at {asked} points, but a Stochastic layer emits one sample; "
                "use gradest.nn.Expectation(neuron, estimator), whose layer(f, a) evaluates f at all of them"
            )
        if not estimator.linear:
            raise Incompatible(
                f"the gradient of {estimator.label()} is not linear in dL/dh, which a Stochastic layer gets scaled, as by a mean "
                "over the batch, and summed over all costs; use gradest.nn.Expectation(neuron, estimator), whose layer(f, a) has "
                "that of each loss"
            )
        self._single = estimator.model_copy(update={"samples": 1}) if self.credits_paths else estimator
        self.drawing = pair_of(neuron, self._single)
        self._of_samples: dict[int, Estimator] = {}
        self.draws_points_alone = (
            isinstance(self._single, MonteCarlo) and type(self._single).forward is MonteCarlo.forward
        )
        target = estimator.target()
        self.has_target = target != Target()
        if self.has_target and not isinstance(estimator, ScoreFunction):
            raise Incompatible(
                f"{estimator.label()} estimates the gradient of {target}, which a Stochastic layer credits with a loss only for "
                "a ScoreFunction; use gradest.nn.Expectation(neuron, estimator)"
            )
        self.target_kind = str(target)  # without the number of samples if they are all paths of a scope
        if self.has_target and target.samples == asked > 1:
            self.target_kind = self.target_kind.replace(f"of {asked} samples", "of all paths")
        self.needs_loss, self.needs_slope = "loss" in estimator.needs, "grad" in estimator.needs

    def draw(self, a: Tensor, state: State, paths: Paths, seed: int | Tensor | None = None) -> Draw:
        """Return one sample at each pre-activation, from a new seed if none is given."""
        if paths.samples:
            self.of_samples(paths.samples)  # refuses a number that does not suit the estimator
        key = self._key(a, paths, seed)
        refuse_noise_of_points(key)
        return ask_pair(self.drawing, a, key, state)[0]

    def draw_of(self, points: Tensor, a: Tensor, paths: Paths, seed: int) -> Draw:
        """Return what `draw` returned for these arguments, given its points, if the sampler `draws_points_alone`."""
        assert isinstance(self._single, MonteCarlo)
        return self._single.draw_of(self.neuron, check_form(a, self.neuron), self._key(a, paths, seed), points)

    def _key(self, a: Tensor, paths: Paths, seed: int | Tensor | None) -> Key:
        ndim = self.neuron.event_ndim
        if paths.samples:
            return fresh_path_key(a, ndim, paths.samples, paths.flat, seed, paths.rows)
        return fresh_key(a, ndim, seed, paths.rows)

    def of_samples(self, samples: int | None) -> Estimator:
        """Return the estimator, with K whole-path samples as the samples that it credits against each other, if it does.

        Raises InvalidInput if its own option `samples` was given and differs, or if it cannot do with so few.
        """
        if not (self.credits_paths and samples):
            return self.estimator
        if samples not in self._of_samples:
            assert isinstance(self.estimator, ScoreFunction)
            try:
                self._of_samples[samples] = self.estimator.of_samples(samples)
            except InvalidOptions as error:
                raise InvalidInput(
                    f"{self.estimator.label()} cannot credit {samples} path(s) against each other, which is what the "
                    f"StochasticGraph has: {error}"
                ) from error
        return self._of_samples[samples]


def _points_asked(neuron: Neuron, estimator: Estimator) -> int:
    """Return how many points the estimator asks for, at the neuron's example event or one of more items.

    Options may ask for more items, as 4 of n do. Where there is one way to take all items, enumeration asks for one point too, so
    that one item more is looked at as well.
    """
    *others, items = neuron.example_events[0]
    for n in range(items, items + _MOST_ITEMS):
        try:
            asked = estimator.evaluations(neuron, (*others, n))
        except TooManyPoints:
            raise
        except InvalidInput:
            continue
        if asked != 1:
            return asked
        try:
            return estimator.evaluations(neuron, (*others, n + 1))
        except TooManyPoints:
            raise
        except InvalidInput:
            return asked
    return estimator.evaluations(neuron, (*others, items))  # raises
