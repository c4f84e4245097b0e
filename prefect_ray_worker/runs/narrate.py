"""`Announcer`: sends the events of one attempt's job, each once."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
from prefect.events import Event, RelatedResource
from prefect.events.related import object_as_related_resource

from prefect_ray_worker.errors import JobsApiError
from prefect_ray_worker.prefect_api import events
from prefect_ray_worker.prefect_api.events import Happening, Label, Subject
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus
from prefect_ray_worker.runs.judge import Watched
from prefect_ray_worker.runs.outcome import UNTOUCHED, Outcome
from prefect_ray_worker.runs.run import Attempt
from prefect_ray_worker.shared.diagnosis import parse

# Of the clocks of Ray and of the Prefect server, one against the other.
_DRIFT = timedelta(hours=1)
_PREFECT_SECONDS = 10.0


class Announcer:
    """Sends the events of one attempt's job.

    Args:
        attempt: The attempt.
        session: Session of the cluster when it took the job.
    """

    def __init__(self, attempt: Attempt, session: str | None) -> None:
        self._attempt = attempt
        self._session = session
        self._subject: Subject | None = None
        self._latest: JobDetails | None = None
        self._last: Event | None = None
        self._sent: set[str] = set()
        self._is_over = False

    async def recall(self) -> None:
        """Find out which events an earlier worker has sent, so as not to send them again."""
        attempt = self._attempt
        began = attempt.claimed_at or datetime.now(UTC)
        with anyio.move_on_after(_PREFECT_SECONDS):
            sent = await attempt.around.flow_runs.events_of(
                events.resource_id(attempt.job_id), since=began - _DRIFT
            )
            self._sent = {event.event for event in sent}
            self._last = max(sent, key=lambda event: event.occurred, default=None)

    def saw(self, job: JobDetails) -> None:
        """Tell of what a look at the job shows for the first time, but not of its end."""
        self._latest = job
        self._tell(Happening.PENDING, job)
        happening = Happening.of(job.status)
        if happening is not None and not job.is_terminal:
            self._tell(happening, job)

    def lost(self, decided: Outcome) -> None:
        """Tell that nothing more will be known of the job."""
        self._is_over = True
        self._tell(Happening.LOST, self._latest, decided)

    async def ended(self, watched: Watched, decided: Outcome) -> None:
        """Tell how the job has ended, now that its run is settled."""
        if self._is_over:
            return
        job = watched.latest
        reachable = watched.arrived and watched.unreachable_since is None and not watched.missing
        if reachable and (job is None or not job.is_terminal):
            job = await self._look()
        if job is not None and job.is_terminal:
            self.saw_end(job, await self._as_the_driver_said(job, decided))

    def saw_end(self, job: JobDetails, decided: Outcome = UNTOUCHED) -> None:
        """Tell how a job has ended that has."""
        self.saw(job)
        happening = Happening.of(job.status)
        if happening is not None:
            self._tell(happening, job, decided)

    async def _as_the_driver_said(self, job: JobDetails, decided: Outcome) -> Outcome:
        """Take over the diagnosis of a driver that has settled its run itself."""
        if decided.category is not None or job.status != JobStatus.FAILED:
            return decided
        run = None
        with anyio.move_on_after(_PREFECT_SECONDS):
            run = await self._attempt.around.flow_runs.read(self._attempt.run_id)
        said = (run.state.message if run is not None and run.state is not None else None) or ""
        read = parse(said)
        return replace(decided, message=said, category=read[0].label) if read else decided

    async def _look(self) -> JobDetails | None:
        """Look at a job that was stopped a moment ago."""
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
            related=self._related(),
        )

    def _related(self) -> list[RelatedResource]:
        related = list(self._attempt.around.related(self._attempt.configuration))
        if not any(resource.role == "flow-run" for resource in related):
            # The configuration of an adopted run could not be read any more.
            run = self._attempt.flow_run
            related.append(object_as_related_resource("flow-run", "flow-run", run))
        return related
