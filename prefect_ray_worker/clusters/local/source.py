"""`LocalClusters`: provides the local Ray to runs that name no cluster."""

import platform
from pathlib import Path

import anyio

from prefect_ray_worker.clusters.local.cluster import LocalCluster, LocalClusterInfo
from prefect_ray_worker.clusters.source import Cluster, ClusterPlan, PoolView, StartProgress, Tell
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import InvalidConfiguration, JobsApiError, LocalClusterError
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.shared.ids import ClusterRef

_RELEASE_SECONDS = 20.0
_COUNT_SECONDS = 8.0
_NAME_ANOTHER = (
    "The work pool names a cluster, and the run sets that to null without naming another one. "
    "Set job variable 'address', 'cluster', 'kuberay' or 'cluster_source'."
)


class LocalClusters:
    """Starts the local Ray for runs that name no cluster, and stops it when the worker stops.

    Args:
        directory: The state directory of the local Ray.
        in_use: Whether runs that name no cluster use the local Ray. Only then does `take_over`
            find one that an earlier worker left running.
    """

    def __init__(self, directory: Path, *, in_use: bool) -> None:
        self._local = LocalCluster(directory)
        self._in_use = in_use
        self._holds = False

    async def plan(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None,
        recorded: ClusterRef | None = None,
    ) -> ClusterPlan | None:
        """Plan the local cluster for every run. Its address is unknown until it has started.

        Raises:
            InvalidConfiguration: The work pool names a cluster. Its runs must not take the
                worker's own machine instead, with the worker's account and environment.
        """
        if configuration.drops_the_pool_s_cluster:
            raise InvalidConfiguration(_NAME_ANOTHER)
        return ClusterPlan()

    async def acquire(self, plan: ClusterPlan, progress: StartProgress) -> Cluster:
        """Return the local cluster, and start it if it does not run.

        Raises:
            LocalClusterError: Ray is not installed, or did not start.
        """
        return await self._acquire(progress.tell)

    async def _acquire(self, tell: Tell) -> Cluster:
        info = await self._local.ensure()
        if info.started or not self._holds:
            verb = "Started" if info.started else "Using"
            tell(
                f"{verb} a local Ray cluster, because no address is configured. "
                f"Dashboard: {info.address} (its token is in {info.token_path})"
            )
        self._holds = True
        return _cluster(info)

    async def look(self, plan: ClusterPlan) -> Cluster | None:
        """Return the local cluster if its process runs, else None."""
        info = await self._local.find()
        return None if info is None else _cluster(info)

    async def why_gone(self, ref: ClusterRef) -> str | None:
        """Return None: a Ray that was restarted keeps no job, and says so itself."""

    async def release(self, ref: ClusterRef, *, failed: bool) -> str | None:
        """Do nothing: the next run uses the same Ray."""

    async def sweep(
        self, view: PoolView, pool_configuration: RayJobConfiguration | None, tell: Tell
    ) -> None:
        """Do nothing: the local Ray is stopped when its workers end."""

    async def take_over(self, tell: Tell) -> None:
        """Take over a local cluster that an earlier worker left running, to stop it on `close`."""
        if self._in_use and await self._local.find() is not None:
            try:
                await self._acquire(tell)
            except LocalClusterError as exc:
                tell(f"The local Ray cluster that an earlier worker left cannot be used: {exc}")

    async def close(self, tell: Tell, ended: frozenset[str]) -> None:
        """Stop the local cluster, unless jobs run on it or another worker uses it."""
        if not self._holds:
            return
        with anyio.move_on_after(_RELEASE_SECONDS, shield=True):
            info = await self._local.find()
            running = 0 if info is None else await _count_running(info, ended)
            try:
                stopped = await self._local.release(jobs_running=running != 0)
            except LocalClusterError as exc:
                tell(str(exc))
                return
            if stopped:
                tell("Stopped the local Ray cluster.")
            elif running != 0 and info is not None:
                jobs = "An unknown number of" if running is None else running
                tell(
                    f"{jobs} Ray Job(s) are still running at {info.address}, so Ray was left "
                    "up. The next worker finds it and stops it at its own end. To stop it now: "
                    f"`kill {info.pid}`."
                )


async def _count_running(info: LocalClusterInfo, ended: frozenset[str]) -> int | None:
    """Return how many jobs run or are pending; None if that is unknown."""
    try:
        with anyio.fail_after(_COUNT_SECONDS):
            async with JobsClient(_cluster(info).connection) as client:
                jobs = await client.list()
    except (JobsApiError, TimeoutError):
        return None
    return sum(
        job.type == "SUBMISSION" and not job.is_terminal and job.submission_id not in ended
        for job in jobs
    )


def _cluster(info: LocalClusterInfo) -> Cluster:
    connection = Connection(info.address, TokenSource(path=info.token_path))
    return Cluster(ClusterRef.of_address(info.address), connection, platform.node())
