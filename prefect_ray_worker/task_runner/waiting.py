"""Waiting in a task: its CPU is free for others meanwhile.

Ray takes a task for blocked, and gives its CPU to others, only while the main thread of its process
is in `ray.get` or `ray.wait` (2.60, `ShouldReleaseResourcesOnBlockingCalls`). A task that waited
for tasks of its own in any other way would keep the CPU that they need.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from types import FrameType
from typing import Any

from prefect_ray_worker.prefect_api.compat.tasks import replace_event_of_waits

# `ray.wait` takes longer with more of them, and those submitted first tend to end first.
_MOST_REFS = 32
# For how long an end may go unnoticed that Ray was not told to wait for.
_SLICE_SECONDS = 0.2
# Between Ray's knowing of an end and a future's knowing of it.
_SETTLE_SECONDS = 0.01


class OpenRefs:
    """References to the ends of tasks that this process waits for and that have not arrived.

    Attributes:
        gives_cpu_back: Whether this process runs tasks.
    """

    _refs: dict[Any, None] = {}  # noqa: RUF012 (one for a process; a dict keeps the order)
    gives_cpu_back = False

    @classmethod
    def add(cls, ref: Any) -> None:
        """Note a reference."""
        cls._refs[ref] = None

    @classmethod
    def discard(cls, ref: Any) -> None:
        """Forget a reference: it has arrived, or never will."""
        cls._refs.pop(ref, None)

    @classmethod
    def in_task_process(cls) -> None:
        """Have waits in the main thread of this process give their CPU back."""
        if not cls.gives_cpu_back:
            cls.gives_cpu_back = True
            replace_event_of_waits(YieldingEvent)
            os.register_at_fork(after_in_child=cls._keep_cpu)

    @classmethod
    def _keep_cpu(cls) -> None:
        """Wait without Ray in a forked process: it shares the parent's connection to the raylet.

        The references stay: to release one would take locks of Ray's that nothing may free here.
        """
        cls.gives_cpu_back = False

    @classmethod
    def first(cls) -> list[Any]:
        """Return those for which a wait here should give the CPU back, the oldest ones."""
        if not cls.gives_cpu_back or threading.current_thread() is not threading.main_thread():
            return []
        while True:
            try:
                return list(islice(cls._refs, _MOST_REFS))
            except RuntimeError:  # another thread has added one
                continue


def wait_yielding(wait: Callable[[float | None], bool], seconds: float | None = None) -> bool:
    """Wait for something; in a task, let others have its CPU.

    Args:
        wait: Waits for at most so many seconds, and returns whether it has happened.
        seconds: For how long; None for as long as it takes.

    Returns:
        Whether it has happened.
    """
    if not OpenRefs.gives_cpu_back:
        return wait(seconds)
    import ray

    deadline = float("inf") if seconds is None else time.monotonic() + max(seconds, 0)
    while not wait(0):
        limit = min(deadline - time.monotonic(), _SLICE_SECONDS)
        if limit <= 0:
            return False
        refs = OpenRefs.first()
        if refs:
            with alarms_after():
                ray.wait(refs, num_returns=1, timeout=limit, fetch_local=False)
            limit = _SETTLE_SECONDS
        wait(limit)
    return True


@contextmanager
def alarms_after() -> Generator[None]:
    """Let SIGALRM take effect after a call of Ray, not in it.

    Prefect's time limits raise an exception in its handler, once. Inside `ray.get` and `ray.wait`
    any exception but KeyboardInterrupt is dropped, or becomes a SystemError (`check_signals`, Ray
    2.60): the time limit would be lost, or the task Failed.
    """
    handler = signal.getsignal(signal.SIGALRM)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    alarms: list[tuple[int, FrameType | None]] = []

    def note(number: int, frame: FrameType | None) -> None:
        alarms.append((number, frame))

    try:
        signal.signal(signal.SIGALRM, note)
        yield
    except (KeyboardInterrupt, SystemExit):
        alarms.clear()  # it ends already, and not for want of time
        raise
    finally:
        signal.signal(signal.SIGALRM, handler)
        for alarm in alarms:
            handler(*alarm)


def wait_for(
    condition: threading.Condition, predicate: Callable[[], bool], seconds: float | None = None
) -> bool:
    """Wait until a predicate holds, as `Condition.wait_for` does; in a task, yield its CPU."""

    def wait(limit: float | None) -> bool:
        with condition:
            return condition.wait_for(predicate, limit)

    return wait_yielding(wait, seconds)


class YieldingEvent(threading.Event):
    """An event whose waits in a task let others have its CPU."""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the event is set; return whether it is."""
        return wait_yielding(partial(super().wait), timeout)
