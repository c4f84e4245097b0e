"""Timestamps as versions before the numbered names made them: logs came in blocks of 40, and the
last three digits of the microseconds carried the number of lines.
"""

import hashlib
from datetime import UTC, datetime, timedelta

_PLACES = 40
_BASE = 25
_DIGITS = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class OldStamps:
    """Stamps the logs of one job, strictly increasing.

    Args:
        submission_id: The job.

    Attributes:
        lines: How many lines the logs so far have.
    """

    def __init__(self, submission_id: str) -> None:
        self._shifts = hashlib.sha256(submission_id.encode()).digest() * 2
        self.lines = 0
        self._place = 0
        self._before_block = 0
        self._last_ms = 0

    def stamp(self, not_before_ms: int, *, lines: int = 1) -> datetime:
        """Return the next log's timestamp.

        Args:
            not_before_ms: The earliest that it may be, in milliseconds since the epoch; it is
                later if the log before was.
            lines: How many lines the log has.
        """
        if self._place == 0:
            # A new block needs a new millisecond: within one, the numbers only grow.
            self._before_block, self._last_ms = self.lines, self._last_ms + 1
        self._last_ms = max(not_before_ms, self._last_ms)
        micros = self._place * _BASE + self._shifted(self._place, self._before_block)
        self.lines += lines
        self._place = (self._place + 1) % _PLACES
        return _EPOCH + timedelta(milliseconds=self._last_ms, microseconds=micros)

    def _shifted(self, place: int, number: int) -> int:
        digit = number // _BASE**place if place < _DIGITS else 0
        return (digit + self._shifts[place]) % _BASE
