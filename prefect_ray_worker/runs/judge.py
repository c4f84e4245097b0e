"""What to do about a watched job, and what its end means for the flow run. Pure.

The only place that decides, apart from `recovery/ownership`. The job is evidence about the
infrastructure; the flow run's state is the result. Both are read before anything is decided.
What the evidence means in words is `diagnosis`'s to say.
"""

from dataclasses import dataclass
from enum import Enum

from prefect.client.schemas.objects import StateType

from prefect_ray_worker.diagnosis.job import (
    NO_CONTEXT,
    Context,
    Ended,
    driver_verdict,
    of_job,
    start_overdue,
)
from prefect_ray_worker.diagnosis.pending import why_waiting
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus
from prefect_ray_worker.runs.watch import Watched
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import Diagnosis, diagnosed
from prefect_ray_worker.shared.ids import attempt_in

_UNDECIDED = frozenset({StateType.PENDING, StateType.RUNNING})


class Verdict(Enum):
    """What to do about a watched job now."""

    WAIT = "wait"
    """Nothing to do yet."""

    UNWANTED = "unwanted"
    """The run was deleted from Prefect: nobody wants its job any more."""

    ENDED = "ended"
    """The job has a terminal status."""

    LOST = "lost"
    """A reachable cluster had the job and does not have it any more."""

    CLUSTER_GONE = "cluster gone"
    """The cluster was deleted, and the job with it."""

    NEVER_ARRIVED = "never arrived"
    """A reachable cluster does not have the job, and never had it: submit it again."""

    START_OVERDUE = "start overdue"
    """The job has been PENDING for longer than its start timeout."""

    RUN_OVERDUE = "run overdue"
    """The job has been running for longer than its run timeout."""

    LEFT_BEHIND = "left behind"
    """The run was settled or rescheduled from outside, and its job goes on all the same."""

    CANCEL_OVERDUE = "cancel overdue"
    """The run is being cancelled and its driver has not reacted, or has not even started."""

    QUIET = "quiet"
    """The cluster has not answered for a while: ask Prefect whether the run has ended."""

    SILENT_TOO_LONG = "silent too long"
    """The cluster has been unreachable for longer than the limit."""


@dataclass(frozen=True)
class Limits:
    """How long a run may take for what, all in seconds; None for no limit.

    Attributes:
        start: From submission to RUNNING.
        run: From RUNNING to a terminal status.
        stop_grace: From Cancelling until we stop a driver that runs.
        left_behind: From a state that was set from outside until we stop a driver that runs; from
            one that a driver could have set, until we take it that no driver has.
        unreachable: Without any answer of the cluster.
        quiet: Without any answer of the cluster, until Prefect is asked about the run.
    """

    start: float | None
    run: float | None
    stop_grace: float
    left_behind: float
    unreachable: float
    quiet: float


def judge(watched: Watched, limits: Limits, now: float) -> Verdict:
    """Return what the observations so far ask for.

    Args:
        watched: The fold of all observations.
        limits: The run's limits.
        now: The present, on the clock of `watched`.
    """
    if watched.gone is not None:
        return Verdict.CLUSTER_GONE
    since, silent = watched.unreachable_since, watched.silent_for(now)
    if since is not None and silent >= limits.unreachable:
        return Verdict.SILENT_TOO_LONG
    if watched.run_is_deleted:
        return Verdict.UNWANTED
    if since is not None:
        return Verdict.QUIET if silent >= limits.quiet else Verdict.WAIT
    if watched.missing:
        return Verdict.LOST if watched.arrived else Verdict.NEVER_ARRIVED
    if watched.latest is None:
        return Verdict.WAIT
    if watched.latest.is_terminal:
        return Verdict.ENDED
    return _of_job_that_goes_on(watched, watched.latest.has_started, limits, now)


def _of_job_that_goes_on(
    watched: Watched, has_started: bool, limits: Limits, now: float
) -> Verdict:
    if watched.settled_outside_since is not None:
        grace = limits.left_behind if has_started else 0
        if now - watched.settled_outside_since >= grace:
            return Verdict.LEFT_BEHIND
        return Verdict.WAIT
    settled_for = 0.0 if watched.settled_since is None else now - watched.settled_since
    if not has_started and settled_for >= limits.left_behind:
        # Ray calls a job RUNNING before its driver starts (2.60): no driver has set this state.
        # One that is quicker than our look at its job is seen within the grace.
        return Verdict.LEFT_BEHIND
    if watched.cancelling_since is not None:
        grace = limits.stop_grace if has_started else 0
        if now - watched.cancelling_since >= grace:
            return Verdict.CANCEL_OVERDUE
        return Verdict.WAIT
    return _overdue(watched, limits, now)


