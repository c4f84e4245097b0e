"""`Heap`: gives free memory back to the operating system."""

import ctypes
import functools
from collections.abc import Callable

# Not for each task: threads that want to allocate wait for it.
_TASKS = 1_000


class Heap:
    """Has memory that is free given back to the operating system, now and then."""

    def __init__(self) -> None:
        self._count = 0

    def one_more(self) -> None:
        """Count a task that has ended; every thousandth time, give back what is free."""
        self._count += 1
        if self._count % _TASKS == 0:
            _trim()(0)


@functools.cache
def _trim() -> Callable[[int], object]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # not glibc: its own affair
        return lambda _: None
