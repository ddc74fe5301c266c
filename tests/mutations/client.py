"""Faults in `gradest.client`."""

from tests.mutations.mutation import Mutation

MUTATIONS = (
    Mutation(
        "gradest/client/wire.py",
        "place[1] - place[0] != math.prod(shape) * _DTYPES[code][1]:",
        "place[1] - place[0] < math.prod(shape) * _DTYPES[code][1]:",
        "a tensor smaller than its bytes is refused for the size of its shape",
        "tests/service/test_codec.py -k 'malformed or mutation'",
    ),
    Mutation(
        "gradest/client/transports.py",
        "longest = min(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._attempts - 1, _DOUBLINGS))",
        "longest = max(_LONGEST_DELAY, _FIRST_DELAY * 2.0 ** min(self._attempts - 1, _DOUBLINGS))",
        "the first wait before another try is five seconds",
        "tests/client/test_retries.py -k wait",
    ),
    Mutation(
        "gradest/client/responses.py",
        "date = date.replace(tzinfo=UTC)",
        "pass",
        "a date without a zone is taken for local time",
        "tests/client/test_retries.py -k date",
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
        '    return {"loss": loss, "loss_dtype": name}',
        '    return {"loss": loss}',
        "the service takes losses for those of another dtype",
        "tests/service/test_precision_and_events.py -k 'losses_of_every_type'",
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
        "gradest/client/endpoints.py",
        '    return {} if event_dims is None else {"event_dims": event_dims}',
        "    return {}",
        "the service takes the positions of one event for a batch",
        "tests/service/test_precision_and_events.py -k several_dims",
    ),
    Mutation(
        "gradest/client/differentiable.py",
        "        carrier.grad_fn.register_prehook(partial(forbid_second, sources))\n",
        "",
        "the second derivative of a client's estimate is 0",
        "tests/client/test_client.py -k second",
    ),
)
