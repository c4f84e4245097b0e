"""`DoneCallbacks`: learns in a thread how a run ends, and then calls all that wait for that."""

import threading
from collections.abc import Callable
from contextlib import suppress
from contextvars import copy_context
from typing import Any


class DoneCallbacks:
    """Calls functions when a run has ended, or when this process has given up following it.

    Prefect keeps only the last function for each run, and calls it only if Prefect's events arrive
    and the final state has its usual name (`prefect/_internal/waiters.py`, 3.8.8).

    Attributes:
        trouble: Why the last thread has given up; None if it has not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []
        self._is_on = False
        self.trouble: BaseException | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without callbacks: a thread does not travel."""
        return DoneCallbacks, ()

    def add(self, call: Callable[[], None], learn: Callable[[], object]) -> None:
        """Call a function once the run has ended; return at once.

        Args:
            call: The function. It gets a thread of its own, because it may wait for others.
            learn: Returns when the run has ended. It runs once for all functions that wait.

        Raises:
            RuntimeError: This process can start no more threads.
        """
        context = copy_context()
        thread = threading.Thread(
            target=context.run, args=(self._run, learn), name="ray-job-end", daemon=True
        )
        with self._lock:
            if not self._is_on:
                thread.start()  # an error leaves all as it was: a later wait tries again
                self._is_on, self.trouble = True, None
            self._calls.append(call)

    def _run(self, learn: Callable[[], object]) -> None:
        trouble: BaseException | None = None
        try:
            learn()
        except BaseException as exc:  # noqa: BLE001 (those that wait must not wait for ever)
            trouble = exc
        with self._lock:
            self.trouble, self._is_on = trouble, False
            calls, self._calls = self._calls, []
        for call in calls:
            thread = threading.Thread(target=call, name="ray-job-callback", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # no more threads: late is better than never
                with suppress(Exception):
                    call()
