"""The settings that an operator can choose."""

from __future__ import annotations

import ipaddress
from contextlib import suppress
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, model_validator

__all__ = ["Settings"]


class Settings(BaseModel):
    """The settings of one service. A request over a cap is answered 413, which names the cap; sizes count a dim of 0 as 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    workers: int = Field(
        1,
        ge=1,
        description="Number of processes; each has its own threads and limits, and they share the limits of API keys.",
    )
    threads: int = Field(
        3,
        ge=1,
        description="Requests computed at the same time by a process; further ones wait, and the callers take turns. Of several "
        "threads, one is never taken by requests of more than heavy_work, or of much memory.",
    )
    heavy_work: int = Field(
        1 << 20,
        ge=1,
        description="Work of a request, as max_work counts it, with that of exact values, above which it leaves one thread to "
        "lighter ones.",
    )
    device: str = Field(
        "cpu",
        pattern=r"^(cpu|cuda(:\d+)?|auto)$",
        description="Where answers are computed: cpu, cuda, cuda:1 and so on, or auto, which is cuda where there is one.",
    )
    page: bool = Field(True, description="Serve the web page at /; without it, / redirects to /docs.")
    docs: bool = Field(True, description="Serve /docs and /openapi.json.")
    metrics: bool = Field(True, description="Serve /metrics, if prometheus-client is installed.")
    tracing: bool = Field(
        False,
        description="Report each request and its phases as spans of OpenTelemetry, which the variables OTEL_* configure; needs "
        "gradest[otel].",
    )
    log_format: Literal["text", "json"] = Field("text", description="Format of the log on standard error.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level that is logged; info includes a line for each request."
    )

    api_keys: FilePath | None = Field(
        None, description="File with the hashes of API keys; without it, no request needs a key."
    )
    allow_anonymous: bool = Field(
        False, description="Allow other addresses than this machine's own although there are no API keys."
    )
    allowed_hosts: str | None = Field(
        None,
        description="Names that the Host header of a request may have, separated by commas; * is any. If omitted: localhost, the "
        "name of host, and addresses; with API keys, any.",
    )
    cors_origins: str = Field(
        "",
        description="Origins of web pages elsewhere that may use the service, such as https://lab.example, separated by commas; "
        "* is any.",
    )
    trusted_proxies: str = Field(
        "",
        description="Addresses and networks of proxies, separated by commas, whose X-Forwarded-For and X-Forwarded-Proto are "
        "believed.",
    )
    ssl_certfile: FilePath | None = Field(None, description="Certificate file, for HTTPS.")
    ssl_keyfile: FilePath | None = Field(
        None, description="The certificate's private key, if it is in a file of its own."
    )
    ssl_keyfile_password: SecretStr | None = Field(
        None, description="Password of the private key; the environment is a safer place for it than a flag."
    )

    drain_seconds: float = Field(
        2, ge=0, description="How long /readyz answers 503 after SIGTERM before the port closes."
    )
    shutdown_seconds: int | None = Field(
        None,
        ge=0,
        description="How long running requests may then continue; if omitted, 5 seconds more than the deadline.",
    )
    deadline_seconds: float = Field(
        60,
        gt=0,
        description="Time limit of a request, from its first byte to the last byte of its answer, which is cut off then.",
    )
    max_lost_threads: int = Field(
        2,
        ge=1,
        description="Number of threads whose code did not end at the deadline, after which their plugin is set aside: requests "
        "for it are answered 503.",
    )
    max_memory_bytes: int = Field(
        1 << 30,
        ge=1,
        description="Memory of requests that are computed in a process and of answers that are not yet sent, in bytes, as "
        "plugins state it; further work waits for room. Heavy work takes three quarters of it at most.",
    )
    max_connections: int = Field(
        1024,
        ge=1,
        description="Maximum number of open connections of a process; a further one is answered 503 and closed.",
    )
    max_connections_per_client: int | None = Field(
        None,
        ge=1,
        description="Maximum number of open connections from one address, or from one network /64 of IPv6, to a process; those "
        "of trusted_proxies do not count. If omitted, half of max_connections. A further one is answered 429 and closed.",
    )
    head_seconds: float = Field(
        10,
        gt=0,
        description="Time limit of a TLS handshake, and of the head of a request, from its first byte, or from the connection; "
        "also of the rest of a body that was answered before it was whole.",
    )
    max_requests: int = Field(256, ge=1, description="Maximum number of requests in a process, waiting ones included.")
    max_requests_per_key: int | None = Field(
        None,
        ge=1,
        description="Maximum number of requests that one API key has in progress in a process; if omitted, half of max_requests.",
    )
    min_body_rate: float = Field(
        1024,
        ge=0,
        description="Least rate, in bytes a second, at which the body of a request must arrive after its first five seconds.",
    )
    max_pending_bytes: int = Field(
        1 << 28, ge=1, description="Maximum total size of the bodies of the requests in a process, in bytes."
    )

    batching: bool = Field(True, description="Compute requests of one kind together; their answers stay the same.")
    batch_wait_seconds: float = Field(
        0, ge=0, description="How long a request waits for others of its kind even if a thread is free."
    )
    batch_elements: int = Field(1 << 18, ge=1, description="Maximum number of elements computed together.")

    max_body_bytes: int = Field(32 << 20, ge=1, description="Maximum size of a request's body, in bytes.")
    max_json_bytes: int = Field(4 << 20, ge=1, description="Maximum size of a request's body in JSON, in bytes.")
    max_elements: int = Field(1 << 22, ge=1, description="Maximum size of one tensor of a request or an answer.")
    max_json_elements: int = Field(
        1 << 16, ge=1, description="Maximum size of one tensor in JSON, of a request or an answer."
    )
    max_samples: int = Field(1 << 16, ge=0, description="Maximum samples of one request.")
    max_draws: int = Field(1_000_000, ge=1, description="Maximum draws of one request.")
    max_estimators: int = Field(100, ge=1, description="Maximum number of estimators that one comparison names.")
    max_points: int = Field(
        1 << 22,
        ge=1,
        description="Maximum elements that one draw, or the mean of one row, holds in memory: K x size of a, with the inner "
        "samples, nodes, networks and state that the plugins state.",
    )
    max_work: int = Field(
        1 << 27,
        ge=1,
        description="Maximum work of one request: draws x K x size of a, or what plugins state if that is more, tensor options "
        "of the objective included, and 256 for each call of a pointwise objective; for credit, K x size of the loss; for means, "
        "their nodes.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise ValueError("host: other machines could send requests without a key; set api_keys or allow_anonymous")
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_keyfile_password):
            raise ValueError("ssl_keyfile: a private key needs its certificate; set ssl_certfile")
        if self.max_pending_bytes < self.max_body_bytes:
            raise ValueError(
                "max_pending_bytes: it must be at least max_body_bytes, or the largest body could never be accepted"
            )
        for word in map(str.strip, self.trusted_proxies.split(",")):
            if "/" in word and not _is_network(word):
                raise ValueError(
                    f"trusted_proxies: {word} is not a network, such as 10.0.0.0/8, so it would trust no proxy"
                )
        return self

    @property
    def max_heavy_bytes(self) -> int:
        """What all heavy work of a process may take, so that light work finds room."""
        return self.max_memory_bytes * 3 // 4

    @property
    def max_light_bytes(self) -> int:
        """What a piece of light work may take: a thread's part of the room that heavy work leaves."""
        return self.max_memory_bytes // (4 * self.threads)

    def grace(self) -> int:
        """Return how long a stopping service lets running requests continue, in seconds."""
        return int(self.deadline_seconds) + 5 if self.shutdown_seconds is None else self.shutdown_seconds


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_network(word: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_network(word)  # strict, as uvicorn reads it
        return True
    return False
