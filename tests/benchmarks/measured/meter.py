"""Answers the benchmark's questions about its own process."""

import asyncio
import json
import re
import sys
import threading
import time
from collections.abc import Callable

import psutil


class Meter:
    """CPU, memory and the longest callback of this process since the last `measure`.

    Args:
        settled: Returns how many runs have been settled.
    """

    def __init__(self, settled: Callable[[], int] = lambda: 0) -> None:
        self._settled = settled
        self._process = psutil.Process()
        self._longest, self._culprit = 0.0, ""
        self._reset()

    def serve(self) -> None:
        """Answer the lines of standard input, in a thread."""
        threading.Thread(target=self._serve, name="meter", daemon=True).start()

    def time_callbacks(self) -> None:
        """Time every callback of asyncio by the CPU time of its thread: noise does not count."""
        run = asyncio.Handle._run

        def timed(handle: asyncio.Handle) -> None:
            began = time.thread_time()
            run(handle)
            took = time.thread_time() - began
            if took > self._longest:
                self._longest, self._culprit = took, _name_of(handle)

        asyncio.Handle._run = timed

    def _reset(self) -> None:
        times = self._process.cpu_times()
        self._cpu, self._began, self._longest = times.user + times.system, time.monotonic(), 0.0

    def _serve(self) -> None:
        for line in sys.stdin:
            times = self._process.cpu_times()
            answer = {
                "cpu": times.user + times.system - self._cpu,
                "seconds": time.monotonic() - self._began,
                "rss": self._process.memory_info().rss / 1e6,
                "callback": self._longest,
                "culprit": self._culprit,
                "settled": self._settled(),
            }
            if line.strip() == "measure":
                self._reset()
            print(json.dumps(answer), flush=True)


def _name_of(handle: asyncio.Handle) -> str:
    """Return the name of the task that a callback moves on, or the callback's own."""
    task = getattr(handle._callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        return re.sub(r"[0-9a-f-]{12,}", "…", task.get_name())
    return getattr(handle._callback, "__qualname__", repr(handle._callback))
