"""`Shaper`: a line of the job's log becomes a log of the flow run, or is left out."""

import json
import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from prefect_ray_worker.logs.levels import look_at, plain
from prefect_ray_worker.logs.tracebacks import Traceback
from prefect_ray_worker.shared.log_marks import find_mark

# So many processes of a job may have their tracebacks interleaved.
_MOST_SOURCES = 64


@dataclass(frozen=True)
class Shaped:
    """One log to be.

    Attributes:
        level: Its level, as in `logging`.
        message: Its text, never empty.
    """

    level: int
    message: str


class Shaper:
    """Judges the lines of one job's log, in order.

    Left out is what Prefect has from its own handlers: lines that the driver has marked as sent
    (`log_marks`), and, where a process has no marks, what has the console format of Prefect's flow
    and task loggers, with the traceback that follows. Also blank lines, and the entrypoint that
    Ray quotes: it is the job's affair, and may hold what somebody took for private.

    What comes out depends on the lines alone, so that a second reading counts as the first did.

    Args:
        submission_id: The job.
        entrypoint: The job's entrypoint.
        longest: The most characters of a message, as JSON.
    """

    def __init__(self, submission_id: str, *, entrypoint: str = "", longest: int) -> None:
        self._quotation = f"Running entrypoint for job {submission_id}: "
        self._quoted_lines = entrypoint.count("\n")
        self._skip = 0
        self._longest = longest
        self._tracebacks: OrderedDict[str, Traceback] = OrderedDict()
        self.marked_ms: int | None = None
        """When the last marked line was logged, by the node's clock."""

    def shape(self, line: str, *, now_ms: int) -> Iterator[Shaped]:
        """Yield what a line becomes: mostly one log, or none; two if two writers share it.

        Args:
            line: The line, without its end.
            now_ms: About when it was read, in milliseconds since the epoch.
        """
        marked = find_mark(line, now_ms=now_ms) if "\x1b" in line else None
        if marked is None:
            yield from self._unmarked(plain(line))
            return
        before, mark, after = marked
        source, own = _split_source(plain(before))
        if own.strip():
            # Somebody had begun the line without ending it.
            yield from self._unmarked(source + own)
            source = ""
        self.marked_ms = mark.when_ms
        if not mark.is_sent:
            look = look_at(plain(after))
            # Ray logs its own messages with `logging` as well.
            is_chatter = mark.level == logging.INFO and look.level == logging.DEBUG
            level = logging.DEBUG if is_chatter else mark.level
            yield from self._log(level, source + look.text)

    def _unmarked(self, text: str) -> Iterator[Shaped]:
        if self._skip:
            self._skip -= 1
            return
        if text.startswith(self._quotation):
            self._skip, self._quoted_lines = self._quoted_lines, 0
            return
        look = look_at(text)
        if look.is_dropped:
            return
        if look.is_sent:
            self._expect_traceback(look.source, is_sent=True)
            return
        if (traceback := self._tracebacks.get(look.source)) is not None:
            if traceback.takes(look.text):
                if not traceback.is_sent:
                    yield from self._log(logging.ERROR, look.source + look.text)
                return
            del self._tracebacks[look.source]
        if Traceback.begins(look.text):
            self._expect_traceback(look.source, is_sent=False).takes(look.text)
            yield from self._log(logging.ERROR, look.source + look.text)
            return
        level = logging.INFO if look.level is None else look.level
        yield from self._log(level, look.source + look.text)

    def _expect_traceback(self, source: str, *, is_sent: bool) -> Traceback:
        traceback = self._tracebacks[source] = Traceback(is_sent=is_sent)
        if len(self._tracebacks) > _MOST_SOURCES:
            self._tracebacks.popitem(last=False)
        return traceback

    def _log(self, level: int, message: str) -> Iterator[Shaped]:
        if message.strip():
            yield Shaped(level, _cut(message, self._longest))


def _split_source(text: str) -> tuple[str, str]:
    look = look_at(text)
    return look.source, text[len(look.source) :]


def _cut(message: str, longest: int) -> str:
    """Cut a message that is too long for the API, and say so at its end."""
    # A character takes at most 12 bytes of JSON (one outside the first plane, escaped).
    if len(message) * 12 <= longest:
        return message
    size = len(json.dumps(message))
    if size <= longest:
        return message
    kept, room = 0, longest - len("… [1234567 more characters]") - 12
    for character in message:
        room -= len(json.dumps(character)) - 2
        if room < 0:
            break
        kept += 1
    return f"{message[:kept]}… [{len(message) - kept} more characters]"
