"""The service on Ray Serve, for more than one machine: `serve run gradest_service.ray:app`, with `gradest[ray]` on every node.

Each replica runs the application that `gradest serve` runs, unchanged, and answers alone. The settings are read, from
GRADEST_SERVICE_*, where `app` is imported, and are the same on all replicas; host and port are Ray's. How many replicas there
are, and what each takes, is `Scale`, from the environment too. Ray's proxy answers in text/plain what no replica sees: 404, 429
when the queues are full, 503. Limits are each replica's own: a key's budget counts once for each, and so do metrics.
"""

from __future__ import annotations

import os
from typing import Any, Self

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradest_service.app import create_app
from gradest_service.host.configuration import find_settings
from gradest_service.settings import Settings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

from ray import serve

__all__ = ["Scale", "app", "build"]

_OF_THE_REGISTRY = ("GRADEST_LOAD_PLUGINS", "GRADEST_STRICT_PLUGINS")  # read by each process itself


class Scale(BaseModel):
    """How the service is spread; GRADEST_RAY_REPLICAS=4 in the environment sets `replicas`, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(1, ge=1, description="processes that answer; with max_replicas, the least of them")
    max_replicas: int | None = Field(
        None, ge=1, description="as many as the load asks for, up to this; None keeps replicas"
    )
    target_ongoing_requests: float = Field(
        2, gt=0, description="requests in one replica on average, which autoscaling aims at"
    )
    max_ongoing_requests: int = Field(64, ge=1, description="requests that one replica holds; others wait in the proxy")
    max_queued_requests: int = Field(256, ge=1, description="requests that wait in one proxy; others are answered 429")
    retry_after: float = Field(1, ge=0, description="seconds after which such a client may try again")
    cpus: float = Field(1, ge=0, description="CPUs that one replica takes")
    gpus: float = Field(0, ge=0, description="GPUs that one replica takes; at 0.25, four of them share one")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is at least replicas")
        return self

    @classmethod
    def from_environment(cls) -> Scale:
        """The values of GRADEST_RAY_*, and defaults for the others."""
        prefix = "GRADEST_RAY_"
        return cls.model_validate(
            {name.removeprefix(prefix).lower(): value for name, value in os.environ.items() if name.startswith(prefix)}
        )

    def options(self) -> dict[str, Any]:
        """What `serve.deployment` takes."""
        if self.max_replicas is None:
            replicas: dict[str, Any] = {"num_replicas": self.replicas}
        else:
            replicas = {
                "autoscaling_config": {
                    "min_replicas": self.replicas,
                    "max_replicas": self.max_replicas,
                    "target_ongoing_requests": self.target_ongoing_requests,
                }
            }
        passed_on = {name: os.environ[name] for name in _OF_THE_REGISTRY if name in os.environ}
        return {
            **replicas,
            "max_ongoing_requests": self.max_ongoing_requests,
            "max_queued_requests": self.max_queued_requests,
            "backpressure_config": {"status_code": 429, "retry_after_s": self.retry_after},
            "ray_actor_options": {
                "num_cpus": self.cpus,
                "num_gpus": self.gpus,
                "runtime_env": {"env_vars": passed_on},
            },
        }


def build(settings: Settings | None = None, scale: Scale | None = None) -> serve.Application:
    """The deployment, bound: what `serve.run` takes."""
    settings = settings or find_settings({}).settings
    scale = scale or Scale.from_environment()

    def build_app() -> FastAPI:
        return create_app(settings)

    deployment = serve.deployment(name="gradest", graceful_shutdown_timeout_s=settings.grace(), **scale.options())
    return deployment(serve.ingress(build_app)()).bind()


app = build()
