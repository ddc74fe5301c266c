"""Faults in `gradest.analysis`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "gradest/analysis/comparison.py",
        "efficiency=1 / (variance * found.evaluations) if variance else math.inf,",
        "efficiency=1 / variance if variance else math.inf,",
        "efficiency does not count evaluations",
        "tests/analysis/test_comparison.py",
    ),
    Mutation(
        "gradest/analysis/results.py",
        "share = snr**2 / (snr**2 + 1 / draws) if math.isfinite(snr) else 1.0",
        "share = snr / (snr + 1 / draws) if math.isfinite(snr) else 1.0",
        "the relative error is no longer that of the best multiple",
        "tests/analysis/test_certificates.py -k relative",
    ),
    Mutation(
        "gradest/analysis/bias.py",
        "promised=claim.order >= degree,",
        "promised=claim.order > degree,",
        "a claim to be exact to an order is not tested at that order",
        "tests/analysis/test_certificates.py tests/testing/test_checks.py -m 'not slow'",
    ),
    Mutation(
        "gradest/analysis/certificates.py",
        "return all(math.isclose(new, old, rel_tol=1e-3, abs_tol=1e-6) for new, old in pairs)",
        "return all(math.isclose(new, old, rel_tol=1e3, abs_tol=1e-6) for new, old in pairs)",
        "a certificate of other code passes for current",
        "tests/analysis/test_certificates.py -k changed",
    ),
    Mutation(
        "gradest/analysis/recommendation.py",
        "if evaluations is not None and asked > evaluations:",
        "if evaluations is not None and asked > 2 * evaluations:",
        "estimators are recommended that cost more than the caller can pay",
        "tests/analysis/test_recommendation.py -k evaluations",
    ),
    Mutation(
        "gradest/analysis/recommendation.py",
        "max(1, self.budget // asked) * asked",
        "max(1, self.budget / asked) * asked",
        "estimators are scored with parts of draws",
        "tests/analysis/test_recommendation.py -k whole_draws",
    ),
    Mutation(
        "gradest/analysis/rare_outputs.py",
        "            unlikely = neuron.log_prob(points, wide).exp() < probability",
        "            unlikely = neuron.log_prob(points, wide).exp() < 0",
        "the bias of saturated units is taken for established",
        "tests/analysis/test_comparison.py -k rare_outputs",
    ),
    Mutation(
        "gradest/analysis/recommendation.py",
        "key=lambda measured: abs(math.log(measured / units))",
        "key=lambda measured: measured",
        "estimators for many units are ranked by what was measured for two",
        "tests/analysis/test_recommendation.py -k as_many_units",
    ),
)
