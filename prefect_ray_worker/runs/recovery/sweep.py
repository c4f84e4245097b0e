"""Delete what is left of runs: the records of jobs, the jobs of deleted runs, their own clusters.

Ray never deletes a record by itself, and each list contains all of them (2.60). The sweeper touches
only jobs of the worker's own pool, including those of workers that are gone.
"""

import logging
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import WorkPool
from prefect.settings import PREFECT_HOME

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.open import OpenCluster, OpenClusters
from prefect_ray_worker.clusters.source import Cluster, Tell
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import (
    ClusterUnreachable,
    InvalidConfiguration,
    JobNotFound,
    JobsApiError,
)
from prefect_ray_worker.prefect_api.active_runs import GOES_ON, ActiveRun
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.models import TERMINAL_STATUSES, JobDetails
from prefect_ray_worker.runs.recovery.labels import (
    is_unfinished,
)
from prefect_ray_worker.runs.recovery.ownership import REMEMBER_SECONDS, heir
from prefect_ray_worker.runs.recovery.pool_runs import PoolRuns
from prefect_ray_worker.settings import worker_settings
from prefect_ray_worker.shared.backoff import jittered
from prefect_ray_worker.shared.ids import (
    DELETE_AFTER_KEY,
    ClusterRef,
    attempt_in,
    run_of_job,
)

# A record that is deleted less than about 2 s after its job's end comes back without metadata
# (observed on 2.60).
_SHORTEST_STAY_SECONDS = 5.0
_AT_ONCE = 4
# After so long without use, a cluster with nothing to sweep is closed, and so are connections to
# it with credentials that others have replaced.
_IDLE_SECONDS = 600.0
# A cluster that does not answer may still have jobs to sweep; its address may also never come back.
_SILENT_SECONDS = 3600.0
_MILLISECONDS = 1000

_log = logging.getLogger("prefect.workers.ray.sweeper")


