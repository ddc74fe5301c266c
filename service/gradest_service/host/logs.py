"""The log: one line for each request and each error, as text or as JSON; lines within a request have its id."""

from __future__ import annotations

import atexit
import json
import logging
import queue
import sys
import threading
import time
from contextlib import suppress
from typing import Any, TextIO

from gradest_service.admit.request_context import RequestContext, current_request
from gradest_service.settings import Settings

__all__ = ["flush", "log_request", "set_up"]

_MOST_LINES = 10_000  # that wait for a stream
_FLUSH_SECONDS = 1.0
_REQUESTS = logging.getLogger("gradest_service.requests")


def set_up(settings: Settings) -> None:
    """Send the log of this process to standard error. Only for a process that the service has to itself."""
    handler = _Unblocked(sys.stderr)
    handler.setFormatter(_Json() if settings.log_format == "json" else _Text())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("gradest_service").setLevel(settings.log_level.upper())


def flush() -> None:
    """Write the lines that wait, before the process ends without further ado."""
    for handler in logging.getLogger().handlers:
        handler.flush()


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
        "client": context.client,
    }
    _REQUESTS.info("answered", extra={"fields": fields})


class _Unblocked(logging.Handler):
    """Writes lines to a stream in a thread of its own, so that a stream that nobody reads stops no request.

    Lines beyond those that wait are dropped; once the stream takes lines again, one says how many.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.dropped = 0
        self._stream = stream
        self._lines: queue.SimpleQueue[str | threading.Event] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Add the line of a record to those that wait, unless there are too many."""
        if self._lines.qsize() >= _MOST_LINES:
            self.dropped += 1
            return
        try:
            self._lines.put(self.format(record))
        except Exception:
            self.handleError(record)
            return
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._write, name="gradest-log", daemon=True)
            self._thread.start()
            atexit.register(self.flush)

    def flush(self) -> None:
        """Wait for the lines so far to be written, for a second at most."""
        if self._thread is not None and self._thread.is_alive():
            written = threading.Event()
            self._lines.put(written)
            written.wait(_FLUSH_SECONDS)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if isinstance(line, threading.Event):
                line.set()
                continue
            dropped, self.dropped = self.dropped, 0
            if dropped:
                more = logging.makeLogRecord(
                    {
                        "name": __name__,
                        "levelno": logging.WARNING,
                        "levelname": "WARNING",
                        "msg": f"{dropped} lines were dropped",
                    }
                )
                line = f"{self.format(more)}\n{line}"
            with suppress(OSError, ValueError):  # the stream is closed
                self._stream.write(line + "\n")
                self._stream.flush()


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
    ids = {} if context is None else {"request_id": context.request_id}
    if context is not None and context.trace_id:
        ids["trace_id"] = context.trace_id
    return ids | getattr(record, "fields", {})


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"
