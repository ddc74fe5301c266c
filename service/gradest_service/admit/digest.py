"""The digest of a draw: forward answers it, and backward can refuse losses that belong to another draw.

The service keeps nothing between forward and backward, which makes the draw again from what it is sent. Losses of another draw
would give a wrong gradient without any sign of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import sha256

import torch
from torch import Tensor

from gradest.contract.plugin import Plugin
from gradest.random import VERSION
from gradest_service.admit.jobs import EstimatorJob
from gradest_service.problems import Fault, Problem

__all__ = ["check_digest", "digest_of"]

_PARTS = ("neuron", "estimator", "a", "seed", "state", "the service's version of the noise")
_DIGITS = 12  # hexadecimal digits of each part: two of 2**48 values are equal by rare accident only


def digest_of(job: EstimatorJob) -> str:
    """Return the digest of all that determines the draw: a hash of each part, joined by dots.

    It is computed from the decoded request, so it does not depend on the content type, on whether default options are given, or
    on the form of numbers. A state of None is the estimator's first state.
    """
    parts = (
        _plugin_bytes(job.neuron),
        _plugin_bytes(job.estimator),
        _tensor_bytes({"a": job.a}),
        [str(job.seed).encode()],
        _state_bytes(job),
        [str(VERSION).encode()],
    )
    return ".".join(_hash(part) for part in parts)


def check_digest(job: EstimatorJob, given: str) -> None:
    """Raise a 409 that names what differs from the forward request that answered the digest `given`."""
    wanted = digest_of(job)
    if given == wanted:
        return
    parts = given.split(".")
    if len(parts) != len(_PARTS):
        raise Problem(
            409, "No forward request answers such a digest. Send the digest of forward's answer as it is, or none."
        )
    differing = [name for name, sent, own in zip(_PARTS, parts, wanted.split("."), strict=True) if sent != own]
    raise Problem(
        409,
        "The digest is that of another draw, so the gradient would be wrong. Not as in the forward request: "
        f"{', '.join(differing)}. Send what that request had, with the seed that its answer reports, or send a new "
        "forward request.",
        [Fault(field=name, message="not as in the forward request") for name in differing if name in _PARTS[:-1]],
    )


def _hash(chunks: Iterable[bytes | memoryview]) -> str:
    found = sha256()
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()[:_DIGITS]


def _plugin_bytes(plugin: Plugin) -> Iterable[bytes]:
    return plugin.name.encode(), plugin.model_dump_json().encode()


def _state_bytes(job: EstimatorJob) -> Iterable[bytes | memoryview]:
    """Yield the numbers of the state, or one word for the first state. What `a` determines, such as its dtype, is left out."""
    state, first = job.state, job.first_state
    if state is None or all(torch.equal(state[name], first[name]) for name in first):
        return [b"first"]
    return _tensor_bytes({name: x.double() if x.is_floating_point() else x for name, x in state.items()})


def _tensor_bytes(tensors: Mapping[str, Tensor]) -> Iterable[bytes | memoryview]:
    """Yield the names, dtypes, shapes and numbers of tensors. 0 and -0 are equal, because some JSON clients send no sign."""
    for name, tensor in sorted(tensors.items()):
        flat = (tensor.detach() + 0).contiguous().reshape(-1)
        yield f"{name} {tensor.dtype} {list(tensor.shape)} ".encode()
        yield flat.view(torch.uint8).numpy().data
