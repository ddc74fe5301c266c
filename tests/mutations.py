"""Almost two hundred faults, which the tests must find: a sign, a factor, a swapped argument, a dropped check, a missing limit.

    python tests/mutations.py                         all of them
    python tests/mutations.py 3 17-20                 some of them, by number
    python tests/mutations.py --list                  what there is
    python tests/mutations.py --jobs 2 --results runs/mutations.json

Each fault is put into a copy of the working tree, in a temporary folder with a virtual environment that leads to it. The tests
named beside it are run there, those alone that `make test` runs; then the fault is taken out again. A fault is caught if one of
them fails. With --results what is found is kept, and faults that the file has already are not tried again.

The exit code is 1 if a fault is missed. Where code or a test moves or changes its name, a fault's `file`, `old` and `tests` must
follow; `--check` says in a second whether each text still stands exactly once in its file and each test file is there.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
NOT_IN_MAKE_TEST = "not deep and not gpu and not benchmark"
LEFT_BEHIND = (".git", ".venv", "runs", "build", "dist", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis")


@dataclass(frozen=True)
class Mutation:
    """A fault.

    file: where it is. old: what stands there, once. new: what takes its place. breaks: what goes wrong then. tests: the arguments
    of pytest for the tests that are to notice, separated by spaces.
    """

    file: str
    old: str
    new: str
    breaks: str
    tests: str


MUTATIONS = (
    # --- noise and kernels ---
    Mutation(
        "gradest/random.py",
        "(x0 << 21) | (x1 >> 11)",
        "(x0 << 21) | (x1 >> 10)",
        "the two words of the seed of a repetition overlap",
        "tests/test_random.py",
    ),
    Mutation(
        "gradest/random.py",
        "return (seed.to(torch.int64) if isinstance(seed, Tensor) else seed) >> 32",
        "return (seed.to(torch.int64) if isinstance(seed, Tensor) else seed) >> 31",
        "the upper word of a seed is another",
        "tests/test_random.py",
    ),
    Mutation(
        "gradest/random.py",
        "not 0 <= seed < MAX_SEED",
        "not 0 <= seed <= MAX_SEED",
        "a seed that JSON cannot tell from its neighbour is accepted",
        "tests/test_random.py -k seeds",
    ),
    Mutation(
        "gradest/kernels/reference/noise.py",
        "ROUNDS = 7",
        "ROUNDS = 6",
        "Philox has six rounds",
        "tests/test_random.py -k known",
    ),
    Mutation(
        "gradest/kernels/reference/scores.py",
        "return leading_sum(weights[..., None] * torch.where(h == high, q, -p))",
        "return leading_sum(weights[..., None] * torch.where(h == high, q, p))",
        "the sign of the score of a unit that is low",
        "tests/kernels/test_kernels.py -k 'weighted_score or backward_kernels_have'",
    ),
    Mutation(
        "gradest/kernels/stable.py",
        "return (loss - leading_mean(loss)) / (len(loss) - 1)",
        "return (loss - leading_mean(loss)) / len(loss)",
        "leave-one-out weights are (K-1)/K of what they should be",
        "tests/kernels/test_kernels.py -k 'weighted_score or backward_kernels_have'",
    ),
    Mutation(
        "gradest/kernels/portable.py",
        "return y * ((z.to(c.integer) + c.bias) << c.mantissa).view(x.dtype)",
        "return y * ((z.to(c.integer) + c.bias - 1) << c.mantissa).view(x.dtype)",
        "e^x is halved",
        "tests/kernels/test_kernels.py -k portable",
    ),
    Mutation(
        "gradest/kernels/cpu/samplers.py",
        "u[i] = u.dtype.type(1) - u[i]",
        "u[i] = u[i]",
        "an antithetic pair is twice the same sample",
        "tests/kernels/test_kernels.py -k antithetic",
    ),
    Mutation(
        "gradest/kernels/cpu/noise.py",
        "k1 + uint64(6) * _W1",
        "k1 + uint64(5) * _W1",
        "the noise of the kernels for the CPU is not the reference's",
        "tests/kernels/test_kernels.py -k uniform",
    ),
    Mutation(
        "gradest/kernels/cpu/scores.py",
        "weights[k, row] = (loss[k, row] - mean) / (count - a.dtype.type(1))",
        "weights[k, row] = (mean - loss[k, row]) / (count - a.dtype.type(1))",
        "the sign of the fused leave-one-out score",
        "tests/kernels/test_kernels.py -k score",
    ),
    Mutation(
        "gradest/kernels/cpu/conditional/kernels.py",
        "scale[k] = grad[index[k], u] * gate[k]",
        "scale[k] = grad[index[k], u]",
        "the gradient of a gated layer's weights leaves out the gate",
        "tests/nn/test_conditional.py -k 'values or differences'",
    ),
    Mutation(
        "gradest/kernels/cuda/noise.py",
        "tl.join(tl.join(x0, x2), tl.join(x1, x3))",
        "tl.join(tl.join(x0, x1), tl.join(x2, x3))",
        "the words of a counter are in another order in the kernels for CUDA",
        "tests/kernels/test_cuda.py",
    ),
    # --- the contract ---
    Mutation(
        "gradest/contract/target.py",
        "return least - torch.log(leading_mean(torch.exp(least - loss)))",
        "return least + torch.log(leading_mean(torch.exp(least - loss)))",
        "the sign of the multi-sample bound's correction",
        "tests/estimators/test_multi_sample.py",
    ),
    Mutation(
        "gradest/contract/neuron.py",
        "if_high = log_u - softplus(-a) - torch.log1p(-noise * p)",
        "if_high = log_u - softplus(-a) + torch.log1p(-noise * p)",
        "the relaxation given a high output has another law",
        "tests/neurons/test_neurons.py -k relaxations",
    ),
    Mutation(
        "gradest/contract/neuron.py",
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
    # --- discovery ---
    Mutation(
        "gradest/discovery/loading.py",
        'if cls.name not in getattr(owner, f"{kind}s"):',
        'if cls.name not in getattr(owner, f"{kind}s") or owner not in self._earlier:',
        "a stranger's plugin takes the name of a built-in",
        "tests/discovery/test_loading.py -k 'taken or every_bad'",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        "self._loaded, self._plugins, self._failures = False, (), ()",
        "self._loaded, self._plugins, self._failures = True, (), ()",
        "after an interrupt while plugins load there are none",
        "tests/discovery/test_loading.py -k 'interrupt or strict'",
    ),
    Mutation(
        "gradest/discovery/entry_points.py",
        "return not source.built_in, _normalised(source.distribution)",
        "return source.built_in, _normalised(source.distribution)",
        "strangers' plugins load before the built-in ones",
        "tests/discovery/test_loading.py -k 'order or taken'",
    ),
    Mutation(
        "gradest/discovery/validation.py",
        "if not isinstance(summary, str) or len(summary.splitlines()) != 1:",
        "if not isinstance(summary, str) or len(summary.splitlines()) > 1:",
        "a plugin without a summary is accepted",
        "tests/discovery/test_loading.py -k where_and_why",
    ),
    # --- estimation ---
    Mutation(
        "gradest/estimation/ask_tell.py",
        "    if given.shape != shape:",
        "    if given.ndim != len(shape):",
        "losses of the wrong shape are broadcast",
        "tests/estimation/test_ask_tell.py -k feedback",
    ),
    Mutation(
        "gradest/estimation/exact.py",
        "            self.sums[place] += (weights * x).sum(0)",
        "            self.sums[place] = (weights * x).sum(0)",
        "the exact loss is that of the last chunk",
        "tests/estimation/test_expectation.py -k exact",
    ),
    Mutation(
        "gradest/estimation/estimate.py",
        "standard_error=(variance / gradients.count).sqrt().to(dtype),",
        "standard_error=(variance / max(1, gradients.count - 1)).sqrt().to(dtype),",
        "the standard error is too large by √(n / (n - 1))",
        "tests/estimation/test_expectation.py -k single_draws",
    ),
    Mutation(
        "gradest/estimation/estimate.py",
        "n = min(most, step - first % step, draws - first)",
        "n = min(most, step, draws - first)",
        "blocks reach over the ends of steps",
        "tests/estimation/test_expectation.py -k blocks",
    ),
    Mutation(
        "gradest/estimation/estimate.py",
        "self.squares + other.squares + gap**2 * (self.count * other.count / total),",
        "self.squares + other.squares + gap**2 * (self.count / total),",
        "variances of several blocks are merged wrongly",
        "tests/estimation/test_expectation.py -k 'stable or single_draws or chunks'",
    ),
    Mutation(
        "gradest/estimation/executors.py",
        "wait([future for future in ahead if not future.cancel()])",
        "wait([])",
        "an error leaves blocks running",
        "tests/estimation/test_executors.py",
    ),
    Mutation(
        "gradest/estimation/distributed.py",
        "return ((rank() + world_size() * numbers)[:, None] * within",
        "return ((rank() * batch[0] + numbers)[:, None] * within",
        "processes do not draw the noise of the joined batch",
        "tests/nn/test_layers.py -k two_processes",
    ),
    # --- analysis ---
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
    # --- nn ---
    Mutation(
        "gradest/nn/uses.py",
        "sent = [gradient * (wide * share) for gradient, share in zip(told, ctx.shares, strict=True)]",
        "sent = [gradient * wide for gradient, share in zip(told, ctx.shares, strict=True)]",
        "a mean over the batch is trained as a sum",
        "tests/nn/test_layers.py -k 'enumeration or scaling'",
    ),
    Mutation(
        "gradest/nn/layers.py",
        "state = {name: _move(old, state[name], 1 / self._merged) for name, old in self.state.items()}",
        "state = {name: _move(old, state[name], 1 / (1 + self._merged)) for name, old in self.state.items()}",
        "the states of several uses of a layer are not averaged evenly",
        "tests/nn/test_layers.py -k 'averages or equal_weights'",
    ),
    Mutation(
        "gradest/nn/operators.py",
        'if "loss" in estimator.needs and not bool(flag):',
        'if "loss" in estimator.needs and bool(flag) is None:',
        "in a compiled graph a loss that was never told goes unnoticed",
        "tests/nn/test_operators.py -k not_told",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "uses.append((element, None if later is None else later.detach()))",
        "uses.append((element, element.port.sum(-1) if later is None else later.detach()))",
        "a use that no cost follows is told a loss of 0, and its estimator's state moves",
        "tests/nn/test_scopes.py -k no_cost_follows",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "credited = to_go if bound is None else total",
        "credited = to_go",
        "a bound over paths is told the costs to go instead of all costs",
        "tests/nn/test_graph.py -k between_the_layers",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "shares.append(share if use.sampler.credits_paths else share / (self.samples or 1))",
        "shares.append(share)",
        "estimators of one sample sum over paths instead of averaging",
        "tests/nn/test_graph.py -k 'two_layers_against'",
    ),
    Mutation(
        "gradest/nn/uses.py",
        "loss, self.baseline = loss - self.baseline, None",
        "loss = loss - self.baseline",
        "a baseline is subtracted by every surrogate",
        "tests/nn/test_scopes.py -k subtracted_once",
    ),
    Mutation(
        "gradest/estimation/distributed.py",
        'rows = (joined * paths + torch.arange(paths, device="cpu")[:, None])[..., None] * within',
        'rows = (joined + torch.arange(paths, device="cpu")[:, None])[..., None] * within',
        "paths of different examples share their noise",
        "tests/nn/test_scopes.py -k own_noise",
    ),
    Mutation(
        "gradest/nn/conditional.py",
        "grad_gates = grad_gates.where(gates != 0, 0)",
        "grad_gates = grad_gates.where(gates == 0, 0)",
        "open gates get no gradient where closed ones should get none",
        "tests/nn/test_conditional.py -k gate",
    ),
    # --- the kit, the client, the command line ---
    Mutation(
        "gradest/testing/laws.py",
        "assert float(smooth.double().mean()) > 0.99,",
        "assert float(smooth.double().mean()) > -1,",
        "the kit accepts a neuron whose backward is no derivative",
        "tests/testing/test_checks.py -k neurons",
    ),
    Mutation(
        "gradest/client/wire.py",
        "place[1] - place[0] != math.prod(shape) * _get_dtype(code).itemsize:",
        "place[1] - place[0] < math.prod(shape) * _get_dtype(code).itemsize:",
        "a body whose tensors are smaller than their bytes is accepted",
        "tests/service/test_codec.py -k 'malformed or mutation'",
    ),
    Mutation(
        "gradest/client/transports.py",
        "longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._attempts - 1, _DOUBLINGS))",
        "longest = max(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._attempts - 1, _DOUBLINGS))",
        "the first wait before another try is five seconds",
        "tests/client/test_client.py -k wait",
    ),
    Mutation(
        "gradest/client/responses.py",
        "date = date.replace(tzinfo=UTC)",
        "pass",
        "a date without a zone is taken for local time",
        "tests/client/test_client.py -k date",
    ),
    Mutation(
        "gradest/cli/arguments.py",
        r'pairs = re.split(r",(?=\s*\w+\s*=)", options) if options else []',
        'pairs = options.split(",") if options else []',
        "an option that is a list is cut at its commas",
        "tests/cli/test_cli.py -k read_",
    ),
    # --- built-in plugins ---
    Mutation(
        "plugins/gradest_neurons/stochastic_times_smooth.py",
        "-0.5 * r * (1 + r)",
        "-0.5 * r * (1 - r)",
        "the score of a closed gate",
        "tests/contract/test_contract.py -k 'test_neuron and stochastic_times_smooth'",
    ),
    Mutation(
        "plugins/gradest_neurons/gaussian.py",
        "return h, normalised(dh * torch.exp(-0.5 * (z / self.std) ** 2))",
        "return h, normalised(dh * torch.exp(-0.5 * z**2))",
        "the density of gaussian noise of another deviation than 1",
        "tests/contract/test_contract.py -k 'test_neuron and gaussian'",
    ),
    Mutation(
        "plugins/gradest_estimators/arm.py",
        "* (noise - 0.5)), state",
        "* (0.5 - noise)), state",
        "the sign of a gradient",
        "tests/estimators/test_binary.py -k 'arm_by_hand or mean_is_the_gradient'",
    ),
    Mutation(
        "plugins/gradest_estimators/rebar.py",
        "return loss[0] * score, path - loss[2] * score",
        "return loss[0] * score, path + loss[2] * score",
        "a control variate that has another mean than 0",
        "tests/estimators/test_learned.py -k 'by_hand or both_noises'",
    ),
    Mutation(
        "plugins/gradest_estimators/_learning.py",
        "unbiased.append(after[name + kind] / (1 - decay**steps))",
        "unbiased.append(after[name + kind] / (1 - decay))",
        "Adam's averages are not corrected for their start",
        "tests/estimators/test_learned.py -k adam",
    ),
    Mutation(
        "plugins/gradest_estimators/_binary.py",
        "    logit = torch.where(h == neuron.high, -a, a)\n",
        "    logit = torch.where(h == neuron.high, a, -a)\n",
        "the weight of a flip is that of no flip",
        "tests/estimators/test_binary.py -k 'mean_is_the_gradient'",
    ),
    Mutation(
        "plugins/gradest_estimators/carms.py",
        "neither, step = (1 - q) ** 2 / (1 - 2 * q + both), 1",
        "neither, step = (1 - q) ** 2 / (1 - q), 1",
        "pairs are corrected as if the classes passed before had been independent",
        "tests/estimators/test_carms.py -k mean_over_all",
    ),
    Mutation(
        "plugins/gradest_estimators/carms.py",
        "* torch.log1p(-spacings / leading_sum(spacings))",
        "* torch.log1p(-spacings / leading_sum(spacings).roll(1, -1))",
        "samples are coupled by the noise of two classes, and so not as the correction has it",
        "tests/estimators/test_carms.py -k forward_draws",
    ),
    Mutation(
        "plugins/gradest_estimators/gapped_straight_through.py",
        "below.clamp(max=-self.gap)",
        "below - self.gap",
        "logits that are far enough below the largest are moved, too",
        "tests/estimators/test_one_hot.py -k gapped",
    ),
    Mutation(
        "plugins/gradest_estimators/decoupled_straight_through.py",
        "_relative(neuron, a) / self.forward_temperature",
        "_relative(neuron, a) / self.backward_temperature",
        "the temperature of the derivative is that of the samples",
        "tests/estimators/test_one_hot.py -k decoupled",
    ),
    Mutation(
        "plugins/gradest_estimators/rodeo.py",
        "expected + here, p * (gap - expected)",
        "expected, p * (gap - expected)",
        "the second control variate of a one-hot unit has another mean than 0",
        "tests/estimators/test_one_hot.py -k rodeo_has_the_gradient",
    ),
    Mutation(
        "plugins/gradest_estimators/lax.py",
        "per_event(feedback.get_loss() - c, neuron)",
        "per_event(feedback.get_loss() + c, neuron)",
        "a control variate of a density that has another mean than 0",
        "tests/estimators/test_lax.py -k mean",
    ),
    Mutation(
        "plugins/gradest_neurons/diagonal_gaussian.py",
        "noise * noise - 1]",
        "noise * noise]",
        "the score of a log std has another mean than 0",
        "tests/estimators/test_lax.py -k mean",
    ),
    Mutation(
        "plugins/gradest_objectives/quadratic.py",
        "return (h - self.target.to(h)) ** 2",
        "return (h + self.target.to(h)) ** 2",
        "the target of a loss has the other sign",
        "tests/objectives/test_objectives.py",
    ),
    # --- experiments ---
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
    # --- the service and its page ---
    Mutation(
        "service/gradest_service/admit/limits.py",
        "    if job.samples > settings.max_samples:",
        "    if job.samples > 1000 * settings.max_samples:",
        "a request may ask for any number of samples",
        "tests/service/test_limits.py -k cap",
    ),
    Mutation(
        "service/gradest_service/admit/auth.py",
        "            self._requests.take(1)",
        "            self._requests.take(0)",
        "a key may send as many requests as it likes",
        "tests/service/test_auth.py -k requests_a_second",
    ),
    Mutation(
        "service/gradest_service/bodies/tensors.py",
        "    check_finite(field, tensor)\n    return tensor",
        "    return tensor",
        "numbers that are not finite in their dtype are accepted",
        "tests/service/test_errors.py -k 'dtype_cannot_hold or non_finite'",
    ),
    Mutation(
        "service/gradest_service/run/joint_pass.py",
        "self.key = Key(seeds, torch.cat([torch.arange(size) for size in self._sizes]))",
        "self.key = Key(seeds, torch.arange(sum(self._sizes)))",
        "a request that is batched with others gets other noise",
        "tests/service/test_batching.py -k alone",
    ),
    Mutation(
        "service/gradest_service/problems.py",
        "if depth == 0 or isinstance(part, int)]",
        "if depth >= 0 or isinstance(part, int)]",
        "an error repeats names that the caller made up",
        "tests/service/test_errors.py",
    ),
    Mutation(
        "service/gradest_service/host/workers.py",
        "    supervisor.join()\n    os.kill(os.getpid(), signal.SIGTERM)",
        "    supervisor.join()",
        "workers outlive a supervisor that was killed",
        "tests/service/test_workers.py -k outlive",
    ),
    Mutation(
        "service/gradest_service/middleware.py",
        "        if self.context.bytes_in > self._settings.max_body_bytes:",
        "        if self.context.bytes_in > 100 * self._settings.max_body_bytes:",
        "a body that does not say its size has no limit",
        "tests/service/test_limits.py -k 'chunked or never'",
    ),
    Mutation(
        "service/gradest_service/host/protocol.py",
        "        if self._head > _MAX_HEAD_BYTES:",
        "        if self._head > 100 * _MAX_HEAD_BYTES:",
        "the head of a request has no limit",
        "tests/service/test_protocol.py -k without_end",
    ),
    Mutation(
        "service/gradest_service/page/code.js",
        "    seed=${seed},\n)\nprint",
        "    seed=${seed + 1},\n)\nprint",
        "code that computes other numbers than those on screen",
        "tests/browser/test_page.py -k code",
    ),
    Mutation(
        "service/gradest_service/page/compare.js",
        "ticks(SWEEP, -EDGE, EDGE).map(",
        "ticks(SWEEP, EDGE, -EDGE).map(",
        "the sweep over a pre-activation goes from its end to its beginning",
        "tests/browser/test_page.py -k swept",
    ),
    Mutation(
        "service/gradest_service/page/api.js",
        "if (sent !== null) headers.Authorization = `Bearer ${sent}`;",
        "if (sent !== null) headers.Authorization = sent;",
        "the page sends a key in a form that no service knows",
        "tests/browser/test_page.py -k key",
    ),
    # --- never silently wrong: losses, layers, events, draws, plugins, the wire ---
    Mutation(
        "gradest/contract/estimator.py",
        "self.points._version != self._asked[1]",
        "self.points._version < self._asked[1]",
        "what f writes into its points changes the gradient",
        "tests/estimation/test_losses.py -k 'write_into or writes_are_seen'",
    ),
    Mutation(
        "gradest/contract/estimator.py",
        "self.a._version != self._asked[2]",
        "self.a._version < self._asked[2]",
        "pre-activations that were written to after the draw are taken for those of the draw",
        "tests/estimation/test_losses.py -k pre_activations_that_were_written",
    ),
    Mutation(
        "gradest/contract/score_function.py",
        "leading_sum(weights * (torch.exp(log_prob - log_prob.detach()) - 1))",
        "leading_sum(weights * log_prob)",
        "second derivatives lack the products of scores",
        "tests/estimation/test_second_derivatives.py -k 'tuples'",
    ),
    Mutation(
        "gradest/estimation/ask_tell.py",
        'if name == "loss" and given.dtype != dtype:',
        'if name == "loss" and not given.is_floating_point():',
        "float64 losses are rounded to the dtype of the pre-activations before they are subtracted",
        "tests/estimation/test_losses.py -k precision_of_the_loss",
    ),
    Mutation(
        "gradest/estimation/ask_tell.py",
        "        if index is not None and allow_inf:",
        "        if index is not None:",
        "infinite losses are let through",
        "tests/estimation/test_losses.py -k 'not_finite'",
    ),
    Mutation(
        "gradest/estimation/ask_tell.py",
        "            bad = x.isnan().nonzero()",
        "            bad = x.isnan().nonzero()[:0]",
        "allow_inf lets NaN through",
        "tests/estimation/test_losses.py -k infinite_losses",
    ),
    Mutation(
        "gradest/estimation/ask_tell.py",
        "    if allow_inf and state:",
        "    if allow_inf and state is None:",
        "an estimator with a state learns from an infinite loss",
        "tests/estimation/test_losses.py -k infinite_losses",
    ),
    Mutation(
        "gradest/estimation/ask_tell.py",
        "            finite = _all_finite_there(widened)",
        "            finite = torch.ones_like(_all_finite_there(widened))",
        "inside a transform of torch.func a loss that is not finite spoils the state",
        "tests/estimation/test_losses.py -k leaves_the_state",
    ),
    Mutation(
        "gradest/estimation/ask_tell.py",
        "    if found != shapes:",
        "    if len(found) != len(shapes):",
        "the state of another event shape is broadcast",
        "tests/estimation/test_losses.py -k state_that_does_not_fit",
    ),
    Mutation(
        "gradest/estimation/expectation.py",
        "        check_feedback_finite(Feedback(loss), allow_inf, impossible)\n        return value_of(",
        "        return value_of(",
        "under torch.no_grad() losses that are not finite are averaged",
        "tests/estimation/test_losses.py -k not_finite",
    ),
    Mutation(
        "gradest/estimation/expectation.py",
        "    product.grad_fn.register_hook(again)\n",
        "",
        "the second derivative of an estimate is that of a constant gradient",
        "tests/estimation/test_second_derivatives.py -k 'others_raise or tuples'",
    ),
    Mutation(
        "gradest/estimation/expectation.py",
        "    return replace(key, rows=numbers.reshape(batch))",
        "    return replace(key, rows=None)",
        "the parts of a batch draw the same noise",
        "tests/nn/test_silent_errors.py -k batch_in_parts",
    ),
    Mutation(
        "gradest/estimation/events.py",
        "        return x.reshape(*x.shape[: x.ndim - len(self.event)], *self.given)",
        "        return x.reshape(*x.shape[: x.ndim - len(self.event)], *self.given).flip(-1)",
        "an event is handed back in another order than it was given in",
        "tests/estimation/test_events.py -k 'agree_with_enumeration'",
    ),
    Mutation(
        "gradest/estimation/events.py",
        'dims = most if event_dims == "all" else event_dims',
        'dims = a.ndim if event_dims == "all" else event_dims',
        "the path of a whole-path sample is taken for a part of the event",
        "tests/nn/test_events.py -k no_part_of_the_event",
    ),
    Mutation(
        "gradest/estimation/exact.py",
        "    if not found.agrees(before, tolerance, dtype):",
        "    if not found.agrees(found, tolerance, dtype):",
        "a quadrature whose levels disagree is returned for exact",
        "tests/neurons/test_quadrature.py -k jumps",
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
        "plugins/gradest_neurons/_continuous.py",
        "    return 9 + 3 * level if level >= 0 else 7.5",
        "    return 9.0",
        "the levels of a quadrature share one reach",
        "tests/estimation/test_tails.py",
    ),
    Mutation(
        "plugins/gradest_neurons/poisson.py",
        "_FURTHER = 1.4 ",
        "_FURTHER = 1.0 ",
        "the levels of a truncated law leave out the same",
        "tests/estimation/test_tails.py",
    ),
    Mutation(
        "gradest/kernels/stable.py",
        "    return loss.masked_fill(probability == 0, 0)",
        "    return loss",
        "an infinite loss of an impossible output gives NaN",
        "tests/estimators/test_impossible.py -k finite_loss",
    ),
    Mutation(
        "gradest/estimation/exact.py",
        "    losses = _instead_of_impossible(losses, weights)\n",
        "",
        "a risk of the law has an infinite loss of an impossible output",
        "tests/estimators/test_impossible.py -k 'finite_loss or users_own'",
    ),
    Mutation(
        "gradest/estimation/exact.py",
        "    if points.requires_grad:  # dL/dh may",
        "    if False:  # dL/dh may",
        "an infinite dL/dh of an impossible output reaches a",
        "tests/estimators/test_impossible.py -k moves",
    ),
    Mutation(
        "gradest/estimation/exact.py",
        "    if allow_inf and weights.requires_grad:",
        "    if False and weights.requires_grad:",
        "an infinite gradient is taken for 0 where the probability is 0 at one place alone",
        "tests/estimators/test_impossible.py -k least_step",
    ),
    Mutation(
        "gradest/estimation/losses/checks.py",
        "if _differ(given[~moved], losses(mixed)[~moved]):",
        "if _differ(given[~moved], losses(one)[~moved]):",
        "exact takes a loss that rows share for one of each row",
        "tests/estimation/test_loss_checks.py -k 'share_a_loss'",
    ),
    Mutation(
        "gradest/estimation/losses/checks.py",
        "if _differ(given[:half], losses(torch.cat([one[:half], other[half:]]))[:half]):",
        "if _differ(given[:half], losses(one)[:half]):",
        "exact takes a loss that normalises over points for a function of each",
        "tests/estimation/test_loss_checks.py -k 'say_so'",
    ),
    Mutation(
        "gradest/estimation/losses/checks.py",
        "                    x.copy_(copy)",
        "                    x.copy_(x)",
        "the running statistics of a network in f are moved by exact",
        "tests/estimation/test_loss_checks.py -k buffers",
    ),
    Mutation(
        "gradest/estimation/losses/evaluation.py",
        "return loss.reshape(*lead, *loss.shape[1:])",
        "return loss.reshape(*lead[::-1], *loss.shape[1:]).transpose(0, len(lead) - 1)",
        "with flatten=True the losses are folded back to other rows",
        "tests/estimation/test_losses.py -k flatten",
    ),
    Mutation(
        "gradest/nn/module.py",
        "setattr(self, name, moved if moved.dtype == before.dtype else before.to(moved.device))",
        "setattr(self, name, moved)",
        "model.half() casts the state of the estimators",
        "tests/nn/test_module_life.py -k cast",
    ),
    Mutation(
        "gradest/nn/module.py",
        "dtype = value.dtype if self._form is None else torch.promote_types(value.dtype, self._form[name][1])",
        "dtype = self.threshold.dtype",
        "a state is loaded in another precision than it was saved in",
        "tests/nn/test_module_life.py -k 'cast or precision or loading'",
    ),
    Mutation(
        "gradest/nn/module.py",
        "        if not _fits(given, form):",
        "        if given.keys() != form.keys():",
        "a layer used at a second width broadcasts its state",
        "tests/nn/test_module_life.py -k 'second_width and not compiled'",
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
        "gradest/nn/layers.py",
        '        evaluation: Evaluation = "sample",',
        '        evaluation: Evaluation = "mean",',
        "after eval() the value of an Expectation is f at the mean output",
        "tests/nn/test_events.py -k evaluated_at_a_sample",
    ),
    Mutation(
        "gradest/nn/layers.py",
        "class _PerThread(threading.local):",
        "class _PerThread:",
        "the loss of one thread is told to the samples of another",
        "tests/nn/test_silent_errors.py -k two_threads",
    ),
    Mutation(
        "gradest/nn/layers.py",
        "        if losses_in_progress():\n            raise used_inside_loss(self._pair)",
        "        if losses_in_progress() > 1:\n            raise used_inside_loss(self._pair)",
        "a layer inside the function of an Expectation is told the losses of other rows",
        "tests/nn/test_silent_errors.py -k inside_the_function",
    ),
    Mutation(
        "gradest/nn/layers.py",
        "            paths = replace(paths, rows=rows)",
        "            paths = replace(paths)",
        "the parts of a batch draw other noise than the whole in a layer",
        "tests/nn/test_silent_errors.py -k batch_in_parts",
    ),
    Mutation(
        "gradest/nn/uses.py",
        "        if draw.a._version != self.version:",
        "        if draw.a._version < self.version:",
        "a layer's input that was written over gives the gradient at other pre-activations",
        "tests/nn/test_silent_errors.py -k input_that_is_written",
    ),
    Mutation(
        "gradest/nn/uses.py",
        "        if self.emitted._version != self.intact:",
        "        if self.emitted._version < self.intact:",
        "what is written into a layer's output changes its gradient",
        "tests/nn/test_silent_errors.py -k sample_may_be_written",
    ),
    Mutation(
        "gradest/nn/uses.py",
        "        if moved and (transformed() or first_non_finite(grad_h) is None):",
        "        if moved:",
        "a derivative that is not finite spoils the state of a layer",
        "tests/estimation/test_losses.py -k derivative_that_is_not_finite",
    ),
    Mutation(
        "gradest/nn/uses.py",
        "gradient = DifferentiateOnce.apply(gradient, *sources)  # type: ignore[no-untyped-call]",
        "pass",
        "the second derivative of a layer is 0",
        "tests/nn/test_scopes.py -k second_derivative",
    ),
    Mutation(
        "gradest/nn/untold.py",
        "            foreign = foreign or (gradient is not None and _differs(gradient, sent))",
        "            foreign = foreign or gradient is None",
        "a penalty that is added to the scalar loses its score part without a warning",
        "tests/nn/test_silent_errors.py -k penalty_that_is_added",
    ),
    Mutation(
        "gradest/estimation/losses/repetition.py",
        "    return torch._C._current_graph_task_id() != -1",
        "    return torch._C._current_graph_task_id() < -1",
        "an activation checkpoint draws a second sample, which is told no loss",
        "tests/nn/test_scopes.py -k activation_checkpoints",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "    if loss.ndim < batch_dims and (loss.ndim",
        "    if 0 < loss.ndim < batch_dims and (loss.ndim",
        "a loss that is reduced over the batch is credited to every example",
        "tests/nn/test_silent_errors.py -k reduced_loss",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "        credit = widen(credit).flatten(batch_dims).sum(-1)",
        "        credit = widen(credit).flatten(batch_dims).mean(-1)",
        "positions that share a loss are credited with its mean",
        "tests/nn/test_silent_errors.py -k attend",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "            layer.forget_uses()  # or the loss of the next step would be told to them as well",
        "            pass",
        "after a loss that is not finite the next one is told to the samples of two steps",
        "tests/estimation/test_losses.py -k 'layer_refuses'",
    ),
    Mutation(
        "gradest/random.py",
        "    outside = value >> bits != 0  # the shift keeps the sign",
        "    outside = value < 0",
        "rows 0 and 2**32 have the same noise",
        "tests/test_random.py -k noise_of_others",
    ),
    Mutation(
        "gradest/random.py",
        "not isinstance(value, int) or value >> bits:",
        "not isinstance(value, int) or value < 0:",
        "fold_in(3) and fold_in(2**32 + 3) are the same key",
        "tests/test_random.py -k other_numbers",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        "if _definition(registered) == _definition(plugin)]",
        "if registered is plugin]",
        "the cell of a notebook that registers a class cannot be run twice",
        "tests/discovery/test_register.py -k 'defined_again'",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        "raise self.as_fault(error, plugin, method) from error",
        "raise self.as_fault(error, plugin, method) if isinstance(error, Exception) else error",
        "a plugin that raises a CancelledError ends the listing of all",
        "tests/discovery/test_faults.py -k 'descriptions or go_on or which_fit'",
    ),
    Mutation(
        "gradest/discovery/faults.py",
        '        text = " ".join(str(error).split())\n    except BaseException as failed:',
        '        text = " ".join(str(error).split())\n    except KeyboardInterrupt as failed:',
        "an error whose str() fails escapes",
        "tests/discovery/test_faults.py -k 'descriptions or while_it_loads'",
    ),
    Mutation(
        "gradest/discovery/faults.py",
        "    except raised:\n        raise\n    except BaseException as error:",
        "    except raised:\n        raise\n    except Exception as error:",
        "a plugin whose import raises SystemExit empties the registry",
        "tests/discovery/test_faults.py -k while_it_loads",
    ),
    Mutation(
        "gradest/kernels/cpu/compilation/background.py",
        "cache_path is None or _is_kept(kernel, signature):",
        "cache_path is None:",
        "what was compiled beside the program is not loaded at the first call of the next",
        "tests/kernels/test_background.py -k what_is_kept",
    ),
    Mutation(
        "gradest/kernels/cpu/compilation/background.py",
        "            kernel.compile(signature)",
        "            kernel.inspect_types()",
        "the process beside the program compiles nothing, and a step waits for it later",
        "tests/kernels/test_background.py -k reference_serves",
    ),
    Mutation(
        "gradest/kernels/cpu/compilation/compiler.py",
        "                cache.flush()  # else the broken index would be read again before a result is saved",
        "                pass",
        "a truncated file of a kept kernel makes every sample raise",
        "tests/kernels/test_environments.py -k truncated",
    ),
    Mutation(
        "plugins/gradest_neurons/k_subset.py",
        "        return (chosen - self._log_partition(b)).to(a.dtype)",
        "        return (chosen - self._log_partition(b).detach()).to(a.dtype)",
        "the score of the log-probability lacks that of its normaliser",
        "tests/neurons/test_k_subset.py",
    ),
    Mutation(
        "plugins/gradest_neurons/k_subset.py",
        "        return torch.cat(drawn[::-1], -1)",
        "        return torch.cat(drawn, -1)",
        "items are chosen with the chances of others",
        "tests/kernels/test_kernels.py -k subset",
    ),
    Mutation(
        "plugins/gradest_neurons/noisy_top_k.py",
        "normal_cdf((lowest - rest) / self.std).prod(-1)",
        "normal_cdf((centre - rest) / self.std).prod(-1)",
        "the law of a router takes the level of its smallest open gate to be certain",
        "tests/neurons/test_noisy_top_k.py -k law",
    ),
    Mutation(
        "plugins/gradest_neurons/logistic_normal.py",
        "share * torch.exp(-(centred * away + 0.5 * away.square()).sum(-1))",
        "share * torch.exp((centred * away + 0.5 * away.square()).sum(-1))",
        "the derivative of the law has the wrong sign, and exact with it",
        "tests/neurons/test_logistic_normal.py -k derivative",
    ),
    Mutation(
        "plugins/gradest_neurons/correlated_binary_concrete.py",
        "(largest - rest) / n",
        "(largest + rest) / n",
        "the nodes of the law have another correlation than the draws",
        "tests/neurons/test_correlated_binary_concrete.py -k relaxed_law",
    ),
    Mutation(
        "plugins/gradest_neurons/invertible_gaussian.py",
        "noise / self.std / self.std",
        "noise / self.std",
        "the score of the density is off by the deviation",
        "tests/neurons/test_invertible_gaussian.py -k inverse",
    ),
    Mutation(
        "plugins/gradest_estimators/entropic_risk.py",
        "torch.stack([value - self.combine(rest) for rest in others])",
        "torch.stack([value - self.combine(loss) + 0 * rest[0] for rest in others])",
        "a sample is credited with nothing",
        "tests/estimators/test_entropic_risk.py -k unbiased",
    ),
    Mutation(
        "plugins/gradest_neurons/tempered_binary_concrete.py",
        "torch.stack([steep * slope, -x * slope], -1)",
        "torch.stack([steep * slope, x * slope], -1)",
        "the derivative in the log temperature has the wrong sign",
        "tests/neurons/test_tempered.py -k pathwise",
    ),
    Mutation(
        "plugins/gradest_neurons/tempered_gumbel_softmax.py",
        "torch.where(seen, torch.exp(warmer)[..., None], 1)",
        "torch.where(seen, torch.exp(-warmer)[..., None], 1)",
        "the derivative of the law in the temperature has the wrong sign, and exact with it",
        "tests/neurons/test_tempered.py -k derivative",
    ),
    Mutation(
        "plugins/gradest_estimators/eat.py",
        "step_slope * time / self.temperature",
        "step_slope / self.temperature",
        "all arrivals move with the rate as one at time 1 does",
        "tests/estimators/test_counts.py -k moments",
    ),
    Mutation(
        "plugins/gradest_estimators/generalised_gumbel_softmax.py",
        "centred = counts[:, None] - leading_sum(counts[:, None] * weights)",
        "centred = counts[:, None]",
        "the covariance of counts and scores is a product of their means too",
        "tests/estimators/test_counts.py -k relaxed_objective",
    ),
    Mutation(
        "plugins/gradest_neurons/plackett_luce.py",
        "        return _matrix(_falling(perturbed)).to(a.dtype)",
        "        return _matrix(_falling(-perturbed)).to(a.dtype)",
        "the least likely item comes first, so that draws have another law than their score",
        "tests/neurons/test_plackett_luce.py -k draws",
    ),
    Mutation(
        "plugins/gradest_neurons/plackett_luce.py",
        "places[:, None] > places[:-1]",
        "places[:, None] >= places[:-1]",
        "the score counts the place of an item twice",
        "tests/neurons/test_plackett_luce.py -k score",
    ),
    Mutation(
        "plugins/gradest_estimators/sparse_mixer.py",
        "torch.where(u < 0.25, 1.0, 1 / 3)",
        "torch.where(u < 0.75, 1.0, 1 / 3)",
        "the weights of Heun's rule are exchanged, and its order is lost",
        "tests/estimators/test_routers.py -k sparse_mixer",
    ),
    Mutation(
        "plugins/gradest_neurons/stochastic_gate.py",
        "rectified_normal_mean(upper - 1 / self.std))",
        "rectified_normal_mean(upper - 1))",
        "the mean of a gate whose noise has another deviation than 1",
        "tests/neurons/test_stochastic_gate.py -k mean_and",
    ),
    Mutation(
        "plugins/gradest_neurons/noisy_sigmoid.py",
        "torch.where(normal_cdf(a / self.std) > level",
        "torch.where(self.active_probability(a) > level",
        "a unit that is always positive is never thresholded",
        "tests/neurons/test_neurons.py -k always_positive",
    ),
    Mutation(
        "gradest/estimation/arguments.py",
        "    return bool((finite | (a == -math.inf)).all() and finite.any(-1).all())",
        "    return bool((finite | (a == -math.inf)).all() and finite.any())",
        "a unit all of whose classes are masked is accepted",
        "tests/estimation/test_pre_activations.py -k masks_are_refused",
    ),
    Mutation(
        "gradest/analysis/recommendation.py",
        "max(1, budget // asked) * certified",
        "max(1, budget / asked) * certified",
        "estimators are scored with parts of draws",
        "tests/analysis/test_recommendation.py -k whole_draws",
    ),
    Mutation(
        "service/gradest_service/admit/admission.py",
        "    if request.digest is not None:",
        "    if request.digest is None and job.seed is None:",
        "backward gives the gradient of another draw than forward made",
        "tests/service/test_digest.py -k 'refused'",
    ),
    Mutation(
        "gradest/client/endpoints.py",
        '        fields["digest"] = draw.digest',
        '        fields["digest"] = None',
        "the client does not let the service notice another draw",
        "tests/service/test_digest.py -k 'client'",
    ),
    Mutation(
        "gradest/client/endpoints.py",
        '    return {"loss": loss, "loss_dtype": str(loss.dtype).removeprefix("torch.")}',
        '    return {"loss": loss}',
        "the service takes losses for those of another dtype",
        "tests/service/test_precision_and_events.py -k 'losses_of_every_type'",
    ),
    Mutation(
        "service/gradest_service/admit/admission.py",
        "        loss = loss.to(loss_dtype(loss.dtype, least))",
        "        loss = loss.to(least)",
        "the service rounds losses to the dtype of the pre-activations",
        "tests/service/test_precision_and_events.py -k 'offset'",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "    if not layers and not any(isinstance(layer, Expectation) for layer in model.modules()):",
        "    if not layers and model is None:",
        "broadcast_loss takes a model without a stochastic layer",
        "tests/nn/test_silent_errors.py -k without_a_stochastic",
    ),
    Mutation(
        "gradest/nn/module.py",
        "    return form, one if same else {}",
        "    return form, {}",
        "no buffers of a state exist before the first step",
        "tests/nn/test_module_life.py -k from_the_start",
    ),
    Mutation(
        "gradest/nn/module.py",
        "        elif given and self._form is not None and not _fits(_form_of(given), self._form):",
        "        elif given and self._form is not None and given.keys() != self._form.keys():",
        "the state of another event shape is loaded",
        "tests/nn/test_module_life.py -k 'another_event'",
    ),
    Mutation(
        "gradest/estimation/expectation.py",
        "        state = state_of_first_call(key.seed, a, state)",
        "        state_of_first_call(key.seed, a, state)",
        "a checkpoint repeats a call of expect from a state that has seen its losses",
        "tests/estimation/test_repetition.py -k no_checkpoint",
    ),
    Mutation(
        "gradest/contract/estimator.py",
        '            counts = (x._version - wrote for x, wrote in zip((state["points"], state["a"]), written, strict=True))',
        '            counts = (x._version for x, wrote in zip((state["points"], state["a"]), written, strict=True))',
        "a copy of a draw forgets that its points were written to",
        "tests/estimation/test_losses.py -k copy_of_a_draw",
    ),
    Mutation(
        "gradest/nn/operators.py",
        "    if needs_slope and not is_recomputed():",
        "    if needs_slope and is_recomputed():",
        "a layer that is compiled alone is not trained by a detached cost, without a word",
        "tests/nn/test_silent_errors.py -k compiled_alone",
    ),
    Mutation(
        "gradest/analysis/rare_outputs.py",
        "            unlikely = neuron.log_prob(points, wide).exp() < probability",
        "            unlikely = neuron.log_prob(points, wide).exp() < 0",
        "the bias of saturated units is taken for established",
        "tests/analysis/test_comparison.py -k rare_outputs",
    ),
    Mutation(
        "gradest/nn/recomputation.py",
        "        if state and run.step != step:",
        "        if state and run.step > step:",
        "a checkpoint repeats a layer from a state that has moved since",
        "tests/nn/test_scopes.py -k from_another_state",
    ),
    Mutation(
        "gradest/estimation/credit.py",
        "        return DifferentiateOnce.apply(told, log_prob, loss), None, None, None  # type: ignore[no-untyped-call]",
        "        return told, None, None, None",
        "the second derivative of a surrogate is 0",
        "tests/estimation/test_credit.py",
    ),
    Mutation(
        "gradest/estimation/second_derivative.py",
        "    if a._version != writes:",
        "    if a._version < writes:",
        "a second derivative is taken at pre-activations that were written over",
        "tests/estimation/test_second_derivatives.py -k written_over",
    ),
    Mutation(
        "plugins/gradest_estimators/pathwise.py",
        "        return Bias.NONE_IF_CONTINUOUS",
        "        return Bias.NONE",
        "pathwise claims to be unbiased for losses that jump",
        "tests/analysis/test_recommendation.py -k condition",
    ),
    Mutation(
        "plugins/gradest_neurons/binary_concrete.py",
        "        return (sigmoid(a) > level).to(a.dtype)",
        "        return (self.active_probability(a) > level).to(a.dtype)",
        "a relaxed unit is never thresholded",
        "tests/neurons/test_neurons.py -k always_positive",
    ),
    Mutation(
        "gradest/analysis/recommendation.py",
        "key=lambda measured: abs(math.log(measured / units))",
        "key=lambda measured: measured",
        "estimators for many units are ranked by what was measured for two",
        "tests/analysis/test_recommendation.py -k as_many_units",
    ),
    Mutation(
        "gradest/client/addresses.py",
        "    if name is None or _is_this_machine(url.host) or _is_excluded(",
        "    if name is None or _is_excluded(",
        "a service on this machine is asked for through a proxy",
        "tests/client/test_connections.py -k 'this_machine or no_proxy'",
    ),
    Mutation(
        "gradest/client/clients.py",
        "        if self._process != os.getpid():  # the process was forked from the client's",
        "        if self._process == 0:",
        "a forked process reads the answers of its parent",
        "tests/client/test_connections.py -k forked",
    ),
    Mutation(
        "gradest/testing/laws.py",
        "    worst = float((product / error).abs().max())",
        "    worst = 0.0 * float((product / error).abs().max())",
        "the kit accepts units that share one noise",
        "tests/testing/test_checks.py -k joint_laws",
    ),
    Mutation(
        "gradest/testing/laws.py",
        "        worst = float(((sampled.mean(0) - value) / error).abs().max())",
        "        worst = 0.0 * float(((sampled.mean(0) - value) / error).abs().max())",
        "the kit accepts a neuron whose samples are not those of exact",
        "tests/testing/test_checks.py -k joint_laws",
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
        "gradest/estimation/expectation.py",
        "            partial(forbid_second, (a,))",
        "            partial(forbid_second, ())",
        "the derivative in a of the gradient of f's parameters is 0",
        "tests/estimation/test_second_derivatives.py -k 'mixed or depends'",
    ),
    Mutation(
        "gradest/nn/layers.py",
        "        return target.combine(loss.clone())",
        "        return loss.mean(0)",
        "after eval() the value for an estimator of a bound is the mean loss",
        "tests/nn/test_events.py -k evaluated_as_that_bound",
    ),
    Mutation(
        "gradest/nn/module.py",
        "        self.steps += 2",
        "        self.steps += 1",
        "a sample from before a state was reset moves it on",
        "tests/nn/test_module_life.py -k sample_from_before",
    ),
    Mutation(
        "gradest/nn/graph.py",
        "        value = value.flatten(dims).sum(-1) if value.ndim > dims else value.clone()  # the caller may write to the cost",
        "        value = value.flatten(dims).mean(-1) if value.ndim > dims else value.clone()",
        "a cost of several positions is credited with its mean",
        "tests/nn/test_graph.py -k depend_on_each_other",
    ),
    Mutation(
        "gradest/discovery/registry.py",
        'read_attribute(cls, "__module__"), type.__dict__["__qualname__"].__get__(cls)',
        'read_attribute(cls, "__module__")',
        "a class replaces another one of the same module and name",
        "tests/discovery/test_register.py -k 'another_class'",
    ),
    Mutation(
        "gradest/client/endpoints.py",
        '    return {} if event_dims is None else {"event_dims": event_dims}',
        "    return {}",
        "the service takes the positions of one event for a batch",
        "tests/service/test_precision_and_events.py -k several_dims",
    ),
    Mutation(
        "gradest/nn/graph.py",
        'reduction: Reduction = "mean", *, batch_dims: int = 1) -> Tensor:',
        'reduction: Reduction = "mean", *, batch_dims: int = 2) -> Tensor:',
        "each position is credited with its own loss alone, though others depend on it",
        "tests/nn/test_silent_errors.py -k attend",
    ),
    Mutation(
        "plugins/gradest_neurons/binomial.py",
        "n, h, wide = self.trials, h.double(), a.double()",
        "n, h, wide = self.trials, widen(h), widen(a)",
        "the log-probability of a thousand trials loses four digits in float32",
        "tests/neurons/test_binomial.py -k thousand",
    ),
    Mutation(
        "gradest/nn/uses.py",
        "            points = points.clone()  # a neuron may emit `a` itself",
        "            pass",
        "what is written into the output of a neuron that emits its input changes that",
        "tests/nn/test_silent_errors.py -k emits_its_input",
    ),
    Mutation(
        "gradest/estimation/ask_tell.py",
        "asked is not None and not asked.is_same(estimator):",
        "asked is not None and asked.name != estimator.name:",
        "an estimator is told the losses that it asked for with other options",
        "tests/estimation/test_losses.py -k only_the_estimator",
    ),
    Mutation(
        "gradest/estimation/arguments.py",
        "torch.float64 if given in (torch.int32, torch.int64) else given, least",
        "given, least",
        "integer losses are rounded to float32",
        "tests/estimation/test_losses.py -k integer_losses",
    ),
    Mutation(
        "gradest/estimation/losses/evaluation.py",
        "        if isinstance(node, BackwardCFunction):",
        "        if node is points:",
        "parameters inside a checkpoint in f get no gradient",
        "tests/estimation/test_expectation.py -k function_of_its_own",
    ),
    Mutation(
        "gradest/nn/uses.py",
        "            gradient = DifferentiateOnce.apply(gradient.to(a.dtype), a)  # type: ignore[no-untyped-call]",
        "            gradient = gradient.to(a.dtype)",
        "inside a transform of torch.func the second derivative of a layer is 0",
        "tests/nn/test_scopes.py -k second_derivative",
    ),
    Mutation(
        "gradest/estimation/expectation.py",
        "        guarded = differentiable_once(upstream, a, loss)[(...",
        "        guarded = upstream[(...",
        "the hessian of an estimate is 0",
        "tests/estimation/test_losses.py -k samples_do_not_give",
    ),
    Mutation(
        "gradest/client/differentiable.py",
        "        carrier.grad_fn.register_prehook(partial(forbid_second, sources))\n",
        "",
        "the second derivative of a client's estimate is 0",
        "tests/client/test_client.py -k second",
    ),
    Mutation(
        "gradest/nn/sampler.py",
        "        if not estimator.linear:",
        "        if False:",
        "a layer takes an estimator whose gradient is not linear in dL/dh",
        "tests/testing/test_checks.py -k layer_would_scale",
    ),
    Mutation(
        "gradest/testing/gradients.py",
        "of_more, _ = estimator.backward(draw, Feedback(loss, 3 * grad), state)",
        "of_more = 3 * gradient",
        "the kit does not look whether an estimator is linear in dL/dh",
        "tests/testing/test_checks.py -k layer_would_scale",
    ),
    Mutation(
        "gradest/contract/neuron.py",
        "    return *a.shape[:split], *neuron.output_event(tuple(a.shape[split:]))",
        "    return *a.shape[:split], *a.shape[split:]",
        "outputs are taken to have the event of the pre-activations",
        "tests/contract/test_output_events.py",
    ),
    Mutation(
        "gradest/contract/neuron.py",
        "        return event[-1]",
        "        return 1",
        "a one-hot unit states that its law has a single atom",
        "tests/contract/test_contract.py -k shapes_and_dtypes",
    ),
    Mutation(
        "gradest/kernels/cpu/noise.py",
        "words[0, row], words[1, row], words[2, row]",
        "words[0, row], words[2, row], words[1, row]",
        "a kernel swaps the two words of a row's own seed",
        "tests/kernels/test_kernels.py -k 'words or row or key'",
    ),
    Mutation(
        "gradest/nn/conditional.py",
        "            return conditional_forward(self._forward, x, gates)\n",
        "            return self._forward(x, gates)\n",
        "torch.compile looks into the kernels of a linear layer with gates",
        "tests/nn/test_conditional.py -k torch_compile",
    ),
)


# --- a copy of the tree, and its environment ---

SERVER = """
import json, os, sys
# what most tests need, and takes seconds to import
import fastapi, httpx, hypothesis, numba, pytest, scipy.stats, torch, torch._dynamo, typer, uvicorn
for line in sys.stdin:
    log, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = pytest.main(arguments)
        sys.stdout.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""
