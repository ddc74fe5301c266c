"""What an operator can set."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Settings"]


class Settings(BaseModel):
    """The settings of one service. Every cap answers 413 and says what it is; `size` counts a dim of 0 as 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="the address to listen on")
    port: int = Field(8000, ge=0, le=65535, description="the port to listen on; 0 takes a free one")
    threads: int = Field(2, ge=1, description="requests that are computed at the same time; the others wait")
    shutdown_seconds: int = Field(10, ge=0, description="how long a stopping service lets running requests finish")

    max_body_bytes: int = Field(32 << 20, ge=1, description="of a request's body")
    max_json_bytes: int = Field(8 << 20, ge=1, description="of a request's body if it is JSON")
    max_elements: int = Field(1 << 22, ge=1, description="of one tensor in a request or an answer")
    max_json_elements: int = Field(1 << 16, ge=1, description="of one tensor in JSON, in a request or an answer")
    max_samples: int = Field(1 << 16, ge=0, description="samples of one request")
    max_draws: int = Field(1_000_000, ge=1, description="draws of one request")
    max_estimators: int = Field(100, ge=1, description="estimators that one comparison names")
    max_points: int = Field(1 << 22, ge=1, description="K x size of a: what one draw holds in memory")
    max_work: int = Field(1 << 27, ge=1, description="draws x K x size of a, and of tensor options, in one request")
