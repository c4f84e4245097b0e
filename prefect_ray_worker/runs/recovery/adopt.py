"""`Adoption`: continues a run that another worker, or an earlier process of this one, began."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from logging import Logger, LoggerAdapter
from typing import Any
from uuid import UUID

import anyio
from prefect.client.schemas.objects import FlowRun, StateType

from prefect_ray_worker import metrics
from prefect_ray_worker.clusters.existing import cluster_at
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import (
    ClusterSourceMissing,
    JobNotFound,
    JobsApiError,
)
from prefect_ray_worker.prefect_api.active_runs import ENDED_BADLY, ActiveRun
from prefect_ray_worker.prefect_api.flow_runs import type_of_state
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.runs.judge import of_deleted_cluster
from prefect_ray_worker.runs.provide import Own, Provision
from prefect_ray_worker.runs.recovery.labels import (
    is_unfinished,
    labelled_cluster,
    recorded_pid,
    unfinished_label,
)
from prefect_ray_worker.runs.recovery.ownership import Place
from prefect_ray_worker.runs.recovery.plan import RunPlan
from prefect_ray_worker.runs.recovery.standing import (
    is_cancelled_unsent,
    is_over,
    is_passing,
    said_by,
)
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.run import (
    ConfigurationOf,
    OrphanedRun,
    RunAttempt,
    present_attempt,
    started_in,
    waiting_slot_lease,
)
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.submit import Submitter
from prefect_ray_worker.shared.ids import (
    ClusterRef,
    InfrastructurePid,
    attempt_in,
    is_job_of,
    job_of_attempt,
)

_ANSWER_SECONDS = 5.0
# Prefect's own runner looks for a cancellation every 10 s and kills the process 30 s later (3.8.8).
_ENDS_BY_HAND_SECONDS = 300.0


class Adoption:
    """Adopts runs for one worker.

    Args:
        services: What the worker's runs share.
        followed: Where the adopted runs are followed.
        configuration_of: Builds that of a run, as for its submission.
        queues: The queues that this worker polls; none means all.
        pool_configuration: Builds that of a run which sets nothing; None if it cannot be read.
        own: Writes the owner's labels.
    """

    def __init__(
        self,
        services: Services,
        followed: FollowedRuns,
        configuration_of: ConfigurationOf,
        queues: frozenset[str],
        pool_configuration: Callable[[], Awaitable[RayJobConfiguration | None]],
        own: Own,
    ) -> None:
        self._own = own
        self._sources = services.sources
        self._services = services
        self._flow_runs = services.flow_runs
        self._followed = followed
        self._configuration_of = configuration_of
        self._queues = queues
        self._pool_configuration = pool_configuration
        self._told: set[UUID] = set()

    async def place_of(self, run: ActiveRun, attempt: str) -> Place:
        """Return where the job of an attempt is, or goes, seen from this worker.

        Args:
            run: The run.
            attempt: Its present attempt.

        Raises:
            Exception: The Prefect API did not answer.
        """
        pid = recorded_pid(run.infrastructure_pid, run.labels, job_of_attempt(run.id, attempt))
        named = pid.cluster if pid is not None else labelled_cluster(run.labels, attempt)
        if pid is not None and pid.cluster in self._services.clusters.refs:
            return Place.OURS
        flow_run = await self._flow_runs.read(run.id)
        if flow_run is None:
            return Place.UNSERVED  # it was deleted meanwhile
        if is_cancelled_unsent(flow_run, attempt) and pid is None:
            return Place.OURS  # it is settled without its configuration
        plan = await self._plan(flow_run, job_of_attempt(run.id, attempt), named)
        if isinstance(plan.trouble, ClusterSourceMissing):
            return Place.FOREIGN if pid is None else Place.ELSEWHERE  # another worker may have it
        if plan.trouble is not None:
            return Place.OURS  # no worker can do more for it than say so
        if named is not None:
            elsewhere = Place.FOREIGN if pid is None else Place.ELSEWHERE
            return Place.OURS if plan.is_for(named) else elsewhere
        served = not self._queues or run.queue in self._queues
        configuration = plan.configuration
        names_one = configuration.connection() is not None or configuration.makes_clusters
        return Place.OURS if served or names_one else Place.UNSERVED

    async def adopt(self, found: OrphanedRun) -> None:
        """Follow a run as if this process had submitted its job; submit it if nobody has."""
        with self._followed.submitting(found.job_id):
            try:
                lease_id = await waiting_slot_lease(self._services, found)
                with self._services.slots.kept(lease_id, found.flow_run, self._log_of(found)):
                    follower = await self._follower(found)
            except Exception as exc:
                if not is_passing(exc):
                    raise
                self._log_of(found).warning("This run is adopted a little later: %s", exc)
                return
        if follower is not None:
            metrics.ADOPTIONS.inc()
            await self._followed.follow(follower)

    async def _plan(self, flow_run: FlowRun, job_id: str, recorded: ClusterRef | None) -> RunPlan:
        named: ClusterRef | None = None
        try:
            configuration = await self._configuration_of(flow_run)
            plan = await self._sources.plan(configuration, job_id, recorded)
            if plan.is_on_demand:
                return RunPlan(configuration, None, plan=plan)
            cluster = await self._sources.find(configuration, job_id, recorded)
            if cluster is not None:
                named = cluster.ref
                await self._services.clusters.get(cluster)
        except Exception as exc:
            if is_passing(exc):
                raise
            return RunPlan(RayJobConfiguration(), None, exc, named)
        return RunPlan(configuration, cluster, named=named, plan=plan)

    async def _follower(self, found: OrphanedRun) -> Follower | None:
        pid, attempt = found.pid, attempt_in(found.job_id)
        if pid is None and await self._is_ended_by_hand(found):
            return None
        if pid is None and is_cancelled_unsent(found.flow_run, attempt):
            message = "Cancelled before the run was submitted to Ray."
            await self._flow_runs.cancelled(found.flow_run.id, message)
            return None
        recorded = pid.cluster if pid else labelled_cluster(found.flow_run.labels, attempt)
        plan = await self._plan(found.flow_run, found.job_id, recorded)
        waits = pid is None and type_of_state(found.flow_run) == StateType.PENDING
        if plan.plan.may_have_job and not waits:
            # Raises while Kubernetes does not say whether it is there: asked with the next look.
            cluster = await self._sources.find(plan.configuration, found.job_id, recorded)
            plan = replace(plan, cluster=cluster)
        if pid is not None:
            return await self._with_pid(found, pid, plan)
        if plan.trouble is not None:
            await self._end_without_cluster(found, plan.trouble)
            return None
        return await self._without_pid(found, plan)

    async def _with_pid(
        self, found: OrphanedRun, pid: InfrastructurePid, plan: RunPlan
    ) -> Follower | None:
        cluster = plan.cluster
        if cluster is None and plan.named == pid.cluster:
            # The run names it, but its credentials cannot be used any more.
            cluster = cluster_at(Connection(str(pid.cluster)))
        elif cluster is None or cluster.ref != pid.cluster:
            pool = await self._pool_configuration()
            cluster = await self._sources.find_named(pid.cluster, found.job_id, pool)
            if plan.plan.names(pid.cluster):
                # It is gone: its run learns why, and what is left of it is let go of.
                cluster = replace(
                    cluster, is_on_demand=True, is_for_one_run=plan.plan.is_for_one_run
                )
        attempt = await self._attempt(found, plan, cluster)
        if attempt is None:
            return None
        if plan.trouble is not None:
            # The job is there already: what is missing are its limits, and its credentials.
            attempt.log.warning(
                "The configuration with which this run was submitted cannot be used any more "
                "(%s): its limits are the defaults from now on.",
                said_by(plan.trouble),
            )
        # Nobody may have looked for long: the head may have been away meanwhile.
        attempt.cluster.poller.head_may_have_restarted()
        job_id = found.job_id
        if not is_over(found.flow_run):
            attempt.log.info("Following Ray Job %s from here on: its worker has gone.", job_id)
        elif found.flow_run.id not in self._told:
            # Tried again about once a minute while the cluster does not answer.
            self._told.add(found.flow_run.id)
            attempt.log.info(
                "Forwarding the rest of the log of Ray Job %s: its worker has gone.", job_id
            )
        return Follower(self._services, attempt, Submitter(self._services, attempt, pid))

    async def _without_pid(self, found: OrphanedRun, plan: RunPlan) -> Follower | None:
        """Go on with a run whose worker died before it recorded where the job is."""
        state = type_of_state(found.flow_run)
        cluster = plan.cluster
        if cluster is None:
            cluster = await self._without_cluster(found, plan, state)
        if cluster is None:
            return None
        attempt = await self._attempt(found, plan, cluster)
        if attempt is None:
            return None
        match state:
            case StateType.PENDING:
                return await self._submitted(found, attempt)
            case StateType.RUNNING:
                pid = await self._where_it_runs(attempt)
                if pid is None:
                    return None
                await self._flow_runs.record_pid(attempt.run_id, str(pid))
                return Follower(self._services, attempt, Submitter(self._services, attempt, pid))
            case _:
                if cluster.is_for_one_run and await self._has_no_job(attempt):
                    await self._end_with_cluster(found, attempt)
                    return None
                # Being cancelled: the job is watched for, and the run settled if there is none.
                return Follower(self._services, attempt, Submitter(self._services, attempt))

    async def _without_cluster(
        self, found: OrphanedRun, plan: RunPlan, state: StateType | None
    ) -> Cluster | None:
        """Return a cluster for a run that waits for its job; settle any other one."""
        # A Ray that does not run has no job that does.
        if state == StateType.PENDING:
            return await self._provided(found, plan)
        if state == StateType.CANCELLING:
            await self._flow_runs.cancelled(found.flow_run.id, "Cancelled before Ray had the job.")
        if is_over(found.flow_run):
            await self._forget(found)
        ref = plan.plan.ref
        if state == StateType.RUNNING and plan.plan.may_have_job and ref is not None:
            # A worker records the cluster before it makes it: without a record there was none.
            made = labelled_cluster(found.flow_run.labels, attempt_in(found.job_id))
            if made is None or not plan.plan.decides(made):
                why = "its cluster may be elsewhere" if made else "none has made a cluster for it"
                self._leave_alone(found, why)
                return None
            why = await self._sources.why_gone(ref) or f"its source does not have {ref} any more"
            await self._flow_runs.crash(found.flow_run.id, of_deleted_cluster(why).message)
        return None

    async def _provided(self, found: OrphanedRun, plan: RunPlan) -> Cluster | None:
        """Return the cluster for a run that was not submitted, started if needed."""
        provision = Provision(
            self._services, self._own, found.flow_run, plan.configuration, found.job_id
        )
        try:
            return await provision.cluster(may_start=True)
        except Exception as exc:
            if is_passing(exc):
                raise
            await self._end_without_cluster(found, exc)
            return None

    async def _has_no_job(self, attempt: RunAttempt) -> bool:
        """Return whether a cluster that was made for an attempt never got its job.

        One that does not answer was still starting: a job that it has would be recorded.
        """
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                await attempt.cluster.client.get(attempt.job_id)
        except (JobsApiError, TimeoutError):
            return True
        return False

    async def _end_with_cluster(self, found: OrphanedRun, attempt: RunAttempt) -> None:
        """Let go of a cluster that no job will use, and settle its run if it is being cancelled."""
        ref = attempt.cluster.ref
        failed = type_of_state(found.flow_run) in ENDED_BADLY
        said = await self._sources.release(ref, failed=failed)
        if said is not None:
            attempt.log.info("%s", said)
        await self._services.clusters.forget(ref)
        await self._flow_runs.cancelled(attempt.run_id, "Cancelled before Ray had the job.")
        await self._forget(found)

    async def _attempt(
        self, found: OrphanedRun, plan: RunPlan, cluster: Cluster
    ) -> RunAttempt | None:
        """Return the attempt; None if the run has gone on: the next look finds it as it is."""
        attempt = await present_attempt(self._services, found.flow_run, plan.configuration, cluster)
        return attempt if attempt.job_id == found.job_id else None

    async def _submitted(self, found: OrphanedRun, attempt: RunAttempt) -> Follower | None:
        attempt.log.info("Submitting this run: the worker that claimed it has gone.")
        submitter = Submitter(self._services, attempt)
        try:
            pid = await submitter.submit()
        except Exception as exc:
            if is_passing(exc):
                raise
            await self._end_without_cluster(found, exc)
            return None
        await self._flow_runs.record_pid(attempt.run_id, str(pid))
        return Follower(self._services, attempt, submitter)

    async def _end_without_cluster(self, found: OrphanedRun, trouble: Exception) -> None:
        """Settle a run that cannot be submitted, and whose job cannot be looked for."""
        run_id = found.flow_run.id
        said = said_by(trouble)
        match type_of_state(found.flow_run):
            case StateType.PENDING:
                await self._flow_runs.crash(run_id, f"The run cannot be submitted to Ray: {said}")
            case StateType.CANCELLING:
                await self._flow_runs.cancelled(
                    run_id,
                    "Cancelled. No worker recorded a Ray Job of this run, and none can be looked "
                    f"for: {said}",
                )
            case StateType.RUNNING:
                self._leave_alone(found, f"its Ray cluster cannot be asked for one ({said})")
            case _:
                await self._forget(found)

    async def _where_it_runs(self, attempt: RunAttempt) -> InfrastructurePid | None:
        """Look for the job of a run that says it runs; it may run elsewhere, by hand."""
        client = attempt.cluster.client
        try:
            job = await client.get(attempt.job_id)
            session = (await client.version()).session_name
        except JobNotFound:
            found = OrphanedRun(attempt.flow_run, attempt.job_id, None)
            self._leave_alone(found, f"the Ray cluster {attempt.cluster.ref} has none")
            return None
        except JobsApiError:
            return None  # asked again with the next look
        if not is_job_of(attempt.run_id, job.metadata):
            return None
        return InfrastructurePid(attempt.cluster.ref, attempt.job_id, session)

    async def _is_ended_by_hand(self, found: OrphanedRun) -> bool:
        """Return whether a run that no worker submitted is being cancelled where it was started.

        A process that runs it ends it itself. If it is still there after minutes, none does.
        """
        run = found.flow_run
        if run.state is None or run.state.type != StateType.CANCELLING:
            return False
        is_by_worker = is_unfinished(run.labels, attempt_in(found.job_id))
        age = (datetime.now(UTC) - run.state.timestamp).total_seconds()
        if is_by_worker or age >= _ENDS_BY_HAND_SECONDS:
            return False
        return started_in(await self._flow_runs.states(run.id)) is not None

    async def _forget(self, found: OrphanedRun) -> None:
        """Look no more for the log of a run that has ended: no job of it was ever recorded."""
        label = unfinished_label(attempt_in(found.job_id), False)
        await self._flow_runs.label(found.flow_run.id, label)

    def _leave_alone(self, found: OrphanedRun, why: str) -> None:
        if found.flow_run.id not in self._told:
            self._told.add(found.flow_run.id)
            self._log_of(found).warning(
                "The run is Running, but no worker has recorded a job for it and %s: it is left "
                "alone. If nothing runs it (by hand, for example), cancel it.",
                why,
            )

    def _log_of(self, found: OrphanedRun) -> "Logger | LoggerAdapter[Any]":
        return self._services.logger_of(found.flow_run)
