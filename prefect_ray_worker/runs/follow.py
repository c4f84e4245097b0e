"""`Follower`: watches an attempt's job from its submission to the run's settled end."""

from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import anyio
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.clusters.poller import Missing, Observation, Seen
from prefect_ray_worker.errors import JobsApiError, RequestRejected, SubmissionConflict
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.runs.forwarding import LogForwarding
from prefect_ray_worker.runs.judge import Verdict, Watched, judge
from prefect_ray_worker.runs.linker import link
from prefect_ray_worker.runs.narrate import Announcer
from prefect_ray_worker.runs.outcome import UNTOUCHED, Outcome, of_refusal
from prefect_ray_worker.runs.reporter import Reporter
from prefect_ray_worker.runs.run import Attempt
from prefect_ray_worker.runs.settle import Closer
from prefect_ray_worker.runs.submitter import Submitter


class Follower:
    """Follows one attempt.

    Args:
        attempt: The attempt.
        submitter: Has made its job, or stands for the worker that has.
    """

    def __init__(self, attempt: Attempt, submitter: Submitter) -> None:
        self.attempt = attempt
        self._submitter = submitter
        self._closer = Closer(attempt)
        self._announcer = Announcer(attempt, submitter.session)
        self._reporter = Reporter(attempt, self._announcer)
        self._logs = LogForwarding(attempt)
        self._run_is_gone = False
        self._is_linked = False

    @property
    def may_still_start(self) -> bool:
        """Whether the run was settled while Ray held its job back, with a stop queued."""
        return self._closer.stop_is_queued

    def run_was_deleted(self) -> None:
        """Take note that nobody wants the job any more: its run is not in Prefect."""
        self._run_is_gone = True

    async def link(self) -> None:
        """Give the run the link to its job; does so once, however often it is called."""
        if not self._is_linked:
            self._is_linked = True
            await link(self.attempt, was_there=self._submitter.was_there)

    async def follow(self) -> Outcome:
        """Watch the job until the run is settled and its log forwarded; return what was decided."""
        settled = UNTOUCHED
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._logs.run, name=f"ray-logs {self.attempt.job_id}")
            try:
                settled = await self._watch()
            finally:
                self._logs.end()
        return settled

    async def _watch(self) -> Outcome:
        attempt = self.attempt
        attempt.around.in_background(self.link, f"ray-link {attempt.job_id}")
        if self._submitter.was_there:
            await self._announcer.recall()
        with (
            attempt.cluster.poller.watch(attempt.job_id) as watch,
            attempt.around.cancelling.attended(attempt.run_id),
            closing(self._reporter),
        ):
            watched = self._at_first()
            while True:
                observation = await watch.next()
                now = anyio.current_time()
                before, watched = watched, watched.after(observation, now)
                self._logs.observe(observation, arrived=watched.arrived)
                if attempt.run_id in attempt.around.cancelling:
                    watched = watched.cancelled_at(now)
                self._reporter.tell(before, watched)
                watched, decided = await self._act(observation, watched)
                if decided is not None:
                    await self._announcer.ended(watched, decided)
                    return decided

    async def prevent_start(self) -> None:
        """Stop the job again should it ever start: the queue of the stop is not durable."""
        with self.attempt.cluster.poller.watch(self.attempt.job_id) as watch:
            while True:
                observation = await watch.next()
                if isinstance(observation, Missing):
                    return
                if isinstance(observation, Seen):
                    if observation.details.is_terminal:
                        self._announcer.saw_end(observation.details)
                        return
                    if observation.details.status != JobStatus.PENDING:
                        await self._closer.stop()

    def _at_first(self) -> Watched:
        """Return what is known before the first look: limits count from the true start."""
        attempt = self.attempt
        state = attempt.history[-1] if attempt.history else None
        cancelled = state is not None and state.type == StateType.CANCELLING
        submitted_at = self._submitter.submitted_at or _monotonic(attempt.claimed_at)
        return Watched(
            submitted_at=submitted_at or anyio.current_time(),
            arrived=self._submitter.has_arrived,
            running_since=_monotonic(attempt.started_at),
            cancelling_since=_monotonic(state.timestamp) if state and cancelled else None,
        )

    async def _act(
        self, observation: Observation, watched: Watched
    ) -> tuple[Watched, Outcome | None]:
        if self._run_is_gone:
            return watched, await self._closer.stop_unwanted()
        verdict = judge(watched, self.attempt.limits, anyio.current_time())
        if verdict is Verdict.NEVER_ARRIVED:
            decided = await self._never_arrived(watched)
            if self._submitter.has_arrived:
                # From here on a missing job is one that may have run.
                now = anyio.current_time()
                watched = replace(watched, arrived=True, submitted_at=now, missing=False)
            return watched, decided
        session_now = observation.session_name if isinstance(observation, Missing) else None
        decided = await self._closer.act_on(
            verdict, watched, then=self._submitter.session, now=session_now
        )
        if decided is not None and verdict in (Verdict.LOST, Verdict.SILENT_TOO_LONG):
            self._announcer.lost(decided)
        return watched, decided

    async def _never_arrived(self, watched: Watched) -> Outcome | None:
        """Submit the job again, if its run still waits for this very attempt."""
        match await self._closer.state():
            case StateType.PENDING if not await self._closer.is_superseded():
                return await self._submit_again(watched)
            case StateType.RUNNING:
                # Only the job itself reports that.
                decided = await self._closer.lost(then=self._submitter.session, now=None)
                self._announcer.lost(decided)
                return decided
            case StateType.CANCELLING:
                return await self._closer.cancelled("Cancelled before Ray had the job.")
            case _:
                return UNTOUCHED

    async def _submit_again(self, watched: Watched) -> Outcome | None:
        attempt = self.attempt
        limit = attempt.limits.unreachable
        if anyio.current_time() - watched.submitted_at >= limit:
            refusal = (
                f"The Ray cluster at {attempt.address} answers, and has not taken the job for "
                f"{limit:g} s. What it answered is in the logs of the run."
            )
            return await self._closer.settle(of_refusal(refusal))
        try:
            await self._submitter.submit()
        except (RequestRejected, SubmissionConflict) as exc:
            return await self._closer.settle(of_refusal(str(exc)))
        except JobsApiError as exc:
            # The next look decides: unreachable waits, missing comes back here.
            attempt.log.warning("The Ray Job could not be submitted again yet: %s", exc)
        return None


def _monotonic(moment: datetime | None) -> float | None:
    """Return a moment of the wall clock on the clock of `anyio.current_time`."""
    if moment is None:
        return None
    ago = (datetime.now(UTC) - moment).total_seconds()
    return anyio.current_time() - max(ago, 0)
