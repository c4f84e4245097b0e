"""`Canceller`: asks Ray to cancel tasks."""

import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

# Ray's thread answers within milliseconds, unless a callback of somebody else's holds it up.
_SECONDS = 0.5


class Canceller:
    """Has Ray's own thread cancel tasks.

    In any other thread, `ray.cancel` that meets the end of its task aborts the process, gently or
    by force: it fails the task while the answer is about to complete it ("Check failed: ... Tried
    to complete task that was not pending", Ray 2.60, `NormalTaskSubmitter::CancelTask`). The
    answers come in that thread as well, one after the other.
    """

    def __init__(self) -> None:
        import ray

        # Made early: an object store that is full makes a `put` wait.
        self._there: Any = None
        with contextlib.suppress(Exception):
            self._there = ray.put(None)

    def cancel(self, refs: Iterable[Any], *, force: bool) -> None:
        """Cancel tasks, and those that they have submitted; return once Ray was asked.

        Args:
            refs: A reference of each task; what has ended stays as it is.
            force: Whether to kill the processes. `interrupts` has whom else that can hit.
        """
        import ray

        left, asked = deque(refs), threading.Event()

        def ask(_: object = None) -> None:
            while left:
                with contextlib.suppress(Exception):  # it may have ended, or Ray may have
                    ray.cancel(left.popleft(), force=force, recursive=True)
            asked.set()

        with contextlib.suppress(Exception):
            self._there._on_completed(ask)  # noqa: SLF001 (`future()` may call in this thread)
            asked.wait(_SECONDS)
        ask()  # rather in this thread than not at all
