"""Lines: `LineSplitter` makes them of a byte stream, `joined` makes fewer logs of them.

Joined is what a job prints faster than Prefect takes logs: a server takes some thousand logs a
second, whatever their length (3.8.8), and a program prints hundreds of thousands of lines.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

# No more than this of a line is kept, whatever Prefect's setting allows: many runs may have one.
_LONGEST_LINE_BYTES = 1_000_000
# For "… [1234567 more bytes]", as JSON.
_MARK_ROOM = 64
# Well below the limit of Prefect Cloud, and no more than one wants to see at once.
_LONGEST_JOINED = 16_000


class LineSplitter:
    """Splits a stream into lines, in bounded memory.

    A line is what stands between two line feeds. Of a line that was overwritten with carriage
    returns (a progress bar) only the last state is kept. The result depends on the bytes alone,
    never on where the pieces were cut or when they came: after a restart, the same log gives the
    same lines.

    Args:
        longest: The most characters of a log, as JSON. No character takes fewer of them than it
            has bytes, so what is longer is dropped here; a mark at the line's end says how much.
    """

    def __init__(self, longest: int) -> None:
        self._longest = min(longest, _LONGEST_LINE_BYTES) - _MARK_ROOM
        self._line = bytearray()
        self._dropped = 0
        self._is_overwritten = False

    def feed(self, piece: bytes) -> Iterator[str]:
        """Take the next piece of the stream and yield the lines that it completes."""
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            self._extend(piece[start:end])
            yield self._take()
            start = end + 1
        self._extend(piece[start:])

    def finish(self) -> Iterator[str]:
        """Yield what stands after the last line feed, if anything does: the stream has ended."""
        if self._line:
            yield self._take()

    def _extend(self, part: bytes) -> None:
        if not part:
            return
        # A carriage return counts once something follows it: "\r\n" is a plain line end.
        if self._is_overwritten and part.strip(b"\r"):
            self._clear()
        body = part.rstrip(b"\r")
        if body:
            last = body.rpartition(b"\r")
            if last[1]:
                self._clear()
            self._append(last[2])
        if len(body) < len(part):
            self._is_overwritten = True

    def _append(self, part: bytes) -> None:
        room = self._longest - len(self._line)
        self._line += part[:room]
        self._dropped += max(len(part) - room, 0)

    def _clear(self) -> None:
        self._line.clear()
        self._dropped = 0
        self._is_overwritten = False

    def _take(self) -> str:
        line = bytes(self._line)
        # A character that the cut went through is left out; one that never was UTF-8 is replaced.
        text = codecs.utf_8_decode(line, "replace", not self._dropped)[0]
        if self._dropped:
            text += f"… [{self._dropped} more bytes]"
        self._clear()
        return text


@dataclass(frozen=True)
class Line:
    """A line to be forwarded, or several in one.

    Attributes:
        level: As in `logging`.
        message: The text.
        not_before_ms: The earliest time that it can have been written.
        number: Which line of the job's output it is; of several the last.
        count: How many lines the message has.
    """

    level: int
    message: str
    not_before_ms: int
    number: int
    count: int = 1


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
            and group.count < most
            and size + more <= room
            and (group.level, group.not_before_ms) == (line.level, line.not_before_ms)
        ):
            message, count = f"{group.message}\n{line.message}", group.count + 1
            group = replace(group, message=message, number=line.number, count=count)
            size += more
            continue
        if group is not None:
            yield group
        group, size = line, more
    if group is not None:
        yield group
