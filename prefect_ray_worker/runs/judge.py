"""From observations to a verdict: a pure fold. No socket, no clock, no Prefect."""

from dataclasses import dataclass, replace
from enum import Enum

from prefect_ray_worker.clusters.poller import Missing, Observation, Seen, Unreachable
from prefect_ray_worker.ray_api.models import JobDetails


class Verdict(Enum):
    """What to do about a watched job now."""

    WAIT = "wait"
    """Nothing is decided."""

    ENDED = "ended"
    """The job has a terminal status."""

    LOST = "lost"
    """A reachable cluster that had the job does not have it any more."""

    NEVER_ARRIVED = "never arrived"
    """A reachable cluster does not have the job, and we never saw it: submit it again."""

    START_OVERDUE = "start overdue"
    """The job has been PENDING for longer than its start timeout."""

    RUN_OVERDUE = "run overdue"
    """The job has been running for longer than its run timeout."""

    CANCEL_OVERDUE = "cancel overdue"
    """The run is being cancelled and its driver has not reacted, or has not even started."""

    SILENT_TOO_LONG = "silent too long"
    """The cluster has been unreachable for longer than the limit."""


@dataclass(frozen=True)
class Limits:
    """How long a run may take for what, all in seconds; None for no limit.

    Attributes:
        start: From submission to RUNNING.
        run: From RUNNING to a terminal status.
        stop_grace: From Cancelling until we stop a driver that runs.
        unreachable: Without any answer of the cluster.
    """

    start: float | None
    run: float | None
    stop_grace: float
    unreachable: float


@dataclass(frozen=True)
class Watched:
    """Everything that the observations of one job so far amount to. Times are monotonic seconds.

    Attributes:
        submitted_at: When the job was submitted.
        arrived: Whether the cluster certainly had the job at some time.
        latest: The job when it was last seen.
        running_since: When it was first seen to run.
        unreachable_since: When the cluster stopped answering, if it does not answer now.
        trouble: Why it does not answer.
        missing: Whether the cluster said, at the last look, that it does not have the job.
        cancelling_since: When the run was first seen to be cancelled.
    """

    submitted_at: float
    arrived: bool
    latest: JobDetails | None = None
    running_since: float | None = None
    unreachable_since: float | None = None
    trouble: str = ""
    missing: bool = False
    cancelling_since: float | None = None

    def after(self, observation: Observation, now: float) -> "Watched":
        """Return the sum of what was known and one more observation."""
        match observation:
            case Seen(details):
                running_since = self.running_since
                if running_since is None and details.has_started:
                    running_since = now
                return replace(
                    self,
                    arrived=True,
                    latest=details,
                    running_since=running_since,
                    unreachable_since=None,
                    trouble="",
                    missing=False,
                )
            case Missing():
                return replace(self, missing=True, unreachable_since=None, trouble="")
            case Unreachable(reason):
                since = now if self.unreachable_since is None else self.unreachable_since
                return replace(self, unreachable_since=since, trouble=reason)

    def cancelled_at(self, now: float) -> "Watched":
        """Return the same, knowing that the run is being cancelled."""
        return self if self.cancelling_since is not None else replace(self, cancelling_since=now)


def judge(watched: Watched, limits: Limits, now: float) -> Verdict:
    """Say what the observations so far ask for.

    Args:
        watched: The fold of all observations.
        limits: The run's limits.
        now: The present, on the clock of `watched`.
    """
    if watched.unreachable_since is not None:
        silent = now - watched.unreachable_since
        return Verdict.SILENT_TOO_LONG if silent >= limits.unreachable else Verdict.WAIT
    if watched.missing:
        return Verdict.LOST if watched.arrived else Verdict.NEVER_ARRIVED
    if watched.latest is None:
        return Verdict.WAIT
    if watched.latest.is_terminal:
        return Verdict.ENDED
    if watched.cancelling_since is not None:
        grace = limits.stop_grace if watched.latest.has_started else 0
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