def _overdue(watched: Watched, limits: Limits, now: float) -> Verdict:
    if watched.running_since is None:
        waited = now - watched.submitted_at
        late = limits.start is not None and waited >= limits.start
        return Verdict.START_OVERDUE if late else Verdict.WAIT
    ran = now - watched.running_since
    late = limits.run is not None and ran >= limits.run
    return Verdict.RUN_OVERDUE if late else Verdict.WAIT


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
        message: What happened, for the flow run's state; for a crash it begins with the category.
        category: The kind of failure, by its name in messages and events; None for none.
    """

    resolution: Resolution
    message: str = ""
    category: str | None = None


UNTOUCHED = Outcome(Resolution.LEAVE)


def crashed(why: Diagnosis) -> Outcome:
    """Return the outcome of a run that ended without a result."""
    return Outcome(Resolution.CRASH, str(why), category=why.category.label)


def of_ended_job(
    job: JobDetails, state: StateType | None, *, context: Context = NO_CONTEXT
) -> Outcome:
    """Read a terminal job and the state of its flow run together.

    Args:
        job: A job with a terminal status.
        state: Type of the run's state, read after the job had ended; None if it is deleted.
        context: What the job asked for, and what its cluster has.
    """
    if state == StateType.CANCELLING:
        return Outcome(
            Resolution.CANCEL, f"Cancelled; the Ray Job has ended ({job.status.lower()})."
        )
    if state not in _UNDECIDED:
        return UNTOUCHED
    return crashed(of_job(_ended(job), context))


def verdict_of_driver(job: JobDetails) -> Diagnosis | None:
    """Return what the driver of a failed job said about its end, or None.

    Args:
        job: The job.
    """
    return driver_verdict(_ended(job)) if job.status == JobStatus.FAILED else None


def _ended(job: JobDetails) -> Ended:
    return Ended(
        job.status,
        job.error_type,
        job.driver_exit_code,
        job.message or "",
        attempt=attempt_in(job.submission_id or ""),
    )


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
    category = Category.JOB_DELETED
    why = "somebody deleted its record, or the head lost it"
    if then and now and then != now:
        category = Category.HEAD_LOST
        why = f"its head was restarted (session {then}, now {now}) and keeps jobs in memory"
    return crashed(diagnosed(category, f"The Ray cluster lost the job {submission_id}: {why}."))


def of_deleted_cluster(reason: str) -> Outcome:
    """Return the outcome of a run whose cluster was deleted.

    Args:
        reason: What is known of it, as a clause.
    """
    cause = f"The run's cluster is gone: {reason}."
    return crashed(diagnosed(Category.CLUSTER_DELETED, cause))


def of_late_start(
    limit: float, job: JobDetails | None, *, context: Context = NO_CONTEXT
) -> Outcome:
    """Return the outcome of a job that was PENDING for longer than its start timeout.

    Args:
        limit: The timeout, in seconds.
        job: The job, when it was last seen.
        context: What it asks for, and what its cluster has.
    """
    said = job.message if job is not None else None
    waiting = why_waiting(context.asked, context.cluster, said)
    return crashed(start_overdue(limit, waiting, limited_by="start_timeout_seconds"))


def of_long_run(limit: float) -> Outcome:
    """Return the outcome of a job that ran for longer than its run timeout.

    Args:
        limit: The timeout, in seconds.
    """
    cause = f"The run timeout of {limit:g} s (run_timeout_seconds) is over; the job was stopped."
    return crashed(diagnosed(Category.RUN_TIMEOUT, cause))


def of_silence(address: str, limit: float, trouble: str) -> Outcome:
    """Return the outcome of a run of which nothing has been heard for too long.

    Args:
        address: The cluster's, which does not answer.
        limit: For how long, in seconds.
        trouble: What came instead of the last answer.
    """
    cause = (
        f"The Ray cluster at {address} has not answered for {limit:g} s and the run has given no "
        f"sign of life since ({trouble})."
    )
    return crashed(diagnosed(Category.CLUSTER_UNREACHABLE, cause))


def of_refusal(reason: str) -> Outcome:
    """Return the outcome of a run whose job the cluster does not take.

    Args:
        reason: What it answered, in a sentence.
    """
    return crashed(diagnosed(Category.JOB_REJECTED, reason))
