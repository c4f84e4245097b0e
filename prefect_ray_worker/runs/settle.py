"""`Settlement`: carries out a verdict on an attempt's job, up to the settled state of its run."""

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import anyio
from prefect.client.schemas.objects import StateType

from prefect_ray_worker import metrics
from prefect_ray_worker.diagnosis.job import NO_CONTEXT, Context
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.active_runs import GOES_ON
from prefect_ray_worker.prefect_api.children import Ending
from prefect_ray_worker.prefect_api.flow_runs import type_of_state
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus
from prefect_ray_worker.runs import judge
from prefect_ray_worker.runs.explain import resources_of
from prefect_ray_worker.runs.judge import UNTOUCHED, Outcome, Resolution, Verdict
from prefect_ray_worker.runs.run import RunAttempt
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.stop import Stopping, stop_and_confirm
from prefect_ray_worker.runs.watch import Watched
from prefect_ray_worker.shared.ids import attempt_in, overdue_label
from prefect_ray_worker.shared.resources import Asked

# Paused: in its process, or suspended; a suspended run has another claim when it resumes.
_ATTEMPT_GOES_ON = (*GOES_ON, StateType.PAUSED)

# A job that is overdue is stopped even if Prefect is away.
_LABEL_SECONDS = 10.0
# Between this machine and the driver's node.
_CLOCKS_DIFFER = timedelta(seconds=5)


