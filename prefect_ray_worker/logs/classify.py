"""`Shaper`: a line of the job's log becomes a log of the flow run, or is left out."""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from prefect_ray_worker.shared.ids import attempt_in
from prefect_ray_worker.shared.log_marks import END_OF_OUTPUT, Mark, find_mark, seal_of
from prefect_ray_worker.shared.plain_text import plain
from prefect_ray_worker.shared.verdict_line import without_verdicts

_NAMES = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARN": logging.WARNING,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
    "CRITICAL": logging.CRITICAL,
    "FATAL": logging.CRITICAL,
}
_LETTERS = {
    "D": logging.DEBUG,
    "I": logging.INFO,
    "W": logging.WARNING,
    "E": logging.ERROR,
    "F": logging.CRITICAL,
    "C": logging.CRITICAL,
}
_NAME = "|".join(_NAMES)

# `(name pid=12, ip=10.0.0.7) text`, or `(raylet) text` (`print_worker_logs`, Ray 2.60).
_FORWARDED = re.compile(
    r"\((?:[^()]{0,200} )?pid=\d+(?:, ip=[^()\s]+)?\) |\((?:raylet|autoscaler)[^()]*\) "
)
# The console format of Prefect (`logging.yml`, 3.8.8), and what follows in it.
PREFECT_FORMAT = re.compile(
    r"\d\d:\d\d:\d\d\.\d{3} \| (" + _NAME + r"|Level \d+) *\| "
    r"(?P<what>(?:(Flow run|Task run) '[^\n]*?' - )?)"
)
"""How Prefect's console shows a record; `what` begins with the run that it is of, if it is."""
# Ray's own loggers in Python and in C++ (`ray_constants.LOGGER_FORMAT`, spdlog; 2.60).
_RAY_PYTHON = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\t(" + _NAME + r") (?P<what>[\w.]+:\d+ -- )"
)
_RAY_NATIVE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ ([DIWEFC]) \d+ \d+\] (?P<what>)")
_RAY_BAR = '"__magic_token__": "__ray_tqdm_magic_token__"'

# `WARNING:root:text`, `[ERROR] text`, and `2026-01-01 12:00:00,000 - name - ERROR - text`.
_LEADING = re.compile(r"\[?(" + _NAME + r")\]?(?::|\s*[|\-\]])", re.IGNORECASE)
_AFTER_TIME = re.compile(
    r"[\[(]?\d{4}-\d\d-\d\d[T ]\d\d:\d\d[^A-Za-z]{0,24}Z?[^A-Za-z]{0,4}"
    r"(?:[\w.\[\]-]{1,80}[ :|-]{1,4}){0,3}?[\[<(]?(" + _NAME + r")\b"
)
_GLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ ")
_PYTHON_WARNING = re.compile(r"\S[^\n]{0,300}:\d+: \w*Warning: ")

_TRACEBACK = re.compile(
    r"(?:  \+ |  \| )?(?:Exception Group )?Traceback \(most recent call last\):"
)
_CHAIN = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)

_PROCESS = re.compile(r"pid=\d+(?:, ip=[^()\s]+)?\) $")

# So many processes of a job may have their tracebacks interleaved.
_MOST_SOURCES = 64
# So many of its processes may mark their lines; Ray starts about one per CPU.
_MOST_PROCESSES = 50_000


class _Stage(Enum):
    EXPECTED = "expected"
    OPEN = "open"
    CLOSED = "closed"


class Traceback:
    """Follows one traceback, or the end of a log record that may have one.

    A traceback is its first line, then indented lines, then one line with the exception; one of
    Python's two sentences leads from there to the next. The second and later lines of an
    exception's own text cannot be told from what the program prints next, and are not taken.

    Args:
        is_sent: Whether the record that it belongs to went to the Prefect API.
    """

    def __init__(self, *, is_sent: bool) -> None:
        self.is_sent = is_sent
        self._stage = _Stage.EXPECTED

    @staticmethod
    def begins(text: str) -> bool:
        """Say whether a line is the first of a traceback."""
        return _TRACEBACK.match(text) is not None

    def takes(self, text: str) -> bool:
        """Say whether the next line belongs to it."""
        if self._stage is _Stage.CLOSED:
            if text in _CHAIN:
                self._stage = _Stage.EXPECTED
            return not text.strip() or text in _CHAIN
        if self.begins(text):
            self._stage = _Stage.OPEN
            return True
        if self._stage is _Stage.OPEN:
            if text.strip() and not text[0].isspace():
                self._stage = _Stage.CLOSED
            return True
        return not text.strip()


