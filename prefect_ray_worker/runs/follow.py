"""`Follower`: the loop that watches an attempt's job from its submission to the run's end."""

import time
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import anyio
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker.clusters.poller import Gone, Missing, Observation, Seen, Unreachable
from prefect_ray_worker.errors import JobsApiError, RequestRejected, SubmissionConflict
from prefect_ray_worker.logs.forward import LogForwarding
from prefect_ray_worker.prefect_api.active_runs import ENDED_BADLY
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus
from prefect_ray_worker.runs.judge import UNTOUCHED, Outcome, Verdict, judge, of_refusal
from prefect_ray_worker.runs.narrate import Narrator
from prefect_ray_worker.runs.recovery.labels import unfinished_label
from prefect_ray_worker.runs.recovery.ownership import REMEMBER_SECONDS
from prefect_ray_worker.runs.run import RunAttempt
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.settle import Settlement
from prefect_ray_worker.runs.submit import Submitter
from prefect_ray_worker.runs.watch import Watched
from prefect_ray_worker.shared.ids import LOG_END_LABEL, attempt_in

_MILLISECONDS = 1000
# What leaves the end of the job unseen.
_NO_JOB = (Verdict.LOST, Verdict.CLUSTER_GONE, Verdict.SILENT_TOO_LONG)
_UNWATCHED = (
    "Ray Job %s is not watched any more. It had not started, and the Ray cluster at %s does not "
    "answer. If the job starts later, its driver sees that the run has ended, and ends."
)


