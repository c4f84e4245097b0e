"""`Recovery`: the facade of this folder. It keeps every run of a pool with exactly one worker."""

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import WorkPool

from prefect_ray_worker.clusters.choice import ClusterSources
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.prefect_api.active_runs import ActiveRun
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.recovery.adopt import Adoption
from prefect_ray_worker.runs.recovery.labels import (
    UPLOADING_LABEL,
    Worker,
    given_up_by,
    owner_in,
    owner_labels,
)
from prefect_ray_worker.runs.recovery.ownership import heirs
from prefect_ray_worker.runs.recovery.reconcile import Reconciler
from prefect_ray_worker.runs.recovery.sweep import Sweeper
from prefect_ray_worker.runs.registry import FollowedRuns
from prefect_ray_worker.runs.run import ConfigurationOf, LeftAttempt
from prefect_ray_worker.runs.services import Services
from prefect_ray_worker.shared.ids import ClusterRef, attempt_in, attempt_name

_AT_ONCE = 8
_GIVE_UP_SECONDS = 10.0

_log = logging.getLogger("prefect.workers.ray.recovery")


class Recovery:
    """Owns, adopts and gives up runs for one worker process.

    Args:
        me: This process.
        pool: Returns the worker's pool.
        services: What the worker's runs share.
        sources: Finds clusters.
        followed: What this process follows.
        configuration_of: Builds the configuration of a run.
        queues: The queues that this worker polls; none means all.
        interval: Seconds between two looks for orphaned runs.
    """

    def __init__(
        self,
        me: Worker,
        pool: Callable[[], WorkPool],
        services: Services,
        sources: ClusterSources,
        followed: FollowedRuns,
        configuration_of: ConfigurationOf,
        *,
        queues: frozenset[str],
        interval: float,
    ) -> None:
        self._me = me
        self._pool = pool
        self._sources = sources
        self._flow_runs = services.flow_runs
        self._followed = followed
        adoption = Adoption(
            services, followed, configuration_of, queues, self._pool_configuration, self.own
        )
        self._reconciler = Reconciler(me, pool, services, followed, adoption, interval=interval)
        self._sweeper = Sweeper(
            me.name,
            pool,
            sources,
            services.clusters,
            self._flow_runs,
            self._pool_configuration,
            self._home,
            followed.uses,
            interval=services.timing.sweep,
        )

    @property
    def workers_online(self) -> int:
        """How many workers of the pool were online at the last look; 0 before it."""
        return len(self._reconciler.online)

    async def run(self) -> None:
        """Look for orphaned runs, and sweep, until cancelled."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._reconciler.run, name="ray-reconciler")
            tasks.start_soon(self._sweeper.run, name="ray-sweeper")

    async def own(
        self,
        run_id: UUID,
        job_id: str,
        cluster: ClusterRef | None,
        host: str | None,
        kept: float | None,
    ) -> None:
        """Write on a run that this process owns an attempt, before anything is done for it.

        A worker that dies while a cluster starts then leaves an owned run: its heir goes on with
        it. As long as there is no cluster, the label names no machine: nothing ties the run to
        this one, and a worker on another machine may submit it.

        Args:
            run_id: The run.
            job_id: The submission id of the attempt.
            cluster: The cluster that gets the job; None if it has no name before it is started.
            host: The only machine that can reach it; None if others can.
            kept: Seconds for which it stays after a failure; None if the cluster itself has them.
        """
        labels = owner_labels(self._me, attempt_in(job_id), cluster, host, kept)
        await self._flow_runs.label(run_id, labels)

    def turn_of(self, run_id: UUID) -> int:
        """Return how many workers of the pool come before this one for a run, by the last look."""
        names = heirs(run_id, self._reconciler.online)
        return names.index(self._me.name) if self._me.name in names else len(names)

    async def announce_upload(self, run_id: UUID) -> None:
        """Write on a run that no worker must submit it yet: its caller uploads the code first."""
        claim_id = await self._flow_runs.claim_id(run_id)
        await self._flow_runs.label(run_id, {UPLOADING_LABEL: attempt_name(claim_id)})

    async def give_up(self, flow_runs: FlowRuns, left: Sequence[LeftAttempt]) -> None:
        """Leave attempts to other workers, at once.

        Without it, they wait until Prefect counts this worker as offline.

        Args:
            flow_runs: The Prefect side; this worker's own may be closed.
            left: What this process followed, and does not follow any more.
        """
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        try:
            runs = await flow_runs.some({attempt.run_id for attempt in left})
        except Exception as exc:  # noqa: BLE001 (others take them over a little later)
            _log.debug("The runs could not be given up: %s", exc)
            return
        async with anyio.create_task_group() as tasks:
            for attempt in left:
                run = runs.get(attempt.run_id)
                # Another worker may have taken it over while this one was cut off or frozen.
                if run is not None and self._is_mine(run, attempt):
                    tasks.start_soon(self._give_up, flow_runs, attempt, limiter)

    async def give_up_at_the_end(self, left: Sequence[LeftAttempt]) -> None:
        """Leave attempts to others, at once, with a client of its own: the worker's is closed."""
        if not left:
            return
        with anyio.move_on_after(_GIVE_UP_SECONDS, shield=True):
            async with get_client() as client:
                await self.give_up(FlowRuns(client), left)

    async def _home(self) -> Cluster | None:
        configuration = await self._pool_configuration()
        return None if configuration is None else await self._sources.find(configuration)

    async def _pool_configuration(self) -> RayJobConfiguration | None:
        """Return the configuration of a run that sets no job variable; None if there is none."""
        try:
            return await RayJobConfiguration.of_pool(self._pool())
        except Exception as exc:  # noqa: BLE001 (each run of the pool says so)
            _log.debug("The configuration of the work pool cannot be read: %s", exc)
            return None

    async def _give_up(
        self, flow_runs: FlowRuns, attempt: LeftAttempt, limiter: anyio.CapacityLimiter
    ) -> None:
        label = given_up_by(self._me, attempt_in(attempt.job_id), attempt.host)
        try:
            async with limiter:
                await flow_runs.label(attempt.run_id, label)
        except Exception as exc:  # noqa: BLE001 (others take it over a little later)
            _log.debug("The run %s could not be given up: %s", attempt.run_id, exc)

    def _is_mine(self, run: ActiveRun, attempt: LeftAttempt) -> bool:
        owner = owner_in(run.labels, attempt_in(attempt.job_id))
        return owner.instance in (None, self._me.instance)
