"""`Traceback`: which of the lines that follow belong to a Python traceback."""

import re
from enum import Enum

_BEGIN = re.compile(r"(?:  \+ |  \| )?(?:Exception Group )?Traceback \(most recent call last\):")
_CHAIN = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)


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
        return _BEGIN.match(text) is not None

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
