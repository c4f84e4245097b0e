"""The position of a job's log in Prefect, which each forwarded log carries in its name.

`prefect.ray.job:41200` holds line 41,200 of what a run's first attempt printed, and
`prefect.ray.job.2:7` line 7 of the second. A log of several lines has the number of its last. So
after a restart the name of the newest log says which line comes next: the job's log is read again
from its beginning, and every line up to that one is passed over.

Prefect takes no id for a log, and sorts logs by their timestamps alone. So the logs of an attempt
get timestamps that strictly increase.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect_ray_worker.logs.send import Sender
from prefect_ray_worker.prefect_api.logs import LOGGER_NAME, LogSink, SentLog

_NAME = re.compile(re.escape(LOGGER_NAME) + r"(?:\.(\d{1,9}))?:(\d{1,18})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def name_of(attempt: int, line: int) -> str:
    """Return the name of a log that holds a line of an attempt's output, both from 1 on."""
    return f"{LOGGER_NAME}:{line}" if attempt == 1 else f"{LOGGER_NAME}.{attempt}:{line}"


def line_in(name: str, attempt: int) -> int | None:
    """Return the line that a log's name tells of; None if it is not of this attempt."""
    found = _NAME.fullmatch(name)
    return int(found[2]) if found and int(found[1] or 1) == attempt else None


class Stamps:
    """Timestamps for the logs of an attempt, each later than the one before."""

    def __init__(self) -> None:
        self._last = _EPOCH

    def next(self, not_before_ms: int) -> datetime:
        """Return the next timestamp.

        Args:
            not_before_ms: The earliest that it may be, in milliseconds since the epoch.
        """
        wanted = _EPOCH + timedelta(milliseconds=not_before_ms)
        self._last = max(wanted, self._last + timedelta(microseconds=1))
        return self._last

    def resume(self, last: datetime) -> None:
        """Go on after a timestamp that an earlier bridge has used."""
        self._last = last


@dataclass(frozen=True)
class Position:
    """How far the log of an attempt has come in Prefect.

    Attributes:
        newest: The newest log of the attempt.
        line: The last line of the job's output that is there, counted from 1.
        logged_lines: Lines of logs that are there, for an attempt whose logs have no numbers
            because an earlier version of this package has forwarded them.
    """

    newest: SentLog
    line: int = 0
    logged_lines: int = 0


async def find_position(
    sink: LogSink, sender: Sender, submission_id: str, attempt: int, *, since: datetime
) -> Position | None:
    """Ask Prefect how far an earlier bridge for the same job has come.

    Args:
        sink: The run's logs.
        sender: Asks patiently.
        submission_id: The job.
        attempt: Which attempt at its run it is.
        since: When the job was submitted: older logs are of earlier attempts.

    Returns:
        None if Prefect has no log of the attempt.

    Raises:
        LogsGivenUp: The API does not answer.
    """
    found: Position | None = None
    unnumbered: list[SentLog] = []
    # Without an upper limit: stamps follow the node's clock, which can be ahead of ours.
    offset = 0
    while True:
        page = await sender.ask(
            lambda offset=offset: sink.find(
                after=since, before=None, newest_first=True, offset=offset
            )
        )
        for log in page.logs:
            # A server that keeps no microseconds gives many logs the newest time.
            if found is not None and log.timestamp < found.newest.timestamp:
                return found
            line = line_in(log.name, attempt)
            if line is not None and (found is None or line > found.line):
                found = Position(log, line=line)
        unnumbered += [log for log in page.logs if log.name == LOGGER_NAME]
        enough = len(unnumbered) >= _ENOUGH and not _is_coarse(unnumbered)
        if page.following is None or (enough and found is None):
            break
        offset = page.following
    if found is not None:
        return found
    lines = _lines_by_timestamps(submission_id, unnumbered) if unnumbered else None
    return None if lines is None else Position(unnumbered[0], logged_lines=lines)


def milliseconds(when: datetime) -> int:
    """Return a time as whole milliseconds since the epoch."""
    return (when - _EPOCH) // timedelta(milliseconds=1)


# What follows reads the logs of runs that began under a version before the names had numbers. Those
# versions hid the number of lines in the last three digits of the microseconds: logs came in blocks
# of 40, and those digits were a log's place in its block times 25, plus one digit. The digits at
# the places 0 to 7 were those, to the base of 25, of the number of lines before the block; the
# others were zeros. All digits were shifted by amounts that depend on the job. The newest 48 logs
# always hold a whole number.
_PLACES = 40
_BASE = 25
_DIGITS = 8
_ENOUGH = _PLACES + _DIGITS


def _lines_by_timestamps(submission_id: str, newest_first: Sequence[SentLog]) -> int | None:
    """Return how many lines logs without numbers have; None if they are another job's."""
    sizes = [log.message.count("\n") + 1 for log in newest_first]
    if _is_coarse(newest_first):
        return sum(sizes)  # a server that keeps no microseconds left us but to count
    shifts = hashlib.sha256(submission_id.encode()).digest() * 2
    marks = [divmod(log.timestamp.microsecond % 1000, _BASE) for log in newest_first[:_ENOUGH]]
    place = marks[0][0]
    # Either the newest block tells its number, or the one before it, or there is none before.
    for count in (_ENOUGH, place + 1, place + 1 + _PLACES):
        before = _before_block(marks[:count], sizes, shifts) if count <= len(marks) else None
        if before is not None:
            return before + sum(sizes[: place + 1])
    return None


def _before_block(
    marks: Sequence[tuple[int, int]], sizes: Sequence[int], shifts: bytes
) -> int | None:
    """Return the number of lines before the newest block, if the marks fit together."""

    def shifted(place: int, number: int) -> int:
        digit = number // _BASE**place if place < _DIGITS else 0
        return (digit + shifts[place]) % _BASE

    place = marks[0][0]
    if [mark[0] for mark in marks] != [(place - i) % _PLACES for i in range(len(marks))]:
        return None
    before, first = 0, len(marks) - 1
    if len(marks) >= _ENOUGH:
        first = place if place >= _DIGITS - 1 else place + _PLACES
        before = sum((marks[first - i][1] - shifts[i]) % _BASE * _BASE**i for i in range(_DIGITS))
    newest = before + (sum(sizes[place + 1 : first + 1]) if first > place else 0)
    for i, (at, digit) in enumerate(marks):
        # Of a block that is not all there, only the zeros are known.
        is_known = i <= first or at >= _DIGITS
        if is_known and digit != shifted(at, newest if i <= place else before):
            return None
    return newest


def _is_coarse(logs: Sequence[SentLog]) -> bool:
    return all(log.timestamp.microsecond % 1000 == 0 for log in logs)
