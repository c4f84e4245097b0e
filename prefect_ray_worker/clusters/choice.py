"""`ClusterSources`: chooses where the cluster of a run comes from."""

from pathlib import Path
from typing import Self

from prefect_ray_worker.clusters.existing import ExistingClusters
from prefect_ray_worker.clusters.local.source import LocalClusters
from prefect_ray_worker.clusters.local.state import state_directory
from prefect_ray_worker.clusters.source import Cluster, ClusterPlan, ClusterSource, Tell
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import ClusterRef


class ClusterSources:
    """Chooses the source of each run: the first one that plans a cluster for it.

    The order of `of_worker`: job variable `address`, block `cluster`, the setting
    `PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS`, a Ray that is started on this machine.

    Args:
        sources: In order of precedence. The last one must plan for every run.
    """

    def __init__(self, *sources: ClusterSource) -> None:
        self._sources = sources
        self._ended: set[str] = set()

    @classmethod
    def of_worker(cls, prefect_home: Path, default_address: str | None) -> Self:
        """Return the sources of a worker, or of a tool that looks where a worker would.

        Args:
            prefect_home: Below it, the local Ray keeps its state.
            default_address: The setting `PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS`.

        Raises:
            InvalidConfiguration: The setting is no address.
        """
        return cls(
            ExistingClusters(default_address),
            LocalClusters(state_directory(prefect_home), in_use=not default_address),
        )

    async def acquire(self, configuration: RayJobConfiguration, tell: Tell) -> Cluster:
        """Return the cluster of a run, and start it if needed; see `ClusterSource.acquire`."""
        source, plan = self._choose(configuration)
        return await source.acquire(plan, tell)

    async def find(self, configuration: RayJobConfiguration) -> Cluster | None:
        """Return the cluster of a run without starting it; see `ClusterSource.look`."""
        source, plan = self._choose(configuration)
        return await source.look(plan)

    async def find_named(
        self, ref: ClusterRef, pool_configuration: RayJobConfiguration | None
    ) -> Cluster:
        """Return a cluster that a run's record names, for example its `infrastructure_pid`.

        Anyone who may change the run can write such a record. So if neither the pool nor this
        worker names the cluster, nothing is sent to it: it counts as unreachable.

        Args:
            ref: The cluster, as recorded.
            pool_configuration: That of a run which sets nothing; None if it cannot be read.
        """
        for configuration in (pool_configuration, RayJobConfiguration()):
            cluster = None if configuration is None else await self.find(configuration)
            if cluster is not None and cluster.ref == ref:
                return cluster
        return Cluster(ref, Connection(str(ref), off_limits=True))

    async def sweep(self, tell: Tell) -> None:
        """Take charge of clusters that earlier workers have left."""
        for source in self._sources:
            await source.sweep(tell)

    async def release(self, tell: Tell) -> None:
        """Let go of all clusters; stop those that this worker started and nobody uses."""
        for source in self._sources:
            await source.release(tell, frozenset(self._ended))

    def count_as_ended(self, submission_id: str) -> None:
        """Count a job as ended that Ray still shows as PENDING, with a stop request queued."""
        self._ended.add(submission_id)

    def _choose(self, configuration: RayJobConfiguration) -> tuple[ClusterSource, ClusterPlan]:
        for source in self._sources:
            plan = source.plan(configuration)
            if plan is not None:
                return source, plan
        raise RuntimeError("The last cluster source must plan for every run.")
