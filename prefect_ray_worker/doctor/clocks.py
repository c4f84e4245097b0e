"""Whether the clocks agree: of this machine, the head, the driver's node and the Prefect server.

Pure. No clock is asked for its own sake: each has written down when something happened of which
this machine knows an earliest and a latest time, and what lies outside of that is skew.
"""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final

from prefect_ray_worker.doctor.check import Check, Subject, ok, skipped, warning
from prefect_ray_worker.doctor.findings import ApiFound, Findings
from prefect_ray_worker.doctor.probing import Probed

# Prefect orders states and logs by time stamps of different machines, and looks for runs that are
# late, or whose heartbeat is missing, by the half minute.
_MOST_SECONDS: Final = 5.0
# The resolution of the date of an HTTP answer.
_SECOND: Final = 1.0


@dataclass(frozen=True)
class _Skew:
    whose: str
    seconds: float


def compare_clocks(probed: Probed, findings: Findings) -> Check:
    """Return the largest skew that the probe has shown.

    Args:
        probed: When this machine has seen what.
        findings: What the clock of the node was, and the server's from there.
    """
    skews: list[_Skew] = []
    if probed.job is not None and probed.job.start_time is not None:
        submitted = probed.job.start_time / 1000
        beyond = _beyond(submitted, probed.began, probed.submitted)
        skews.append(_Skew("the head's clock and this machine's", beyond))
    if findings.python is not None and findings.python.time:
        beyond = _beyond(findings.python.time, probed.began, probed.ended)
        skews.append(_Skew("the clock of the driver's node and this machine's", beyond))
    if findings.api is not None and (server := _server(findings.api)) is not None:
        skews.append(_Skew("the clocks of the driver's node and the Prefect server", server))
    if not skews:
        return skipped(Subject.CLOCKS, "The probe has shown no clock.")
    worst = max(skews, key=lambda skew: abs(skew.seconds))
    if abs(worst.seconds) <= _MOST_SECONDS:
        return ok(Subject.CLOCKS, f"No clocks are more than {_MOST_SECONDS:g} s apart.")
    return warning(
        Subject.CLOCKS,
        f"At least {abs(worst.seconds):.0f} s are between {worst.whose}.",
        "Let all machines take the time from one source (NTP): states and logs are ordered by it.",
    )


def _server(found: ApiFound) -> float | None:
    if found.date is None:
        return None
    try:
        at = parsedate_to_datetime(found.date).timestamp()
    except ValueError:
        return None
    return _beyond(found.time, at, at + _SECOND)


def _beyond(moment: float, earliest: float, latest: float) -> float:
    """Return by how many seconds a moment is before (negative) or after a span."""
    return min(moment - earliest, 0) or max(moment - latest, 0)
