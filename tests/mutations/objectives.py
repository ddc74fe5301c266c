"""Faults in `plugins/gradest_objectives`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "plugins/gradest_objectives/quadratic.py",
        "return (h - self.target.to(h)) ** 2",
        "return (h + self.target.to(h)) ** 2",
        "the target of a loss has the other sign",
        "tests/objectives/test_objectives.py",
    ),
)
