"""What an operator can set."""

from __future__ import annotations

import ipaddress
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, FilePath, SecretStr, model_validator

__all__ = ["Settings"]


class Settings(BaseModel):
    """The settings of one service. Every cap answers 413 and says what it is; `size` counts a dim of 0 as 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="the port to listen on; 0 takes a free one")
    workers: int = Field(1, ge=1, description="processes; each has threads, limits and budgets of its own")
    threads: int = Field(2, ge=1, description="requests that are computed at the same time; the others wait")
    page: bool = Field(True, description="whether / is a page for people; else it leads to /docs")
    docs: bool = Field(True, description="whether /docs and /openapi.json are there")
    metrics: bool = Field(True, description="whether /metrics is there, if prometheus-client is installed")
    log_format: Literal["text", "json"] = Field("text", description="of the log, on standard error")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="the least that is logged; info has a line a request"
    )

    api_keys: FilePath | None = Field(None, description="a file of API keys' hashes; without it everybody is let in")
    allow_anonymous: bool = Field(False, description="without API keys, listen on other addresses than this machine's")
    ssl_certfile: FilePath | None = Field(None, description="the certificate, for HTTPS")
    ssl_keyfile: FilePath | None = Field(None, description="the certificate's key, if it is in a file of its own")
    ssl_keyfile_password: SecretStr | None = Field(None, description="of the key; better given by the environment")

    drain_seconds: float = Field(2, ge=0, description="how long /readyz says 503 after SIGTERM before the port closes")
    shutdown_seconds: int | None = Field(
        None, ge=0, description="how long running requests may then go on; the deadline and 5 more if not given"
    )
    deadline_seconds: float = Field(60, gt=0, description="from a request's first byte to its answer's last")
    max_requests: int = Field(256, ge=1, description="requests that a process holds, waiting ones included")
    max_pending_bytes: int = Field(1 << 28, ge=1, description="bodies that a process holds, all together")

    batching: bool = Field(
        True, description="whether requests of one kind are computed on together; answers are the same"
    )
    batch_wait_seconds: float = Field(0, ge=0, description="that a request waits for others even if a thread is free")
    batch_elements: int = Field(1 << 18, ge=1, description="that are computed on together at the most")

    max_body_bytes: int = Field(32 << 20, ge=1, description="of a request's body")
    max_json_bytes: int = Field(4 << 20, ge=1, description="of a request's body if it is JSON")
    max_elements: int = Field(1 << 22, ge=1, description="of one tensor in a request or an answer")
    max_json_elements: int = Field(1 << 16, ge=1, description="of one tensor in JSON, in a request or an answer")
    max_samples: int = Field(1 << 16, ge=0, description="samples of one request")
    max_draws: int = Field(1_000_000, ge=1, description="draws of one request")
    max_estimators: int = Field(100, ge=1, description="estimators that one comparison names")
    max_points: int = Field(1 << 22, ge=1, description="K x size of a: what one draw holds in memory")
    max_work: int = Field(1 << 27, ge=1, description="draws x K x size of a, and of tensor options, in one request")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not (self.api_keys or self.allow_anonymous or _is_loopback(self.host)):
            raise ValueError("host: other machines could come in without a key; set api_keys, or allow_anonymous")
        if self.ssl_certfile is None and (self.ssl_keyfile or self.ssl_keyfile_password):
            raise ValueError("ssl_keyfile: a key needs its certificate; set ssl_certfile")
        if self.max_pending_bytes < self.max_body_bytes:
            raise ValueError("max_pending_bytes: at least max_body_bytes, or the largest body could never come in")
        return self

    def grace(self) -> int:
        """How long a stopping service lets running requests finish, in seconds."""
        return int(self.deadline_seconds) + 5 if self.shutdown_seconds is None else self.shutdown_seconds


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
