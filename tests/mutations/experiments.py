"""Faults in `plugins/gradest_experiments`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "plugins/gradest_experiments/belief/network.py",
        "cost = _log_prob(h, a) - _log_prob(below, generation(seen))",
        "cost = -_log_prob(h, a) - _log_prob(below, generation(seen))",
        "the loss of a path adds the entropy of q instead of subtracting it",
        "tests/experiments/test_belief.py -k 'costs or enumerated'",
    ),
    Mutation(
        "plugins/gradest_experiments/gated/sparsity.py",
        "layer.weight *= torch.where(norm > limit, limit / norm, 1.0)",
        "layer.weight *= torch.where(norm > limit, norm / limit, 1.0)",
        "weights that are too long become longer",
        "tests/experiments/test_sparsity.py",
    ),
    Mutation(
        "plugins/gradest_experiments/engine/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        "a checkpoint can run code",
        "tests/experiments/test_checkpoint.py",
    ),
    Mutation(
        "plugins/gradest_experiments/gated/training.py",
        '{"params": gater, "lr": rate * settings.gater_scale}',
        '{"params": gater, "lr": rate / settings.gater_scale}',
        "the learning rate of the gater",
        "tests/experiments/test_training.py -k gater_scale",
    ),
    Mutation(
        "plugins/gradest_experiments/vae/model.py",
        "return weights.logsumexp(0) - math.log(samples)",
        "return weights.logsumexp(0)",
        "the bound on the likelihood grows with the number of samples",
        "tests/experiments/test_vae.py -k bounds",
    ),
)
