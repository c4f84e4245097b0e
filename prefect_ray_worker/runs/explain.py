"""`WaitingRuns`: explains on each flow run why its PENDING job has not started."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio

from prefect_ray_worker.diagnosis.pending import Reason, Waiting, why_waiting
from prefect_ray_worker.errors import JobsApiError
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.runs.timing import DEFAULT_TIMING, Timing
from prefect_ray_worker.shared.resources import Asked, ClusterResources

# Free resources change constantly, so repeat an unchanged reason with new figures only this often.
_REPEAT_SECONDS = 600.0
# A driver first reports to Prefect at least one second after Ray reports RUNNING.
_FRESH_SECONDS = 0.5
_AT_ONCE = 4

_log = logging.getLogger("prefect.workers.ray.waiting")


@dataclass(frozen=True)
class Wait:
    """A run whose job is PENDING.

    Attributes:
        run_id: The flow run.
        claim_id: Id of the Pending state that began the attempt.
        job_id: The attempt's job.
        since: When the job was submitted, in `anyio.current_time` seconds.
        client: Client of the job's cluster.
        asked: Returns the resources that the job requests.
        log: Logs to the flow run.
    """

    run_id: UUID
    claim_id: UUID
    job_id: str
    since: float
    client: JobsClient
    asked: Callable[[], Asked]
    log: "Logger | LoggerAdapter[Any]"


@dataclass
class _Told:
    message: str | None = None
    looked_at: float = -math.inf
    reason: Reason | None = None
    told_at: float = 0.0


class WaitingRuns:
    """Explains why PENDING jobs have not started, with one request per cluster in each round.

    A job is explained once it has waited for `Timing.explain_after`, and looked at again every
    `Timing.explain_refresh`. `Narrator.tell` begins and ends it.

    The first reason found puts the run into the state InfrastructurePending, once. Later reasons go
    to the run's log. Prefect accepts a Pending state on a Pending run only under another name
    (3.8.8), and a forced state could overwrite one that the driver or a cancelling user has set in
    the meantime.

    Args:
        flow_runs: Access to flow runs in Prefect.
        timing: Waits and intervals.
    """

    def __init__(self, flow_runs: FlowRuns, timing: Timing = DEFAULT_TIMING) -> None:
        self._flow_runs = flow_runs
        self._timing = timing
        self._waits: dict[str, tuple[Wait, _Told]] = {}
        self._wake = anyio.Event()

    def __contains__(self, job_id: object) -> bool:
        return job_id in self._waits

    def begin(self, wait: Wait, message: str | None) -> None:
        """Register a PENDING job. Call it again with each observation of the job.

        Args:
            wait: The waiting run.
            message: Ray's status message for the job.
        """
        _, told = self._waits.setdefault(wait.job_id, (wait, _Told()))
        told.message = message
        self._wake.set()

    def end(self, job_id: str) -> None:
        """Remove a job that is no longer PENDING or no longer watched."""
        self._waits.pop(job_id, None)

    async def run(self) -> None:
        """Explain waiting jobs forever. Run this in a background task."""
        while True:
            if not self._waits:
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                await self._look()
            except Exception as exc:  # noqa: BLE001 (a failed explanation must not end the others)
                _log.warning("Cannot say what jobs wait for: %s", exc, exc_info=exc)
            await anyio.sleep(self._timing.explain_tick)

    async def _look(self) -> None:
        now = anyio.current_time()
        due = [
            (wait, told)
            for wait, told in self._waits.values()
            if now - wait.since >= self._timing.explain_after
            and now - told.looked_at >= self._timing.explain_refresh
        ]
        clusters = {
            client: await resources_of(client) for client in {wait.client for wait, _ in due}
        }
        limiter = anyio.CapacityLimiter(_AT_ONCE)

        async def look(wait: Wait, told: _Told) -> None:
            async with limiter:
                if wait.job_id not in self._waits:
                    return
                told.looked_at = anyio.current_time()
                try:
                    await self._tell(wait, told, clusters[wait.client])
                except Exception as exc:  # noqa: BLE001 (one run's error must not affect others)
                    _log.warning("Cannot say what %s waits for: %s", wait.job_id, exc)

        async with anyio.create_task_group() as tasks:
            for wait, told in due:
                tasks.start_soon(look, wait, told, name=f"ray-waiting {wait.job_id}")

    async def _tell(self, wait: Wait, told: _Told, cluster: ClusterResources | None) -> None:
        waiting = why_waiting(wait.asked(), cluster, told.message)
        now = anyio.current_time()
        if waiting.reason is told.reason and now - told.told_at < _REPEAT_SECONDS:
            return
        if told.reason is None and not await self._show(wait, waiting):
            return
        told.reason, told.told_at = waiting.reason, now
        say = wait.log.warning if waiting.reason is Reason.INFEASIBLE else wait.log.info
        say("The Ray Job has been PENDING for %.0f s. %s", now - wait.since, waiting.sentence)

    async def _show(self, wait: Wait, waiting: Waiting) -> bool:
        """Set the run's state; return whether the job still waits.

        Prefect has no compare-and-set for states. The driver reports only after its job has
        started, so a job that was PENDING a moment ago has not reported yet.
        """
        if await self._flow_runs.claim_id(wait.run_id) != wait.claim_id:
            return False
        job = await wait.client.get(wait.job_id)
        if job.status != JobStatus.PENDING:
            return False
        message = f"{waiting.sentence} Should that change, the run's log says so."
        fresh_until = anyio.current_time() + _FRESH_SECONDS
        return await self._flow_runs.show_pending(wait.run_id, message, fresh_until=fresh_until)


async def resources_of(client: JobsClient) -> ClusterResources | None:
    """Return a cluster's resources, or None if it does not report them."""
    try:
        return await client.resources()
    except JobsApiError:
        return None  # no such pages, as in older releases: Ray's message must suffice
