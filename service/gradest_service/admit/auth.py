"""API keys: who may send requests, how often, and for how much work.

A key is 256 random bits. A file of the service has a line for each key, with its SHA-256 hash and its limits:

    alice sha256:9f86d081...                                       # no limits
    bob   sha256:60303ae2... requests_per_second=5 elements_per_minute=1000000

The file is read again whenever it changes. Replace it in a single step (`mv new keys`), and the new keys are in force at once.
One that is rewritten in place is read once nobody has written to it for a second, or for ten if nothing is left in it, because it
may be half written until then. If it cannot be read or has a fault, the keys stay as they were, the log says so, and it is read
again every ten seconds.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradest.errors import InvalidInput
from gradest_service.problems import Problem
from gradest_service.resources.budgets import TokenBucket

__all__ = ["HEALTH_PATHS", "ApiKey", "ApiKeys", "new_key"]

HEALTH_PATHS = frozenset({"/livez", "/readyz"})
"""The paths that need no key. All others need one, even those that do not exist."""

_SETTLED_SECONDS = 1.0  # without a write, after which a file that is rewritten in place counts as whole
_EMPTY_SECONDS = 10.0  # the same for one in which no key is left
_RETRY_SECONDS = 10.0  # after which a file that could not be read is read again
_LOG = logging.getLogger("gradest_service")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_LEAST = {"requests_per_second": 0, "elements_per_minute": 1}  # the smallest request computes one element
_HASH = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass
class ApiKey:
    """One API key, known by its hash, with its limits; None is no limit."""

    name: str
    digest: bytes = field(repr=False)
    requests_per_second: float | None = None
    elements_per_minute: float | None = None
    folder: Path | None = field(default=None, repr=False)
    """Where several processes share what is left of the limits."""

    def __post_init__(self) -> None:
        rate, elements = self.requests_per_second, self.elements_per_minute
        self._requests = None if rate is None else self._bucket("requests", rate, max(1.0, rate))
        self._elements = None if elements is None else self._bucket("elements", elements / 60, elements)

    @property
    def line(self) -> str:
        """What tells it from other keys, and from the same key with other limits."""
        return repr(self) + self.digest.hex()

    def _bucket(self, what: str, rate: float, capacity: float) -> TokenBucket:
        shared = None if self.folder is None else (self.folder, f"{what} of {self.line}")
        return TokenBucket(rate, capacity, shared=shared)

    def admit(self) -> None:
        """Count a request; raises a 429 with the time to wait if a limit is reached."""
        if self._elements is not None and (wait := self._elements.wait(1)):
            raise _limited(f"This key may compute {self.elements_per_minute:g} elements a minute.", wait)
        if self._requests is not None and (wait := self._requests.take_or_wait(1)):
            raise _limited(f"This key may send {self.requests_per_second:g} requests a second.", wait)

    def charge(self, elements: int) -> None:
        """Take the elements that a request computes from the budget."""
        if self._elements is not None:
            self._elements.take(elements)


class ApiKeys:
    """The keys of a file, read again when it changes. A key whose line did not change keeps its used-up budget.

    folder: where processes with the same keys share the budgets; if omitted, this process has its own.
    """

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        self._path = path
        self._folder = folder
        self._stamp = _stamp(path)
        self._retry_at = math.inf
        self._keys = _read(path, folder)
        self._warn_of_none()

    def identify(self, authorization: Sequence[str]) -> ApiKey:
        """Return the key in a request's Authorization headers; raises a 401 if there is no valid one."""
        self._refresh()
        scheme, _, token = (authorization[0] if len(authorization) == 1 else "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _unauthorized("Send an API key: Authorization: Bearer KEY.", "Bearer")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        # all are compared, whichever matches, so that the time reveals nothing
        found = [key for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not found:
            raise _unauthorized("There is no such API key.", 'Bearer error="invalid_token"')
        return found[0]

    def _refresh(self) -> None:
        stamp = _stamp(self._path)
        if stamp == self._stamp and time.monotonic() < self._retry_at:
            return
        age = time.time() - stamp[-1] / 1e9 if stamp else 0.0
        in_place = stamp != self._stamp and stamp[:1] == self._stamp[:1]
        if in_place and age < _SETTLED_SECONDS:
            return
        try:
            found = _read(self._path, self._folder)
        except InvalidInput as error:
            self._stamp, self._retry_at = stamp, time.monotonic() + _RETRY_SECONDS
            _LOG.error("the API keys stay as they were: %s", error)
            return
        if _stamp(self._path) != stamp or (in_place and not found and age < _EMPTY_SECONDS):
            return
        self._stamp, self._retry_at = stamp, math.inf
        kept = {key.line: key for key in self._keys}
        self._keys = [kept.get(key.line, key) for key in found]
        _LOG.info("%d API keys are in force", len(found))
        self._warn_of_none()

    def _warn_of_none(self) -> None:
        if not self._keys:
            _LOG.warning(
                "%s has no API keys, so every request that needs one is answered 401; gradest serve --new-api-key NAME makes one",
                self._path,
            )


def new_key(name: str) -> tuple[str, str]:
    """Create a key; returns the key itself, for its holder alone, and the line of the file that makes it valid."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "the name of a key may have letters, digits and the characters . _ -, and at most 64 of them"
        )
    key = f"gradest_{secrets.token_urlsafe(32)}"
    return key, f"{name} sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def _read(path: Path, folder: Path | None) -> list[ApiKey]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"API keys: {error}") from error
    keys = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            try:
                keys.append(_parse(words, folder))
            except ValueError as error:
                raise InvalidInput(f"API keys, {path}, line {number}: {error}") from error
    for what, found in (("name", [key.name for key in keys]), ("hash", [key.digest for key in keys])):
        if len(set(found)) < len(found):
            raise InvalidInput(f"API keys, {path}: two lines have the same {what}")
    return keys


def _parse(words: list[str], folder: Path | None) -> ApiKey:
    name, digest = words[0], _HASH.fullmatch(words[1] if len(words) > 1 else "")
    if not _NAME.fullmatch(name) or digest is None:
        raise ValueError("it must be NAME sha256:HASH, with 64 hexadecimal digits")
    limits = {}
    for word in words[2:]:
        limit, _, value = word.partition("=")
        if limit not in _LEAST or limit in limits:
            raise ValueError("the limits are requests_per_second=NUMBER and elements_per_minute=NUMBER")
        limits[limit] = float(value)
        least = _LEAST[limit]
        if not (limits[limit] > 0 and limits[limit] >= least and math.isfinite(limits[limit])):
            raise ValueError(f"{limit} must be a number {f'of at least {least}' if least else 'above 0'}")
    return ApiKey(name, bytes.fromhex(digest[1]), **limits, folder=folder)


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when the file does."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _unauthorized(detail: str, challenge: str) -> Problem:
    return Problem(401, detail, headers={"WWW-Authenticate": challenge})


def _limited(detail: str, wait: float) -> Problem:
    return Problem(429, f"{detail} Send it again later.", headers={"Retry-After": str(math.ceil(wait))})