class Sweeper:
    """Sweeps the clusters that a worker uses.

    Args:
        name: The worker's name: the heir of a run sweeps its jobs.
        pool: Returns the worker's pool.
        sources: Where clusters come from.
        clusters: The clusters in use.
        flow_runs: The Prefect side.
        pool_configuration: Builds that of a run which sets nothing; None if it cannot be read.
        home: Returns the cluster of runs that name none. It is swept from the start, because
            workers that are gone may have left records there.
        uses: Returns whether this process follows a run on a cluster.
        interval: Seconds between two sweeps.
    """

    def __init__(
        self,
        name: str,
        pool: Callable[[], WorkPool],
        sources: ClusterSources,
        clusters: OpenClusters,
        flow_runs: FlowRuns,
        pool_configuration: Callable[[], Awaitable[RayJobConfiguration | None]],
        home: Callable[[], Awaitable[Cluster | None]],
        uses: Callable[[ClusterRef], bool],
        *,
        interval: float,
    ) -> None:
        self._name = name
        self._pool = pool
        self._sources = sources
        self._pool_configuration = pool_configuration
        self._clusters = clusters
        self._flow_runs = flow_runs
        self._home = home
        self._uses = uses
        self._online = frozenset({name})
        self._gone: set[ClusterRef] = set()
        self._interval = interval

    async def run(self) -> None:
        """Sweep until cancelled; run this in a background task."""
        while True:
            await anyio.sleep(jittered(self._interval))
            try:
                home = await self._home()
                if home is not None:
                    await self._clusters.get(home)
            except Exception as exc:  # noqa: BLE001 (the next sweep tries again)
                _log.warning("Cannot open the pool's own cluster now: %s", exc)
            await self.sweep_records()
            try:
                try:
                    await self.sweep_clusters()
                finally:
                    await self._forget_gone()
            except Exception as exc:  # noqa: BLE001 (the next sweep tries again)
                _log.warning("Cannot sweep the clusters of ended runs now: %s", exc)

    async def sweep_records(self) -> None:
        """Delete the records of jobs, and stop those of deleted runs, on each cluster in use."""
        for ref, opened in self._clusters.to_sweep.items():
            await self._sweep_and_close(ref, opened)

    async def sweep_clusters(self) -> None:
        """Delete the clusters that were made for runs of the pool and are not needed any more.

        Raises:
            Exception: Prefect did not answer; what has reached its longest life went all the same.
        """
        configuration = await self._pool_configuration()
        if not self._sources.makes_clusters(configuration):
            return
        pool = self._pool()
        try:
            self._online = await self._flow_runs.online_workers(pool.name)
        except Exception as exc:  # noqa: BLE001 (those of the last time are as good)
            _log.debug("Which workers are online is not known now: %s", exc)
        online = self._online
        view = PoolRuns(
            pool.id, self._flow_runs, lambda key: heir(key, online) == self._name, pool.name
        )
        await self._sources.sweep(view, configuration, _log.warning)

    async def _forget_gone(self) -> None:
        """Close the connections to shared clusters that have been gone for a whole sweep."""
        unused = {ref for ref in self._clusters.shared if not self._uses(ref)}
        gone = {ref for ref in unused if await self._sources.why_gone(ref) is not None}
        for ref in gone & self._gone:
            await self._clusters.forget(ref)
        self._gone = gone

    async def _sweep_and_close(self, ref: ClusterRef, opened: Sequence[OpenCluster]) -> None:
        """Sweep one cluster with the first credentials that it takes; close what is not needed."""
        needed, idle_seconds = None, _SILENT_SECONDS
        for cluster in opened:
            address = cluster.client.connection.address
            try:
                needed = cluster if await self.sweep(cluster.client) else None
            except JobsApiError as exc:
                _log.debug("Cannot sweep %s now: %s", address, exc)
                if isinstance(exc, ClusterUnreachable):
                    break  # whatever the credentials
            except Exception as exc:  # noqa: BLE001 (one cluster's trouble must not hurt the others)
                _log.warning("Cannot sweep %s now: %s", address, exc)
                return
            else:
                idle_seconds = _IDLE_SECONDS
                break
        await self._clusters.close_idle(ref, seconds=idle_seconds, spared=needed)

    async def sweep(self, client: JobsClient) -> bool:
        """Sweep one cluster once.

        Returns:
            Whether it had jobs for this sweep or a later one.

        Raises:
            JobsApiError: It could not be asked.
        """
        pool = self._pool()
        online = await self._flow_runs.online_workers(pool.name)
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        has_some = False

        def is_for_me(record: dict[str, Any]) -> bool:
            # Of the raw records: those of jobs that ended and stay can be very many.
            nonlocal has_some
            metadata = record.get("metadata") or {}
            run_id = run_of_job(pool.id, metadata)
            goes_on = record.get("status") not in TERMINAL_STATUSES
            if run_id is None or not (goes_on or DELETE_AFTER_KEY in metadata):
                return False
            has_some = True  # also of another worker, whose heir this one can be later
            return (goes_on or _is_due(record)) and heir(run_id, online) == self._name

        jobs = await client.list(is_for_me)
        # Read after the jobs: a run that is missing here was deleted after its job began. Only the
        # runs of these jobs: to list all runs of a large pool keeps the Prefect server busy.
        ids = {run_of_job(pool.id, job.metadata) for job in jobs}
        runs = await self._flow_runs.some({run_id for run_id in ids if run_id is not None})

        async def tidy(job: JobDetails) -> None:
            run_id = run_of_job(pool.id, job.metadata)
            if run_id is None:
                return
            async with limiter:
                if job.is_terminal:
                    if not _is_needed(job, runs.get(run_id)):
                        await self._delete(client, job)
                elif run_id not in runs:
                    await self._stop_orphan(client, job, run_id)

        async with anyio.create_task_group() as tasks:
            for job in jobs:
                tasks.start_soon(tidy, job)
        return has_some

    async def _delete(self, client: JobsClient, job: JobDetails) -> None:
        if job.submission_id is not None:
            with _trying(job.submission_id):
                await client.delete(job.submission_id)

    async def _stop_orphan(self, client: JobsClient, job: JobDetails, run_id: UUID) -> None:
        """Stop the job of a run that was deleted while no worker was there to see it."""
        if job.submission_id is not None and await self._flow_runs.read(run_id) is None:
            _log.warning("Stopping Ray Job %s: its flow run was deleted.", job.submission_id)
            with _trying(job.submission_id):
                await client.stop(job.submission_id)


