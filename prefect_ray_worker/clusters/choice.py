"""`ClusterSources`: chooses where the cluster of a run comes from."""

import logging
from pathlib import Path
from typing import Any, Self

from prefect.client.orchestration import PrefectClient

from prefect_ray_worker.clusters.existing import ExistingClusters, greeting_of
from prefect_ray_worker.clusters.local.source import LocalClusters
from prefect_ray_worker.clusters.local.state import state_directory
from prefect_ray_worker.clusters.source import (
    Cluster,
    ClusterPlan,
    ClusterSource,
    PoolView,
    StartProgress,
    Tell,
)
from prefect_ray_worker.clusters.trouble import Trouble
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import ClusterRef

_log = logging.getLogger("prefect.workers.ray.sources")


class ClusterSources:
    """Chooses the source of each run: the first one that plans a cluster for it.

    The order of `of_worker`: job variables `cluster_source`, `kuberay` and `address`, block
    `cluster`, the setting `PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS`, a Ray that is started on this
    machine.

    Args:
        sources: In order of precedence. The last one must plan for every run.
        events: Takes what happens to clusters that are made; by default Prefect is told, and
            never asked.

    Attributes:
        events: The same.
    """

    def __init__(self, *sources: ClusterSource, events: ClusterEvents | None = None) -> None:
        self._sources = sources
        self.events = events or ClusterEvents()
        self._has_kuberay = False
        self._plugins: ClusterSource | None = None
        self._ended: set[str] = set()

    @classmethod
    def of_worker(
        cls, prefect_home: Path, default_address: str | None, events: ClusterEvents | None = None
    ) -> Self:
        """Return the sources of a worker, or of a tool that looks where a worker would.

        Args:
            prefect_home: Below it, the local Ray keeps its state.
            default_address: The setting `PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS`.
            events: See the class.

        Raises:
            InvalidConfiguration: The setting is no address.
        """
        return cls(
            ExistingClusters(default_address),
            LocalClusters(state_directory(prefect_home), in_use=not default_address),
            events=events,
        )

    async def plan(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None,
        recorded: ClusterRef | None = None,
    ) -> ClusterPlan:
        """Return what a run will get; see `ClusterSource.plan`."""
        return (await self._choose(configuration, job_id, recorded))[1]

    async def acquire(
        self,
        configuration: RayJobConfiguration,
        job_id: str,
        progress: StartProgress,
        recorded: ClusterRef | None = None,
    ) -> Cluster:
        """Return the cluster of a run, and start it if needed; see `ClusterSource.acquire`."""
        source, plan = await self._choose(configuration, job_id, recorded)
        return await source.acquire(plan, progress)

    async def find(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None = None,
        recorded: ClusterRef | None = None,
    ) -> Cluster | None:
        """Return the cluster of a run without starting it; see `ClusterSource.look`."""
        source, plan = await self._choose(configuration, job_id, recorded)
        return await source.look(plan)

    async def find_named(
        self, ref: ClusterRef, job_id: str | None, pool_configuration: RayJobConfiguration | None
    ) -> Cluster:
        """Return a cluster that a run's record names, for example its `infrastructure_pid`.

        Anyone who may change the run can write such a record. So if neither the pool nor this
        worker names the cluster, nothing is sent to it: it counts as unreachable.

        Args:
            ref: The cluster, as recorded.
            job_id: The submission id of the attempt's job; None if it is the job of no flow run.
            pool_configuration: That of a run which sets nothing; None if it cannot be read.
        """
        try:
            cluster = await self.look_for_named(ref, job_id, pool_configuration)
        except InvalidConfiguration as exc:
            # Of the pool: not of the run, which can go on elsewhere.
            _log.debug("The cluster of the work pool cannot be looked for: %s", exc)
            cluster = None
        return cluster or Cluster(ref, Connection(str(ref), off_limits=True))

    async def look_for_named(
        self, ref: ClusterRef, job_id: str | None, pool_configuration: RayJobConfiguration | None
    ) -> Cluster | None:
        """Return a recorded cluster as `find_named` does; None if nobody here names it.

        Raises:
            InvalidConfiguration: The pool's clusters cannot be looked for from this machine, and
                the worker itself does not name this one.
        """
        trouble: InvalidConfiguration | None = None
        for configuration in (pool_configuration, RayJobConfiguration()):
            if configuration is None:
                continue
            try:
                cluster = await self.find(configuration, job_id, ref)
            except InvalidConfiguration as exc:
                trouble = trouble or exc
                continue
            if cluster is not None and cluster.ref == ref:
                return cluster
        if trouble is not None:
            raise trouble
        return None

    async def why_gone(self, ref: ClusterRef) -> str | None:
        """Return why a cluster is certainly gone; see `ClusterSource.why_gone`."""
        for source in self._sources:
            reason = await source.why_gone(ref)
            if reason is not None:
                return reason
        return None

    async def release(self, ref: ClusterRef, *, failed: bool) -> str | None:
        """Let go of a cluster whose run has ended; see `ClusterSource.release`."""
        said = [await source.release(ref, failed=failed) for source in self._sources]
        return next((line for line in said if line is not None), None)

    async def take_over(self, tell: Tell) -> None:
        """Take charge of clusters that earlier workers have left on this machine."""
        for source in self._sources:
            await source.take_over(tell)

    async def say_where_runs_go(
        self, base_job_template: dict[str, Any], client: PrefectClient, tell: Tell
    ) -> None:
        """Tell which cluster gets the runs that set no job variable, and whether it answers.

        Says nothing of clusters that are made or started when a run needs them.

        Args:
            base_job_template: Of the work pool: its defaults come before the worker's setting.
            client: Looks up the blocks that the defaults refer to.
            tell: Told in one line.
        """
        try:
            configuration = await RayJobConfiguration.from_template_and_values(
                base_job_template, {}, client
            )
            if configuration.makes_clusters:
                return
            _, plan = await self._choose(configuration, None, None)
        except InvalidConfiguration as exc:
            tell(f"The defaults of the work pool cannot be used: {exc}")
            return
        except Exception as exc:  # noqa: BLE001 (a block is gone, or the API away: each run says so)
            _log.debug("The defaults of the work pool cannot be read: %s", exc)
            return
        if plan.cluster is not None:
            tell(await greeting_of(plan.cluster.connection))

    def makes_clusters(self, pool_configuration: RayJobConfiguration | None) -> bool:
        """Return whether the pool, or a run that was seen, makes clusters that need a sweep."""
        asks = pool_configuration is not None and pool_configuration.makes_clusters
        return asks or self._has_kuberay or self._plugins is not None

    async def sweep(
        self, view: PoolView, pool_configuration: RayJobConfiguration | None, tell: Tell
    ) -> None:
        """Delete clusters of the pool that nobody needs any more; see `ClusterSource.sweep`.

        Raises:
            Exception: A source could not be swept; the others were.
        """
        if pool_configuration is not None:
            self._prepare_for(pool_configuration)
        trouble = Trouble()
        for source in self._sources:
            with trouble.kept():
                await source.sweep(view, pool_configuration, tell)
        trouble.raise_first()

    async def close(self, tell: Tell) -> None:
        """Let go of all clusters; stop those that this worker started and nobody uses."""
        for source in self._sources:
            await source.close(tell, frozenset(self._ended))

    def count_as_ended(self, submission_id: str) -> None:
        """Count a job as ended that Ray still shows as PENDING, with a stop request queued."""
        self._ended.add(submission_id)

    async def _choose(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None,
        recorded: ClusterRef | None,
    ) -> tuple[ClusterSource, ClusterPlan]:
        self._prepare_for(configuration)
        for source in self._sources:
            plan = await source.plan(configuration, job_id, recorded)
            if plan is not None:
                return source, plan
        raise RuntimeError("The last cluster source must plan for every run.")

    def _prepare_for(self, configuration: RayJobConfiguration) -> None:
        if configuration.cluster_source is not None and self._plugins is None:
            from prefect_ray_worker.clusters.third_party import PluginClusters

            self._plugins = PluginClusters(self.events)
            self._sources = (self._plugins, *self._sources)
        if configuration.kuberay is None or self._has_kuberay:
            return
        # Imported here: a worker whose pools make no clusters needs no client of Kubernetes.
        from prefect_ray_worker.clusters.kuberay.source import KubeRayClusters

        self._sources = (KubeRayClusters(self.events), *self._sources)
        self._has_kuberay = True
