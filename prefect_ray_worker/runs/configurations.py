"""`Configurations`: reads the configuration of a run again, as it is now."""

from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.workers.base import BaseWorker

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.open import OpenCluster
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.runs.registry import FollowedRuns


class Configurations:
    """Reads the configurations of the runs of one worker.

    Args:
        worker: The worker; its client is open, and its pool known, before anything is read.
        sources: Finds clusters.
        followed: What the worker follows.
    """

    def __init__(
        self, worker: BaseWorker[Any, Any, Any], sources: ClusterSources, followed: FollowedRuns
    ) -> None:
        self._worker = worker
        self._sources = sources
        self._followed = followed

    async def of(self, flow_run: FlowRun) -> RayJobConfiguration:
        """Return the configuration of a run, as for its submission; see `ConfigurationOf`."""
        worker = self._worker
        return await RayJobConfiguration.resolve_once(
            flow_run,
            client=worker.client,
            work_pool=worker.work_pool.model_copy(deep=True),
            worker_name=worker.name,
            worker_id=worker.backend_id,
        )

    async def cluster_anew(self, opened: OpenCluster) -> Cluster | None:
        """Return a cluster as the configuration of one of its followed runs has it now."""
        for follower in self._followed.followers:
            if follower.attempt.cluster is opened:
                configuration = await self.of(follower.attempt.flow_run.model_copy(deep=True))
                return await self._sources.find(configuration, follower.attempt.job_id, opened.ref)
        return None