class Settlement:
    """Ends one attempt, and tells Prefect how, unless the run has gone on without it.

    Attributes:
        stop_is_queued: Whether Ray holds a stop for a job that it has not started.

    Args:
        services: What the worker's runs share.
        attempt: The attempt.
    """

    def __init__(self, services: Services, attempt: RunAttempt) -> None:
        self._services = services
        self._flow_runs = services.flow_runs
        self._attempt = attempt
        self._limits = attempt.limits
        self._log = attempt.log
        self.stop_is_queued = False

    async def act_on(
        self, verdict: Verdict, watched: Watched, *, session: str | None
    ) -> Outcome | None:
        """Do what a verdict asks for.

        Args:
            verdict: The verdict.
            watched: What it was judged from.
            session: Session of the cluster when it took the job.

        Returns:
            How the attempt ended; None to go on watching.
        """
        match verdict:
            case Verdict.WAIT | Verdict.NEVER_ARRIVED:
                return None
            case Verdict.UNWANTED | Verdict.LEFT_BEHIND:
                return await self._stop_unwanted(verdict)
            case Verdict.ENDED:
                return await self._ended(watched)
            case Verdict.LOST | Verdict.CLUSTER_GONE:
                return await self.lost(then=session, now=watched.session_now, gone=watched.gone)
            case Verdict.START_OVERDUE:
                return await self._stop_overdue(await self._late(watched))
            case Verdict.RUN_OVERDUE:
                return await self._stop_overdue(judge.of_long_run(self._limits.run or 0))
            case Verdict.CANCEL_OVERDUE:
                return await self._cancel(watched)
            case Verdict.QUIET:
                return await self._ended_unseen()
            case Verdict.SILENT_TOO_LONG:
                return await self._silent_too_long(watched)

    async def state(self) -> StateType | None:
        """Return the type of the run's present state; None if the run has been deleted."""
        run = await self._flow_runs.read(self._attempt.run_id)
        return type_of_state(run) if run is not None else None

    async def is_superseded(self) -> bool:
        """Return whether the run must not be settled from here.

        Another attempt has begun, or another worker follows this one.
        """
        attempt = self._attempt
        if not await self._services.lease.holds(attempt.run_id, attempt.job_id):
            return True
        return await self._flow_runs.claim_id(attempt.run_id) != attempt.claim_id

    async def settle(self, decided: Outcome, *, rename: bool = False) -> Outcome:
        """Tell Prefect what was decided.

        Args:
            decided: How the attempt ended.
            rename: Whether to replace the message of a crash that our own stop has caused.

        Returns:
            The same; `UNTOUCHED` if the run has gone on or ended without us.
        """
        if decided.resolution is Resolution.LEAVE or await self.is_superseded():
            return UNTOUCHED
        run_id = self._attempt.run_id
        if decided.resolution is Resolution.CRASH:
            settled = await self._flow_runs.crash(run_id, decided.message, rename=rename)
        else:
            settled = await self._flow_runs.cancelled(run_id, decided.message)
        if not settled:
            return UNTOUCHED
        if decided.resolution is Resolution.CRASH:
            metrics.CRASHES.labels(decided.category or "none").inc()
        say = self._log.error if decided.resolution is Resolution.CRASH else self._log.info
        say("%s", decided.message)
        return decided

    async def cancelled(self, message: str) -> Outcome:
        """Settle a run that was being cancelled."""
        return await self.settle(Outcome(Resolution.CANCEL, message))

    async def lost(self, *, then: str | None, now: str | None, gone: str | None = None) -> Outcome:
        """Settle a run whose job a cluster certainly does not have any more.

        Args:
            then: Session of the cluster when it took the job.
            now: Its present session.
            gone: Why the cluster itself is gone; None if it answers.
        """
        if await self.state() == StateType.CANCELLING:
            what = gone or "the Ray cluster does not have the job any more"
            return await self.cancelled(f"Cancelled; {what}.")
        decided = judge.of_lost_job(self._attempt.job_id, then=then, now=now)
        if gone is not None:
            decided = judge.of_deleted_cluster(gone)
        timing = self._services.timing
        # The next attempt at a run that has a cluster of its own waits for the end of this one.
        alone = self._attempt.cluster.is_for_one_run
        delay = timing.retry_delay if alone else timing.nodes_end
        return await self._settle_or_try_again(decided, delay=delay)

    async def stop(self) -> Stopping:
        """Stop the job and return how far that came."""
        stopping = await stop_and_confirm(
            self._attempt.cluster.client,
            self._attempt.job_id,
            grace_seconds=self._limits.stop_grace,
            timing=self._services.timing,
        )
        self.stop_is_queued = stopping is Stopping.QUEUED
        return stopping

    async def end_children(self, watched: Watched, decided: Outcome) -> None:
        """Settle the task runs and subflow runs that a driver left open when it died.

        Args:
            watched: The job when it was last seen.
            decided: How the attempt ended.
        """
        job = watched.latest
        reported = job is not None and job.status == JobStatus.SUCCEEDED
        if reported and decided.resolution is Resolution.LEAVE:
            return  # the driver has settled them itself
        before = datetime.now(UTC) + _CLOCKS_DIFFER
        claim_id, run_id = self._attempt.claim_id, self._attempt.run_id
        run = await self._flow_runs.read(run_id)
        state = run.state if run is not None else None
        if run is None or state is None:
            return
        now = f"the run is {state.name}"
        if not (state.is_final() or state.is_scheduled()):
            if await self._flow_runs.began_anew(run_id, claim_id) is None:
                return
            now = "another attempt at the run has begun"
        unwanted = state.is_cancelled() or state.is_completed()
        ending = Ending(
            StateType.CANCELLED if unwanted else StateType.CRASHED,
            f"ParentEnded: the process of flow run {run.name!r} is gone, and {now}.",
            before,
        )
        count = await self._flow_runs.end_children(run_id, claim_id, ending)
        if count:
            self._log.info("Settled %d task runs and subflow runs that were still open.", count)

    async def _stop_unwanted(self, verdict: Verdict) -> Outcome | None:
        if verdict is Verdict.LEFT_BEHIND:
            self._log.warning(
                "The state of the flow run was set from outside while its Ray Job %s was going "
                "on. Stopping the job; the state stays.",
                self._attempt.job_id,
            )
        stopping = await self.stop()
        over = stopping in (Stopping.ENDED, Stopping.GONE, Stopping.QUEUED)
        return UNTOUCHED if over else None

    async def _ended(self, watched: Watched) -> Outcome:
        job = watched.latest
        if job is None:
            return UNTOUCHED
        never_started = job.driver_exit_code is None
        context = await self._context() if never_started else NO_CONTEXT
        deadline = anyio.current_time() + self._services.timing.report_grace
        while True:
            decided = judge.of_ended_job(job, await self.state(), context=context)
            patient = decided.resolution is Resolution.CRASH and not _failed_by_itself(job)
            if not patient or anyio.current_time() >= deadline:
                break
            await anyio.sleep(1)
        if decided.resolution is Resolution.CRASH and judge.is_infrastructure_failure(job):
            return await self._settle_or_try_again(decided, delay=self._services.timing.retry_delay)
        return await self.settle(decided)

    async def _settle_or_try_again(self, decided: Outcome, *, delay: float) -> Outcome:
        allowed = self._attempt.configuration.infrastructure_retries
        if not allowed or await self.is_superseded():
            return await self.settle(decided)
        if not await self._flow_runs.try_again(
            self._attempt.run_id, decided.message, allowed=allowed, delay=delay
        ):
            return await self.settle(decided)
        self._log.warning(
            "%s The run is tried again in %g s (infrastructure_retries).", decided.message, delay
        )
        return replace(decided, resolution=Resolution.LEAVE)

    async def _cancel(self, watched: Watched) -> Outcome | None:
        stopping = await self.stop()
        match stopping:
            case Stopping.ENDED | Stopping.GONE:
                message = "Cancelled; the Ray Job was stopped and has ended."
                if watched.running_since is None:
                    message = "Cancelled before the Ray Job started."
            case Stopping.QUEUED:
                message = (
                    "Cancelled while the Ray Job waited for resources or its environment. Ray "
                    "has queued the stop and ends the job as soon as it would start."
                )
            case Stopping.UNCONFIRMED | Stopping.UNREACHABLE | Stopping.FOREIGN:
                self._log.warning(
                    "The Ray Job %s was asked to stop and has not ended yet (%s). Trying again.",
                    self._attempt.job_id,
                    stopping.value,
                )
                return None
        return await self.cancelled(message)

    async def _late(self, watched: Watched) -> Outcome:
        limit, job = self._limits.start or 0, watched.latest
        return judge.of_late_start(limit, job, context=await self._context())

    async def _stop_overdue(self, decided: Outcome) -> Outcome | None:
        self._log.warning("%s", decided.message)
        await self._label_overdue()
        stopping = await self.stop()
        if stopping in (Stopping.UNCONFIRMED, Stopping.UNREACHABLE):
            self._log.warning("The Ray Job has not ended yet (%s). Trying again.", stopping.value)
            return None
        # The stop makes the engine report a crash of its own; the limit is the better message.
        return await self.settle(decided, rename=True)

    async def _label_overdue(self) -> None:
        """Have the driver crash the run, even if it reschedules runs after a SIGTERM.

        Another worker could begin a scheduled run again before this one has settled it.
        """
        label = {overdue_label(attempt_in(self._attempt.job_id)): "yes"}
        with anyio.move_on_after(_LABEL_SECONDS), suppress(Exception):  # the stop counts more
            await self._flow_runs.label(self._attempt.run_id, label)

    async def _ended_unseen(self) -> Outcome | None:
        """Return the end of a run that has ended or gone on while its cluster was silent."""
        return None if await self.state() in _ATTEMPT_GOES_ON else UNTOUCHED

    async def _silent_too_long(self, watched: Watched) -> Outcome | None:
        limit = self._limits.unreachable
        if await self._flow_runs.shows_life(self._attempt.run_id, within=limit):
            return None
        if await self.state() == StateType.CANCELLING:
            return await self.cancelled(
                f"Cancelled; the Ray cluster at {self._attempt.address} has not answered for "
                f"{limit:g} s and the run has given no sign of life since, so that nobody could "
                f"see its job end. Last error: {watched.trouble}"
            )
        silence = judge.of_silence(self._attempt.address, limit, watched.trouble)
        return await self.settle(silence)

    async def _context(self) -> Context:
        """Return what the job asks for and what its cluster has, as far as can be found out."""
        try:
            asked = self._attempt.asked
        except InvalidConfiguration:
            asked = Asked()  # an adopted run, whose configuration makes no job any more
        return Context(asked, await resources_of(self._attempt.cluster.client))


def _failed_by_itself(job: JobDetails) -> bool:
    """Return whether the driver's own exit code proves that no more report will come."""
    return job.driver_exit_code not in (None, 0)