"""Runs pytest in a fork of a process that has torch already, for each line of arguments; answers with the exit code."""


class Copy:
    """A copy of the working tree, with a virtual environment in which its packages come first."""

    def __init__(self, folder: Path) -> None:
        self.tree = folder / "tree"
        # with times, so that what Python and numba have compiled stays valid
        shutil.copytree(REPOSITORY, self.tree, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_BEHIND))
        venv.create(self.tree / ".venv", symlinks=True, with_pip=False)
        self.python = self.tree / ".venv" / "bin" / "python"
        (site,) = (self.tree / ".venv" / "lib").glob("python*/site-packages")
        ours = [Path(path) for path in sys.path if path.endswith("site-packages") and Path(path).is_dir()]
        roots = [self.tree, self.tree / "plugins", self.tree / "service"]
        (site / "_copy.pth").write_text("\n".join(map(str, [*roots, *ours])) + "\n")
        for metadata in ours[0].glob("gradest-*.dist-info"):  # so that it is found first, with its entry points
            shutil.copytree(metadata, site / metadata.name)
        for script in (ours[0].parents[2] / "bin").iterdir():
            if script.is_file() and script.read_bytes()[:2] == b"#!":
                text = script.read_text().replace(str(ours[0].parents[2]), str(self.tree / ".venv"))
                (self.python.parent / script.name).write_text(text)
                (self.python.parent / script.name).chmod(0o755)
        self.log = folder / "log"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{self.python.parent}:{os.environ['PATH']}"}
        command, pipe = [self.python, "-c", SERVER], subprocess.PIPE
        self.server = subprocess.Popen(command, cwd=self.tree, env=environment, stdin=pipe, stdout=pipe, text=True)

    def try_one(self, mutation: Mutation) -> dict[str, object]:
        """Put the fault in, run its tests, and take it out."""
        path = self.tree / mutation.file
        text, times = path.read_text(), path.stat()
        path.write_text(mutated(text, mutation))
        started = time.monotonic()
        try:
            caught, by = self.run(mutation.tests)
        finally:
            path.write_text(text)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        return {"caught": caught, "by": by, "seconds": round(time.monotonic() - started, 1)}

    def run(self, tests: str) -> tuple[bool, str]:
        """Whether a test fails, and which; or why none did."""
        arguments = shlex.split(tests)
        marked = NOT_IN_MAKE_TEST
        if "-m" in arguments:
            at = arguments.index("-m")
            marked = f"({arguments[at + 1]}) and {marked}"
            del arguments[at : at + 2]
        arguments = [str(self.log), "-x", "-q", "-p", "no:cacheprovider", "-m", marked, *arguments]
        arguments += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of plugins that are imported already
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(arguments), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        said = self.log.read_text()
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
        if code == 1 or (code in (2, 4) and found):
            return True, found[1] if found else "?"
        if code == 0:
            return False, (said.strip().splitlines() or [""])[-1]
        raise RuntimeError(f"pytest ended with {code}: {arguments}\n{said}")

    def close(self) -> None:
        """End the server."""
        self.server.terminate()
        self.server.wait()


