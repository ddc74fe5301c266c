"""The log: one line for each request and each error, as text or as JSON; lines within a request have its id."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from gradest_service.admit.request_context import RequestContext, current_request
from gradest_service.settings import Settings

__all__ = ["log_request", "set_up"]

_REQUESTS = logging.getLogger("gradest_service.requests")


def set_up(settings: Settings) -> None:
    """Send the log of this process to standard error. Only for a process that the service has to itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("gradest_service").setLevel(settings.log_level.upper())


def log_request(context: RequestContext, status: int, seconds: float) -> None:
    """Log the line of a request that is over."""
    if not _REQUESTS.isEnabledFor(logging.INFO):
        return
    fields = {
        "method": context.method,
        "route": context.route,
        "status": status,
        "seconds": round(seconds, 6),
        "elements": context.elements,
        "bytes_in": context.bytes_in,
        "bytes_out": context.bytes_out,
        "key": context.key.name if context.key else "",
    }
    _REQUESTS.info("answered", extra={"fields": fields})


class _Json(logging.Formatter):
    """Writes each record as a JSON object on a line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Text(logging.Formatter):
    """Writes each record as text on a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items() if value != "")
        line = f"{_time(record)} {record.levelname} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    context = current_request.get()
    return ({"request_id": context.request_id} if context else {}) | getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
