"""The marks with which a driver tells the worker about a line of the job's log.

A driver knows which log records Prefect's handlers have sent to the API, and each record's level
and time. In the job's log all that is left is text. So the driver (`prefect_api/marking.py`) begins
every line of a log record with a mark, tracebacks included, and the worker (`logs/classify.py`)
reads it. Standard library only: both sides import it.

A mark is three ANSI colour sequences whose codes mean nothing. Terminals ignore them, and Ray's
dashboard filters them out (`ANSI_ESC_PATTERN` in `state_head.py`, Ray 2.60). Every code has four
digits and begins with 9, so none can be taken for a real colour.

The first sequence is the seal of the attempt: a flow that prints the log of another job, or of an
earlier attempt, prints the seal of that one, and the worker takes it for plain text. The second
has level and time. A worker of an older release reads these two, and removes the third, which has
the first digits of the time.
"""

import logging
import re
import zlib
from dataclasses import dataclass

END_OF_OUTPUT = "The flow prints no more."
"""Text of the last line of a driver."""

HIGHEST_LEVEL = 99
"""The level of a mark for all records at or above it."""
# 31 years: a worker that takes a job over reads its log again from the beginning.
_DIGITS = 12
# The time of older releases had nine digits: 11.5 days. Some drivers between two releases wrote all
# twelve in one sequence.
_MARK = re.compile(
    r"\x1b\[9([01])(\d\d);9(\d{3});9(\d{3});9(\d{3})(?:;9(\d{3}))?m(?:\x1b\[9(\d{3})m)?"
)


@dataclass(frozen=True)
class Mark:
    """What a mark says.

    Attributes:
        is_sent: Whether the line's record went to the Prefect API.
        level: The record's level.
        when_ms: When it was logged, in milliseconds since the epoch, by the node's clock.
    """

    is_sent: bool
    level: int
    when_ms: int


def seal_of(attempt: str) -> str:
    """Return the sequence that only the driver of one attempt prints.

    It guards against mix-ups, not against forgery: a flow can compute it, and could hide its own
    output in many ways.

    Args:
        attempt: The attempt's name, as in the job's submission id.
    """
    digits = f"{zlib.crc32(attempt.encode()) % 10**9:09}"
    return f"\x1b[9{digits[:3]};9{digits[3:6]};9{digits[6:]}m"


def mark(text: str, *, seal: str, is_sent: bool, level: int, when: float) -> str:
    """Return a formatted log record with the mark before each of its lines.

    Args:
        text: The record as it will be written, without the last line end.
        seal: The attempt's; empty for the mark of a driver that was older than seals.
        is_sent: Whether it went to the Prefect API.
        level: Its level; above 99 it counts as 99.
        when: Its time, in seconds since the epoch.
    """
    ms = f"{int(when * 1000) % 10**_DIGITS:0{_DIGITS}}"
    level = min(max(level, 0), HIGHEST_LEVEL)
    first, *rest = (ms[i : i + 3] for i in range(0, _DIGITS, 3))
    time = "".join(f";9{digits}" for digits in rest)
    sign = f"{seal}\x1b[9{int(is_sent)}{level:02}{time}m\x1b[9{first}m"
    return sign + text.replace("\n", "\n" + sign)


def end_of_output(seal: str, when: float) -> str:
    """Return the line with which a driver says that its flow prints no more.

    All that it has logged is in Prefect by then. The worker leaves the line out, as one of an
    older release does.

    Args:
        seal: The attempt's.
        when: The present, in seconds since the epoch.
    """
    return mark(END_OF_OUTPUT, seal=seal, is_sent=True, level=logging.DEBUG, when=when)


def find_mark(line: str, *, seal: str, now_ms: int) -> "tuple[str, Mark, str] | None":
    """Return what stands before the first mark of a line, the mark, and what follows.

    Args:
        line: One line of the log, with its ANSI sequences.
        seal: The attempt's; empty to find the mark of a driver that was older than seals.
        now_ms: About when it was read, in milliseconds since the epoch: a mark leaves out the
            digits before its last twelve.
    """
    if seal:
        start = line.find(seal)
        found = _MARK.match(line, start + len(seal)) if start >= 0 else None
    else:
        found = _MARK.search(line)
        start = found.start() if found else 0
    if found is None:
        return None
    sent, level, *rest, first = found.groups("")
    digits = first + "".join(rest)
    cycle = 10 ** len(digits)
    age = (now_ms - int(digits) + cycle // 2) % cycle - cycle // 2
    return line[:start], Mark(sent == "1", int(level), now_ms - age), line[found.end() :]