def mutated(text: str, mutation: Mutation) -> str:
    """The text with the fault in it."""
    if text.count(mutation.old) != 1:
        raise ValueError(f"{mutation.file} has {mutation.old!r} {text.count(mutation.old)} times, not once")
    return text.replace(mutation.old, mutation.new)


def check() -> list[str]:
    """What is out of date in the list."""
    faults = []
    for number, mutation in enumerate(MUTATIONS, 1):
        try:
            mutated((REPOSITORY / mutation.file).read_text(), mutation)
        except (OSError, ValueError) as error:
            faults.append(f"{number}: {error}")
        for word in mutation.tests.split():
            if word.startswith("tests/") and not (REPOSITORY / word.partition("::")[0]).exists():
                faults.append(f"{number}: there is no {word}")
    return faults


# --- the command line ---


def chosen(words: list[str]) -> list[int]:
    """Numbers from words such as "3" and "17-20"; all if there are none."""
    if not words:
        return list(range(1, len(MUTATIONS) + 1))
    found = []
    for word in words:
        first, _, last = word.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def table(results: dict[str, dict[str, object]]) -> str:
    """What was found, a line a fault, in Markdown."""
    lines = ["| # | file | what it breaks | caught by |", "| ---: | --- | --- | --- |"]
    for number, mutation in enumerate(MUTATIONS, 1):
        result = results.get(str(number))
        if result:
            by = f"`{result['by']}`" if result["caught"] else f"**missed** ({result['by']})"
            lines.append(f"| {number} | {mutation.file} | {mutation.breaks} | {by} |")
    return "\n".join(lines)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("numbers", nargs="*")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    if given.list:
        print(
            "\n".join(f"{number:3} {mutation.file}: {mutation.breaks}" for number, mutation in enumerate(MUTATIONS, 1))
        )
        return 0
    faults = check()
    if faults or given.check:
        print("\n".join(faults) or "up to date")
        return 1 if faults else 0
    results: dict[str, dict[str, object]] = {}
    if given.results and given.results.exists():
        results = json.loads(given.results.read_text())
    wanted = [number for number in chosen(given.numbers) if str(number) not in results]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for job in range(given.jobs):
            copy = Copy(Path(folder, str(job)))
            stack.callback(copy.close)
            copies.put(copy)

        def try_one(number: int) -> tuple[int, dict[str, object]]:
            copy = copies.get()
            try:
                return number, copy.try_one(MUTATIONS[number - 1])
            finally:
                copies.put(copy)

        pool = stack.enter_context(ThreadPoolExecutor(given.jobs))
        for task in as_completed([pool.submit(try_one, number) for number in wanted]):
            number, result = task.result()
            results[str(number)] = result
            verdict = "caught" if result["caught"] else "MISSED"
            print(f"{number:3} {verdict} {result['seconds']:6} s  {result['by']}", flush=True)
            if given.results:
                given.results.parent.mkdir(parents=True, exist_ok=True)
                given.results.write_text(json.dumps(results, indent=1))
    print(table(results))
    return 0 if all(result["caught"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
