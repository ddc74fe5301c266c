"""Executors for the blocks of an estimate: this thread, any concurrent.futures.Executor, or a Ray cluster."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor, Future, wait
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from gradest.errors import GradestError

__all__ = ["RayExecutor", "run_in_order"]

Result = TypeVar("Result")


def run_in_order(
    run: Callable[..., Result], calls: Iterable[tuple[Any, ...]], executor: Executor | None, window: int
) -> Generator[Result, None, None]:
    """Yield run(*call) for each call, in the order of the calls. Without an executor each runs in this thread, when it is
    requested.

    window: the number of calls that are submitted to the executor ahead. When a call raises, or the iterator is closed, calls
        that have not begun are cancelled and running ones are waited for, so that none outlives the iterator.
    """
    if executor is None:
        for call in calls:
            yield run(*call)
        return
    ahead: deque[Future[Result]] = deque()
    try:
        for call in calls:
            ahead.append(executor.submit(run, *call))
            if len(ahead) == window:
                yield _first(ahead)
        while ahead:
            yield _first(ahead)
    finally:
        wait([future for future in ahead if not future.cancel()])


def _first(ahead: deque[Future[Result]]) -> Result:
    result = ahead[0].result()  # popped only afterwards, so that it is cancelled if the wait is interrupted
    ahead.popleft()
    return result


class RayExecutor(Executor):
    """Runs each call as a task of a Ray cluster: the cluster that `ray.init` joined, or a new one on this machine.

        gradest.estimate(f, a, draws=10**6, executor=gradest.RayExecutor(num_cpus=1))

    options: those of `ray.remote`, such as num_cpus, num_gpus (which may be a fraction), resources, max_retries, runtime_env. A
        task whose worker dies runs again and gives the same result. A function is sent to the cluster once, not with every call.
        Ray serialises it, so it may be a closure or come from a notebook, but the modules that it imports, plugins included, must
        be installed on every node. An exception of a task is raised here.

    Needs the extra `gradest[ray]`. Ray's usage reports are off, unless RAY_USAGE_STATS_ENABLED is set.
    """

    def __init__(self, **options: Any) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray  # noqa: PLC0415  # an extra
        except ImportError as error:
            raise GradestError("a Ray cluster needs ray: pip install 'gradest[ray]'") from error
        self._ray = ray
        self._task = ray.remote(_call).options(**options)
        self._sent: WeakKeyDictionary[Callable[..., Any], Any] = WeakKeyDictionary()

    def submit(self, fn: Callable[..., Result], /, *args: Any, **kwargs: Any) -> Future[Result]:
        """Return the future of fn(*args, **kwargs)."""
        if fn not in self._sent:
            self._sent[fn] = self._ray.put(fn)
        return _Task(self._ray, self._task.remote(self._sent[fn], args, kwargs))


class _Task(Future[Any]):
    """The future of a Ray task, whose exception is the one that the task raised, without Ray's wrapper."""

    def __init__(self, ray: Any, reference: Any) -> None:
        super().__init__()
        self._ray = ray
        self._reference = reference
        reference.future().add_done_callback(self._finish)

    def cancel(self) -> bool:
        """Cancel the task on the cluster, or interrupt it if it is running."""
        if self.done():
            return super().cancel()
        self._ray.cancel(self._reference, force=False)
        return super().cancel()

    def _finish(self, done: Future[Any]) -> None:
        if not self.set_running_or_notify_cancel():
            return
        error = done.exception()
        if error is None:
            self.set_result(done.result())
        else:
            self.set_exception(error.cause if isinstance(error, self._ray.exceptions.RayTaskError) else error)


def _call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return function(*args, **kwargs)
