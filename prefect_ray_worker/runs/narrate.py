"""`Narrator`: reports what happens to one attempt's job, by log lines, events and a link."""

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
from prefect.events import Event

from prefect_ray_worker.errors import JobsApiError
from prefect_ray_worker.metrics import ActiveJob
from prefect_ray_worker.prefect_api import events
from prefect_ray_worker.prefect_api.events import Happening, Label, Subject
from prefect_ray_worker.prefect_api.links import Link
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus
from prefect_ray_worker.runs.explain import Wait
from prefect_ray_worker.runs.judge import UNTOUCHED, Outcome, verdict_of_driver
from prefect_ray_worker.runs.run import RunAttempt
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.watch import Watched

# Largest expected difference between the clocks of Ray and the Prefect server.
_DRIFT = timedelta(hours=1)
_PREFECT_SECONDS = 10.0
# On a Failed or Cancelled run, a bare "SUCCEEDED" would contradict the run's state.
_EXPLAINED: dict[str, str] = {
    JobStatus.SUCCEEDED: ": its driver has ended by itself. The run's state says how the flow ended"
}

_log = logging.getLogger("prefect.workers.ray.linker")


class Narrator:
    """Reports each change of one attempt's job once.

    Args:
        services: Services that the worker's runs share.
        attempt: The attempt.
        session: The cluster's session when it accepted the job.
    """

    def __init__(self, services: Services, attempt: RunAttempt, session: str | None) -> None:
        self._services = services
        self._attempt = attempt
        self._events = _JobEvents(services, attempt, session)
        self._count: ActiveJob | None = None
        self._is_linked = False

    async def recall(self) -> None:
        """Read which events an earlier worker sent, so that none is sent twice."""
        await self._events.recall()

    async def link(self, *, was_there: bool) -> None:
        """Add a link to the job to the run, once. Never raises.

        Args:
            was_there: True if another worker may have added the link, so Prefect must be asked.
        """
        if self._is_linked:
            return
        self._is_linked = True
        attempt = self._attempt
        page = attempt.dashboard_page
        if page is None:
            return
        link = Link(
            page,
            text="Ray dashboard: the job",
            # The UI shows some forty characters of it.
            description="This run's job in Ray's dashboard.",
        )
        try:
            async with self._services.links:
                with anyio.fail_after(_PREFECT_SECONDS):
                    flow_runs = self._services.flow_runs
                    await flow_runs.link(attempt.run_id, link, may_be_there=was_there)
        except TimeoutError:
            _log.warning(
                "The run %s has no link to its job: the Prefect API did not answer within %g s.",
                attempt.run_id,
                _PREFECT_SECONDS,
            )
        except Exception as exc:  # noqa: BLE001 (the run continues; its log has the link)
            _log.warning("The run %s has no link to its job: %s", attempt.run_id, exc)

    def tell(self, before: Watched, after: Watched) -> None:
        """Report the changes between two observations in the run's log, where users look."""
        log = self._attempt.log
        if before.unreachable_since is None and after.unreachable_since is not None:
            log.warning(
                "The Ray cluster does not answer; the run is left as it is until it does. %s",
                after.trouble,
            )
        elif before.unreachable_since is not None and after.unreachable_since is None:
            log.info("The Ray cluster answers again.")
        status = after.latest.status if after.latest is not None else None
        previous = before.latest.status if before.latest is not None else None
        self._count = self._count or ActiveJob()
        if status is not None and status != previous:
            self._count.is_now(status)
            log.info("Ray Job is %s%s.", status, _EXPLAINED.get(status, ""))
        if after.latest is not None:
            self._events.saw(after.latest)
        waiting = self._services.waiting
        if status == JobStatus.PENDING and after.cancelling_since is None:
            waiting.begin(self._wait(after), after.latest.message if after.latest else None)
        else:
            waiting.end(self._attempt.job_id)

    def lost(self, decided: Outcome) -> None:
        """Report that the job is lost: its state will not be known."""
        self._events.lost(decided)

    async def ended(self, watched: Watched, decided: Outcome) -> None:
        """Report how the job ended, after its run was settled."""
        await self._events.ended(watched, decided)

    def saw_end(self, job: JobDetails) -> None:
        """Report the end of a job if its run was settled earlier."""
        self._events.saw_end(job)

    def close(self) -> None:
        """Stop counting and explaining the job, because the attempt is no longer watched."""
        self._services.waiting.end(self._attempt.job_id)
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


class _JobEvents:
    """Sends each event of one attempt's job once."""

    def __init__(self, services: Services, attempt: RunAttempt, session: str | None) -> None:
        self._services = services
        self._attempt = attempt
        self._session = session
        self._subject: Subject | None = None
        self._latest: JobDetails | None = None
        self._last: Event | None = None
        self._sent: set[str] = set()
        self._is_over = False

    async def recall(self) -> None:
        attempt = self._attempt
        began = attempt.claimed_at or datetime.now(UTC)
        with anyio.move_on_after(_PREFECT_SECONDS):
            sent = await self._services.flow_runs.events_of(
                events.resource_id(attempt.job_id), since=began - _DRIFT
            )
            self._sent = {event.event for event in sent}
            self._last = max(sent, key=lambda event: event.occurred, default=None)

    def saw(self, job: JobDetails) -> None:
        """Send an event for each status seen for the first time, except the job's end."""
        self._latest = job
        self._tell(Happening.PENDING, job)
        happening = Happening.of(job.status)
        if happening is not None and not job.is_terminal:
            self._tell(happening, job)

    def lost(self, decided: Outcome) -> None:
        self._is_over = True
        self._tell(Happening.LOST, self._latest, decided)

    async def ended(self, watched: Watched, decided: Outcome) -> None:
        if self._is_over:
            return
        job = watched.latest
        reachable = watched.arrived and watched.unreachable_since is None and not watched.missing
        if reachable and (job is None or not job.is_terminal):
            job = await self._look()
        if job is not None and job.is_terminal:
            self.saw_end(job, _with_the_drivers_verdict(job, decided))

    def saw_end(self, job: JobDetails, decided: Outcome = UNTOUCHED) -> None:
        self.saw(job)
        happening = Happening.of(job.status)
        if happening is not None:
            self._tell(happening, job, decided)

    async def _look(self) -> JobDetails | None:
        try:
            return await self._attempt.cluster.client.get(self._attempt.job_id)
        except JobsApiError:
            return None

    def _tell(
        self, happening: Happening, job: JobDetails | None, decided: Outcome | None = None
    ) -> None:
        if happening.event in self._sent:
            return
        self._sent.add(happening.event)
        if self._subject is None:
            self._subject = self._made()
        sent = events.send(
            happening,
            self._subject,
            job,
            category=decided.category if decided else None,
            message=decided.message if decided else "",
            follows=self._last,
        )
        self._last = sent or self._last

    def _made(self) -> Subject:
        attempt = self._attempt
        return Subject(
            job_id=attempt.job_id,
            name=attempt.configuration.name or attempt.job_id,
            labels={
                Label.ADDRESS: attempt.address,
                Label.DASHBOARD: attempt.dashboard_page,
                Label.SESSION: self._session,
            },
            related=self._services.related_to(attempt.flow_run, attempt.configuration),
        )


def _with_the_drivers_verdict(job: JobDetails, decided: Outcome) -> Outcome:
    """Return the outcome with the driver's diagnosis if the driver settled the run itself."""
    verdict = verdict_of_driver(job) if decided.category is None else None
    if verdict is None:
        return decided
    return replace(decided, message=str(verdict), category=verdict.category.label)