class Follower:
    """Follows one attempt.

    Attributes:
        attempt: The attempt.
        logs: Forwards the log of its job; None if its run does not want that.

    Args:
        services: What the worker's runs share.
        attempt: The attempt.
        submitter: Has made its job, or stands for the worker that has.
    """

    def __init__(self, services: Services, attempt: RunAttempt, submitter: Submitter) -> None:
        self.attempt = attempt
        self._services = services
        self._submitter = submitter
        self._settlement = Settlement(services, attempt)
        self._narrator = Narrator(services, attempt, submitter.session)
        self.logs = _logs_of(services, attempt, is_new=submitter.is_first)
        self._run_is_deleted = False
        self._last = Watched(submitted_at=0.0, arrived=False)
        self._decided: Outcome | None = None
        self._has_ended = anyio.Event()

    @property
    def may_still_start(self) -> bool:
        """Whether the run was settled while Ray held its job back, with a stop queued."""
        # A cluster that was made for the attempt goes, and the job with it.
        return self._settlement.stop_is_queued and not self.attempt.cluster.is_for_one_run

    def run_was_deleted(self) -> None:
        """Have the job stopped: its run is not in Prefect any more."""
        self._run_is_deleted = True

    async def link(self) -> None:
        """Give the run the link to its job; does so once, however often it is called."""
        await self._narrator.link(was_there=self._submitter.was_there)

    async def follow(self) -> Outcome:
        """Watch the job until the run is settled; return what was decided.

        `logs` gets its news here, and runs elsewhere: a log may take longer than the run.
        """
        try:
            self._decided = await self._watch()
            return self._decided
        finally:
            if self.logs is not None:
                self.logs.end()
            self._has_ended.set()

    async def finish(self, since: float) -> bool:
        """Do what may take longer than the run, and note on the run when that is done.

        That is to forward the log of its job to the end, and to settle the children that a dead
        driver left open. Run this beside `follow`.

        Args:
            since: When this process first tried, by `anyio.current_time`.

        Returns:
            Whether it is done; if not, the next look for such runs leads here again.
        """
        attempt = self.attempt
        if self.logs is not None:
            await self._forward(self.logs)
        await self._has_ended.wait()
        if not await self._services.lease.holds(attempt.run_id, attempt.job_id):
            return True
        if self._decided is not None:
            await self._settlement.end_children(self._last, self._decided)
        finished = self.logs is None or self.logs.is_complete or self._last.missing
        finished |= self._last.gone is not None
        # It never began, and is stopped should it still begin: there is no log to wait for.
        finished |= self._settlement.stop_is_queued
        # A cluster that was made for this attempt goes now, with what was not forwarded.
        releases = attempt.cluster.is_for_one_run and self._decided is not None
        is_done = finished or releases or await self._gives_the_log_up(since)
        if is_done:
            label = unfinished_label(attempt_in(attempt.job_id), False)
            with suppress(ObjectNotFound):  # deleted meanwhile
                await self._services.flow_runs.label(attempt.run_id, label)
        if releases:
            await self._release()
        return is_done

    async def _forward(self, logs: LogForwarding) -> None:
        """Forward the log to its end; for a while only if the cluster is kept for nothing else."""
        if not self.attempt.cluster.is_for_one_run:
            await logs.run()
            return
        async with anyio.create_task_group() as tasks:

            async def give_up() -> None:
                await self._has_ended.wait()
                await anyio.sleep(self._services.timing.drain)
                self.attempt.log.warning(
                    "The rest of the log of Ray Job %s is not forwarded: it has not come within "
                    "%g s after the end of the run, and its cluster is deleted.",
                    self.attempt.job_id,
                    self._services.timing.drain,
                )
                tasks.cancel_scope.cancel()

            tasks.start_soon(give_up)
            await logs.run()
            tasks.cancel_scope.cancel()

    async def _release(self) -> None:
        """Let go of the cluster, which was made for this attempt."""
        attempt, services = self.attempt, self._services
        failed = await self._settlement.state() in ENDED_BADLY
        said = await services.sources.release(attempt.cluster.ref, failed=failed)
        if said is not None:
            attempt.log.info("%s", said)
        await services.clusters.forget(attempt.cluster.ref)

    async def _gives_the_log_up(self, tried_since: float) -> bool:
        """Return whether it is too late for the rest of the log, and say so on the run.

        Until then a worker of the pool tries again, about once a minute. A worker that has just
        been started gives a cluster that does not answer as much time as every other worker.
        """
        attempt, trouble = self.attempt, self._last.trouble
        run = await self._services.flow_runs.read(attempt.run_id)
        if run is None or run.state is None or not run.state.is_final():
            return False
        age = (datetime.now(UTC) - run.state.timestamp).total_seconds()
        silent = min(age, anyio.current_time() - tried_since)
        is_away = self._last.unreachable_since is not None and silent >= attempt.limits.unreachable
        if not is_away and age < REMEMBER_SECONDS / 2:
            return False
        attempt.log.warning(
            "The rest of the log of Ray Job %s is missing: it could not be fetched from the Ray "
            "cluster at %s within %.0f s after the end of the run%s.",
            attempt.job_id,
            attempt.address,
            age,
            f" ({trouble})" if trouble else "",
        )
        return True

    async def _watch(self) -> Outcome:
        attempt = self.attempt
        self._services.in_background(self.link, f"ray-link {attempt.job_id}")
        if self._submitter.was_there:
            await self._narrator.recall()
        with (
            self._services.cancelling.attended(attempt.run_id),
            self._services.settled.attended(attempt.run_id),
            self._services.slots.kept(attempt.lease_id, attempt.flow_run, attempt.log),
            closing(self._narrator),
        ):
            watched, decided = self._at_first(), None
            while decided is None:
                watched, decided = await self._watch_submission(watched)
            await self._narrator.ended(watched, decided)
            return decided

    async def _watch_submission(self, watched: Watched) -> tuple[Watched, Outcome | None]:
        """Watch until something is decided, or Ray has accepted the job after all.

        A job that has just been accepted needs a new watch. To the old one a look can still come
        that began before, and did not find the job.
        """
        had_arrived = self._submitter.has_arrived
        with self.attempt.cluster.poller.watch(self.attempt.job_id) as watch:
            while True:
                before, watched = watched, self._with(await watch.next(), watched)
                self._last = watched
                self._narrator.tell(before, watched)
                watched, decided = await self._act(watched)
                if decided is not None or self._submitter.has_arrived != had_arrived:
                    return watched, decided

    async def prevent_start(self) -> None:
        """Stop the job again should it ever start: Ray does not keep a queued stop for good.

        A cluster that is silent for longer than the run's limit is not waited for. If it comes back
        with the job, the driver sees that its run has ended, and ends itself.
        """
        attempt = self.attempt
        watched = Watched(submitted_at=anyio.current_time(), arrived=True)
        with attempt.cluster.poller.watch(attempt.job_id) as watch:
            while True:
                observation, now = await watch.next(), anyio.current_time()
                watched = watched.after(observation, now)
                match observation:
                    case Missing() | Gone():
                        return
                    case Seen(job) if job.is_terminal:
                        self._narrator.saw_end(job)
                        return
                    case Seen(job) if job.status != JobStatus.PENDING:
                        await self._settlement.stop()
                    case Unreachable() if watched.silent_for(now) >= attempt.limits.unreachable:
                        attempt.log.warning(_UNWATCHED, attempt.job_id, attempt.address)
                        return
                    case _:
                        pass

    def _at_first(self) -> Watched:
        """Return what is known before the first look: limits count from the true start."""
        attempt = self.attempt
        submitted_at = self._submitter.submitted_at or _monotonic(attempt.claimed_at)
        return Watched(
            submitted_at=submitted_at or anyio.current_time(),
            arrived=self._submitter.has_arrived,
            running_since=_monotonic(attempt.started_at),
            cancelling_since=_monotonic(attempt.cancelling_at),
        )

    def _with(self, observation: Observation, watched: Watched) -> Watched:
        """Return what is known with one more observation, and with what others have told us."""
        now = anyio.current_time()
        if isinstance(observation, Seen) and watched.latest is None:
            watched = self._with_submission(observation.details, watched, now)
        watched = watched.after(observation, now)
        if self.logs is not None:
            self.logs.observe(observation.details if isinstance(observation, Seen) else None)
            if watched.missing and watched.arrived:
                self.logs.end()
        if self.attempt.run_id in self._services.cancelling:
            watched = watched.cancelled_at(now)
        if watched.has_run_for(now) >= self._services.timing.driver_start and self.attempt.lease_id:
            self._services.slots.let_go(self.attempt.lease_id)
        settled, run_id = self._services.settled, self.attempt.run_id
        watched = watched.settled_at(now, run_id in settled, outside=settled.from_outside(run_id))
        return replace(watched, run_is_deleted=self._run_is_deleted)

    def _with_submission(self, job: JobDetails, watched: Watched, now: float) -> Watched:
        """Return what is known with Ray's word on when an earlier worker submitted the job.

        Between the claim and that, a cluster may have started: no limit counts it.
        """
        if self._submitter.submitted_at is not None or job.start_time is None:
            return watched
        return watched.accepted(time.time() - job.start_time / _MILLISECONDS, now)

    async def _act(self, watched: Watched) -> tuple[Watched, Outcome | None]:
        verdict = judge(watched, self.attempt.limits, anyio.current_time())
        if verdict is Verdict.NEVER_ARRIVED:
            decided = await self._never_arrived(watched)
            if self._submitter.has_arrived:
                # From here on a missing job is one that may have run.
                watched = watched.submitted_again_at(anyio.current_time())
            return watched, decided
        decided = await self._settlement.act_on(verdict, watched, session=self._submitter.session)
        lost = verdict in (Verdict.LOST, Verdict.CLUSTER_GONE)
        if decided is UNTOUCHED and lost and watched.latest is None:
            self.attempt.log.warning(
                "The rest of the log of Ray Job %s is lost: the Ray cluster does not have the job "
                "any more.",
                self.attempt.job_id,
            )
        if decided is not None and verdict in _NO_JOB:
            self._narrator.lost(decided)
        return watched, decided

    async def _never_arrived(self, watched: Watched) -> Outcome | None:
        """Submit the job again, if its run still waits for this very attempt."""
        match await self._settlement.state():
            case StateType.PENDING if not await self._settlement.is_superseded():
                return await self._submit_again(watched)
            case StateType.RUNNING:
                # Only the job itself reports that.
                decided = await self._settlement.lost(then=self._submitter.session, now=None)
                self._narrator.lost(decided)
                return decided
            case StateType.CANCELLING:
                return await self._settlement.cancelled("Cancelled before Ray had the job.")
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
            return await self._settlement.settle(of_refusal(refusal))
        try:
            await self._submitter.submit()
        except (RequestRejected, SubmissionConflict) as exc:
            return await self._settlement.settle(of_refusal(str(exc)))
        except JobsApiError as exc:
            # The next look decides: unreachable waits, missing comes back here.
            attempt.log.warning("The Ray Job could not be submitted again yet: %s", exc)
        return None


def _logs_of(services: Services, attempt: RunAttempt, *, is_new: bool) -> LogForwarding | None:
    """Return what forwards the log of an attempt's job; None if its run does not want that."""
    if not attempt.configuration.forward_logs:
        return None
    return LogForwarding(
        attempt.job_id,
        attempt=attempt.number,
        reads=attempt.cluster.logs,
        sink=services.logs_of(attempt.run_id),
        owns=partial(services.lease.holds, attempt.run_id, attempt.job_id),
        log=attempt.log,
        is_new=is_new,
        on_end=None if attempt.flow_run.deployment_id else partial(_tell_caller, services, attempt),
    )


async def _tell_caller(services: Services, attempt: RunAttempt) -> None:
    """Tell the process that called a flow that all of its output is in Prefect."""
    label = {LOG_END_LABEL: attempt_in(attempt.job_id)}
    with suppress(Exception):  # the caller waits a little longer then
        await services.flow_runs.label(attempt.run_id, label)


def _monotonic(moment: datetime | None) -> float | None:
    """Return a moment of the wall clock on the clock of `anyio.current_time`."""
    if moment is None:
        return None
    ago = (datetime.now(UTC) - moment).total_seconds()
    return anyio.current_time() - max(ago, 0)
