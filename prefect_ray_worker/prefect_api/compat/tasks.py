"""Private names around task runs and their futures."""

import sys
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefect.client.schemas.objects import State
    from prefect.task_engine import BaseTaskRunEngine


def end_task_threads(end: "Callable[[int], None]", *, within: float) -> None:
    """Make `ThreadPoolTaskRunner.cancel_all` interrupt running tasks instead of waiting for them.

    Prefect's own `cancel_all` (3.8.8) waits until every started task is done, so a cancelled run
    would continue for as long as its longest task.

    Args:
        end: Interrupts the thread with the given id.
        within: Seconds to wait for the threads afterwards.
    """
    from prefect.task_runners import ThreadPoolTaskRunner

    def cancel_all(self: ThreadPoolTaskRunner[Any]) -> None:
        executor, self._executor = self._executor, None  # pyright: ignore[reportPrivateUsage]
        if executor is None:
            return
        executor.shutdown(wait=False, cancel_futures=True)
        threads = list(executor._threads)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for thread in threads:
            if thread.ident is not None and _runs_a_task(thread.ident):
                end(thread.ident)
        deadline = time.monotonic() + within
        for thread in threads:
            thread.join(max(0, deadline - time.monotonic()))

    ThreadPoolTaskRunner.cancel_all = cancel_all


def _runs_a_task(ident: int) -> bool:
    frame = sys._current_frames().get(ident)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    while frame is not None and frame.f_globals.get("__name__") != "prefect.task_engine":
        frame = frame.f_back
    return frame is not None


def in_process_pools(prepare: "Callable[[], None]") -> None:
    """Call a function in each process that a `ProcessPoolTaskRunner` starts from now on.

    Extends Prefect's own initializer, which runs first (3.8.8): `initializer` is the user's.

    Args:
        prepare: The function. It must be picklable.
    """
    from prefect import task_runners

    global _initialize_process  # noqa: PLW0603 (one initializer per process)
    name = "_initialize_process_pool_worker"
    _initialize_process = _initialize_process or getattr(task_runners, name)
    setattr(task_runners, name, partial(_prepared_process, prepare))


_initialize_process: "Callable[..., None] | None" = None


def _prepared_process(prepare: "Callable[[], None]", *args: object, **kwargs: object) -> None:
    from prefect import task_runners

    name = "_initialize_process_pool_worker"
    (_initialize_process or getattr(task_runners, name))(*args, **kwargs)
    prepare()


def new_run_id() -> UUID:
    """Return a new task run id in Prefect's format, which sorts by time (3.8.8)."""
    from prefect._internal.uuid7 import uuid7

    return uuid7()


def crashed_state(exc: BaseException) -> "State[Any]":
    """Return the state that the engine sets when this exception ends a run (3.8.8)."""
    from prefect._internal.states import exception_to_crashed_state_sync

    return exception_to_crashed_state_sync(exc)


def replace_event_of_waits(event: "type[threading.Event]") -> None:
    """Make `wait` and `as_completed` of `prefect.futures` block on events of another class.

    Both look up `threading.Event` in their module (3.8.8). Prefect offers no other way to detect
    that they block.
    """
    from prefect import futures

    class Threading:
        Event = event

        def __getattr__(self, name: str) -> Any:
            return getattr(threading, name)

    setattr(futures, "threading", Threading())  # noqa: B010 (it is of another type)


def skip_unread_cache_keys() -> None:
    """Compute no cache key for a task that has no cache policy and persists nothing.

    Prefect (3.8.8) gives such a task the policy `DEFAULT` and computes its key, a JSON or a pickle
    of all parameters with a hash over it: 0.3 s for 50 MB. Only a persisted result could ever be
    found by the key. A task with `persist_result=False` has none either.
    """
    from prefect.cache_policies import DEFAULT
    from prefect.context import TaskRunContext
    from prefect.task_engine import BaseTaskRunEngine

    compute = BaseTaskRunEngine.compute_transaction_key

    def compute_if_read(self: "BaseTaskRunEngine[Any, Any]") -> str | None:
        context = TaskRunContext.get()
        if context and not context.persist_result and self.task.cache_policy == DEFAULT:
            return None
        return compute(self)

    BaseTaskRunEngine.compute_transaction_key = compute_if_read


def replace_state_of_crashes(state_of: "Callable[[], State[Any] | None]") -> None:
    """Let a function choose the state of a task run that an exception ends outside its code.

    Prefect's engines (3.8.8) take every interrupt for a crash, and make the state of the exception
    alone: no hook sees both.

    Args:
        state_of: Returns the state to set, or None for Prefect's own.
    """
    from prefect import task_engine

    engine: Any = task_engine
    plain, plain_sync = engine.exception_to_crashed_state, engine.exception_to_crashed_state_sync

    async def ended(exc: BaseException, *arguments: Any, **options: Any) -> "State[Any]":
        return state_of() or await plain(exc, *arguments, **options)

    def ended_sync(exc: BaseException, *arguments: Any, **options: Any) -> "State[Any]":
        return state_of() or plain_sync(exc, *arguments, **options)

    engine.exception_to_crashed_state = ended
    engine.exception_to_crashed_state_sync = ended_sync
