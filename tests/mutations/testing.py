"""Faults in `gradest.testing`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "gradest/testing/laws.py",
        "assert float(smooth.double().mean()) > 0.99,",
        "assert float(smooth.double().mean()) > -1,",
        "the kit accepts a neuron whose backward is no derivative",
        "tests/testing/test_neuron_checks.py -k neurons",
    ),
    Mutation(
        "gradest/testing/laws.py",
        "    worst = float((product / error).abs().max())",
        "    worst = 0.0 * float((product / error).abs().max())",
        "the kit accepts units that share one noise",
        "tests/testing/test_neuron_checks.py -k joint_laws",
    ),
    Mutation(
        "gradest/testing/laws.py",
        "        worst = float(((sampled.mean(0) - value) / error).abs().max())",
        "        worst = 0.0 * float(((sampled.mean(0) - value) / error).abs().max())",
        "the kit accepts a neuron whose samples are not those of exact",
        "tests/testing/test_neuron_checks.py -k joint_laws",
    ),
    Mutation(
        "gradest/testing/shapes.py",
        "        (torch.float32, torch.float32, torch.float64),\n    ):",
        "    ):",
        "the kit accepts an estimator whose state takes the dtype of its losses",
        "tests/testing/test_checks.py -k states_that_end",
    ),
    Mutation(
        "gradest/testing/robustness.py",
        '        ("losses of 1e25", 6, lambda x: 1e25 * x),\n',
        "",
        "the kit accepts an estimator that large losses end",
        "tests/testing/test_checks.py -k states_that_end",
    ),
    Mutation(
        "gradest/testing/gradients.py",
        "of_more, _ = estimator.backward(draw, Feedback(loss, 3 * grad), state)",
        "of_more = 3 * gradient",
        "the kit does not look whether an estimator is linear in dL/dh",
        "tests/testing/test_checks.py -k layer_would_scale",
    ),
)
