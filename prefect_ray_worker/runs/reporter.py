"""`Reporter`: tells on the flow run what changed about its job, each thing once."""

from prefect_ray_worker.metrics import ActiveJob
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.runs.explain import Wait
from prefect_ray_worker.runs.judge import Watched
from prefect_ray_worker.runs.narrate import Announcer
from prefect_ray_worker.runs.run import Attempt


class Reporter:
    """Tells what changes about one attempt's job.

    Args:
        attempt: The attempt.
        announcer: Sends its events.
    """

    def __init__(self, attempt: Attempt, announcer: Announcer) -> None:
        self._attempt = attempt
        self._announcer = announcer
        self._log = attempt.log
        self._count: ActiveJob | None = None

    def tell(self, before: Watched, after: Watched) -> None:
        """Log what one more observation has changed: the run's log is where the user looks."""
        if before.unreachable_since is None and after.unreachable_since is not None:
            self._log.warning(
                "The Ray cluster does not answer; the run is left as it is until it does. %s",
                after.trouble,
            )
        elif before.unreachable_since is not None and after.unreachable_since is None:
            self._log.info("The Ray cluster answers again.")
        status = after.latest.status if after.latest is not None else None
        previous = before.latest.status if before.latest is not None else None
        self._count = self._count or ActiveJob()
        if status is not None and status != previous:
            self._count.is_now(status)
            self._log.info("Ray Job %s is %s.", self._attempt.job_id, status)
        if after.latest is not None:
            self._announcer.saw(after.latest)
        waiting = self._attempt.around.waiting
        if status == JobStatus.PENDING and after.cancelling_since is None:
            waiting.begin(self._wait(after), after.latest.message if after.latest else None)
        else:
            waiting.end(self._attempt.job_id)

    def close(self) -> None:
        """Take note that nobody follows the attempt any more."""
        self._attempt.around.waiting.end(self._attempt.job_id)
        if self._count is not None:
            self._count.close()
            self._count = None

    def _wait(self, watched: Watched) -> Wait:
        attempt = self._attempt
        return Wait(
            run_id=attempt.run_id,
            claim_id=attempt.claim_id,
            job_id=attempt.job_id,
            since=watched.submitted_at,
            client=attempt.cluster.client,
            asked=lambda: attempt.asked,
            log=attempt.log,
        )
