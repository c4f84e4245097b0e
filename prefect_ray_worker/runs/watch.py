"""`Watched`: the pure fold of everything that was observed of one job. No socket, no clock."""

from dataclasses import dataclass, replace

from prefect_ray_worker.clusters.poller import Gone, Missing, Observation, Seen, Unreachable
from prefect_ray_worker.ray_api.models import JobDetails


@dataclass(frozen=True)
class Watched:
    """What the observations of one job so far amount to. Times are monotonic seconds.

    Attributes:
        submitted_at: When the job was submitted; the claim if that is all that is known.
        arrived: True once we know that Ray accepted the job.
        latest: The job when it was last seen.
        running_since: When it was first seen to run.
        unreachable_since: When the cluster stopped answering; None while it answers.
        trouble: Why it does not answer.
        missing: Whether the cluster's last answer was that it does not have the job.
        session_now: The cluster's present session, if that answer told it.
        gone: Why the cluster is certainly gone; None if it is not, or that is not known.
        cancelling_since: When the run was first seen to be cancelled.
        settled_outside_since: When the run was first seen to have ended, or to be scheduled
            again, certainly by another hand than its driver's or ours; None while it is not.
        settled_since: When that was first seen, by any hand.
        run_is_deleted: Whether Prefect does not have the run any more.
    """

    submitted_at: float
    arrived: bool
    latest: JobDetails | None = None
    running_since: float | None = None
    unreachable_since: float | None = None
    trouble: str = ""
    missing: bool = False
    session_now: str | None = None
    gone: str | None = None
    cancelling_since: float | None = None
    settled_outside_since: float | None = None
    settled_since: float | None = None
    run_is_deleted: bool = False

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
            case Missing(session_name):
                return replace(
                    self,
                    missing=True,
                    session_now=session_name,
                    unreachable_since=None,
                    trouble="",
                )
            case Unreachable(reason):
                since = now if self.unreachable_since is None else self.unreachable_since
                return replace(self, unreachable_since=since, trouble=reason)
            case Gone(reason):
                return replace(self, gone=reason)

    def accepted(self, ago: float, now: float) -> "Watched":
        """Return the same, knowing when Ray accepted the job, which nobody here saw.

        What was known is the claim, before which nothing was submitted. It is on another clock than
        Ray's answer: the moment is the claim at the earliest, and the present at the latest.

        Args:
            ago: Seconds since then, by Ray's clock; negative if that is ahead.
            now: The present.
        """
        return replace(self, submitted_at=max(self.submitted_at, now - max(ago, 0)))

    def has_run_for(self, now: float) -> float:
        """Return for how many seconds the job has been seen to run; 0 if it has not."""
        return 0.0 if self.running_since is None else now - self.running_since

    def silent_for(self, now: float) -> float:
        """Return for how many seconds the cluster has not answered; 0 if it does."""
        return 0.0 if self.unreachable_since is None else now - self.unreachable_since

    def cancelled_at(self, now: float) -> "Watched":
        """Return the same, knowing that the run is being cancelled."""
        return self if self.cancelling_since is not None else replace(self, cancelling_since=now)

    def settled_at(self, now: float, settled: bool, *, outside: bool) -> "Watched":
        """Return the same, knowing whether the run is settled, and certainly from outside."""
        return replace(
            self,
            settled_since=_since(self.settled_since, now, settled),
            settled_outside_since=_since(self.settled_outside_since, now, outside),
        )

    def submitted_again_at(self, now: float) -> "Watched":
        """Return the same, knowing that Ray has accepted a second submission of the job."""
        return replace(self, arrived=True, submitted_at=now, missing=False)


def _since(before: float | None, now: float, still: bool) -> float | None:
    return (now if before is None else before) if still else None
