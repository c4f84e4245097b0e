"""Answers the benchmark's questions about its own process."""

import asyncio
import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx
import psutil

_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class Meter:
    """CPU, memory, requests and the longest callback of this process since the last `measure`.

    Args:
        settled: Returns how many runs have been settled.
        followed: Returns how many runs are followed.
    """

    def __init__(
        self, settled: Callable[[], int] = lambda: 0, followed: Callable[[], int] = lambda: 0
    ) -> None:
        self._settled = settled
        self._followed = followed
        self._requests: Counter[str] = Counter()
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

    def count_requests(self, base: str) -> None:
        """Count the requests whose URL begins with `base` by kind, ids left out."""
        send = httpx.AsyncClient.send

        async def counted(
            client: httpx.AsyncClient, request: httpx.Request, **options: Any
        ) -> httpx.Response:
            url = str(request.url)
            if url.startswith(base):
                path = _ID.sub("{id}", url.removeprefix(base).partition("?")[0])
                self._requests[f"{request.method} {path}"] += 1
            return await send(client, request, **options)

        httpx.AsyncClient.send = counted  # type: ignore[method-assign]

    def _reset(self) -> None:
        self._requests.clear()
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
                "followed": self._followed(),
                "requests": dict(self._requests),
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
