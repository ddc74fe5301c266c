"""Computes answers that are sent as a stream: operations that report how far they are."""

from __future__ import annotations

import time
from typing import Any

from gradest.estimation.results import Estimate
from gradest_service.admit.jobs import ComparisonJob, EstimateJob
from gradest_service.bodies.schemas import EstimateAnswer
from gradest_service.run import operations
from gradest_service.run.cancellation import raise_if_cancelled
from gradest_service.run.device import Device
from gradest_service.run.event_stream import Report
from gradest_service.settings import Settings

__all__ = ["stream_comparison", "stream_estimate"]

_REPORT_SECONDS = 0.1  # at least, between two events of an estimate


def stream_comparison(job: ComparisonJob, device: Device, report: Report) -> dict[str, Any]:
    """Compute a comparison, and report how many draws each estimator has made."""

    def report_progress(estimator: str, done: int, draws: int) -> None:
        raise_if_cancelled()
        if done:  # else it is a step of a warm-up
            report({"estimator": estimator, "done": done, "draws": draws})

    return operations.compare(job, report_progress, device).to_dict()


def stream_estimate(job: EstimateJob, settings: Settings, device: Device, report: Report) -> EstimateAnswer:
    """Compute an estimate, and report the estimate so far from time to time."""
    reported_at = time.monotonic()

    def report_estimate(found: Estimate) -> None:
        nonlocal reported_at
        if time.monotonic() - reported_at >= _REPORT_SECONDS:
            reported_at = time.monotonic()
            report(operations.to_answer(job, found, device=device))

    return operations.estimate(job, settings, device, report_estimate)
