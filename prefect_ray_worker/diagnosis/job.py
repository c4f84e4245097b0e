"""Explains why a Ray Job ended without a result, from its record and its context."""

import re
from dataclasses import dataclass, field

from prefect_ray_worker.diagnosis.pending import Reason, Waiting, why_waiting
from prefect_ray_worker.diagnosis.rules import ENVIRONMENT, LOG, SUPERVISOR, match
from prefect_ray_worker.diagnosis.text import bounded, clean, last_line, useful_lines
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.deaths import of_exit
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.exits import DriverExit, describe_exit
from prefect_ray_worker.shared.resources import Asked, ClusterResources
from prefect_ray_worker.shared.verdict_line import find_verdict

# The setting and its default in Ray 2.60 (`dashboard/consts.py`).
_RAYS_START_LIMIT, _RAYS_START_LIMIT_SECONDS = "RAY_JOB_START_TIMEOUT_SECONDS", 900.0
_START_LIMIT = re.compile(r"failed to start within (?P<limit>[\d.]+) seconds")
_OF_WAITING = {
    Reason.INFEASIBLE: Category.RESOURCES_INFEASIBLE,
    Reason.BUSY: Category.RESOURCES_BUSY,
}
# Drivers of older releases began their last line with a category and did not seal it. Such a line
# counts only if the exit code is one of ours and the category belongs to that code.
_PLAIN_VERDICTS: dict[int, tuple[Category, ...]] = {
    DriverExit.NO_PREFECT: (Category.PREFECT_MISSING, Category.PREFECT_VERSION_MISMATCH),
    DriverExit.NOT_AUTHORIZED: (Category.PREFECT_API_UNAUTHORIZED,),
    DriverExit.API_UNREACHABLE: (Category.PREFECT_API_UNREACHABLE,),
    DriverExit.OLD_PYTHON: (Category.PYTHON_VERSION_MISMATCH,),
    DriverExit.WRONG_API: (Category.PREFECT_API_WRONG,),
}


@dataclass(frozen=True)
class Ended:
    """A job that has ended, as Ray reports it.

    Attributes:
        status: `SUCCEEDED`, `STOPPED` or `FAILED`.
        error_type: Ray's type of failure (`JobErrorType`, Ray 2.60). None if Ray gives no type, as
            in older releases.
        exit_code: Exit code of the entrypoint; negative for a signal.
        message: Ray's message. If the entrypoint failed, it ends with the last lines of the log.
        attempt: Name of the attempt, if the job runs this package's driver; otherwise empty.
    """

    status: str
    error_type: str | None = None
    exit_code: int | None = None
    message: str = ""
    attempt: str = ""


@dataclass(frozen=True)
class Context:
    """What the worker knows about a job besides its record.

    Attributes:
        asked: The resources and environment that its driver asked for.
        cluster: The cluster's resources when last read; None if the cluster did not report them.
    """

    asked: Asked = field(default_factory=Asked)
    cluster: ClusterResources | None = None


NO_CONTEXT = Context()


def of_job(job: Ended, context: Context = NO_CONTEXT) -> Diagnosis:
    """Return why a job ended without a result for its run.

    Args:
        job: The job that ended.
        context: What the worker knows about it besides its record.
    """
    match job.status:
        case "SUCCEEDED":
            cause = "The driver exited with code 0 without reporting a final state."
            return diagnosed(Category.NO_FINAL_STATE, cause)
        case "STOPPED":
            return diagnosed(
                Category.STOPPED_OUTSIDE,
                "The Ray Job was stopped outside Prefect (ray job stop, the dashboard, or a "
                "cluster that went down).",
            )
        case _:
            return _of_failed_job(job, context)


def start_overdue(limit: float, waiting: Waiting, *, limited_by: str) -> Diagnosis:
    """Return why a job did not start in time.

    Args:
        limit: The limit, in seconds.
        waiting: What the job waited for when the limit passed.
        limited_by: Name of the setting that sets the limit, for the message.
    """
    return diagnosed(
        _OF_WAITING.get(waiting.reason, Category.START_TIMEOUT),
        f"The Ray Job was still PENDING after {limit:g} s ({limited_by}). {waiting.sentence}",
    )


