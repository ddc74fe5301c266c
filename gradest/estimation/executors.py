"""Where the blocks of an estimate are computed: in this thread, by a concurrent.futures.Executor, or on a Ray cluster."""

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
    """run(*call) for each call, in their order whatever ends first; by None in this thread, as they are asked for.

    window: how many calls are handed to the executor ahead. When one raises, or the iterator is closed, the calls that have not
    begun are cancelled and those that run are waited for, so that none outlives the iterator.
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
    result = ahead[0].result()  # not popped yet: what interrupts the wait leaves it to be cancelled
    ahead.popleft()
    return result


class RayExecutor(Executor):
    """Runs each call as a task of a Ray cluster: the one that `ray.init` joined, or else one of this machine.

        gradest.estimate(f, a, draws=10**6, executor=gradest.RayExecutor(num_cpus=1))

    options: of `ray.remote`, such as num_cpus, num_gpus (a fraction may do), resources, max_retries, runtime_env. A task whose
    worker dies runs again, to the same result. A function is sent to the cluster once and not with every call; Ray serialises it,
    so it may be a closure or come from a notebook, but the modules that it is imported from, plugins included, must be
    installed on every node. A task's own exception is raised here as it was there.

    Needs the extra `gradest[ray]`. Ray's usage reports are turned off, unless RAY_USAGE_STATS_ENABLED says otherwise.
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
        """The future of fn(*args, **kwargs)."""
        if fn not in self._sent:
            self._sent[fn] = self._ray.put(fn)
        return _Task(self._ray, self._task.remote(self._sent[fn], args, kwargs))


class _Task(Future[Any]):
    """The future of a Ray task, with the exception that the task raised in place of Ray's own around it."""

    def __init__(self, ray: Any, reference: Any) -> None:
        super().__init__()
        self._ray = ray
        self._reference = reference
        reference.future().add_done_callback(self._finish)

    def cancel(self) -> bool:
        """Have the cluster drop the task, or interrupt it."""
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
