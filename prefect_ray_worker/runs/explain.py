"""`WaitingRuns`: tells on each run whose job stays PENDING what it waits for."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio

from prefect_ray_worker.diagnosis.waiting import Reason, Waiting, why_waiting
from prefect_ray_worker.errors import JobsApiError
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.runs.timing import DEFAULT_TIMING, Timing
from prefect_ray_worker.shared.resources import Asked, ClusterResources

# What is free changes all the time: the same reason with other figures is worth a line at times.
_REPEAT_SECONDS = 600.0
# A driver speaks to Prefect a second or more after Ray has said RUNNING, at the earliest.
_FRESH_SECONDS = 0.5
_AT_ONCE = 4

_log = logging.getLogger("prefect.workers.ray.waiting")


@dataclass(frozen=True)
class Wait:
    """A run whose job is PENDING.

    Attributes:
        run_id: The flow run.
        claim_id: The Pending state that began the attempt.
        job_id: The attempt's job.
        since: When it was submitted, on the clock of `anyio.current_time`.
        client: The job's cluster.
        asked: Returns what the job asks for.
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
    """Looks, every 30 s, what the jobs of a worker's runs wait for: one question per cluster.

    A run is put into the state InfrastructurePending once, with the reason that is found first.
    Prefect grants a Pending state to a Pending run only under another name (3.8.8), and to force
    one could undo what the driver, or a user who cancels, has reported meanwhile. So a reason that
    changes is a line in the run's log.

    Args:
        flow_runs: The Prefect side.
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
        """Take note of a job that is PENDING; again with each look at it.

        Args:
            wait: The run.
            message: Ray's words on it.
        """
        _, told = self._waits.setdefault(wait.job_id, (wait, _Told()))
        told.message = message
        self._wake.set()

    def end(self, job_id: str) -> None:
        """Take note that a job waits no longer, or that nobody is interested in it any more."""
        self._waits.pop(job_id, None)

    async def run(self) -> None:
        """Look, for ever; meant for a background task of whoever owns this."""
        while True:
            if not self._waits:
                await self._wake.wait()
            self._wake = anyio.Event()
            try:
                await self._look()
            except Exception as exc:  # noqa: BLE001 (an explanation may fail, and others may not)
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
                except Exception as exc:  # noqa: BLE001 (one run's trouble is no other's)
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
        """Put the run into the state; say whether its job still waits.

        Prefect cannot be asked to change a state only if it is still the same. The driver reports
        after its job has started, so a job that has just been PENDING has not reported.
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
    """Return what a cluster has; None where it does not say."""
    try:
        return await client.resources()
    except JobsApiError:
        return None  # an older release, or one without these pages: Ray's message has to do
