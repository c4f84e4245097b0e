"""A value that is made of Prefect's settings and kept while they stay the same."""

from collections.abc import Callable
from typing import Generic, TypeVar

from prefect.settings import Settings, get_current_settings

T = TypeVar("T")


class PerSettings(Generic[T]):
    """Makes a value of the present settings when they are other ones than at the last call.

    Prefect's settings never change, they are replaced. To copy them or to turn them into variables
    takes 20 to 30 ms of the event loop (3.8.8), too much for each of a thousand runs.

    Args:
        make: Makes the value. All callers get the same object: they must not change it.
    """

    def __init__(self, make: Callable[[Settings], T]) -> None:
        self._make = make
        self._made: tuple[Settings, T] | None = None  # a process has one or two settings

    def __call__(self) -> T:
        """Return the value for the present settings."""
        settings = get_current_settings()
        made = self._made
        if made is None or made[0] is not settings:
            made = self._made = settings, self._make(settings)
        return made[1]
