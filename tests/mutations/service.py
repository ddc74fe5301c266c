"""Faults in the service and its page."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "service/gradest_service/admit/limits.py",
        "    if job.samples > settings.max_samples:",
        "    if job.samples > 1000 * settings.max_samples:",
        "a request may ask for any number of samples",
        "tests/service/test_limits.py -k cap",
    ),
    Mutation(
        "service/gradest_service/admit/auth.py",
        "self._requests.take_or_wait(1)",
        "self._requests.take_or_wait(0)",
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
        "tests/browser/test_comparison.py -k code",
    ),
    Mutation(
        "service/gradest_service/page/compare.js",
        "ticks(SWEEP, -EDGE, EDGE).map(",
        "ticks(SWEEP, EDGE, -EDGE).map(",
        "the sweep over a pre-activation goes from its end to its beginning",
        "tests/browser/test_playground.py -k swept",
    ),
    Mutation(
        "service/gradest_service/page/api.js",
        "if (sent !== null) headers.Authorization = `Bearer ${sent}`;",
        "if (sent !== null) headers.Authorization = sent;",
        "the page sends a key in a form that no service knows",
        "tests/browser/test_page.py -k key",
    ),
    Mutation(
        "service/gradest_service/admit/admission.py",
        "    if request.digest is not None:",
        "    if request.digest is None and job.seed is None:",
        "backward gives the gradient of another draw than forward made",
        "tests/service/test_digest.py -k 'refused'",
    ),
    Mutation(
        "service/gradest_service/admit/admission.py",
        "        loss = loss.to(loss_dtype(loss.dtype, least))",
        "        loss = loss.to(least)",
        "the service rounds losses to the dtype of the pre-activations",
        "tests/service/test_precision_and_events.py -k 'offset'",
    ),
)
