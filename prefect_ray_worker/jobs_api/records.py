"""Picks job records out of Ray's list, which has no filter and may have tens of thousands."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import ValidationError

from prefect_ray_worker.jobs_api.models import JobDetails

# Looked for before a record is decoded as a model: that costs ten times as much.
Wanted = Callable[[dict[str, Any]], bool]


def read_records(body: bytes, wanted: Wanted | None) -> list[JobDetails]:
    """Return the wanted records of a list.

    Meant for a worker thread: it decodes one record at a time, so that the event loop gets its
    turn in between, which a single call over the whole of a long list would not let it.

    Args:
        body: The answer to `GET /api/jobs/`.
        wanted: Says of a raw record whether it is of interest; None for all.

    Raises:
        ValueError: The body is not a JSON list of objects.
    """
    found: list[JobDetails] = []
    for record in _objects(body.decode()):
        if wanted is None or wanted(record):
            try:
                found.append(JobDetails.model_validate(record))
            except ValidationError:
                continue  # it must not hide all the others
    return found


def _objects(body: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    at = _skip(body, 0, "[")
    if body[at : at + 1] == "]":
        return
    while True:
        record, end = decoder.raw_decode(body, at)
        if isinstance(record, dict):
            yield record
        end = _skip(body, end, "")
        if body[end : end + 1] == "]":
            return
        at = _skip(body, end, ",")


def _skip(body: str, at: int, expected: str) -> int:
    """Return the place after white space, an expected character and more white space."""
    while body[at : at + 1].isspace():
        at += 1
    if not body.startswith(expected, at):
        raise ValueError(f"expected {expected!r} at character {at} of the list of jobs")
    at += len(expected)
    while body[at : at + 1].isspace():
        at += 1
    return at
