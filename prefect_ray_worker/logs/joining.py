"""Joins lines into one log where a job prints faster than Prefect takes logs.

A Prefect server takes some thousand logs a second, whatever their length (3.8.8), and a program
prints hundreds of thousands of lines.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

# Well below the limit of Prefect Cloud, and no more than one wants to see at once.
_LONGEST_JOINED = 16_000


@dataclass(frozen=True)
class Line:
    """A line to be forwarded, or several in one.

    Attributes:
        level: As in `logging`.
        message: The text.
        not_before_ms: The earliest time that it can have been written.
        lines: How many lines the message has.
    """

    level: int
    message: str
    not_before_ms: int
    lines: int = 1


def joined(lines: Iterable[Line], *, most: int, longest: int) -> Iterator[Line]:
    """Yield lines, neighbours of one level and time in one.

    Args:
        lines: Single lines.
        most: How many to join at most; 1 to leave them as they are.
        longest: The most characters of a message, as JSON.
    """
    room = min(longest, _LONGEST_JOINED)
    group: Line | None = None
    size = 0
    for line in lines:
        more = len(json.dumps(line.message)) if most > 1 else 0
        if (
            group is not None
            and group.lines < most
            and size + more <= room
            and (group.level, group.not_before_ms) == (line.level, line.not_before_ms)
        ):
            message = f"{group.message}\n{line.message}"
            group, size = replace(group, message=message, lines=group.lines + 1), size + more
            continue
        if group is not None:
            yield group
        group, size = line, more
    if group is not None:
        yield group
