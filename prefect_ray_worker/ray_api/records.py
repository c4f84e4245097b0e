"""Picks job records out of Ray's list, which has no filter and may have tens of thousands."""

import codecs
import json
import re
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Any

from pydantic import ValidationError

from prefect_ray_worker.ray_api.models import JobDetails

# Looked for before a record is decoded as a model: that costs ten times as much.
Wanted = Callable[[dict[str, Any]], bool]

_SPACE = re.compile(r"\s*")


class _Next(Enum):
    BEGINNING = auto()
    FIRST = auto()
    RECORD = auto()
    SEPARATOR = auto()
    NOTHING = auto()


class RecordReader:
    """Reads a list of job records as it arrives, and keeps what is wanted of it.

    The list of a cluster with a long history has tens of megabytes: neither its text nor its
    records are ever held as a whole. Meant for a worker thread: it decodes one record at a time,
    so that the event loop gets its turn in between.

    Args:
        wanted: Says of a raw record whether it is of interest; None for all.
    """

    def __init__(self, wanted: Wanted | None = None) -> None:
        self._wanted = wanted
        self._text = ""
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._decoder = json.JSONDecoder()
        self._next = _Next.BEGINNING
        self._found: list[JobDetails] = []

    def feed(self, data: bytes) -> None:
        """Read the next bytes of the answer to `GET /api/jobs/`.

        Raises:
            ValueError: They do not belong to a JSON list.
        """
        self._read(self._text + self._utf8.decode(data))

    def close(self) -> list[JobDetails]:
        """Return the wanted records, once all bytes have been read.

        Raises:
            ValueError: The list is not complete.
        """
        self._read(self._text + self._utf8.decode(b"", final=True))
        if self._next is not _Next.NOTHING:
            raise ValueError(f"the list of jobs breaks off with {self._text[:80]!r}")
        return self._found

    def _read(self, text: str) -> None:
        at = 0
        while (end := self._step(text, _after_space(text, at))) is not None:
            at = end
        self._text = text[at:]

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
            return None  # should it not be cut but wrong, the end of the list is never found
        if end == len(text):
            return None  # a number may go on
        self._next = _Next.SEPARATOR
        if isinstance(record, dict) and (self._wanted is None or self._wanted(record)):
            with suppress(ValidationError):  # one must not hide all the others
                self._found.append(JobDetails.model_validate(record))
        return end


def _after_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return at if space is None else space.end()
