"""Numbers the logs of a job in their timestamps: how Prefect itself remembers how far we came.

Prefect has no field for a position, and no id of our choosing for a log. But a timestamp has
microseconds, of which nobody needs the last three digits. They carry the number of lines that have
been forwarded: after a restart, the newest logs of the run say how many lines there are, and the
job's log, read again from its beginning, says where the next one starts.

Logs come in blocks of 40, each block in a millisecond of its own or several. A log's place in its
block times 25, plus one digit, makes its three digits of the timestamp. The digits at the places
0 to 7 are those, to the base of 25, of the number of lines before the block; the others are zeros.
So the newest 48 logs always hold a whole number, their own lines can be counted, and within a
millisecond the logs are in order. All digits are shifted by amounts that depend on the job: the
logs of another attempt at the run do not fit.
"""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.prefect_api.logs import PAGE, LogSink, SentLog

_PLACES = 40
_BASE = 25
_DIGITS = 8
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

ENOUGH = _PLACES + _DIGITS
"""So many of the newest logs suffice to go on from."""


class Numbering:
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

    def resume(self, newest: Sequence[tuple[datetime, int]]) -> bool:
        """Go on after logs that have been stamped before; return whether they are this job's.

        Args:
            newest: Timestamp and number of lines of the newest logs, the newest first: `ENOUGH`,
                or all.
        """
        marks = [divmod(when.microsecond % 1000, _BASE) for when, _ in newest]
        sizes = [lines for _, lines in newest]
        place = marks[0][0]
        # Either the newest block tells its number, or the one before it, or there is none before.
        for count in (ENOUGH, place + 1, place + 1 + _PLACES):
            block = self._block_of(marks[:count], sizes) if count <= len(marks) else None
            if block is not None:
                self._before_block = block
                self.lines = block + sum(sizes[: place + 1])
                self._place = (place + 1) % _PLACES
                self._last_ms = milliseconds(newest[0][0])
                return True
        return False

    def resume_uncertainly(self, lines: int, newest: datetime) -> None:
        """Go on after logs whose timestamps have lost their last digits."""
        self.lines, self._last_ms = lines, milliseconds(newest)

    def _block_of(self, marks: Sequence[tuple[int, int]], sizes: Sequence[int]) -> int | None:
        """Return the number of lines before the newest block, if the marks fit together."""
        place = marks[0][0]
        if [mark[0] for mark in marks] != [(place - i) % _PLACES for i in range(len(marks))]:
            return None
        if len(marks) < ENOUGH:
            before = 0
            first = len(marks) - 1
        else:
            first = place if place >= _DIGITS - 1 else place + _PLACES
            before = sum(
                (marks[first - i][1] - self._shifts[i]) % _BASE * _BASE**i for i in range(_DIGITS)
            )
        newest = before + (sum(sizes[place + 1 : first + 1]) if first > place else 0)
        for i, (at, digit) in enumerate(marks):
            # Of a block that is not all there, only the zeros are known.
            is_known = i <= first or at >= _DIGITS
            if is_known and digit != self._shifted(at, newest if i <= place else before):
                return None
        return newest

    def _shifted(self, place: int, number: int) -> int:
        digit = number // _BASE**place if place < _DIGITS else 0
        return (digit + self._shifts[place]) % _BASE


def milliseconds(when: datetime) -> int:
    """Return a time as whole milliseconds since the epoch."""
    return (when - _EPOCH) // timedelta(milliseconds=1)


async def find_position(
    sink: LogSink, sender: Sender, numbering: Numbering, *, since: datetime
) -> SentLog | None:
    """Let a numbering go on where an earlier bridge for the same job has stopped.

    Args:
        sink: The run's logs.
        sender: Asks patiently.
        numbering: Of the job; new.
        since: When the job was submitted: older logs are of earlier attempts.

    Returns:
        The newest log of the job that Prefect has, if any.

    Raises:
        LogsGivenUp: The API does not answer.
    """
    newest: list[SentLog] = []
    # Without an upper limit: stamps follow the node's clock, which can be ahead of ours.
    offset = 0
    while True:
        page = await sender.ask(
            lambda offset=offset: sink.find(
                after=since, before=None, newest_first=True, offset=offset
            )
        )
        newest += page.logs
        if page.is_last or (len(newest) >= ENOUGH and not _is_coarse(newest)):
            break
        offset += PAGE
    if not newest:
        return None
    if _is_coarse(newest):
        # A server that keeps no microseconds leaves us but to count.
        lines = sum(log.message.count("\n") + 1 for log in newest)
        numbering.resume_uncertainly(lines, newest[0].timestamp)
        return newest[0]
    marked = [(log.timestamp, log.message.count("\n") + 1) for log in newest[:ENOUGH]]
    return newest[0] if numbering.resume(marked) else None


def _is_coarse(logs: list[SentLog]) -> bool:
    return all(log.timestamp.microsecond % 1000 == 0 for log in logs)
