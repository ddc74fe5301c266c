"""The service on Ray Serve, for more than one machine: `serve run gradest_service.ray:app`, with `gradest[ray]` on every node.

Each replica runs the application that `gradest serve` runs, unchanged, and answers by itself. The settings are read from
GRADEST_SERVICE_* by the process that imports `app`, and are the same on all replicas; Ray chooses host and port. `Scale`, also
from the environment, tells how many replicas there are and what resources each has. Requests that reach no replica are answered
by Ray's proxy in text/plain: 404, 429 if the queues are full, and 503.

The replicas on one machine share the limits of each API key, through a folder of that machine. Machines count apart: on three of
them a key may do three times as much. All other limits hold for each replica, and so do metrics.
"""

from __future__ import annotations

import os
import secrets
from typing import Any, Self

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gradest_service.app import create_app
from gradest_service.host.configuration import load_settings
from gradest_service.resources.budgets import folder_of_machine
from gradest_service.settings import Settings

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when ray is imported

from ray import serve

__all__ = ["Scale", "app", "build"]

_REGISTRY_VARIABLES = ("GRADEST_LOAD_PLUGINS", "GRADEST_STRICT_PLUGINS")  # every process reads them itself


class Scale(BaseModel):
    """The number of replicas and their resources; GRADEST_RAY_REPLICAS=4 in the environment sets `replicas`, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    replicas: int = Field(1, ge=1, description="Number of replicas; with max_replicas, the smallest number.")
    max_replicas: int | None = Field(
        None,
        ge=1,
        description="Largest number of replicas, to which Ray scales with the load; None keeps the number fixed.",
    )
    target_ongoing_requests: float = Field(
        2, gt=0, description="Average number of requests in one replica at which autoscaling aims."
    )
    max_ongoing_requests: int = Field(
        64, ge=1, description="Maximum number of requests in one replica; further ones wait in the proxy."
    )
    max_queued_requests: int = Field(
        256, ge=1, description="Maximum number of requests that wait in one proxy; further ones are answered 429."
    )
    retry_after: float = Field(1, ge=0, description="Seconds after which a client that was answered 429 may try again.")
    cpus: float = Field(1, ge=0, description="CPUs of one replica.")
    gpus: float = Field(0, ge=0, description="GPUs of one replica; with 0.25, four replicas share one GPU.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas must be at least replicas")
        return self

    @classmethod
    def from_environment(cls) -> Scale:
        """Read the values of GRADEST_RAY_*; the others keep their defaults."""
        prefix = "GRADEST_RAY_"
        return cls.model_validate(
            {name.removeprefix(prefix).lower(): value for name, value in os.environ.items() if name.startswith(prefix)}
        )

    def options(self) -> dict[str, Any]:
        """Return the options of `serve.deployment`."""
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
        passed_on = {name: os.environ[name] for name in _REGISTRY_VARIABLES if name in os.environ}
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
    """Build the bound deployment that `serve.run` takes."""
    settings = settings or load_settings({}).settings
    if settings.allowed_hosts is None:  # the proxy has other names, which Ray chooses
        settings = settings.model_copy(update={"allowed_hosts": "*"})
    scale = scale or Scale.from_environment()

    name = f"gradest-{secrets.token_hex(16)}"  # of this application, as every replica knows it

    def build_app() -> FastAPI:
        return create_app(settings, folder_of_machine(name) if settings.api_keys else None)

    deployment = serve.deployment(name="gradest", graceful_shutdown_timeout_s=settings.grace(), **scale.options())
    return deployment(serve.ingress(build_app)()).bind()


app = build()
