"""The settings of a run, and the list of runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

from pydantic import Field

from gradest.contract.estimator import Estimator
from gradest.contract.neuron import Neuron, Subset
from gradest.discovery.registry import registry
from gradest.errors import InvalidInput, InvalidOptions
from gradest.random import MAX_SEED
from gradest_experiments.engine.options import RunSettings, build_estimator, to_folder_name

__all__ = ["GATES", "NEURON", "PUBLISHED", "QUICK", "SIZES", "BlockSettings", "Size", "list_runs"]

NEURON = "bernoulli"
"""The gates of the paper: units that open independently of each other."""

GATES = (NEURON, "categorical", "k_subset")
"""The neurons whose units can be gates; the last two open exactly one block, and exactly k."""

Size = Literal["16x16", "64x64"]
SIZES: tuple[Size, ...] = get_args(Size)
"""Blocks x units per block: the published size, and one that is large enough for skipping to pay."""

_ESTIMATORS: tuple[str, ...] = ("reinforce", "reinforce_centered", "rloo", "disarm", "straight_through")
_OPEN = 1 / 16

PUBLISHED = {"16x16": {"reinforce": 0.023, "dense, 256 units": 0.019, "dense, 32 units": 0.028}}
"""The published test errors, by size and label."""

QUICK: dict[str, Any] = {"epochs": 2, "images": 6400}
"""The settings that --quick sets."""


class BlockSettings(RunSettings):
    """The settings of a run of the block-gated network.

    The loss is a sum over the minibatch, as in the authors' code, to which the paper's weights and learning rates refer. A
    dense network is one block without a policy.
    """

    estimator: dict[str, Any] | None = Field(
        description="the estimator of the policy's gradient: {name, **options}; without one there is no policy"
    )
    neuron: dict[str, Any] = Field(
        {"name": NEURON}, description="the gates: {name, **options}, of which the name is one of GATES"
    )
    blocks: int = Field(16, ge=1)
    block_size: int = Field(16, ge=1, description="the number of units of a block")
    target: float = Field(
        _OPEN,
        gt=0,
        lt=1,
        description="the share of blocks that should be open, if the gates do not open a fixed number",
    )
    seed: int = Field(0, ge=0, lt=MAX_SEED, description="the seed of weights, noise and data order")
    epochs: int = Field(40, ge=1)
    batch: int = Field(128, ge=1)
    # The published rates are 1e-3 and, for the policy, 5e-5, without a number of epochs. Validation error with reinforce and one
    # seed, after 8 epochs: 36 % with the published rates, 16 % with 1e-3 and 2e-4, 11 % with 1e-3 and 1e-3; after 18 epochs:
    # 5.3 % with 6e-3 and 1e-3.
    learning_rate: float = Field(6e-3, gt=0, allow_inf_nan=False, description="the learning rate of SGD")
    policy_rate: float = Field(1e-3, gt=0, allow_inf_nan=False, description="the learning rate of the policy")
    sparsity: float = Field(200.0, ge=0, allow_inf_nan=False, description="λ_s, the weight of `activity`")
    variance: float = Field(200.0, ge=0, allow_inf_nan=False, description="λ_v, the weight of `diversity`")
    decay: float = Field(
        0.005, ge=0, allow_inf_nan=False, description="λ_L2, the weight of the squared norm of all parameters"
    )
    images: int | None = Field(None, ge=1, description="how many of the training images to learn from; all if omitted")

    @property
    def units(self) -> int:
        """The number of units of the hidden layer."""
        return self.blocks * self.block_size

    def build_gates(self) -> Neuron:
        """Return the neuron of the gates. Raises UnknownPlugin or InvalidOptions."""
        neuron = registry.neuron(self.neuron)
        if neuron.name not in GATES:
            raise InvalidOptions(f"{neuron.name} cannot gate blocks; there are: {', '.join(GATES)}")
        if isinstance(neuron, Subset) and neuron.size > self.blocks:
            raise InvalidOptions(f"{neuron.label()} opens more blocks than there are: {self.blocks}")
        return neuron

    def wanted(self) -> float:
        """Return the share of blocks that should be open: `target`, unless the gates open a fixed number."""
        neuron = self.build_gates()
        if neuron.event_ndim == 1:
            return self.target
        return (neuron.size if isinstance(neuron, Subset) else 1) / self.blocks

    def build_estimator(self) -> Estimator | None:
        """Return the estimator, if there is one. Raises UnknownPlugin, InvalidOptions, or Incompatible."""
        return None if self.estimator is None else build_estimator(self.estimator, self.build_gates().spec())

    def label(self) -> str:
        """Return the name of the network in tables."""
        estimator = self.build_estimator()
        if estimator is None:
            return f"dense, {self.units} units"
        neuron = self.build_gates()
        return estimator.label() if neuron.name == NEURON else f"{neuron.label()} + {estimator.label()}"

    def folder(self, size: Size) -> str:
        """Return the relative path of the run's folder, which is another one for every size, network and seed."""
        return f"{size}/{to_folder_name(self.label())}/seed-{self.seed}"


def list_runs(
    estimators: Iterable[dict[str, Any]] | None = None,
    sizes: Iterable[str] | None = None,
    dense: Iterable[int] = (),
    *,
    neuron: dict[str, Any] | None = None,
    seeds: int = 1,
    quick: bool = False,
    **options: Any,
) -> list[tuple[Size, BlockSettings]]:
    """Return size and settings of every run: of those of five estimators that fit the gates, and of the published size.

    There are also three dense networks of each size: one with as many units, one that computes as much as a gated network with
    its policy if that opens the share `target`, and one with as many units as that share.

    estimators, sizes: those to run in place of these. dense: the units of further dense networks. neuron: the gates, Bernoulli
    units if omitted. options: of `BlockSettings`.

    Raises InvalidOptions, InvalidInput for another size, and what `BlockSettings.build_estimator` raises.
    """
    gates = {} if neuron is None else {"neuron": neuron}
    if estimators is None:
        fitting = registry.fitting(BlockSettings.build(estimator=None, **gates).build_gates())
        named: Iterable[dict[str, Any]] = [{"name": name} for name in _ESTIMATORS if name in fitting]
    else:
        named = estimators
    chosen = [registry.estimator(spec).spec() for spec in named]
    wanted = ["16x16"] if sizes is None else list(sizes)
    if unknown := sorted({*wanted} - {*SIZES}):
        raise InvalidInput(f"no size is named {unknown[0]!r}; there are: {', '.join(SIZES)}")
    options = {**(QUICK if quick else {}), **options}
    found: list[tuple[Size, BlockSettings]] = []
    more = list(dense)
    for size in (size for size in SIZES if size in wanted):
        blocks, block_size = map(int, size.split("x"))
        networks = [{"estimator": spec, "blocks": blocks, "block_size": block_size, **gates} for spec in chosen]
        opened = round(_OPEN * blocks * block_size)
        networks += [
            {"estimator": None, "blocks": 1, "block_size": units}
            for units in dict.fromkeys((blocks * block_size, opened + blocks, opened, *more))
        ]
        found += [
            (size, BlockSettings.build(**network, **options, seed=seed))
            for seed in range(seeds)
            for network in networks
        ]
    for _, run in found:
        run.build_estimator()  # raises before anything is trained
    return found
