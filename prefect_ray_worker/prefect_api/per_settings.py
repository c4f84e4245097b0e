"""`per_settings`: works something out once for Prefect's settings as they are."""

from collections.abc import Callable
from typing import TypeVar

from prefect.settings import Settings, get_current_settings

T = TypeVar("T")


def per_settings(work_out: Callable[[Settings], T]) -> Callable[[], T]:
    """Make a function of the current settings that remembers its last answer.

    Settings never change, they are replaced; to copy or to dump them takes 20 to 30 ms of the
    event loop (3.8.8), which is too much for each of a thousand runs.

    Args:
        work_out: The function.
    """
    known: tuple[Settings, T] | None = None

    def remembered() -> T:
        nonlocal known
        settings = get_current_settings()
        if known is None or known[0] is not settings:
            known = (settings, work_out(settings))
        return known[1]

    return remembered
