"""`Closer`: turns a verdict on an attempt's job into the end of its run, or into patience."""

from dataclasses import replace

import anyio
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.diagnosis.job import NO_CONTEXT
from prefect_ray_worker.prefect_api.flow_runs import type_of_state
from prefect_ray_worker.ray_api.models import JobDetails
from prefect_ray_worker.runs import outcome
from prefect_ray_worker.runs.context import context_of
from prefect_ray_worker.runs.judge import Verdict, Watched
from prefect_ray_worker.runs.outcome import (
    UNTOUCHED,
    Outcome,
    Resolution,
    is_infrastructure_failure,
)
from prefect_ray_worker.runs.run import Attempt
from prefect_ray_worker.runs.settlement import Settlement
from prefect_ray_worker.runs.stop import Stopping, stop_and_confirm

# How long a driver that exited with 0 may take to have its last state seen by the API.
_REPORT_GRACE_SECONDS = 5.0
# A cluster that has lost a node, or a supervisor, is busy with that.
_RETRY_SECONDS = 5.0
# Without its head, a node's Ray ends itself and its jobs after 60 s (`ray_config_def.h`, 2.60), and
# our guard what Ray leaves: until then the former attempt may be alive.
_NODES_END_SECONDS = 90.0
# How long a cluster may be silent before its runs are looked up one by one.
_SILENCE_SECONDS = 60.0


