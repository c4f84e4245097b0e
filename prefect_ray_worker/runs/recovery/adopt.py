"""`Adoption`: goes on with a run that another worker, or this one before, has begun."""

from dataclasses import dataclass
from typing import Protocol

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound

from prefect_ray_worker import metrics
from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.existing import cluster_at
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import (
    InvalidConfiguration,
    JobNotFound,
    JobsApiError,
    RayWorkerError,
)
from prefect_ray_worker.prefect_api.flow_runs import type_of_state
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.runs.follow import Follower
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.run import RunAttempt, present_attempt
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.runs.submit import Submitter
from prefect_ray_worker.shared.ids import InfrastructurePid, is_job_of


class ConfigurationOf(Protocol):
    """Builds the prepared configuration of a run, as for its submission."""

    async def __call__(self, flow_run: FlowRun) -> RayJobConfiguration:
        """Return the configuration.

        Raises:
            InvalidConfiguration: The pool, or the deployment, does not allow it any more.
            ObjectNotFound: The deployment or the flow has been deleted.
        """
        ...


@dataclass(frozen=True)
class OrphanedRun:
    """A run that is to be adopted.

    Attributes:
        flow_run: The run, just read.
        job_id: The submission id of its present attempt.
        pid: Where that attempt's job is, if a worker has got as far as saying so.
    """

    flow_run: FlowRun
    job_id: str
    pid: InfrastructurePid | None


class Adoption:
    """Adopts runs for one worker.

    Args:
        sources: Finds clusters.
        services: What the worker's runs share.
        followed: Where the adopted runs are followed.
        configuration_of: Builds the configuration of a run, as for its submission.
    """

    def __init__(
        self,
        sources: ClusterSources,
        services: Services,
        followed: FollowedRuns,
        configuration_of: ConfigurationOf,
    ) -> None:
        self._sources = sources
        self._services = services
        self._followed = followed
        self._configuration_of = configuration_of
        self._not_ours: set[str] = set()

    async def adopt(self, found: OrphanedRun) -> None:
        """Follow a run as if this process had submitted its job; submit it if nobody has."""
        with self._followed.submitting(found.job_id):
            follower = await self._follower(found)
        if follower is not None:
            metrics.ADOPTIONS.inc()
            await self._followed.follow(follower)

    async def _follower(self, found: OrphanedRun) -> Follower | None:
        log = self._services.logger_of(found.flow_run)
        try:
            configuration = await self._configuration_of(found.flow_run)
        except (InvalidConfiguration, ObjectNotFound) as exc:
            if type_of_state(found.flow_run) == StateType.PENDING and found.pid is None:
                message = f"The flow run cannot be submitted to Ray: {exc}"
                await self._services.flow_runs.crash(found.flow_run.id, message)
                return None
            # The job is there already: what is missing are its limits, and its credentials.
            log.warning(
                "The configuration with which this run was submitted cannot be read any more "
                "(%s): its limits are the defaults from now on.",
                exc,
            )
            configuration = RayJobConfiguration()
        if found.pid is not None:
            return await self._with_pid(found, found.pid, configuration)
        return await self._without_pid(found, configuration)

    async def _with_pid(
        self, found: OrphanedRun, pid: InfrastructurePid, configuration: RayJobConfiguration
    ) -> Follower | None:
        cluster = await self._cluster_of(pid, configuration)
        attempt = await present_attempt(self._services, found.flow_run, configuration, cluster)
        if attempt.job_id != found.job_id:
            return None  # the run has gone on meanwhile; the next look finds it as it is
        # Nobody may have looked for long: the head may have been away meanwhile.
        attempt.cluster.poller.head_may_have_restarted()
        attempt.log.info("Following Ray Job %s from here on: its worker has gone.", found.job_id)
        return Follower(self._services, attempt, Submitter(self._services, attempt, pid))

    async def _without_pid(
        self, found: OrphanedRun, configuration: RayJobConfiguration
    ) -> Follower | None:
        """Go on with a run whose worker died before it had said where the job is."""
        log = self._services.logger_of(found.flow_run)
        cluster = await self._sources.find(configuration)
        if cluster is None:
            if type_of_state(found.flow_run) == StateType.RUNNING:
                return None  # a Ray that does not run has no job that does
            cluster = await self._sources.acquire(configuration, log.info)
        attempt = await present_attempt(self._services, found.flow_run, configuration, cluster)
        if attempt.job_id != found.job_id:
            return None
        match type_of_state(found.flow_run):
            case StateType.PENDING:
                return await self._submitted(attempt)
            case StateType.RUNNING:
                pid = await self._where_it_runs(attempt)
                if pid is None:
                    return None
                await self._services.flow_runs.record_pid(attempt.run_id, str(pid))
                return Follower(self._services, attempt, Submitter(self._services, attempt, pid))
            case _:
                # Being cancelled: the job is watched for, and the run settled if there is none.
                return Follower(self._services, attempt, Submitter(self._services, attempt))

    async def _submitted(self, attempt: RunAttempt) -> Follower | None:
        attempt.log.info("Submitting this run: the worker that claimed it has gone.")
        submitter = Submitter(self._services, attempt)
        try:
            pid = await submitter.submit()
        except RayWorkerError as exc:
            message = f"The flow run could not be submitted to Ray: {exc}"
            await self._services.flow_runs.crash(attempt.run_id, message)
            return None
        await self._services.flow_runs.record_pid(attempt.run_id, str(pid))
        return Follower(self._services, attempt, submitter)

    async def _where_it_runs(self, attempt: RunAttempt) -> InfrastructurePid | None:
        """Look for the job of a run that says it runs; it may run elsewhere, by hand."""
        client = attempt.cluster.client
        try:
            job = await client.get(attempt.job_id)
            session = (await client.version()).session_name
        except JobNotFound:
            if attempt.job_id not in self._not_ours:
                self._not_ours.add(attempt.job_id)
                attempt.log.warning(
                    "The run is Running, but no worker has recorded a job for it and the Ray "
                    "cluster at %s has none: it is left alone. If nothing runs it (by hand, for "
                    "example), cancel it.",
                    attempt.address,
                )
            return None
        except JobsApiError:
            return None  # asked again with the next look
        if not is_job_of(attempt.run_id, job.metadata):
            return None
        return InfrastructurePid(attempt.cluster.ref, attempt.job_id, session)

    async def _cluster_of(
        self, pid: InfrastructurePid, configuration: RayJobConfiguration
    ) -> Cluster:
        configured = await self._sources.find(configuration)
        if configured is not None and configured.ref == pid.cluster:
            return configured
        # The pool points elsewhere by now, and its credentials go nowhere else.
        return cluster_at(Connection(str(pid.cluster)))
