"""Checks of what the probe found inside the cluster: pure."""

import platform
import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

import prefect

from prefect_ray_worker._version import OLDEST_PREFECT, OLDEST_PYTHON, __version__
from prefect_ray_worker.doctor.probe_job import (
    ApiFinding,
    Findings,
    NodeFinding,
    ProbeRun,
    RayFinding,
    VersionFinding,
)
from prefect_ray_worker.doctor.report import (
    Check,
    CheckSubject,
    Grade,
    failed,
    ok,
    skipped,
    warning,
)
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import newer_image
from prefect_ray_worker.shared.loopback import is_loopback_url
from prefect_ray_worker.shared.run_rules import is_passing

_NUMBERS = re.compile(r"(\d+)\.(\d+)")
_NOT_REACHED = "The probe did not get to it."
_REFUSED = frozenset({401, 403})
_UNSENDABLE = ("LocalProtocolError: Illegal header", "UnsupportedProtocol", "InvalidURL")


def checks_of(findings: Findings, *, ships: bool) -> list[Check]:
    """Grade the findings, in the order of the subjects.

    Args:
        findings: What the probe printed.
        ships: Whether the worker sends the driver with the job.
    """
    return [
        _python(findings),
        _ray(findings.ray),
        _prefect(findings.prefect),
        _driver(findings.driver, ships=ships),
        *_api(findings),
        _other_node(findings),
        _placement(findings.ray),
    ]


def _python(findings: Findings) -> Check:
    found = findings.python
    if found is None or found.error:
        return skipped(CheckSubject.PYTHON_VERSION, _NOT_REACHED)
    where = f"Python {found.version} in the job ({found.executable} on {found.host})"
    if _numbers(found.version) < OLDEST_PYTHON:
        needed = ".".join(map(str, OLDEST_PYTHON))
        return failed(
            CheckSubject.PYTHON_VERSION,
            f"{where}; the driver needs {needed}.",
            newer_image(OLDEST_PYTHON, findings.ray.version if findings.ray else ""),
        )
    here = platform.python_version()
    if _numbers(found.version) != _numbers(here):
        return ok(
            CheckSubject.PYTHON_VERSION,
            f"{where}, {here} here: this matters only for flows sent as a pickle (bundles).",
        )
    return ok(CheckSubject.PYTHON_VERSION, f"{where}, {here} here.")


def _ray(found: RayFinding | None) -> Check:
    if found is None:
        return skipped(CheckSubject.RAY_IN_JOB, _NOT_REACHED)
    if found.error:
        return failed(
            CheckSubject.RAY_IN_JOB,
            f"The Python of the job cannot join the cluster ({found.error}).",
            "Give the job the Ray and the Python of the cluster. Flows without Ray tasks run "
            "nevertheless.",
        )
    return ok(CheckSubject.RAY_IN_JOB, f"A driver joins with Ray {found.version}.")


def _prefect(found: VersionFinding | None) -> Check:
    if found is None:
        return skipped(CheckSubject.PREFECT_VERSION, _NOT_REACHED)
    missing = Category.PREFECT_MISSING
    if found.error:
        absent = found.error.startswith("ModuleNotFoundError: No module named 'prefect'")
        says = missing.meaning if absent else f"Prefect cannot be imported ({found.error})."
        return failed(CheckSubject.PREFECT_VERSION, says, missing.advice)
    says = f"Prefect {found.version} in the job, {prefect.__version__} here"
    mismatch = Category.PREFECT_VERSION_MISMATCH
    if _numbers(found.version) < OLDEST_PREFECT:
        needed = ".".join(map(str, OLDEST_PREFECT))
        return failed(
            CheckSubject.PREFECT_VERSION, f"{says}; the driver needs {needed}.", mismatch.advice
        )
    if _numbers(found.version) != _numbers(prefect.__version__):
        return warning(CheckSubject.PREFECT_VERSION, f"{says}.", mismatch.advice)
    return ok(CheckSubject.PREFECT_VERSION, f"{says}.")


