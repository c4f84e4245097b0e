"""Numbers the logs of a job in their timestamps: how Prefect itself remembers how far we came.

Prefect has no field for a position, and no id of our choosing for a log. But a timestamp has
microseconds, of which nobody needs the last three digits. They carry the log's number: after a
restart, the newest logs of the run say how many there are, and the log of the job, read again from
its beginning, says where the next one starts.

Logs come in blocks of 40, each block in a millisecond of its own or several. A log's place in its
block times 25, plus one digit of the block's number to the base of 25, makes its three digits:
the places 0 to 7 carry the eight digits of the number, the others zeros. So the newest 48 logs
always hold a whole number, and within a millisecond the logs are in order. All digits are shifted
by amounts that depend on the job: the logs of another attempt at the run do not fit.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

_PLACES = 40
_BASE = 25
_DIGITS = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ENOUGH = _PLACES + _DIGITS
"""So many of the newest logs suffice to tell the number of the newest."""


class Numbering:
    """Stamps the logs of one job, strictly increasing.

    Args:
        submission_id: The job.
        count: How many logs it has in Prefect already.
        last_ms: The milliseconds of the newest of them, since the epoch.
    """

    def __init__(self, submission_id: str, *, count: int = 0, last_ms: int = 0) -> None:
        self._shifts = hashlib.sha256(submission_id.encode()).digest() * 2
        self.count = count
        self._last_ms = last_ms

    def stamp(self, not_before_ms: int) -> datetime:
        """Return the next log's timestamp.

        Args:
            not_before_ms: The earliest that it may be, in milliseconds since the epoch; it is
                later if the log before was.
        """
        micros = self._micros(self.count)
        # A block begins in a millisecond of its own: within one, the numbers only grow.
        begins = self.count % _PLACES == 0
        self._last_ms = max(not_before_ms, self._last_ms + begins)
        self.count += 1
        return _EPOCH + timedelta(milliseconds=self._last_ms, microseconds=micros)

    def read(self, newest: Sequence[datetime]) -> int | None:
        """Return how many logs there are, or None if the timestamps are not those of this job.

        Args:
            newest: The timestamps of the newest logs, the newest first: `ENOUGH`, or all.
        """
        micros = [when.microsecond % 1000 for when in newest]
        place = micros[0] // _BASE
        candidates = [place + 1, place + 1 + _PLACES]
        if len(micros) >= ENOUGH:
            candidates.insert(0, self._count(micros))
        for count in candidates:
            shown = min(count, ENOUGH)
            if shown <= len(micros) and all(
                micros[i] == self._micros(count - 1 - i) for i in range(shown)
            ):
                return count
        return None

    def _count(self, micros: Sequence[int]) -> int:
        """Take the newest block of which the places 0 to 7 are all there, and read its number."""
        place = micros[0] // _BASE
        begin = place if place >= _DIGITS - 1 else place + _PLACES
        block = 0
        for i in range(_DIGITS):
            digit = (micros[begin - i] % _BASE - self._shifts[i]) % _BASE
            block += digit * _BASE**i
        return (block + (begin != place)) * _PLACES + place + 1

    def _micros(self, number: int) -> int:
        block, place = divmod(number, _PLACES)
        digit = block // _BASE**place if place < _DIGITS else 0
        return place * _BASE + (digit + self._shifts[place]) % _BASE


def milliseconds(when: datetime) -> int:
    """Return a time as whole milliseconds since the epoch."""
    return (when - _EPOCH) // timedelta(milliseconds=1)
