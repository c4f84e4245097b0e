"""Pick job records out of Ray's list, which has no filter and may have tens of thousands."""

import codecs
import json
import re
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from pydantic import ValidationError

from prefect_ray_worker.ray_api.models import JobDetails

# Applied to the raw record: making a model of it costs ten times as much.
Wanted = Callable[[dict[str, Any]], bool]

# Ray itself takes no `runtime_env` and no entrypoint of more than 128 KiB; a message is longer.
_LONGEST_RECORD = 8 * 1024 * 1024
_MOST_RECORDS = 200_000
_SPACE = re.compile(r"\s*")


class _Next(Enum):
    BEGINNING = auto()
    FIRST = auto()
    RECORD = auto()
    SEPARATOR = auto()
    NOTHING = auto()


class RecordReader:
    """Read a list of job records as it arrives, and keep the wanted ones.

    The list of a cluster with a long history has tens of megabytes; it is never held as a whole.
    Use it in a worker thread, piece by piece, so that the event loop gets its turn.

    Args:
        wanted: Selects raw records; None selects all.
    """

    def __init__(self, wanted: Wanted | None = None) -> None:
        self._wanted = wanted
        self._text = ""
        self._pieces: list[str] = []
        self._waiting = 0
        self._worth_reading_at = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decoder = json.JSONDecoder()
        self._next = _Next.BEGINNING
        self._found: list[JobDetails] = []

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the answer to `GET /api/jobs/`.

        Raises:
            ValueError: They do not belong to a JSON list.
        """
        self._add(self._utf8.decode(data))
        # A record that is not there as a whole is looked at again when twice as much is: to scan
        # it with each piece would take quadratic time.
        if len(self._text) + self._waiting >= min(self._worth_reading_at, _LONGEST_RECORD):
            self._read()

    def close(self) -> list[JobDetails]:
        """Return the wanted records, once all bytes have been read.

        Raises:
            ValueError: The list is not complete.
        """
        self._add(self._utf8.decode(b"", final=True))
        self._read()
        if self._next is not _Next.NOTHING:
            raise ValueError(f"the list of jobs breaks off with {self._text[:80]!r}")
        return self._found

    def _add(self, piece: str) -> None:
        self._pieces.append(piece)
        self._waiting += len(piece)

    def _read(self) -> None:
        text, at = "".join([self._text, *self._pieces]), 0
        self._pieces.clear()
        self._waiting = 0
        while (end := self._step(text, _after_space(text, at))) is not None:
            at = end
        self._text = text[at:]
        if len(self._text) > _LONGEST_RECORD:
            raise ValueError(f"a record of more than {_LONGEST_RECORD} characters")
        self._worth_reading_at = 2 * len(self._text)

    def _step(self, text: str, at: int) -> int | None:
        """Read one thing; return where it ends, or None if it is not there as a whole yet."""
        if self._next is _Next.NOTHING or at == len(text):
            return None
        sign = text[at]
        match self._next:
            case _Next.BEGINNING if sign == "[":
                self._next = _Next.FIRST
            case _Next.SEPARATOR if sign == ",":
                self._next = _Next.RECORD
            case _Next.SEPARATOR | _Next.FIRST if sign == "]":
                self._next = _Next.NOTHING
            case _Next.FIRST | _Next.RECORD:
                return self._record(text, at)
            case _:
                raise ValueError(f"the list of jobs goes on with {text[at : at + 80]!r}")
        return at + 1

    def _record(self, text: str, at: int) -> int | None:
        try:
            record, end = self._decoder.raw_decode(text, at)
        except json.JSONDecodeError:
            return None  # cut off, or wrong: then the end of the list is never found
        except RecursionError:
            raise ValueError("a record that is nested too deeply") from None
        if end == len(text):
            return None  # a number may go on
        self._next = _Next.SEPARATOR
        if isinstance(record, dict) and (self._wanted is None or self._wanted(record)):
            with suppress(ValidationError):  # one must not hide all the others
                self._found.append(JobDetails.model_validate(record))
            if len(self._found) > _MOST_RECORDS:
                raise ValueError(f"more than {_MOST_RECORDS} records of ours")
        return end


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()
