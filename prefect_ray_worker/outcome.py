"""What a job's end means for its flow run: the table of the design, pure.

The job is evidence about the infrastructure; the flow run's state is the result. Both are
read before anything is decided.
"""

from dataclasses import dataclass
from enum import Enum

from prefect.client.schemas.objects import StateType

from prefect_ray_worker.driver.exits import DriverExit, describe_exit
from prefect_ray_worker.jobs_api.models import JobDetails, JobStatus

_UNDECIDED = frozenset({StateType.PENDING, StateType.RUNNING})
_LONGEST_DETAIL = 1500


class Resolution(Enum):
    """What to do with the flow run when its job has ended."""

    LEAVE = "leave"
    """The run has a result, waits for its next attempt, or is gone: its state stands."""

    CRASH = "crash"
    """The run has no result and will not get one."""

    CANCEL = "cancel"
    """The run was being cancelled, and nothing of it is left."""


@dataclass(frozen=True)
class Outcome:
    """The end of one attempt at a run.

    Attributes:
        resolution: What to do with the flow run.
        message: What happened, for the flow run's state.
        status_code: What Prefect's worker is told: 0 leaves the run's state alone.
    """

    resolution: Resolution
    message: str = ""
    status_code: int = 0


UNTOUCHED = Outcome(Resolution.LEAVE)


def crashed(message: str, job: JobDetails | None = None) -> Outcome:
    """Return the outcome of a run that ended without a result."""
    code = job.driver_exit_code if job is not None else None
    return Outcome(Resolution.CRASH, message, status_code=code or 1)


def of_ended_job(job: JobDetails, state: StateType | None) -> Outcome:
    """Read a terminal job and the state of its flow run together.

    Args:
        job: A job with a terminal status.
        state: Type of the run's state, read after the job had ended; None if it is deleted.
    """
    if state == StateType.CANCELLING:
        return Outcome(
            Resolution.CANCEL, f"Cancelled; the Ray Job has ended ({job.status.lower()})."
        )
    if state not in _UNDECIDED:
        return UNTOUCHED
    match job.status:
        case JobStatus.SUCCEEDED:
            return crashed(
                "The driver exited with code 0 without reporting a final state. "
                "Something ended the process early (os._exit, sys.exit in a thread, a custom "
                "command that does not run the flow): see the job's log in the Ray dashboard.",
                job,
            )
        case JobStatus.STOPPED:
            return crashed(
                "The Ray Job was stopped outside Prefect (ray job stop, the dashboard, or a "
                "cluster that went down). Run the flow again.",
                job,
            )
        case _:
            return crashed(_failure(job), job)


def is_infrastructure_failure(job: JobDetails) -> bool:
    """Say whether a job failed by no fault of its flow, so that another attempt may go well.

    Ray's supervisor of the job died, by itself, with its node or for memory; or a head that was
    restarted found none (`job_manager.py`, Ray 2.60). The driver has ended with it.
    """
    if job.status != JobStatus.FAILED or job.driver_exit_code is not None:
        return False
    return job.error_type == "JOB_SUPERVISOR_ACTOR_DIED" or (
        job.error_type == "JOB_SUPERVISOR_ACTOR_START_FAILURE"
        and "failed to get job supervisor" in (job.message or "")
    )


def of_lost_job(submission_id: str, *, then: str | None, now: str | None) -> Outcome:
    """Return the outcome of a job that a reachable cluster no longer has.

    Args:
        submission_id: The job.
        then: Session of the cluster when it took the job.
        now: Its present session.
    """
    if then and now and then != now:
        why = f"its head was restarted (session {then}, now {now}) and keeps jobs in memory"
        advice = "Give the cluster GCS fault tolerance to survive that, and run the flow again."
    else:
        why = "somebody deleted its record, or the head lost it"
        advice = "Look for what deletes Ray Jobs, and run the flow again."
    return crashed(f"The Ray cluster lost the job {submission_id}: {why}. {advice}")


def _failure(job: JobDetails) -> str:
    if job.driver_exit_code in set(DriverExit):
        return _last_line(job.message or "")  # the driver has said it in one line of its output
    kind = f" ({job.error_type})" if job.error_type else ""
    if job.driver_exit_code is not None:
        headline = f"The driver ended with {describe_exit(job.driver_exit_code)}"
    else:
        headline = "The Ray Job failed"
    detail = (job.message or "").strip()
    if len(detail) > _LONGEST_DETAIL:
        detail = f"…{detail[-_LONGEST_DETAIL:]}"
    return f"{headline}{kind}. {detail or 'Ray gives no reason; see the job in its dashboard.'}"


def _last_line(message: str) -> str:
    lines = [line for line in message.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "The driver gave no reason; see its log."