async def sweep_once(
    client: PrefectClient, pool: WorkPool, namespaces: Sequence[str], tell: Tell
) -> list[Exception]:
    """Delete what no run of a pool needs any more, once, without a worker.

    Args:
        client: An open client.
        pool: The work pool.
        namespaces: Kubernetes namespaces to sweep besides that of the pool's own `kuberay`.
        tell: Told in one line what was deleted, and why.

    Returns:
        Why some places could not be swept, each reason once; all others were.

    Raises:
        InvalidConfiguration: The pool makes no clusters.
        Exception: Prefect did not answer.
    """
    configuration = await RayJobConfiguration.of_pool(pool, client)
    if not configuration.makes_clusters:
        raise InvalidConfiguration(
            f"Work pool {pool.name!r} has no default for kuberay or cluster_source, so it "
            "makes no clusters. Name the pool whose runs have clusters of their own."
        )
    if namespaces and configuration.kuberay is None:
        raise InvalidConfiguration(
            f"Work pool {pool.name!r} has a cluster_source, which knows itself where its clusters "
            "are: --namespace is for KubeRay only. Leave it out."
        )
    sources = ClusterSources.of_worker(PREFECT_HOME.value(), worker_settings().address)
    view = PoolRuns(pool.id, FlowRuns(client), lambda _: True, pool.name)
    troubles: dict[str, Exception] = {}
    try:
        for of_place in _places_of(configuration, namespaces):
            try:
                await sources.sweep(view, of_place, tell)
            except Exception as exc:  # noqa: BLE001 (of one place: the others are swept nevertheless)
                # A source sweeps its earlier places again, and fails there again.
                troubles[str(exc)] = exc
    finally:
        await sources.close(tell)
    return list(troubles.values())


def _places_of(
    configuration: RayJobConfiguration, namespaces: Sequence[str]
) -> list[RayJobConfiguration]:
    kuberay = configuration.kuberay
    if kuberay is None:
        return [configuration]
    return [
        configuration.model_copy(
            update={"kuberay": kuberay.model_copy(update={"namespace": namespace})}
        )
        for namespace in (kuberay.namespace, *namespaces)
    ]


@contextmanager
def _trying(submission_id: str) -> Generator[None, None, None]:
    """Leave a job for the next sweep if its cluster does not do what it is asked."""
    try:
        yield
    except JobNotFound:
        pass  # another worker, or a user, was quicker
    except JobsApiError as exc:
        _log.debug("%s is left for the next sweep: %s", submission_id, exc)


def _is_needed(job: JobDetails, run: ActiveRun | None) -> bool:
    """Return whether a worker still has to read a finished job: its status, or its log."""
    if run is None or job.submission_id is None:
        return False  # the run was deleted
    if run.state in GOES_ON:
        return True
    return is_unfinished(run.labels, attempt_in(job.submission_id)) and run.age < REMEMBER_SECONDS


def _is_due(record: dict[str, Any]) -> bool:
    try:
        stay = float(str(record["metadata"][DELETE_AFTER_KEY]))
        ended = float(record["end_time"]) / _MILLISECONDS
    except (KeyError, TypeError, ValueError):
        return False
    return datetime.now(UTC).timestamp() - ended >= max(stay, _SHORTEST_STAY_SECONDS)
