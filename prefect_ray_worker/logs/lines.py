"""`LineSplitter`: pieces of a byte stream become lines, whatever the pieces are cut like."""

import codecs
from collections.abc import Iterator

LONGEST_LINE_BYTES = 256 * 1024
"""Of a longer line the rest is dropped, and a mark at its end says how much."""


class LineSplitter:
    """Splits a stream into lines, in bounded memory.

    A line is what stands between two line feeds. Of a line that was overwritten with carriage
    returns (a progress bar) only the last state is kept. The result depends on the bytes alone,
    never on where the pieces were cut or when they came: after a restart, the same log gives the
    same lines.
    """

    def __init__(self) -> None:
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
        room = LONGEST_LINE_BYTES - len(self._line)
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
