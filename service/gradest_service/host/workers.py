"""Several processes on one port. One that dies, hangs, or has lost all its threads is replaced, while the others continue."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Protocol

from fastapi import FastAPI

from gradest.errors import GradestError, InvalidInput
from gradest_service.admit import metrics
from gradest_service.host import logs
from gradest_service.host.server import FAILED, announce, bind, run_process, url_of
from gradest_service.resources.budgets import check_folder
from gradest_service.settings import Settings

__all__ = ["run_workers", "shared_folder"]

_LOG = logging.getLogger("gradest_service")
_SPAWN = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
_SILENT_SECONDS = 20.0  # without one, after which a worker counts as hung: its event loop is never busy for so long
_BYTES_OF_COUNTS = 1 << 20  # that the metrics of a worker take, at most
_RESTART_SECONDS = 1.0  # at least, between the start of a worker and that of its replacement

_ALIVE, _STUCK = b"alive", b"stuck"

Factory = Callable[[Settings], FastAPI]


class SharingFactory(Protocol):
    """Builds the application of a process that shares the budgets of API keys with others, through a folder."""

    def __call__(self, settings: Settings, *, budgets: Path) -> FastAPI:
        """Build the application."""


def run_workers(settings: Settings, create_app: SharingFactory) -> None:
    """Serve from `settings.workers` processes until SIGINT or SIGTERM; at the second signal they are killed."""
    logs.set_up(settings)
    counted = settings.metrics and metrics.available()
    with shared_folder(settings.workers) as folder, ExitStack() as listening:
        listeners = [listening.enter_context(each) for each in bind(settings)]
        counts, budgets = folder / "metrics", folder / "budgets"
        if counted:
            os.environ[metrics.FOLDER_VARIABLE] = str(counts)
        try:
            _Supervisor(settings, partial(create_app, budgets=budgets), listeners, [counts, budgets]).run()
        finally:
            os.environ.pop(metrics.FOLDER_VARIABLE, None)


@contextmanager
def shared_folder(workers: int) -> Iterator[Path]:
    """Make a folder through which workers share counts and limits, and remove it at the end.

    Raises InvalidInput, with the reason and the remedy, if that is impossible: at the start, and not at the first request.
    """
    with ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix="gradest-", ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
            check_folder(folder)
            space = folder / "space"
            space.write_bytes(bytes(workers * _BYTES_OF_COUNTS))  # counts are mapped: a full disk would kill a worker
            space.unlink()
        except OSError as error:
            raise InvalidInput(
                f"the workers need a folder for their counts and the limits of keys: {error.strerror}. Set TMPDIR to one that "
                f"can be written to and has {workers * _BYTES_OF_COUNTS >> 20} MB of space, or run one process, with workers=1"
            ) from error
        yield folder


class _Supervisor:
    """Starts the workers, replaces those that die, and passes on the signal to stop."""

    def __init__(
        self, settings: Settings, create_app: Factory, listeners: Sequence[socket.socket], folders: Sequence[Path]
    ) -> None:
        self._settings = settings
        self._create_app = create_app
        self._listeners = listeners
        self._folders = folders
        self._workers: list[_Worker] = []
        self._announced = False
        self._stopping = False
        self._exit_code = 0

    def run(self) -> None:
        """Run until all workers have ended."""
        kept = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for _ in range(self._settings.workers):
                self._start()
            if all(worker.wait_until_accepting() for worker in self._workers) and not self._stopping:
                announce(url_of(self._settings, self._listeners[0]))
                self._announced = True
            while self._workers:
                wait([worker.process.sentinel for worker in self._workers], timeout=0.2)
                for worker in self._workers:
                    if not self._stopping and (fault := worker.fault()):
                        _LOG.error("worker %s %s and is ended", worker.process.pid, fault)
                        worker.process.kill()
                        worker.process.join()
                for worker in [worker for worker in self._workers if not worker.process.is_alive()]:
                    self._replace(worker)
            if self._exit_code:
                raise SystemExit(self._exit_code)
        finally:
            for worker in self._workers:
                worker.process.kill()
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _start(self) -> None:
        for folder in self._folders:  # what cleans up temporary folders may have removed them
            folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_run_worker, args=(self._settings, self._create_app, self._listeners, theirs))
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        if self._stopping:  # the signal came before this worker was in the list
            process.terminate()

    def _replace(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        process = worker.process
        if (counts := os.environ.get(metrics.FOLDER_VARIABLE)) and process.pid is not None:
            metrics.forget_worker(process.pid, counts)
        if self._stopping:
            return
        if process.exitcode == FAILED and not self._announced:
            self._exit_code = FAILED  # the others could not start either
            self._stop()
            return
        _LOG.error("worker %s ended with %s and is replaced", process.pid, process.exitcode)
        time.sleep(max(0.0, worker.started + _RESTART_SECONDS - time.monotonic()))
        self._start()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._stopping:
            self._exit_code = 128 + number
            for worker in self._workers:
                worker.process.kill()
        else:
            self._stop()

    def _stop(self) -> None:
        self._stopping = True
        for (
            listener
        ) in self._listeners:  # the port closes with the last worker's copy, and no connection waits for nobody
            listener.close()
        for worker in self._workers:
            worker.process.terminate()


class _Worker:
    """One process, and the pipe through which it announces that it accepts connections, and from then on that it is alive."""

    def __init__(self, process: SpawnProcess, beats: Connection) -> None:
        self.process = process
        self.started = time.monotonic()
        self._beats = beats
        self._heard: float | None = None
        self._last = b""

    def wait_until_accepting(self) -> bool:
        """Wait until the worker accepts connections; returns False if it ends before."""
        try:
            self._hear()
        except EOFError:
            return False
        return True

    def fault(self) -> str:
        """Return why the worker cannot answer requests any more; "" if it can, or has not yet begun to."""
        try:
            while self._beats.poll():
                self._hear()
        except (EOFError, OSError):
            return ""  # it has ended
        if self._heard is not None and time.monotonic() - self._heard > _SILENT_SECONDS:
            return f"has given no sign of life for {_SILENT_SECONDS:g} seconds"
        return "has lost all its threads to plugins" if self._last == _STUCK else ""

    def _hear(self) -> None:
        self._last = self._beats.recv_bytes()
        self._heard = time.monotonic()


def _run_worker(settings: Settings, create_app: Factory, listeners: Sequence[socket.socket], beats: Connection) -> None:
    """Serve as a worker, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a keyboard sends it to every process; the supervisor passes it on
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()

    def announce_alive(stuck: bool) -> None:
        with suppress(OSError):  # the supervisor has ended
            beats.send_bytes(_STUCK if stuck else _ALIVE)

    try:
        run_process(settings, create_app, listeners, lambda url: announce_alive(False), announce_alive)
    except (GradestError, OSError) as error:
        _LOG.error("%s", error)
        raise SystemExit(FAILED) from error


def _end_with_the_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)
