"""Faults in `gradest.contract`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "gradest/contract/target.py",
        "return least - torch.log(leading_mean(torch.exp(least - loss)))",
        "return least + torch.log(leading_mean(torch.exp(least - loss)))",
        "the sign of the multi-sample bound's correction",
        "tests/estimators/test_multi_sample.py",
    ),
    Mutation(
        "gradest/contract/neuron/binary.py",
        "if_high = log_u - softplus(-a) - torch.log1p(-noise * p)",
        "if_high = log_u - softplus(-a) + torch.log1p(-noise * p)",
        "the relaxation given a high output has another law",
        "tests/neurons/test_neurons.py -k relaxations",
    ),
    Mutation(
        "gradest/contract/neuron/base.py",
        '"sample": ("forward", "noise"),',
        '"sample": ("forward",),',
        "a neuron with noise of its own inherits a kernel that draws other noise",
        "tests/kernels/test_kernels.py -k inherit",
    ),
    Mutation(
        "gradest/contract/law.py",
        "if units * math.log2(max(atoms, 1)) > math.log2(MAX_POINTS):",
        "if units * math.log2(max(atoms, 1)) > math.log2(MAX_POINTS) + 4:",
        "an enumeration may have 16 times the points that are allowed",
        "tests/estimation/test_expectation.py -k twenty",
    ),
    Mutation(
        "gradest/contract/estimator.py",
        "self.points._version != self._asked[1]",
        "self.points._version < self._asked[1]",
        "what f writes into its points changes the gradient",
        "tests/estimation/test_writes.py -k 'write_into or writes_are_seen'",
    ),
    Mutation(
        "gradest/contract/estimator.py",
        "_writes(self.a) != self._asked[2]",
        "self.a._version < self._asked[2]",
        "pre-activations that were written to after the draw are taken for those of the draw",
        "tests/estimation/test_writes.py -k pre_activations_that_were_written",
    ),
    Mutation(
        "gradest/contract/score_function.py",
        "leading_sum(weights * (torch.exp(log_prob - log_prob.detach()) - 1))",
        "leading_sum(weights * log_prob)",
        "second derivatives lack the products of scores",
        "tests/estimation/test_second_derivatives.py -k 'tuples'",
    ),
    Mutation(
        "gradest/contract/objective.py",
        "        if not error <= _TOLERANCE:",
        "        if not error <= 1e6 * _TOLERANCE:",
        "the closed form of an objective is a quadrature that is not accurate",
        "tests/neurons/test_quadrature.py -k separable",
    ),
    Mutation(
        "gradest/contract/law.py",
        "    return torch.minimum(spread, _DEVIATIONS * deviation)",
        "    return spread",
        "an expectation that lies in a tail may have any error",
        "tests/estimation/test_tails.py -k 'tail or infinite or reaches or separable'",
    ),
    Mutation(
        "gradest/contract/plugin.py",
        "return type(self).build(**{**given, **options})",
        "return self.model_copy(update=options)",
        "options that are set on a layer are not checked",
        "tests/nn/test_module_life.py -k refused_change_nothing",
    ),
    Mutation(
        "gradest/contract/plugin.py",
        "            if not _holds_tensor(getattr(built, name, None)):",
        "            if getattr(built, name, None) is None:",
        "a parameter that is given as an option is frozen at its first value",
        "tests/contract/test_options.py",
    ),
    Mutation(
        "gradest/contract/estimator.py",
        '            counts = (_writes(x) - wrote for x, wrote in zip((state["points"], state["a"]), written, strict=True))',
        '            counts = (x._version for x, wrote in zip((state["points"], state["a"]), written, strict=True))',
        "a copy of a draw forgets that its points were written to",
        "tests/estimation/test_writes.py -k copy_of_a_draw",
    ),
    Mutation(
        "gradest/contract/neuron/base.py",
        "    return *a.shape[:split], *neuron.output_event(tuple(a.shape[split:]))",
        "    return *a.shape[:split], *a.shape[split:]",
        "outputs are taken to have the event of the pre-activations",
        "tests/contract/test_output_events.py",
    ),
    Mutation(
        "gradest/contract/neuron/one_hot.py",
        "        return event[-1]",
        "        return 1",
        "a one-hot unit states that its law has a single atom",
        "tests/contract/test_contract.py -k shapes_and_dtypes",
    ),
)
