"""Bounded waits: tests wait for a condition, never for a duration."""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.02
# A coroutine asks a server, which a flow run's state costs 12 ms of CPU: less often in long waits.
_ASK_SECONDS = 0.15
_MOST_ASK_SECONDS = 0.5
_ASK_PART = 0.05
_MOST_PATIENCE = 3.0


def patience() -> float:
    """Return by how much waits are longer here than on a quiet machine.

    That is how many processes want each CPU: with six on two, all takes three times as long.
    """
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), _MOST_PATIENCE)


async def wait_until(
    predicate: Callable[[], T | Awaitable[T]],
    *,
    timeout: float = 30,  # noqa: ASYNC109 (on expiry it must say what it waited for)
    description: str,
) -> T:
    """Return the predicate's first true value, or fail the test with the description.

    Args:
        predicate: Asked again and again; may be a coroutine function.
        timeout: Seconds to wait at most on a quiet machine.
        description: What we wait for, for the failure message.
    """
    began = time.monotonic()
    while True:
        value = predicate()
        asks = inspect.isawaitable(value)
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        waited = time.monotonic() - began
        if waited >= timeout * patience():
            raise AssertionError(f"Waited {waited:.0f} s in vain: {description} (last: {value!r})")
        ask = min(max(_ASK_SECONDS, waited * _ASK_PART), _MOST_ASK_SECONDS)
        await asyncio.sleep(ask if asks else _POLL_SECONDS)
