"""Almost two hundred faults that `make test` must find: a sign, a factor, a swapped argument, a dropped check, a missing limit.

There is a module of faults for each part of the project; CATALOGUE has them all by name, such as "nn/3". `python -m
tests.mutations --help` says how to try them. Where code or a test moves or changes its name, a fault's `file`, `old` and `tests`
must follow; `python -m tests.mutations --check` says in a second what is out of date.
"""

from __future__ import annotations

from tests.mutations import (
    analysis,
    cli,
    client,
    contract,
    discovery,
    estimation,
    estimators,
    experiments,
    kernels,
    neurons,
    nn,
    objectives,
    service,
    testing,
)
from tests.mutations.mutation import Mutation

PARTS = {
    "kernels": kernels.MUTATIONS,
    "contract": contract.MUTATIONS,
    "discovery": discovery.MUTATIONS,
    "estimation": estimation.MUTATIONS,
    "analysis": analysis.MUTATIONS,
    "nn": nn.MUTATIONS,
    "testing": testing.MUTATIONS,
    "client": client.MUTATIONS,
    "cli": cli.MUTATIONS,
    "neurons": neurons.MUTATIONS,
    "estimators": estimators.MUTATIONS,
    "objectives": objectives.MUTATIONS,
    "experiments": experiments.MUTATIONS,
    "service": service.MUTATIONS,
}
CATALOGUE: dict[str, Mutation] = {
    f"{part}/{number}": mutation for part, mutations in PARTS.items() for number, mutation in enumerate(mutations, 1)
}
"""Every fault by its name: its part, and its number there."""