@dataclass(frozen=True)
class Recognized:
    """What a line is, judged by its text alone: whose format, which level.

    Attributes:
        source: The prefix with which Ray forwards the line of another process, or nothing.
        text: What that process wrote.
        level: A fitting level, or None if nothing tells of one.
        is_dropped: Whether nobody wants to read it.
        is_sent: Whether it has the format in which Prefect's handlers show what they send.
    """

    source: str
    text: str
    level: int | None = None
    is_dropped: bool = False
    is_sent: bool = False


def recognize(text: str) -> Recognized:
    """Judge a plain line."""
    forwarded = _FORWARDED.match(text)
    source = forwarded[0] if forwarded else ""
    text = text[len(source) :]
    if found := PREFECT_FORMAT.match(text):
        level = _NAMES.get(found[1], logging.INFO)
        return Recognized(source, text[found.end() :] or text, level, is_sent=found[3] is not None)
    if found := _RAY_PYTHON.match(text) or _RAY_NATIVE.match(text):
        level = _NAMES.get(found[1]) or _LETTERS[found[1]]
        text = text[found.start("what") :]  # a log has a time and a level of its own
        # What Ray says of itself in passing is for those who look for it.
        return Recognized(source, text, logging.DEBUG if level <= logging.INFO else level)
    if _RAY_BAR in text:
        return Recognized(source, text, is_dropped=True)
    return Recognized(source, text, _level_of(text))


def _level_of(text: str) -> int | None:
    head = text[:400]
    if found := _LEADING.match(head) or _AFTER_TIME.match(head):
        return _NAMES[found[1].upper()]
    if found := _GLOG.match(head):
        return _LETTERS[found[1]]
    if _PYTHON_WARNING.match(head):
        return logging.WARNING
    return None


@dataclass(frozen=True)
class Shaped:
    """One log to be.

    Attributes:
        level: Its level, as in `logging`.
        message: Its text, never empty.
    """

    level: int
    message: str


@dataclass(frozen=True)
class MarkedText:
    """A line of a log record that its process has given to Prefect's handler.

    Attributes:
        source: The prefix with which Ray forwards the line of another process, or nothing.
        text: What that process wrote.
        mark: What it says of the record.
    """

    source: str
    text: str
    mark: Mark


