"""The report: a line for each check, or one JSON document."""

import json
from collections.abc import Sequence

from prefect_ray_worker.doctor.check import Check, Grade, Subject

_COLOURS = {Grade.OK: 32, Grade.WARNING: 33, Grade.FAILED: 31, Grade.SKIPPED: 90}
_GRADE_WIDTH = max(len(grade.label) for grade in Grade)


def line_of(check: Check, *, colours: bool) -> str:
    """Return a check as a line: its grade, its subject, what was found and what to do."""
    grade = check.grade.label.ljust(_GRADE_WIDTH)
    if colours:
        grade = f"\x1b[{_COLOURS[check.grade]}m{grade}\x1b[0m"
    return f"{grade} {check.subject.label}: {check}"


def summary_of(checks: Sequence[Check]) -> str:
    """Return the last line: how many checks came out how."""
    counts = {grade.label: sum(check.grade is grade for check in checks) for grade in Grade}
    counts["not reached"] = len(set(Subject) - {check.subject for check in checks})
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)


def json_of(checks: Sequence[Check]) -> str:
    """Return the report for machines.

    An object with `ok`, the verdict, and `checks`: each with `subject`, `grade` (`ok`, `warning`,
    `failed` or `skipped`), `says` and `advice`.
    """
    document = {
        "ok": is_well(checks),
        "checks": [
            {
                "subject": check.subject.label,
                "grade": check.grade.label,
                "says": check.says,
                "advice": check.advice,
            }
            for check in checks
        ],
    }
    return json.dumps(document, indent=2)


def is_well(checks: Sequence[Check]) -> bool:
    """Say whether nothing has failed; warnings are no failures."""
    return all(check.grade is not Grade.FAILED for check in checks)
