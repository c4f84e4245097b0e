"""`Trouble`: lets every step of a round have its turn, and raises what went wrong at the end."""

import logging
from collections.abc import Generator
from contextlib import contextmanager

_log = logging.getLogger("prefect.workers.ray.sources")


class Trouble:
    """What went wrong in a round, of which one step must not keep the others from their turn."""

    def __init__(self) -> None:
        self._first: Exception | None = None

    @contextmanager
    def kept(self) -> Generator[None, None, None]:
        """Keep what a step raises: the first error for the end, others in the worker's log."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 (raised by `raise_first`, or logged)
            if self._first is None:
                self._first = exc
            elif str(exc) != str(self._first):
                _log.warning("%s", exc)

    @property
    def first(self) -> Exception | None:
        """The first error."""
        return self._first

    def raise_first(self) -> None:
        """Raise the first error, if there was one."""
        if self._first is not None:
            raise self._first