class Closer:
    """Ends one attempt.

    Attributes:
        stop_is_queued: Whether Ray holds a stop for a job that it has not started.

    Args:
        attempt: The attempt.
    """

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._limits = attempt.limits
        self._log = attempt.log
        self._settlement = Settlement(
            attempt.around.flow_runs, attempt.flow_run, attempt.claim_id, attempt.log
        )
        self.stop_is_queued = False

    async def act_on(
        self, verdict: Verdict, watched: Watched, *, then: str | None, now: str | None
    ) -> Outcome | None:
        """Do what a verdict asks for; return the outcome, or None to go on watching.

        Args:
            verdict: The verdict.
            watched: What it was judged from.
            then: Session of the cluster when it took the job.
            now: Its present session, where the look has told.
        """
        match verdict:
            case Verdict.ENDED:
                return await self._ended(watched)
            case Verdict.LOST:
                return await self.lost(then=then, now=now)
            case Verdict.START_OVERDUE:
                return await self._stop_overdue(await self._late(watched))
            case Verdict.RUN_OVERDUE:
                return await self._stop_overdue(outcome.of_long_run(self._limits.run or 0))
            case Verdict.CANCEL_OVERDUE:
                return await self._cancel(watched)
            case Verdict.SILENT_TOO_LONG:
                return await self._silent_too_long(watched)
            case _:
                return await self._settled_without_us(watched)

    async def state(self) -> StateType | None:
        """Return the type of the run's present state; None if the run has been deleted."""
        run = await self._attempt.around.flow_runs.read(self._attempt.run_id)
        return type_of_state(run) if run is not None else None

    async def is_superseded(self) -> bool:
        """Say whether another attempt at the run has begun."""
        return await self._settlement.is_superseded()

    async def settle(self, decided: Outcome, *, rename: bool = False) -> Outcome:
        """Tell Prefect what was decided; see `Settlement.settle`."""
        return await self._settlement.settle(decided, rename=rename)

    async def cancelled(self, message: str) -> Outcome:
        """Settle a run whose cancelling has come to its end."""
        return await self.settle(Outcome(Resolution.CANCEL, message))

    async def lost(self, *, then: str | None, now: str | None) -> Outcome:
        """Settle a run whose job a reachable cluster does not have any more."""
        if await self.state() == StateType.CANCELLING:
            return await self.cancelled(
                "Cancelled; the Ray cluster does not have the job any more."
            )
        decided = outcome.of_lost_job(self._attempt.job_id, then=then, now=now)
        return await self._settle_or_try_again(decided, delay=_NODES_END_SECONDS)

    async def stop(self) -> Stopping:
        """Stop the job and say how far that came."""
        stopping = await stop_and_confirm(
            self._attempt.cluster.client,
            self._attempt.job_id,
            grace_seconds=self._limits.stop_grace,
        )
        self.stop_is_queued = stopping is Stopping.QUEUED
        return stopping

    async def stop_unwanted(self) -> Outcome | None:
        """Stop the job of a run that has been deleted."""
        stopping = await self.stop()
        over = stopping in (Stopping.ENDED, Stopping.GONE, Stopping.QUEUED)
        return UNTOUCHED if over else None

    async def _ended(self, watched: Watched) -> Outcome:
        job = watched.latest
        if job is None:
            return UNTOUCHED
        never_started = job.driver_exit_code is None
        context = await context_of(self._attempt) if never_started else NO_CONTEXT
        deadline = anyio.current_time() + _REPORT_GRACE_SECONDS
        while True:
            decided = outcome.of_ended_job(job, await self.state(), context=context)
            patient = decided.resolution is Resolution.CRASH and not _failed_by_itself(job)
            if not patient or anyio.current_time() >= deadline:
                break
            await anyio.sleep(1)
        if decided.resolution is Resolution.CRASH and is_infrastructure_failure(job):
            return await self._settle_or_try_again(decided, delay=_RETRY_SECONDS)
        return await self.settle(decided)

    async def _settle_or_try_again(self, decided: Outcome, *, delay: float) -> Outcome:
        allowed = self._attempt.configuration.infrastructure_retries
        if await self._settlement.try_again(decided, allowed=allowed, delay=delay):
            return replace(decided, resolution=Resolution.LEAVE, status_code=0)
        return await self.settle(decided)

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
            case Stopping.UNCONFIRMED | Stopping.UNREACHABLE:
                self._log.warning(
                    "The Ray Job %s was asked to stop and has not ended yet (%s); going on.",
                    self._attempt.job_id,
                    stopping.value,
                )
                return None
        return await self.cancelled(message)

    async def _late(self, watched: Watched) -> Outcome:
        limit, job = self._limits.start or 0, watched.latest
        return outcome.of_late_start(limit, job, context=await context_of(self._attempt))

    async def _stop_overdue(self, decided: Outcome) -> Outcome | None:
        self._log.warning("%s", decided.message)
        stopping = await self.stop()
        if stopping in (Stopping.UNCONFIRMED, Stopping.UNREACHABLE):
            self._log.warning("The Ray Job has not ended yet (%s); going on.", stopping.value)
            return None
        # The stop makes the engine report a crash of its own; the limit is the better message.
        return await self.settle(decided, rename=True)

    async def _settled_without_us(self, watched: Watched) -> Outcome | None:
        """While the cluster is silent, look whether the driver has reported an end meanwhile."""
        silent_since = watched.unreachable_since
        if silent_since is None or anyio.current_time() - silent_since < _SILENCE_SECONDS:
            return None
        run = await self._attempt.around.flow_runs.read(self._attempt.run_id)
        ended = run is None or (run.state is not None and run.state.is_final())
        return UNTOUCHED if ended else None

    async def _silent_too_long(self, watched: Watched) -> Outcome | None:
        limit, run_id = self._limits.unreachable, self._attempt.run_id
        if await self._attempt.around.flow_runs.shows_life(run_id, within=limit):
            return None
        if await self.state() == StateType.CANCELLING:
            return await self.cancelled(
                f"Cancelled; the Ray cluster at {self._attempt.address} has not answered for "
                f"{limit:g} s and the run has given no sign of life since, so that nobody could "
                f"see its job end. Last error: {watched.trouble}"
            )
        silence = outcome.of_silence(self._attempt.address, limit, watched.trouble)
        return await self.settle(silence)


def _failed_by_itself(job: JobDetails) -> bool:
    """Say whether the driver's own exit code proves that no more report will come."""
    return job.driver_exit_code not in (None, 0)