def _driver(found: VersionFinding | None, *, ships: bool) -> Check:
    if found is None:
        return skipped(CheckSubject.DRIVER_IMPORT, _NOT_REACHED)
    if found.error and ships:
        return failed(
            CheckSubject.DRIVER_IMPORT,
            f"The driver was sent along but cannot be imported ({found.error}).",
            "Check that the nodes can fetch gcs:// packages from the head, and that no other "
            "prefect_ray_worker is on their PYTHONPATH.",
        )
    if found.error:
        return failed(
            CheckSubject.DRIVER_IMPORT,
            f"The job has no driver ({found.error}), and the worker is set to send none.",
            f"Install prefect-ray-worker=={__version__} on the nodes, or leave "
            "PREFECT_INTEGRATIONS_RAY_WORKER_SHIP_DRIVER on.",
        )
    if found.version != __version__:
        return warning(
            CheckSubject.DRIVER_IMPORT,
            f"The driver in the job is {found.version}, the worker {__version__}.",
            "Use one version on both sides, or let the worker send its own.",
        )
    return ok(CheckSubject.DRIVER_IMPORT, f"The driver {found.version} is there.")


def _api(findings: Findings) -> list[Check]:
    found, has_prefect = findings.api, findings.prefect
    if found is None or has_prefect is None or has_prefect.error:
        why = "Without Prefect, the job cannot ask its API."
        return [
            skipped(CheckSubject.PREFECT_API, why),
            skipped(CheckSubject.PREFECT_CREDENTIALS, why),
        ]
    reached = _reached(found)
    if reached.grade is not Grade.OK:
        why = "The Prefect API was not reached."
        return [reached, skipped(CheckSubject.PREFECT_CREDENTIALS, why)]
    refused = Category.PREFECT_API_UNAUTHORIZED
    if found.status in _REFUSED:
        says = f"The Prefect API rejects the job's credentials (HTTP {found.status})."
        return [reached, failed(CheckSubject.PREFECT_CREDENTIALS, says, refused.advice)]
    return [
        reached,
        ok(CheckSubject.PREFECT_CREDENTIALS, "The Prefect API accepts the job's credentials."),
    ]


def _reached(found: ApiFinding) -> Check:
    unreachable, wrong = Category.PREFECT_API_UNREACHABLE, Category.PREFECT_API_WRONG
    if found.status in _REFUSED:
        return ok(CheckSubject.PREFECT_API, "The Prefect API answers the job.")
    if found.status is not None and is_passing(found.status):
        return warning(
            CheckSubject.PREFECT_API,
            f"The Prefect API is busy or away now (HTTP {found.status}).",
            "Drivers wait and ask again. Look again in a minute; if it stays so, read the logs of "
            "the Prefect server and of the proxy before it.",
        )
    if found.error and found.error.startswith(_UNSENDABLE):
        says = (
            "The job can send nothing to the Prefect API: its PREFECT_API_KEY, PREFECT_API_URL or "
            f"PREFECT_CLIENT_CUSTOM_HEADERS cannot be used ({found.error})."
        )
        advice = "A key must not have a line end, and the URL begins with http:// or https://."
        return failed(CheckSubject.PREFECT_API, says, advice)
    if found.error and found.status is None and "JSON" not in found.error:
        says = f"The Prefect API does not answer the job ({found.error})."
        return failed(CheckSubject.PREFECT_API, says, unreachable.advice)
    if found.error:
        says = f"What answers the job is not a Prefect API ({found.error})."
        return failed(CheckSubject.PREFECT_API, says, wrong.advice)
    if found.url is None:
        return failed(
            CheckSubject.PREFECT_API,
            "The job has no PREFECT_API_URL.",
            "Run the doctor with the worker's environment: a worker sends its own URL along.",
        )
    if found.knows_pool is False:
        says = f"{_place(found.url)} does not have the work pool: it is a different Prefect server."
        return failed(CheckSubject.PREFECT_API, says, wrong.advice)
    return ok(CheckSubject.PREFECT_API, f"{_place(found.url)} answers the job.")


