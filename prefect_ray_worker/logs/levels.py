"""What a line of the job's log is, judged by its text alone: whose format, which level."""

import logging
import re
from dataclasses import dataclass

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

# CSI and OSC sequences, and the other escapes of two or three bytes.
_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[()][0-9A-B]|[@-Z\\-_=>78])"
)
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

# `(name pid=12, ip=10.0.0.7) text`, or `(raylet) text` (`print_worker_logs`, Ray 2.60).
_FORWARDED = re.compile(
    r"\((?:[^()]{0,200} )?pid=\d+(?:, ip=[^()\s]+)?\) |\((?:raylet|autoscaler)[^()]*\) "
)
# The console format of Prefect (`logging.yml`, 3.8.8), and what follows in it.
_PREFECT = re.compile(
    r"\d\d:\d\d:\d\d\.\d{3} \| (" + _NAME + r"|Level \d+) *\| (?:(Flow run|Task run) '[^\n]*?' - )?"
)
# Ray's own loggers in Python and in C++ (`ray_constants.LOGGER_FORMAT`, spdlog; 2.60).
_RAY_PYTHON = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\t(" + _NAME + r") [\w.]+:\d+ -- ")
_RAY_NATIVE = re.compile(r"\[\d{4}-\d\d-\d\d [\d:,]+ ([DIWEFC]) \d+ \d+\] ")
_RAY_BAR = '"__magic_token__": "__ray_tqdm_magic_token__"'

# `WARNING:root:text`, `[ERROR] text`, and `2026-01-01 12:00:00,000 - name - ERROR - text`.
_LEADING = re.compile(r"\[?(" + _NAME + r")\]?(?::|\s*[|\-\]])", re.IGNORECASE)
_AFTER_TIME = re.compile(
    r"[\[(]?\d{4}-\d\d-\d\d[T ]\d\d:\d\d[^A-Za-z]{0,24}Z?[^A-Za-z]{0,4}"
    r"(?:[\w.\[\]-]{1,80}[ :|-]{1,4}){0,3}?[\[<(]?(" + _NAME + r")\b"
)
_GLOG = re.compile(r"([IWEF])\d{4} \d\d:\d\d:\d\d\.\d+ ")
_PYTHON_WARNING = re.compile(r"\S[^\n]{0,300}:\d+: \w*Warning: ")


@dataclass(frozen=True)
class Look:
    """What a line looks like.

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


def plain(text: str) -> str:
    """Return a line without terminal sequences and control characters."""
    return _CONTROLS.sub("", _ANSI.sub("", text)) if not text.isprintable() else text


def look_at(text: str) -> Look:
    """Judge a plain line."""
    forwarded = _FORWARDED.match(text)
    source = forwarded[0] if forwarded else ""
    text = text[len(source) :]
    if found := _PREFECT.match(text):
        level = _NAMES.get(found[1], logging.INFO)
        return Look(source, text[found.end() :] or text, level, is_sent=found[2] is not None)
    if found := _RAY_PYTHON.match(text) or _RAY_NATIVE.match(text):
        level = _NAMES.get(found[1]) or _LETTERS[found[1]]
        # What Ray says of itself in passing is for those who look for it.
        return Look(source, text, logging.DEBUG if level <= logging.INFO else level)
    if _RAY_BAR in text:
        return Look(source, text, is_dropped=True)
    return Look(source, text, _level_of(text))


def _level_of(text: str) -> int | None:
    head = text[:400]
    if found := _LEADING.match(head) or _AFTER_TIME.match(head):
        return _NAMES[found[1].upper()]
    if found := _GLOG.match(head):
        return _LETTERS[found[1]]
    if _PYTHON_WARNING.match(head):
        return logging.WARNING
    return None
