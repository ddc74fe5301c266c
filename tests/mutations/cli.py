"""Faults in `gradest.cli`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "gradest/cli/arguments.py",
        r'pairs = re.split(r",(?=\s*\w+\s*=)", options) if options else []',
        'pairs = options.split(",") if options else []',
        "an option that is a list is cut at its commas",
        "tests/cli/test_arguments.py -k read_",
    ),
)