def _of_failed_job(job: Ended, context: Context) -> Diagnosis:
    message = bounded(job.message)
    text, lines = "\n".join(clean(message)), useful_lines(message)
    match job.error_type:
        case "RUNTIME_ENV_SETUP_FAILURE":
            return _of_environment(text, lines)
        case "JOB_SUPERVISOR_ACTOR_START_TIMEOUT":
            return _of_rays_start_timeout(text, context)
        case "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE":
            asked = f", which asks for {context.asked}" if context.asked != Asked() else ""
            cause = f"Ray cannot place the driver{asked}: {_reason(lines)}"
            return diagnosed(Category.RESOURCES_INFEASIBLE, cause)
        case "JOB_SUPERVISOR_ACTOR_START_FAILURE":
            return match(ENVIRONMENT, text, lines) or _of_supervisor(text, lines)
        case "JOB_SUPERVISOR_ACTOR_DIED" | "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE":
            return _of_supervisor(text, lines)
        case "JOB_ENTRYPOINT_COMMAND_START_ERROR":
            cause = f"Ray could not start or stop the command of the job: {_reason(lines)}"
            return diagnosed(Category.ENTRYPOINT_NOT_STARTED, cause)
        case _:
            return _of_driver(job, text, lines)


def _of_environment(text: str, lines: tuple[str, ...]) -> Diagnosis:
    """Return why the set-up of a runtime environment failed.

    Args:
        text: Ray's message, cleaned.
        lines: The useful lines of the message.
    """
    found = match(ENVIRONMENT, text, lines)
    if found is not None:
        return found
    cause = f"The runtime environment could not be set up: {_reason(lines)}"
    return diagnosed(Category.RUNTIME_ENV_FAILED, cause, lines=lines)


def _of_rays_start_timeout(text: str, context: Context) -> Diagnosis:
    limit = _START_LIMIT.search(text)
    waiting = why_waiting(context.asked, context.cluster, None)
    if context == NO_CONTEXT:
        waiting = Waiting(Reason.UNKNOWN, "It waited for resources or its runtime environment.")
    late = start_overdue(
        float(limit["limit"]) if limit else _RAYS_START_LIMIT_SECONDS,
        waiting,
        limited_by=f"{_RAYS_START_LIMIT} of the Ray head",
    )
    advice = late.advice.replace("start_timeout_seconds", f"{_RAYS_START_LIMIT} of the head")
    return Diagnosis(late.category, late.cause, advice)


def _of_supervisor(text: str, lines: tuple[str, ...]) -> Diagnosis:
    found = match(SUPERVISOR, text)
    if found is not None:
        return found
    cause = f"Ray's supervisor of the job failed: {_reason(lines)}"
    return diagnosed(Category.SUPERVISOR_DIED, cause)


def _of_driver(job: Ended, text: str, lines: tuple[str, ...]) -> Diagnosis:
    code = job.exit_code
    verdict = driver_verdict(job)
    if verdict is not None:
        return verdict
    if code in set(DriverExit):
        return diagnosed(Category.JOB_FAILED, last_line(text) or "The driver gave no reason.")
    died_of_signal = code is not None and describe_exit(code).startswith("signal ")
    found = match(LOG, text, lines)
    if found is not None and (not died_of_signal or found.category is Category.OUT_OF_MEMORY):
        return found
    if code is None:
        if job.error_type is None and (found := match(ENVIRONMENT, text, lines)):
            return found  # Ray releases without `error_type` and `driver_exit_code`
        kind = f" ({job.error_type})" if job.error_type else ""
        cause = f"The Ray Job failed{kind}. {_reason(lines)}"
        return diagnosed(Category.JOB_FAILED, cause, lines=lines)
    death = of_exit(code, process="The driver")
    return diagnosed(death.category, death.cause, advice=death.advice, lines=lines)


def driver_verdict(job: Ended) -> Diagnosis | None:
    """Return the diagnosis that the driver itself wrote at the end of its log, or None.

    Args:
        job: The job that ended.
    """
    if job.attempt and (verdict := find_verdict(job.message, job.attempt)):
        return verdict
    plain = _PLAIN_VERDICTS.get(job.exit_code) if job.exit_code is not None else None
    for line in reversed(clean(bounded(job.message))) if plain else ():
        for category in plain or ():
            if line.startswith(f"{category}: "):
                return Diagnosis(category, line.removeprefix(f"{category}: "), advice="")
    return None


def _reason(lines: tuple[str, ...]) -> str:
    return lines[-1].strip() if lines else "Ray gives no reason"
