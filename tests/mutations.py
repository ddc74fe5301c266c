"""Sixty faults, a line each, that the tests must find: a sign, a factor, a swapped argument, a dropped check, a missing limit.

    python tests/mutations.py                         all of them
    python tests/mutations.py 3 17-20                 some of them, by number
    python tests/mutations.py --list                  what there is
    python tests/mutations.py --jobs 2 --results runs/mutations.json

Each fault is put into a copy of the working tree, in a temporary folder with a virtual environment that leads to it. The tests named
beside it are run there, those alone that `make test` runs; then the fault is taken out again. A fault is caught if one of them fails.
With --results what is found is kept, and faults that the file has already are not tried again.

The exit code is 1 if a fault is missed. A test whose subject moves takes its faults along: `file`, `old` and `tests` are to be kept
right, and `--check` says quickly whether each text still stands exactly once in its file and each test file is there.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
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
        "(_unsigned(x0) << 21) | (_unsigned(x1) >> 11)",
        "(_unsigned(x0) << 21) | (_unsigned(x1) >> 10)",
        "the two words of the seed of a repetition overlap",
        "tests/test_random.py",
    ),
    Mutation(
        "gradest/random.py",
        "flat(self.seed), flat(self.seed >> 32)",
        "flat(self.seed), flat(self.seed >> 31)",
        "the upper word of a seed is another",
        "tests/test_random.py tests/test_expectation.py",
    ),
    Mutation(
        "gradest/random.py",
        "not 0 <= seed < MAX_SEED",
        "not 0 <= seed <= MAX_SEED",
        "a seed that JSON cannot tell from its neighbour is accepted",
        "tests/test_random.py tests/test_expectation.py",
    ),
    Mutation(
        "gradest/kernels/reference.py",
        "for block in range(5):",
        "for block in range(4):",
        "Threefry has 16 rounds",
        "tests/test_random.py",
    ),
    Mutation(
        "gradest/kernels/reference.py",
        "return leading_sum(weights[..., None] * torch.where(h == high, q, -p))",
        "return leading_sum(weights[..., None] * torch.where(h == high, q, p))",
        "the sign of the score of a unit that is low",
        "tests/test_kernels.py",
    ),
    Mutation(
        "gradest/kernels/reference.py",
        "return (loss - leading_mean(loss)) / (len(loss) - 1)",
        "return (loss - leading_mean(loss)) / len(loss)",
        "leave-one-out weights are (K-1)/K of what they should be",
        "tests/test_kernels.py",
    ),
    Mutation(
        "gradest/kernels/portable.py",
        "return y * ((z.to(c.integer) + c.bias) << c.mantissa).view(x.dtype)",
        "return y * ((z.to(c.integer) + c.bias - 1) << c.mantissa).view(x.dtype)",
        "e^x is halved",
        "tests/test_kernels.py",
    ),
    Mutation(
        "gradest/kernels/cpu/binary.py",
        "mirror[i] = high if one - u[i] < p[i] else low",
        "mirror[i] = high if u[i] < p[i] else low",
        "an antithetic pair is twice the same sample",
        "tests/test_kernels.py -k antithetic",
    ),
    Mutation(
        "gradest/kernels/cpu/noise.py",
        "x0, x1 = _four_rounds(x0, x1, k1, uint32(k2 + uint32(4)), 13, 15, 26, 6)",
        "x0, x1 = _four_rounds(x0, x1, k1, uint32(k2 + uint32(5)), 13, 15, 26, 6)",
        "the noise of the kernels for the CPU is not the reference's",
        "tests/test_kernels.py -k uniform",
    ),
    Mutation(
        "gradest/kernels/cpu/scores.py",
        "weights[k, row] = (loss[k, row] - mean) / (count - a.dtype.type(1))",
        "weights[k, row] = (mean - loss[k, row]) / (count - a.dtype.type(1))",
        "the sign of the fused leave-one-out score",
        "tests/test_kernels.py -k score",
    ),
    Mutation(
        "gradest/kernels/conditional_cpu.py",
        "scale[k] = grad[index[k], u] * gate[k]",
        "scale[k] = grad[index[k], u]",
        "the gradient of a gated layer's weights leaves out the gate",
        "tests/test_conditional.py -k 'values or differences'",
    ),
    Mutation(
        "gradest/kernels/cuda/noise.py",
        "x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 4, 13, 15, 26, 6)",
        "x0, x1 = _four_rounds(x0 + k1, x1 + k2 + 5, 13, 15, 26, 6)",
        "the noise of the kernels for CUDA is not the reference's",
        "tests/test_cuda_kernels.py",
    ),
    # --- the contract ---
    Mutation(
        "gradest/estimator.py",
        "return least - torch.log(leading_mean(torch.exp(least - loss)))",
        "return least + torch.log(leading_mean(torch.exp(least - loss)))",
        "the sign of the multi-sample bound's correction",
        "tests/estimators/test_multi_sample.py",
    ),
    Mutation(
        "gradest/neuron.py",
        "if_high = log_u - softplus(-a) - torch.log1p(-noise * p)",
        "if_high = log_u - softplus(-a) + torch.log1p(-noise * p)",
        "the relaxation given a high output has another law",
        "tests/test_neurons.py tests/estimators/test_learned.py",
    ),
    Mutation(
        "gradest/neuron.py",
        '"sample": ("forward", "noise"),',
        '"sample": ("forward",),',
        "a neuron with noise of its own inherits a kernel that draws other noise",
        "tests/test_kernels.py -k inherit",
    ),
    Mutation(
        "gradest/enumeration.py",
        "if units * math.log2(max(atoms, 1)) > math.log2(MAX_POINTS):",
        "if units * math.log2(max(atoms, 1)) > math.log2(MAX_POINTS) + 4:",
        "an enumeration may have 16 times the points that are allowed",
        "tests/test_expectation.py -k twenty",
    ),
    # --- discovery ---
    Mutation(
        "gradest/registry.py",
        'if cls.name in getattr(owner, f"{kind}s"):',
        'if cls.name in getattr(owner, f"{kind}s", ()) and owner is self:',
        "a stranger's plugin takes the name of a built-in",
        "tests/registry/test_loading.py -k 'taken or every_bad'",
    ),
    Mutation(
        "gradest/registry.py",
        "self._loaded, self._plugins, self._failures = False, (), ()",
        "self._loaded, self._plugins, self._failures = True, (), ()",
        "after an interrupt while plugins load there are none",
        "tests/registry/test_loading.py -k 'interrupt or strict'",
    ),
    Mutation(
        "gradest/discovery.py",
        "return not source.built_in, _normalised(source.distribution)",
        "return source.built_in, _normalised(source.distribution)",
        "strangers' plugins load before the built-in ones",
        "tests/registry/test_loading.py -k 'order or taken'",
    ),
    Mutation(
        "gradest/checks.py",
        "if not isinstance(summary, str) or len(summary.splitlines()) != 1:",
        "if not isinstance(summary, str) or len(summary.splitlines()) > 1:",
        "a plugin without a summary is accepted",
        "tests/registry/test_register.py tests/registry/test_loading.py",
    ),
    # --- estimation ---
    Mutation(
        "gradest/exchange.py",
        "    if given.shape != shape:",
        "    if given.ndim != len(shape):",
        "losses of the wrong shape are broadcast",
        "tests/test_expectation.py tests/service/test_errors.py -k 'arguments or feedback'",
    ),
    Mutation(
        "gradest/expectation.py",
        "            loss += part.detach()",
        "            loss = part.detach()",
        "the exact loss is that of the last chunk",
        "tests/test_expectation.py -k exact",
    ),
    Mutation(
        "gradest/expectation.py",
        "standard_error=(variance / gradients.count).sqrt().to(dtype),",
        "standard_error=(variance / max(1, gradients.count - 1)).sqrt().to(dtype),",
        "the standard error is too large by √(n / (n - 1))",
        "tests/test_expectation.py -k 'estimate'",
    ),
    Mutation(
        "gradest/repetition.py",
        "n = min(most, step - first % step, draws - first)",
        "n = min(most, step, draws - first)",
        "blocks reach over the ends of steps",
        "tests/test_expectation.py -k blocks",
    ),
    Mutation(
        "gradest/repetition.py",
        "self.squares + other.squares + gap**2 * (self.count * other.count / total),",
        "self.squares + other.squares + gap**2 * (self.count / total),",
        "variances of several blocks are merged wrongly",
        "tests/test_expectation.py -k 'variance or mean'",
    ),
    Mutation(
        "gradest/executors.py",
        "wait([future for future in ahead if not future.cancel()])",
        "wait([])",
        "an error leaves blocks running",
        "tests/test_executors.py",
    ),
    Mutation(
        "gradest/parallel.py",
        "examples = rank() + world_size() * torch.arange(batch[0])",
        "examples = rank() * batch[0] + torch.arange(batch[0])",
        "processes do not draw the noise of the joined batch",
        "tests/test_nn.py tests/experiments/test_parallel.py -k processes",
    ),
    # --- analysis ---
    Mutation(
        "gradest/comparison.py",
        "efficiency=1 / (variance * found.evaluations) if variance else math.inf,",
        "efficiency=1 / variance if variance else math.inf,",
        "efficiency does not count evaluations",
        "tests/test_comparison.py",
    ),
    Mutation(
        "gradest/comparison.py",
        "share = snr**2 / (snr**2 + 1 / draws) if math.isfinite(snr) else 1.0",
        "share = snr / (snr + 1 / draws) if math.isfinite(snr) else 1.0",
        "the relative error is no longer that of the best multiple",
        "tests/test_certificate.py -k relative",
    ),
    Mutation(
        "gradest/bias.py",
        "promised=claim.order >= order,",
        "promised=claim.order > order,",
        "a claim to be exact to an order is not tested at that order",
        "tests/test_certificate.py tests/contract/test_kit.py -m 'not slow'",
    ),
    Mutation(
        "gradest/certificate.py",
        "return all(math.isclose(new, old, rel_tol=1e-3, abs_tol=1e-6) for new, old in pairs)",
        "return all(math.isclose(new, old, rel_tol=1e3, abs_tol=1e-6) for new, old in pairs)",
        "a certificate of other code passes for current",
        "tests/test_certificate.py -k changed",
    ),
    Mutation(
        "gradest/recommendation.py",
        "if evaluations is not None and asked > evaluations:",
        "if evaluations is not None and asked > 2 * evaluations:",
        "estimators are recommended that cost more than the caller can pay",
        "tests/test_recommendation.py",
    ),
    # --- nn ---
    Mutation(
        "gradest/nn.py",
        "factor = widen(scale * self.share)",
        "factor = widen(scale)",
        "a mean over the batch is trained as a sum",
        "tests/test_nn.py -m 'not slow'",
    ),
    Mutation(
        "gradest/nn.py",
        "state = {name: _move(old, state[name], 1 / self._merged) for name, old in self.state.items()}",
        "state = {name: _move(old, state[name], 1 / (1 + self._merged)) for name, old in self.state.items()}",
        "the states of several uses of a layer are not averaged evenly",
        "tests/test_nn.py -m 'not slow'",
    ),
    Mutation(
        "gradest/ears.py",
        "(scale * ctx.share).expand_as(loss)",
        "scale.expand_as(loss)",
        "in a compiled graph a mean over the batch is trained as a sum",
        "tests/test_transforms.py tests/test_compiled.py -m 'not slow'",
    ),
    Mutation(
        "gradest/conditional.py",
        "grad_gates = grad_gates.where(gates != 0, 0)",
        "grad_gates = grad_gates.where(gates == 0, 0)",
        "open gates get no gradient where closed ones should get none",
        "tests/test_conditional.py -k gate",
    ),
    # --- the kit, the client, the command line ---
    Mutation(
        "gradest/testing.py",
        "assert float(smooth.double().mean()) > 0.99,",
        "assert float(smooth.double().mean()) > -1,",
        "the kit accepts a neuron whose backward is no derivative",
        "tests/contract/test_kit.py -k neurons",
    ),
    Mutation(
        "gradest/wire.py",
        "place[1] - place[0] != math.prod(shape) * dtype.itemsize:",
        "place[1] - place[0] < math.prod(shape) * dtype.itemsize:",
        "a body whose tensors are smaller than their bytes is accepted",
        "tests/service/test_codec.py -k 'malformed or mutation'",
    ),
    Mutation(
        "gradest/client/exchange.py",
        "most = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._tries - 1, _DOUBLINGS))",
        "most = max(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(self._tries - 1, _DOUBLINGS))",
        "the first wait before another try is five seconds",
        "tests/test_client.py -k wait",
    ),
    Mutation(
        "gradest/client/answers.py",
        "date = date.replace(tzinfo=UTC)",
        "pass",
        "a date without a zone is taken for local time",
        "tests/test_client.py -k date",
    ),
    Mutation(
        "gradest/cli/arguments.py",
        r'pairs = re.split(r",(?=\s*\w+\s*=)", options) if options else []',
        'pairs = options.split(",") if options else []',
        "an option that is a list is cut at its commas",
        "tests/test_cli.py -k read_",
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
        "torch.exp(-0.5 * z * z) / (self.std * math.sqrt(2 * math.pi))",
        "torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)",
        "the density of gaussian noise of another deviation than 1",
        "tests/contract/test_contract.py -k 'test_neuron and gaussian'",
    ),
    Mutation(
        "plugins/gradest_estimators/arm.py",
        "* (noise - 0.5)), state",
        "* (0.5 - noise)), state",
        "the sign of a gradient",
        "tests/estimators/test_binary.py tests/contract/test_contract.py -k 'arm'",
    ),
    Mutation(
        "plugins/gradest_estimators/rebar.py",
        "return loss[0] * score, path - loss[2] * score",
        "return loss[0] * score, path + loss[2] * score",
        "a control variate that has another mean than 0",
        "tests/estimators/test_learned.py tests/contract/test_contract.py -k 'rebar'",
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
        "return sigmoid(torch.where(h == neuron.high, -a, a))",
        "return sigmoid(torch.where(h == neuron.high, a, -a))",
        "the weight of a flip is that of no flip",
        "tests/contract/test_contract.py -k 'local_expectation or bitflip or ugc'",
    ),
    Mutation(
        "plugins/gradest_objectives/quadratic.py",
        "return (h - self.target.to(h)) ** 2",
        "return (h + self.target.to(h)) ** 2",
        "the target of a loss has the other sign",
        "tests/test_objectives.py",
    ),
    # --- experiments ---
    Mutation(
        "gradest/experiments/sparsity.py",
        "layer.weight *= torch.where(norm > limit, limit / norm, 1.0)",
        "layer.weight *= torch.where(norm > limit, norm / limit, 1.0)",
        "weights that are too long become longer",
        "tests/experiments/test_sparsity.py",
    ),
    Mutation(
        "gradest/experiments/checkpoint.py",
        "weights_only=True",
        "weights_only=False",
        "a checkpoint can run code",
        "tests/experiments/test_checkpoint.py",
    ),
    Mutation(
        "gradest/experiments/training.py",
        '{"params": gater, "lr": rate * settings.gater_scale}',
        '{"params": gater, "lr": rate / settings.gater_scale}',
        "the learning rate of the gater",
        "tests/experiments/test_training.py -k gater_scale",
    ),
    Mutation(
        "gradest/experiments/vae/model.py",
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
        "tests/service/test_limits.py",
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
        '    _check_finite(field, tensor, f" of {dtype_name(dtype)}")\n    return tensor',
        "    return tensor",
        "numbers that are not finite in their dtype are accepted",
        "tests/service/test_errors.py",
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
        "tests/service/test_errors.py tests/service/test_recommend.py",
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
        'if (value === null) return "None";',
        'if (value === null) return "null";',
        "code for Python that is none",
        "tests/browser/test_page.py",
    ),
    Mutation(
        "service/gradest_service/page/compare.js",
        "cost: mean * answer.evaluations });",
        "cost: mean });",
        "the chart of variance times evaluations leaves out the evaluations",
        "tests/browser/test_page.py -k swept",
    ),
    Mutation(
        "service/gradest_service/page/api.js",
        "if (sent !== null) headers.Authorization = `Bearer ${sent}`;",
        "if (sent !== null) headers.Authorization = sent;",
        "the page sends a key in a form that no service knows",
        "tests/browser/test_page.py -k key",
    ),
)


# --- a copy of the tree, and its environment ---


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
        words = re.findall(r"'[^']*'|\S+", tests)
        arguments = [word.strip("'") for word in words]
        marked = NOT_IN_MAKE_TEST
        if "-m" in arguments:
            at = arguments.index("-m")
            marked = f"({arguments[at + 1]}) and {marked}"
            del arguments[at : at + 2]
        command = [self.python, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", marked, *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(command, cwd=self.tree, env=environment, capture_output=True, text=True)
        found = re.search(r"^(?:FAILED|ERROR) (\S+)", ran.stdout, re.MULTILINE)
        if ran.returncode == 1 or (ran.returncode == 2 and found):
            return True, found[1] if found else "?"
        if ran.returncode == 0:
            return False, (ran.stdout.strip().splitlines() or [""])[-1]
        raise RuntimeError(
            f"pytest ended with {ran.returncode}: {' '.join(map(str, command))}\n{ran.stdout}{ran.stderr}"
        )


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
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(given.jobs) as pool:
        copies: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        for job in range(given.jobs):
            copies.put(Copy(Path(folder, str(job))))

        def try_one(number: int) -> tuple[int, dict[str, object]]:
            copy = copies.get()
            try:
                return number, copy.try_one(MUTATIONS[number - 1])
            finally:
                copies.put(copy)

        for task in concurrent.futures.as_completed([pool.submit(try_one, number) for number in wanted]):
            number, result = task.result()
            results[str(number)] = result
            print(
                f"{number:3} {'caught' if result['caught'] else 'MISSED'} {result['seconds']:6} s  {result['by']}",
                flush=True,
            )
            if given.results:
                given.results.parent.mkdir(parents=True, exist_ok=True)
                given.results.write_text(json.dumps(results, indent=1))
    print(table(results))
    return 0 if all(result["caught"] for result in results.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