class Shaper:
    """Judges the lines of one job's log, in order.

    Left out is what Prefect has from its own handlers: lines that the driver has marked as sent
    (`log_marks`). The text decides only for processes that mark nothing: those of Ray that run no
    task of `RayTaskRunner`, and all where the driver is not ours. There, what has the console
    format of Prefect's flow and task loggers is left out, with the traceback that follows.

    Left out as well are blank lines, and the entrypoint that Ray quotes: it may hold what its
    author takes for private. What comes out depends on the lines alone, so that a second reading
    gives the same.

    Args:
        submission_id: The job.
        entrypoint: The job's entrypoint.
        longest: The most characters of a message, as JSON.
    """

    def __init__(self, submission_id: str, *, entrypoint: str = "", longest: int) -> None:
        self._quotation = f"Running entrypoint for job {submission_id}: "
        self._quoted_lines = entrypoint.count("\n")
        self._seal = seal_of(attempt_in(submission_id))
        self._has_seal = False
        self._sealing: set[str] = set()
        self._skip = 0
        self._longest = longest
        self._tracebacks: OrderedDict[str, Traceback] = OrderedDict()
        self.marked_ms: int | None = None
        """When the last marked line was logged, by the node's clock."""
        self.sent: MarkedText | None = None
        """The last line, if Prefect has it from its own handler, or should."""
        self.has_ended = False
        """Whether the driver has said that its flow prints no more."""

    def shape(self, line: str, *, now_ms: int) -> Iterator[Shaped]:
        """Yield what a line becomes: mostly one log, or none; two if two writers share it.

        Args:
            line: The line, without its end.
            now_ms: About when it was read, in milliseconds since the epoch.
        """
        self.sent = None
        line = without_verdicts(line)  # the worker tells what they say
        marked = self._find_mark(line, now_ms) if "\x1b" in line else None
        if marked is None:
            yield from self._unmarked(plain(line))
            return
        before, mark, after = marked
        source, own = _split_source(plain(before))
        if (process := _PROCESS.search(source)) and len(self._sealing) < _MOST_PROCESSES:
            self._sealing.add(process[0])
        if own.strip():
            # Somebody had begun the line without ending it.
            yield from self._unmarked(source + own)
            source = ""
        self.marked_ms = mark.when_ms
        self.has_ended = self.has_ended or (mark.is_sent and plain(after) == END_OF_OUTPUT)
        if mark.is_sent:
            self.sent = MarkedText(source, plain(after), mark)
        else:
            found = recognize(plain(after))
            # Ray logs its own messages with `logging` as well.
            is_chatter = mark.level == logging.INFO and found.level == logging.DEBUG
            level = logging.DEBUG if is_chatter else mark.level
            yield from self._log(level, source + found.text)

    def first_marked_ms(self, text: str, *, now_ms: int) -> int | None:
        """Return when the first marked line of a text was logged, by the node's clock, or None."""
        marked = self._find_mark(text, now_ms) if "\x1b" in text else None
        return None if marked is None else marked[1].when_ms

    def _find_mark(self, line: str, now_ms: int) -> tuple[str, Mark, str] | None:
        marked = find_mark(line, seal=self._seal, now_ms=now_ms)
        if marked is not None:
            self._has_seal = True
        elif not self._has_seal:
            # A driver of an older release, which seals nothing. Ours prints a sealed line first.
            marked = find_mark(line, seal="", now_ms=now_ms)
        return marked

    def _unmarked(self, text: str) -> Iterator[Shaped]:
        if self._skip:
            self._skip -= 1
            return
        if text.startswith(self._quotation):
            self._skip, self._quoted_lines = self._quoted_lines, 0
            return
        found = recognize(text)
        if found.is_dropped:
            return
        # A process that marks what it logs has printed whatever else looks so.
        if found.is_sent and not self._marks_lines(found.source):
            self._expect_traceback(found.source, is_sent=True)
            return
        if (traceback := self._tracebacks.get(found.source)) is not None:
            if traceback.takes(found.text):
                if not traceback.is_sent:
                    yield from self._log(logging.ERROR, found.source + found.text)
                return
            del self._tracebacks[found.source]
        if Traceback.begins(found.text):
            self._expect_traceback(found.source, is_sent=False).takes(found.text)
            yield from self._log(logging.ERROR, found.source + found.text)
            return
        level = logging.INFO if found.level is None else found.level
        yield from self._log(level, text if found.is_sent else found.source + found.text)

    def _marks_lines(self, source: str) -> bool:
        if not source:
            return self._has_seal
        process = _PROCESS.search(source)
        return process is not None and process[0] in self._sealing

    def _expect_traceback(self, source: str, *, is_sent: bool) -> Traceback:
        traceback = self._tracebacks[source] = Traceback(is_sent=is_sent)
        if len(self._tracebacks) > _MOST_SOURCES:
            self._tracebacks.popitem(last=False)
        return traceback

    def _log(self, level: int, message: str) -> Iterator[Shaped]:
        if message.strip():
            yield Shaped(level, cut(message, self._longest))


def _split_source(text: str) -> tuple[str, str]:
    found = recognize(text)
    return found.source, text[len(found.source) :]


def cut(message: str, longest: int) -> str:
    """Cut a message that is too long for the API, and say so at its end.

    Args:
        message: The message.
        longest: The most characters that it may have, as JSON.
    """
    # A character takes at most 12 bytes of JSON (one outside the first plane, escaped).
    if len(message) * 12 <= longest:
        return message
    escaped = json.dumps(message)
    if len(escaped) <= longest:
        return message
    end = longest - len("… [1234567 more characters]") - 12
    kept = ""
    # The cut may go through an escape, which has up to 12 characters, or between two of a pair.
    for last in range(end, end - 12, -1):
        try:
            kept = json.loads(f'{escaped[:last]}"')
        except ValueError:
            continue
        if not "\ud800" <= kept[-1:] <= "\udbff":
            break
    return f"{kept}… [{len(message) - len(kept)} more characters]"
