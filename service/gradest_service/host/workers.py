"""Several processes on one port. A process that dies is replaced, while the others continue."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from types import FrameType

from fastapi import FastAPI

from gradest.errors import GradestError
from gradest_service.admit import metrics
from gradest_service.host import logs
from gradest_service.host.server import FAILED, announce, run_process, url_of
from gradest_service.settings import Settings

__all__ = ["run_workers"]

_LOG = logging.getLogger("gradest_service")
_SPAWN = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
_RESTART_SECONDS = 1.0  # at least, between the start of a worker and that of its replacement

Factory = Callable[[Settings], FastAPI]


def run_workers(settings: Settings, create_app: Factory) -> None:
    """Serve from `settings.workers` processes until SIGINT or SIGTERM; at the second signal they are killed."""
    logs.set_up(settings)
    folder = None
    if settings.metrics and metrics.available():
        folder = os.environ[metrics.FOLDER_VARIABLE] = tempfile.mkdtemp(prefix="gradest-metrics-")
    try:
        with _bind(settings) as listener:
            _Supervisor(settings, create_app, listener, folder).run()
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            del os.environ[metrics.FOLDER_VARIABLE]


class _Supervisor:
    """Starts the workers, replaces those that die, and passes on the signal to stop."""

    def __init__(self, settings: Settings, create_app: Factory, listener: socket.socket, folder: str | None) -> None:
        self._settings = settings
        self._create_app = create_app
        self._listener = listener
        self._folder = folder
        self._workers: list[_Worker] = []
        self._stopping = False
        self._exit_code = 0

    def run(self) -> None:
        """Run until all workers have ended."""
        kept = {number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for _ in range(self._settings.workers):
                self._start()
            if all(worker.wait_until_accepting() for worker in self._workers) and not self._stopping:
                announce(url_of(self._settings, self._listener))
            while self._workers:
                wait([worker.process.sentinel for worker in self._workers], timeout=0.2)
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
        ours, theirs = _SPAWN.Pipe(duplex=False)
        process = _SPAWN.Process(target=_run_worker, args=(self._settings, self._create_app, self._listener, theirs))
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))
        if self._stopping:  # the signal came before this worker was in the list
            process.terminate()

    def _replace(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        process = worker.process
        if self._folder is not None and process.pid is not None:
            metrics.forget_worker(process.pid, self._folder)
        if self._stopping:
            return
        if process.exitcode == FAILED:
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
        for worker in self._workers:
            worker.process.terminate()


class _Worker:
    """One process, and the pipe through which it announces that it accepts connections."""

    def __init__(self, process: SpawnProcess, accepting: Connection) -> None:
        self.process = process
        self.started = time.monotonic()
        self._accepting = accepting

    def wait_until_accepting(self) -> bool:
        """Wait until the worker accepts connections; returns False if it ends before."""
        try:
            self._accepting.recv_bytes()
        except EOFError:
            return False
        return True


def _run_worker(settings: Settings, create_app: Factory, listener: socket.socket, accepting: Connection) -> None:
    """Serve as a worker, in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a keyboard sends it to every process; the supervisor passes it on
    threading.Thread(target=_end_with_the_supervisor, daemon=True).start()
    try:
        run_process(settings, create_app, [listener], lambda url: accepting.send_bytes(b"accepting"))
    except GradestError as error:
        _LOG.error("%s", error)
        raise SystemExit(FAILED) from error


def _end_with_the_supervisor() -> None:
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _bind(settings: Settings) -> socket.socket:
    """Create the listening socket that the workers share."""
    family, *_, address = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address, family=family, backlog=2048)
