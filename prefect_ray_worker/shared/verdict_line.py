"""The line of JSON with which a driver tells the worker why its run has no result.

    <seal>{"category": "OutOfMemory", "cause": "…", "advice": "…"}

The seal (`log_marks`) is invisible in terminals and in Ray's dashboard, and only the driver of the
attempt prints it. So nothing that a flow prints is taken for the driver's word: neither a line that
begins with a category, nor the log of another job. Standard library only, for any Python.
"""

import json
import re

from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis
from prefect_ray_worker.shared.log_marks import seal_of

# Ray keeps the last 20,000 characters of a failed job's log in its message (2.60).
_LONGEST = 4_000
_LABELS = {category.label: category for category in Category}
_ANY = re.compile(r'\x1b\[9\d{3};9\d{3};9\d{3}m\{"category": .*')


def format_verdict(diagnosis: Diagnosis, attempt: str) -> str:
    """Return the line, without its end.

    Args:
        diagnosis: What to tell.
        attempt: The name of the attempt that this driver runs.
    """
    told = {
        "category": diagnosis.category.label,
        "cause": diagnosis.cause[:_LONGEST],
        "advice": diagnosis.advice[:_LONGEST],
    }
    return seal_of(attempt) + json.dumps(told)


def find_verdict(text: str, attempt: str) -> "Diagnosis | None":
    """Return the last verdict that an attempt's driver has left in a text, or None.

    Args:
        text: The end of the job's log, with its ANSI sequences.
        attempt: The attempt's name.
    """
    start = text.rfind(seal_of(attempt) + "{")
    if start < 0:
        return None
    try:
        told, _ = json.JSONDecoder().raw_decode(text, text.index("{", start))
        return Diagnosis(_LABELS[told["category"]], str(told["cause"]), str(told["advice"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def without_verdicts(text: str) -> str:
    """Return a text without the verdicts that drivers have left in it."""
    return _ANY.sub("", text) if "\x1b" in text else text
