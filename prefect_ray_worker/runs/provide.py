"""`Provision`: gives an attempt its cluster, and tells the run what that waits for.

A cluster can take minutes to start. Meanwhile the run may be cancelled, settled or deleted: the
start is then given up, and a cluster that was made for the run alone goes.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker import metrics
from prefect_ray_worker.clusters.source import Cluster, ClusterPlan
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import ClusterFailed, InvalidConfiguration
from prefect_ray_worker.prefect_api.active_runs import ENDED_BADLY
from prefect_ray_worker.prefect_api.flow_runs import type_of_state
from prefect_ray_worker.runs.recovery.labels import labelled_cluster, unfinished_label
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.start_news import StartNews
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed
from prefect_ray_worker.shared.ids import (
    ClusterRef,
    attempt_in,
    attempt_name,
    present_claim,
    was_never_sent,
)

Own = Callable[[UUID, str, ClusterRef | None, str | None, float | None], Awaitable[None]]
"""Writes on a run that this process owns an attempt; see `Recovery.own`."""

_LOOK_SECONDS = 0.5
_FRESH_SECONDS = 30.0
_NO_CLUSTER_FOR_A_CALLER = (
    "The work pool names no Ray cluster, and this process only submits: it starts none. Set the "
    "job variable address, or start a worker of the pool, which starts a Ray on its machine."
)
_TAKEN_OVER = (
    "The flow run %s is not submitted by this worker: another worker has taken it over, or it was "
    "deleted."
)

_log = logging.getLogger("prefect.workers.ray.provide")


class Provision:
    """Provides the cluster of one attempt.

    Args:
        services: What the worker's runs share.
        own: Writes the owner's labels.
        flow_run: The run.
        configuration: Prepared for it.
        job_id: The submission id of the attempt's job.
    """

    def __init__(
        self,
        services: Services,
        own: Own,
        flow_run: FlowRun,
        configuration: RayJobConfiguration,
        job_id: str,
    ) -> None:
        self._services = services
        self._own = own
        self._flow_run = flow_run
        self._run_id = flow_run.id
        self._configuration = configuration
        self._job_id = job_id
        self._recorded = labelled_cluster(flow_run.labels, attempt_in(job_id))
        self._kept: float | None = None
        self._log = services.logger_of(flow_run)

    async def cluster(self, *, may_start: bool) -> Cluster | None:
        """Return the cluster that gets the job, started if needed.

        The owner is recorded before anything is started: a worker that dies meanwhile leaves an
        owned run, with which its heir goes on.

        Args:
            may_start: Whether this process may start a Ray on its machine.

        Returns:
            None if the run ended, or went on, while its cluster started, or the cluster failed:
            the run is settled then, or another worker's.

        Raises:
            RayWorkerError: There is no cluster for the run.
        """
        sources = self._services.sources
        plan = await sources.plan(self._configuration, self._job_id, self._recorded)
        planned, self._kept = plan.cluster, plan.kept
        if not plan.is_on_demand:
            planned = await sources.find(self._configuration, self._job_id, self._recorded)
            if planned is None and not may_start:
                raise InvalidConfiguration(_NO_CLUSTER_FOR_A_CALLER)
        host = planned.reachable_from if planned is not None else plan.only_here
        if not await self._services.lease.is_free(self._run_id, self._job_id):
            _log.warning(_TAKEN_OVER, self._run_id)
            return None
        await self._record(planned.ref if planned is not None else plan.ref, host)
        cluster = planned
        if planned is None or may_start:
            cluster = await self._started(plan)
        if cluster is not None and cluster != planned:
            try:
                await self._record_anew(cluster.ref, cluster.reachable_from)
            except _TakenOver:
                return None
        return cluster

    async def _record(self, ref: ClusterRef | None, host: str | None) -> None:
        await self._own(self._run_id, self._job_id, ref, host, self._kept)

    async def _record_anew(self, ref: ClusterRef, host: str | None = None) -> None:
        """Record what was found out about the cluster since the owner was recorded.

        Raises:
            _TakenOver: Another worker goes on with the attempt.
        """
        if not await self._services.lease.holds(self._run_id, self._job_id):
            raise _TakenOver
        await self._record(ref, host)

    async def _started(self, plan: ClusterPlan) -> Cluster | None:
        """Return the cluster when it takes jobs; None once the run is over, or another worker's."""
        run_id, services = self._run_id, self._services
        told = StartNews(
            self._log,
            self._record_anew,
            services.sources.events,
            job_id=self._job_id,
            related=services.related_to(self._flow_run, self._configuration),
            began=await self._began() if plan.is_on_demand else datetime.now(UTC),
        )
        if not plan.is_on_demand:
            return await self._acquired(told)
        cluster: Cluster | None = None
        failure: Exception | None = None
        is_over = False
        with services.cancelling.attended(run_id), services.unsubmitted.attended(run_id):
            async with anyio.create_task_group() as tasks:

                async def call_off() -> None:
                    nonlocal is_over
                    await self._is_over()
                    is_over = True
                    tasks.cancel_scope.cancel()

                tasks.start_soon(call_off)
                tasks.start_soon(self._show, told)
                try:
                    cluster = await self._acquired(told)
                except Exception as exc:  # noqa: BLE001 (raised below: not as a group of one)
                    failure = exc
                tasks.cancel_scope.cancel()
        if is_over or isinstance(failure, ObjectNotFound):
            await self._called_off(plan)
            return None
        if isinstance(failure, ClusterFailed):
            await self._failed(plan, failure, told)
        elif failure is not None and not isinstance(failure, _TakenOver):
            raise failure
        elif cluster is not None:
            await told.ready(cluster.ref)
        return cluster

    async def _acquired(self, told: StartNews) -> Cluster:
        return await self._services.sources.acquire(
            self._configuration, self._job_id, told, self._recorded
        )

    async def _began(self) -> datetime:
        """Return when the attempt was claimed, by the clock of the Prefect server."""
        history = await self._services.flow_runs.states(self._run_id)
        claim_id = present_claim(history)
        return next((s.timestamp for s in history if s.id == claim_id), datetime.now(UTC))

    async def _is_over(self) -> None:
        """Return once the run is being cancelled, was settled or was deleted."""
        watched = (self._services.cancelling, self._services.unsubmitted)
        while not any(self._run_id in runs for runs in watched):  # noqa: ASYNC110 (looked up)
            await anyio.sleep(_LOOK_SECONDS)

    async def _show(self, told: StartNews) -> None:
        """Put the run into the state InfrastructurePending, with the first reason, once."""
        while True:
            await told.news.wait()
            told.news = anyio.Event()
            message = f"{told.reason} Should that change, the run's log says so."
            fresh_until = anyio.current_time() + _FRESH_SECONDS
            try:
                shown = await self._services.flow_runs.show_pending(
                    self._run_id, message, fresh_until=fresh_until
                )
            except Exception as exc:  # noqa: BLE001 (the start of the cluster goes on)
                _log.warning("Cannot show what the run %s waits for: %s", self._run_id, exc)
                continue
            if shown:
                return

    async def _called_off(self, plan: ClusterPlan) -> None:
        """Let go of the cluster of a run that was cancelled, settled or deleted meanwhile."""
        flow_runs = self._services.flow_runs
        if not await self._services.lease.holds(self._run_id, self._job_id):
            return  # another worker goes on with the attempt
        run = await flow_runs.read(self._run_id)
        failed = run is not None and type_of_state(run) in ENDED_BADLY
        await self._release(plan, failed=failed)
        if run is not None and type_of_state(run) == StateType.CANCELLING:
            message = "Cancelled while the run's cluster was starting; the cluster is deleted."
            if not plan.is_for_one_run:
                message = (
                    "Cancelled while the shared cluster was starting; other runs can use it, and "
                    "it is deleted when it is idle."
                )
            await flow_runs.cancelled(self._run_id, message)
        await self._finish()

    async def _failed(self, plan: ClusterPlan, failure: ClusterFailed, told: StartNews) -> None:
        """Settle a run whose cluster does not become ready, and let go of the cluster."""
        flow_runs, run_id = self._services.flow_runs, self._run_id
        if not await self._services.lease.holds(run_id, self._job_id):
            return
        await told.failed(plan.ref, failure)
        claim = attempt_name(await flow_runs.claim_id(run_id))
        if claim == attempt_in(self._job_id):
            await self._settle(failure)
        await self._release(plan, failed=True)
        await self._finish()

    async def _settle(self, failure: ClusterFailed) -> None:
        flow_runs, message = self._services.flow_runs, str(failure)
        allowed = self._configuration.infrastructure_retries
        delay = self._services.timing.retry_delay
        if (
            failure.may_retry
            and allowed
            and await flow_runs.try_again(self._run_id, message, allowed=allowed, delay=delay)
        ):
            self._log.warning(
                "%s The run is tried again in %g s (infrastructure_retries).", message, delay
            )
        elif await flow_runs.crash(self._run_id, message):
            metrics.CRASHES.labels(failure.category).inc()
            self._log.error("%s", message)
        else:
            await flow_runs.cancelled(self._run_id, f"Cancelled. {message}")

    async def _release(self, plan: ClusterPlan, *, failed: bool) -> None:
        if plan.ref is not None:
            said = await self._services.sources.release(plan.ref, failed=failed)
            if said is not None:
                self._log.info("%s", said)

    async def _finish(self) -> None:
        """Note that nothing is left to do for the attempt: it never had a job."""
        label = unfinished_label(attempt_in(self._job_id), False)
        with suppress(ObjectNotFound):  # deleted meanwhile
            await self._services.flow_runs.label(self._run_id, label)


async def settled_unsent(
    services: Services, flow_run: FlowRun, history: Sequence[State[Any]]
) -> bool:
    """Settle a run whose caller ended before it had sent the flow's code: that needs no cluster.

    Args:
        services: What the worker's runs share.
        flow_run: The run.
        history: Its states.

    Returns:
        Whether it was such a run.
    """
    if not was_never_sent(history):
        return False
    why = diagnosed(
        Category.BUNDLE_MISSING,
        "The process that called the flow ended before it had sent the flow's code.",
        advice="Call the flow again.",
    )
    if await services.flow_runs.crash(flow_run.id, str(why)):
        metrics.CRASHES.labels(why.category.label).inc()
        services.logger_of(flow_run).error("%s", why)
    return True


class _TakenOver(Exception):
    """Another worker goes on with the attempt."""
