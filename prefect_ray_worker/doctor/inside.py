"""What the probe's findings mean for flow runs: pure."""

import platform
import re
from urllib.parse import urlsplit

import prefect

from prefect_ray_worker._version import __version__
from prefect_ray_worker.doctor.check import Check, Grade, Subject, failed, ok, skipped, warning
from prefect_ray_worker.doctor.findings import ApiFound, Findings, NodeFound, RayFound, Versioned
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.loopback import is_loopback_host

# What this package declares in pyproject.toml; the driver runs in the job's Python and Prefect.
_OLDEST_PYTHON = (3, 11)
_OLDEST_PREFECT = (3, 8)
_NUMBERS = re.compile(r"(\d+)\.(\d+)")
_NOT_TOLD = "The probe did not come to it."
_REFUSED = frozenset({401, 403})


def checks_of(findings: Findings, *, ships: bool) -> list[Check]:
    """Return what the findings say, in the order of the subjects.

    Args:
        findings: Of the probe.
        ships: Whether jobs are given the driver by the worker.
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
        return skipped(Subject.PYTHON_VERSION, _NOT_TOLD)
    where = f"Python {found.version} in the job ({found.executable} on {found.host})"
    if _numbers(found.version) < _OLDEST_PYTHON:
        needed = ".".join(map(str, _OLDEST_PYTHON))
        return failed(
            Subject.PYTHON_VERSION,
            f"{where}; the driver needs {needed}.",
            Category.PYTHON_VERSION_MISMATCH.advice,
        )
    here = platform.python_version()
    if _numbers(found.version) != _numbers(here):
        return ok(
            Subject.PYTHON_VERSION,
            f"{where}, {here} here: only flows that are sent as a pickle (bundles) mind.",
        )
    return ok(Subject.PYTHON_VERSION, f"{where}, {here} here.")


def _ray(found: RayFound | None) -> Check:
    if found is None:
        return skipped(Subject.RAY_IN_JOB, _NOT_TOLD)
    if found.error:
        return failed(
            Subject.RAY_IN_JOB,
            f"The Python of the job cannot join the cluster ({found.error}).",
            "Flows without Ray tasks run nevertheless. Otherwise give the job the Ray and the "
            "Python of the cluster.",
        )
    return ok(Subject.RAY_IN_JOB, f"A driver joins with Ray {found.version}.")


def _prefect(found: Versioned | None) -> Check:
    if found is None:
        return skipped(Subject.PREFECT_VERSION, _NOT_TOLD)
    missing = Category.PREFECT_MISSING
    if found.error:
        absent = found.error.startswith("ModuleNotFoundError: No module named 'prefect'")
        says = missing.meaning if absent else f"Prefect cannot be imported ({found.error})."
        return failed(Subject.PREFECT_VERSION, says, missing.advice)
    says = f"Prefect {found.version} in the job, {prefect.__version__} here"
    mismatch = Category.PREFECT_VERSION_MISMATCH
    if _numbers(found.version) < _OLDEST_PREFECT:
        needed = ".".join(map(str, _OLDEST_PREFECT))
        return failed(
            Subject.PREFECT_VERSION, f"{says}; the driver needs {needed}.", mismatch.advice
        )
    if _numbers(found.version) != _numbers(prefect.__version__):
        return warning(Subject.PREFECT_VERSION, f"{says}.", mismatch.advice)
    return ok(Subject.PREFECT_VERSION, f"{says}.")


def _driver(found: Versioned | None, *, ships: bool) -> Check:
    if found is None:
        return skipped(Subject.DRIVER_IMPORT, _NOT_TOLD)
    if found.error and ships:
        return failed(
            Subject.DRIVER_IMPORT,
            f"The driver was sent along and cannot be imported ({found.error}).",
            "Let the nodes fetch gcs:// packages from the head, and look for another "
            "prefect_ray_worker on their PYTHONPATH.",
        )
    if found.error:
        return failed(
            Subject.DRIVER_IMPORT,
            f"The job has no driver ({found.error}), and the worker is told to bring none.",
            f"Install prefect-ray-worker=={__version__} on the nodes, or leave "
            "PREFECT_INTEGRATIONS_RAY_WORKER_SHIP_DRIVER on.",
        )
    if found.version != __version__:
        return warning(
            Subject.DRIVER_IMPORT,
            f"The driver in the job is {found.version}, the worker {__version__}.",
            "Use one version on both sides, or let the worker bring its own.",
        )
    return ok(Subject.DRIVER_IMPORT, f"The driver {found.version} is there.")


def _api(findings: Findings) -> list[Check]:
    found, has_prefect = findings.api, findings.prefect
    if found is None or has_prefect is None or has_prefect.error:
        why = "It takes Prefect in the job to ask it."
        return [skipped(Subject.PREFECT_API, why), skipped(Subject.PREFECT_CREDENTIALS, why)]
    reached = _reached(found)
    if reached.grade is not Grade.OK:
        why = "The Prefect API was not reached."
        return [reached, skipped(Subject.PREFECT_CREDENTIALS, why)]
    refused = Category.PREFECT_API_UNAUTHORIZED
    if found.status in _REFUSED:
        says = f"The Prefect API refuses the job (HTTP {found.status})."
        return [reached, failed(Subject.PREFECT_CREDENTIALS, says, refused.advice)]
    return [reached, ok(Subject.PREFECT_CREDENTIALS, "The Prefect API lets the job in.")]


def _reached(found: ApiFound) -> Check:
    unreachable, wrong = Category.PREFECT_API_UNREACHABLE, Category.PREFECT_API_WRONG
    if found.status in _REFUSED:
        return ok(Subject.PREFECT_API, "The Prefect API answers the job.")
    if found.error and found.status is None and "JSON" not in found.error:
        says = f"The Prefect API does not answer the job ({found.error})."
        return failed(Subject.PREFECT_API, says, unreachable.advice)
    if found.error:
        says = f"What answers the job is no Prefect API ({found.error})."
        return failed(Subject.PREFECT_API, says, wrong.advice)
    if found.url is None:
        return failed(
            Subject.PREFECT_API,
            "The job has no PREFECT_API_URL.",
            "Run this with the worker's environment, which sends its own along.",
        )
    if found.knows_pool is False:
        says = f"{_place(found.url)} does not know the work pool: it is another Prefect."
        return failed(Subject.PREFECT_API, says, wrong.advice)
    return ok(Subject.PREFECT_API, f"{_place(found.url)} answers the job.")


def _other_node(findings: Findings) -> Check:
    ray, found = findings.ray, findings.other_node
    if ray is None or ray.error or found is None:
        return skipped(Subject.OTHER_NODE, "The job has not joined the cluster.")
    if found.error:
        return failed(
            Subject.OTHER_NODE,
            f"A task on another node does not run ({found.error}).",
            "Check that the nodes reach each other on all ports, and have the same image.",
        )
    if found.host is None:
        return skipped(Subject.OTHER_NODE, "The cluster has one node.")
    return _as_on_driver(findings, found)


def _as_on_driver(findings: Findings, found: NodeFound) -> Check:
    says = f"A task runs on {found.host}, with Python {found.python} and Prefect {found.prefect}"
    driver = findings.prefect.version if findings.prefect else ""
    if driver and found.prefect != driver:
        return warning(
            Subject.OTHER_NODE,
            f"{says}; the driver has Prefect {driver}.",
            "Use one image for all nodes, or put prefect into runtime_env.pip.",
        )
    return ok(Subject.OTHER_NODE, f"{says}.")


def _placement(ray: RayFound | None) -> Check:
    if ray is None or ray.error:
        return skipped(Subject.DRIVER_PLACEMENT, "The job has not joined the cluster.")
    if not ray.on_head:
        return ok(Subject.DRIVER_PLACEMENT, "Drivers run on a worker node.")
    if ray.nodes == 1:
        return ok(Subject.DRIVER_PLACEMENT, "Drivers run on the head: there is no other node.")
    return warning(
        Subject.DRIVER_PLACEMENT,
        f"Drivers run on the head, although there are {ray.nodes} nodes.",
        "A head that runs out of memory takes the cluster with it: set an entrypoint_ job variable "
        "(CPUs, a resource or a label of the worker nodes).",
    )


def _numbers(version: str) -> tuple[int, int]:
    match = _NUMBERS.match(version)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def _place(url: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    here = " (the node itself)" if is_loopback_host(host) else ""
    return f"{parts.scheme}://{host}{port}{parts.path}{here}"