def _other_node(findings: Findings) -> Check:
    ray, found = findings.ray, findings.other_node
    if ray is None or ray.error:
        return skipped(CheckSubject.OTHER_NODE, "The job has not joined the cluster.")
    if found is None:
        return skipped(CheckSubject.OTHER_NODE, "The task on another node had not ended in time.")
    if found.error and found.error.startswith("GetTimeoutError"):
        return failed(
            CheckSubject.OTHER_NODE,
            f"A task on another node had not ended in time ({found.error}).",
            "If that node still sets up its runtime environment, allow more time with --wait. If "
            "not, check that the nodes reach each other on all ports and use the same image.",
        )
    if found.error:
        return failed(
            CheckSubject.OTHER_NODE,
            f"A task on another node does not run ({found.error}).",
            "Check that the nodes reach each other on all ports and use the same image.",
        )
    if found.host is None:
        return skipped(CheckSubject.OTHER_NODE, "The cluster has one node.")
    return _as_on_driver(findings, found)


def _as_on_driver(findings: Findings, found: NodeFinding) -> Check:
    says = f"A task runs on {found.host}, with Python {found.python} and Prefect {found.prefect}"
    driver = findings.prefect.version if findings.prefect else ""
    if driver and found.prefect != driver:
        return warning(
            CheckSubject.OTHER_NODE,
            f"{says}; the driver has Prefect {driver}.",
            "Use one image for all nodes, or put prefect into runtime_env.pip.",
        )
    return ok(CheckSubject.OTHER_NODE, f"{says}.")


def _placement(ray: RayFinding | None) -> Check:
    if ray is None or ray.error:
        return skipped(CheckSubject.DRIVER_PLACEMENT, "The job has not joined the cluster.")
    if not ray.on_head:
        return ok(CheckSubject.DRIVER_PLACEMENT, "Drivers run on a worker node.")
    if ray.nodes == 1:
        return ok(CheckSubject.DRIVER_PLACEMENT, "Drivers run on the head: there is no other node.")
    return warning(
        CheckSubject.DRIVER_PLACEMENT,
        f"Drivers run on the head, although the cluster has {ray.nodes} nodes.",
        "Set an entrypoint_ job variable (CPUs, a resource or a label of the worker nodes): a head "
        "that runs out of memory takes the cluster with it.",
    )


def _numbers(version: str) -> tuple[int, int]:
    match = _NUMBERS.match(version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _place(url: str) -> str:
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    here = " (the node itself)" if is_loopback_url(url) else ""
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}{here}"


# Prefect orders states and logs by the time stamps of different machines, and looks for late runs
# and missing heartbeats every half minute.
_MOST_SECONDS: Final = 5.0
# The resolution of the date of an HTTP answer.
_SECOND: Final = 1.0


@dataclass(frozen=True)
class _Skew:
    between: str
    seconds: float


def compare_clocks(probed: ProbeRun, findings: Findings) -> Check:
    """Grade the largest difference between clocks that the probe showed.

    Each clock wrote down when something happened whose earliest and latest time this machine knows.
    A time outside that span is skew.

    Args:
        probed: When this machine saw what.
        findings: The node's clock, and the server's as seen from there.
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
        return skipped(CheckSubject.CLOCKS, "The probe showed no clock.")
    worst = max(skews, key=lambda skew: abs(skew.seconds))
    if abs(worst.seconds) <= _MOST_SECONDS:
        return ok(CheckSubject.CLOCKS, f"No clocks are more than {_MOST_SECONDS:g} s apart.")
    return warning(
        CheckSubject.CLOCKS,
        f"At least {abs(worst.seconds):.0f} s lie between {worst.between}.",
        "Synchronise all machines with one time source (NTP): states and logs are ordered by time.",
    )


def _server(found: ApiFinding) -> float | None:
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
