"""`LogWindow`: from when on the log of a run that goes on is read again, to miss no line."""

import time
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

# Worker, driver and tasks send their lines in batches, so an older line can arrive later.
_OVERLAP = timedelta(seconds=15)
# What is older than that came very late, or from a machine whose clock is slow: looked for now and
# then, in the whole log as long as it is short.
_WIDE_SECONDS = 30.0
_WIDE_OVERLAP = timedelta(minutes=10)
_SHORT_LINES = 2_000


class Since(NamedTuple):
    """What one look at a log covers.

    Attributes:
        when: The time of the oldest line that is read; None for the whole log.
        is_wide: Whether lines are looked for that came late. Later looks go no further back.
    """

    when: datetime | None
    is_wide: bool


class LogWindow:
    """Decides how far back each look at a log goes."""

    def __init__(self) -> None:
        self._newest: datetime | None = None
        self._lines = 0
        self._wide_at = time.monotonic() + _WIDE_SECONDS

    def saw(self, when: datetime) -> None:
        """Take note of a line that was not seen before.

        Args:
            when: Its time.
        """
        self._lines += 1
        self._newest = max(self._newest or when, when)

    def next_look(self, *, is_last: bool = False) -> Since:
        """Return what the next look covers.

        Args:
            is_last: Whether no more lines will arrive: then late ones are looked for as well.
        """
        is_wide = is_last or time.monotonic() >= self._wide_at
        if is_wide:
            self._wide_at = time.monotonic() + _WIDE_SECONDS
        if self._newest is None or (is_wide and self._lines <= _SHORT_LINES):
            return Since(None, is_wide)
        # A machine whose clock is fast must not hide the lines of the others.
        newest = min(self._newest, datetime.now(UTC))
        return Since(newest - (_WIDE_OVERLAP if is_wide else _OVERLAP), is_wide)
