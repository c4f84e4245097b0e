"""`Interrupts`: a cancelled task stops at once, also in a blocking call."""

import asyncio
import os
import select
import signal
import threading
import time
from functools import cache
from typing import Any

# How long an interrupted task has before the driver has its process killed.
SECONDS_TO_END = 3.0
# Ray's kill (2.60) hits what the process runs by then, which may be a task of another flow. A task
# that ends so late that the kill may be on its way awaits it, and goes on if none has come.
_SAFE_SECONDS = SECONDS_TO_END - 1
_KILLED_SECONDS = SECONDS_TO_END + 2
_INTERRUPT_SECONDS = 0.05
_MOST_SIGNALS = 20


class Interrupts:
    """Makes a cancelled task stop at once, also in a blocking call.

    `ray.cancel` only pretends a SIGINT (`_thread.interrupt_main`, Ray 2.60), which a `sleep` or a
    read does not notice. But Python tells of it through the wakeup descriptor, and then a thread
    of ours sends a real one.

    Attributes:
        instead: Called in place of raising KeyboardInterrupt, where an event loop runs.
        has_hit: Whether the present task was interrupted.
    """

    instead: Any = None
    has_hit = False
    _is_armed = False
    _main = 0
    _read = -1
    # Counts the tasks of this process: an interrupt is meant for the one that it came in.
    _number = 0
    _came_at: float | None = None
    _changing = threading.Lock()

    @classmethod
    @cache
    def install(cls) -> None:
        """Take SIGINT over; in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        cls._main = threading.get_ident()
        cls._read, write = os.pipe()
        os.set_blocking(cls._read, False)
        os.set_blocking(write, False)
        signal.signal(signal.SIGINT, cls._on_signal)
        # Ray starts its processes with it blocked (`_private/services.py`, 2.60), so that a Ctrl+C
        # in a terminal does not reach them; ours ignores it unless a task runs.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_take_no_interrupts)
        threading.Thread(target=cls._wake, name="ray-interrupts", daemon=True).start()

    @classmethod
    def begin(cls) -> None:
        """A task has come: interrupts from now on are meant for it, and earlier ones are not."""
        with cls._changing:
            cls._was_interrupted()
            cls._number += 1
            cls.has_hit, cls._came_at = False, None

    @classmethod
    def arm(cls) -> None:
        """The task is loaded: it can be interrupted."""
        cls._is_armed = True

    @classmethod
    def disarm(cls) -> None:
        """The task has ended: what comes now is too late. Await a kill that may be on its way."""
        cls._is_armed = False
        if (came_at := cls._came_at) is not None:
            passed = time.monotonic() - came_at
            if passed > _SAFE_SECONDS:
                time.sleep(max(0.0, _KILLED_SECONDS - passed))

    @classmethod
    def _on_signal(cls, *_: object) -> None:
        if not cls._is_armed:
            return
        cls._is_armed, cls.has_hit = False, True
        if cls.instead is not None:
            cls.instead()
        else:
            raise KeyboardInterrupt

    @classmethod
    def _wake(cls) -> None:
        wakeups = select.poll()
        wakeups.register(cls._read, select.POLLIN)
        while True:
            wakeups.poll()
            with cls._changing:
                number = cls._number if cls._was_interrupted() else None
                if number is not None and cls._came_at is None:
                    cls._came_at = time.monotonic()
            if number is not None:
                cls._insist(number, wakeups)

    @classmethod
    def _insist(cls, number: int, wakeups: select.poll) -> None:
        pause = threading.Event()
        for _ in range(_MOST_SIGNALS):
            pause.wait(_INTERRUPT_SECONDS)
            # The next task cannot begin between the look and the signal.
            with cls._changing:
                if cls.has_hit or number != cls._number:
                    return
                if cls._is_armed:
                    signal.pthread_kill(cls._main, signal.SIGINT)
                    # It tells of itself too, which would look like an interrupt of the next task.
                    if wakeups.poll(_INTERRUPT_SECONDS * 1000):
                        cls._was_interrupted()

    @classmethod
    def _was_interrupted(cls) -> bool:
        """Read what the wakeup descriptor has; return whether SIGINT is among it."""
        try:
            return signal.SIGINT in os.read(cls._read, 4096)
        except OSError:  # it has nothing, or there is none yet
            return False


async def interruptible(coroutine: Any) -> Any:
    """Await a coroutine in such a way that an interrupt cancels it."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None
    Interrupts.instead = lambda: loop.call_soon_threadsafe(task.cancel)
    try:
        return await coroutine
    finally:
        Interrupts.instead = None


def _take_no_interrupts() -> None:
    """Give a forked process Python's own reaction to SIGINT: it shares our pipe, not our thread."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
