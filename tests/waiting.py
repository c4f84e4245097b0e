"""Bounded waits: tests wait for a condition, never for a duration."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.02
# A coroutine asks somebody, who has other things to do as well.
_ASK_SECONDS = 0.15


async def wait_until(
    predicate: Callable[[], T | Awaitable[T]],
    *,
    timeout: float = 10,  # noqa: ASYNC109 (on expiry it must say what it waited for)
    description: str,
) -> T:
    """Return the predicate's first true value, or fail the test with the description.

    Args:
        predicate: Asked again and again; may be a coroutine function.
        timeout: Seconds to wait at most.
        description: What we wait for, for the failure message.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        asks = inspect.isawaitable(value)
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"Waited {timeout} s in vain: {description} (last: {value!r})")
        await asyncio.sleep(_ASK_SECONDS if asks else _POLL_SECONDS)
