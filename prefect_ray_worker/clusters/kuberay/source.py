"""`KubeRayClusters`: makes a RayCluster for each attempt that asks for one, and deletes it."""

import logging
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import anyio

from prefect_ray_worker.clusters.kuberay.deletion import Deletions
from prefect_ray_worker.clusters.kuberay.look import StartTiming
from prefect_ray_worker.clusters.kuberay.manifest import (
    ATTEMPT_LABEL,
    KEEP_FAILED,
    MANAGED_BY,
    POOL_LABEL,
    cluster_name,
    ray_cluster,
)
from prefect_ray_worker.clusters.kuberay.orphans import run_in_labels, seconds_in, why_orphaned
from prefect_ray_worker.clusters.kuberay.reach import place_in, reached, ref_of
from prefect_ray_worker.clusters.kuberay.snapshots import Snapshots
from prefect_ray_worker.clusters.kuberay.start import ClusterStart
from prefect_ray_worker.clusters.source import (
    Cluster,
    ClusterPlan,
    PoolView,
    RunAndAttempt,
    StartProgress,
    Tell,
)
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.kuberay import KubeRay, KubernetesConfig
from prefect_ray_worker.errors import (
    InvalidConfiguration,
    KubernetesError,
    KubernetesUnreachable,
    ObjectMissing,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from prefect_ray_worker.settings import worker_settings
from prefect_ray_worker.shared.backoff import Backoff
from prefect_ray_worker.shared.ids import ClusterRef

_RELEASE_SECONDS = 30.0
# What a killed `doctor` has left is looked for with every so many sweeps, from the first.
_SWEEPS_PER_LOOK_FOR_PROBES = 10

_log = logging.getLogger("prefect.workers.ray.kuberay")


@dataclass(frozen=True)
class KubeRayPlan(ClusterPlan):
    """A RayCluster that an attempt will get.

    Attributes:
        asked: The job variable.
        client: Of its Kubernetes cluster.
        namespace: Where it goes.
        job_id: The attempt's job; None if there is no run.
        pool_id: The work pool.
    """

    asked: KubeRay | None = None
    client: KubernetesClient | None = None
    namespace: str = ""
    job_id: str | None = None
    pool_id: str = ""


class KubeRayClusters:
    """Makes and deletes RayClusters for one worker.

    Args:
        events: Takes what happens to them.

    Attributes:
        timing: Waits while a cluster starts; tests shorten them.
    """

    timing: StartTiming = StartTiming()

    def __init__(self, events: ClusterEvents) -> None:
        self._deletions = Deletions(events)
        self._clients: dict[Kubeconfig | None, KubernetesClient] = {}
        self._opening = anyio.Lock()
        self._stack = AsyncExitStack()
        # Of each planned cluster its Kubernetes cluster: a reference in a pid has no credentials.
        self._homes: dict[ClusterRef, KubernetesClient] = {}
        self._places: set[tuple[Kubeconfig | None, str]] = set()
        self._snapshots: dict[tuple[int, str], Snapshots] = {}
        self._sweeps = 0

    async def plan(
        self,
        configuration: RayJobConfiguration,
        job_id: str | None,
        recorded: ClusterRef | None = None,
    ) -> ClusterPlan | None:
        """Return the cluster that the attempt has or will have, by name; None if it asks for none.

        Raises:
            InvalidConfiguration: There is no access to Kubernetes, or not to the namespace.
        """
        asked = configuration.kuberay
        if asked is None:
            return None
        key = _key_of(asked.kubeconfig)
        client = await self._client(key)
        namespace = _allowed(asked.namespace or client.access.namespace)
        ref = None if job_id is None else ref_of(namespace, cluster_name(job_id))
        if ref is not None:
            self._homes[ref] = client
            self._places.add((key, namespace))
        pool_id = configuration.labels.get(POOL_LABEL, "")
        return KubeRayPlan(
            None,
            ref,
            is_on_demand=True,
            is_for_one_run=True,
            asked=asked,
            client=client,
            namespace=namespace,
            job_id=job_id,
            pool_id=pool_id,
        )

    async def acquire(self, plan: ClusterPlan, progress: StartProgress) -> Cluster:
        """Create the planned cluster, unless it is there, and return it when it takes jobs.

        Raises:
            ClusterFailed: It cannot be created, or did not become ready in time.
            InvalidConfiguration: The manifest cannot work.
        """
        plan, asked, client = _complete(plan)
        if plan.job_id is None:
            raise ValueError("There is no run to make a cluster for.")
        manifest = ray_cluster(
            asked, job_id=plan.job_id, pool_id=plan.pool_id, namespace=plan.namespace
        )
        snapshots = self._snapshots_of(client, plan.namespace)
        start = ClusterStart(
            client, asked, manifest, progress, self.timing, snapshots, self._deletions
        )
        return await start.run()

    async def look(self, plan: ClusterPlan) -> Cluster | None:
        """Return the planned cluster if Kubernetes has it, whether or not it takes jobs.

        Raises:
            KubernetesError: Kubernetes does not say whether it has it.
        """
        plan, asked, client = _complete(plan)
        if plan.ref is None:
            return None
        try:
            cluster = await client.get_cluster(*place_in(plan.ref))
            return await reached(client, cluster, asked)
        except ObjectMissing:
            return None

    async def why_gone(self, ref: ClusterRef) -> str | None:
        """Return why a cluster is certainly gone, as a clause."""
        client = self._homes.get(ref.planned)
        if client is None:
            return None
        namespace, name = place_in(ref)
        try:
            cluster = await client.get_cluster(namespace, name)
        except ObjectMissing:
            return f"Kubernetes does not have the RayCluster {namespace}/{name} any more"
        except KubernetesError:
            return None  # nothing is known
        if ref.uid is not None and cluster.uid != ref.uid:
            return f"the RayCluster {namespace}/{name} was replaced by another one"
        # That cannot be undone, and its pods end.
        is_going = cluster.is_terminating
        return f"the RayCluster {namespace}/{name} is being deleted" if is_going else None

    async def release(self, ref: ClusterRef, *, failed: bool) -> str | None:
        """Delete the cluster of a run that has ended, or leave it for a look if it failed.

        Returns:
            What was done, in a sentence; None if there was nothing to do.
        """
        client = self._homes.get(ref.planned)
        if client is None:
            return None
        backoff = Backoff()
        with anyio.move_on_after(_RELEASE_SECONDS):
            while True:
                try:
                    said = await self._let_go(client, ref, failed=failed)
                except KubernetesUnreachable as exc:
                    _log.debug("%s is not deleted yet: %s", ref, exc)
                    await anyio.sleep(backoff.next())
                except KubernetesError as exc:
                    _log.warning("%s cannot be deleted: %s", ref, exc)
                    return f"The cluster {ref} cannot be deleted now: {exc}"
                else:
                    self._homes.pop(ref.planned, None)
                    return said
        return f"The cluster {ref} is deleted as soon as the Kubernetes API answers."

    async def take_over(self, tell: Tell) -> None:
        """Do nothing: nothing of a RayCluster is on this machine."""

    async def sweep(
        self, view: PoolView, pool_configuration: RayJobConfiguration | None, tell: Tell
    ) -> None:
        """Delete RayClusters of the pool that nobody needs any more.

        Raises:
            KubernetesError: A namespace could not be swept; the others were.
        """
        asked = None if pool_configuration is None else pool_configuration.kuberay
        if asked is not None:
            key = _key_of(asked.kubeconfig)
            client = await self._client(key)
            self._places.add((key, _allowed(asked.namespace or client.access.namespace)))
        trouble: KubernetesError | None = None
        looks_for_probes = self._sweeps % _SWEEPS_PER_LOOK_FOR_PROBES == 0
        self._sweeps += 1
        for key, namespace in list(self._places):
            try:
                client = await self._client(key)
                await self._sweep(client, namespace, view, tell)
                if looks_for_probes:
                    await self._deletions.sweep_probes(client, namespace, view, tell)
            except KubernetesError as exc:
                trouble = exc
        if trouble is not None:
            raise trouble

    async def close(self, tell: Tell, ended: frozenset[str]) -> None:
        """Close the connections. Clusters stay for the runs that go on, and their next worker."""
        self._clients.clear()
        self._homes.clear()
        await self._stack.aclose()

    async def _sweep(
        self, client: KubernetesClient, namespace: str, view: PoolView, tell: Tell
    ) -> None:
        labels = {**MANAGED_BY, POOL_LABEL: str(view.pool_id)}
        found = await self._deletions.list(client, namespace, labels, view, tell)
        mine = [cluster for cluster in found if view.is_mine(cluster.uid)]
        # Read after the clusters: a run that is not there has not begun since.
        runs = await view.runs(frozenset(_attempts(mine)))
        now = datetime.now(UTC)
        for cluster in mine:
            of = _attempt_of(cluster)
            why = None if of is None else why_orphaned(cluster, runs.get(of), now=now)
            if why is None:
                continue
            if await self._deletions.delete(client, cluster, f"{why[0].upper()}{why[1:]}."):
                tell(f"Deleting the RayCluster {namespace}/{cluster.name}: {why}.")

    def _snapshots_of(self, client: KubernetesClient, namespace: str) -> Snapshots:
        """Return what all runs share that wait for a cluster in a namespace."""
        key = (id(client), namespace)
        if key not in self._snapshots:
            self._snapshots[key] = Snapshots(client, namespace, max_age=self.timing.poll)
        return self._snapshots[key]

    async def _let_go(
        self, client: KubernetesClient, ref: ClusterRef, *, failed: bool
    ) -> str | None:
        namespace, name = place_in(ref)
        try:
            cluster = await client.get_cluster(namespace, name)
        except ObjectMissing:
            return None
        if cluster.is_terminating or (ref.uid is not None and cluster.uid != ref.uid):
            return None
        kept = seconds_in(cluster.annotations, KEEP_FAILED) or 0.0
        if failed and kept:
            return (
                f"The RayCluster {namespace}/{name} stays for {kept:g} s, for a look at it "
                "(keep_failed_seconds)."
            )
        if not await self._deletions.delete(client, cluster, "Its run has ended."):
            return None
        return f"Deleting the RayCluster {namespace}/{name}."

    async def _client(self, key: Kubeconfig | None) -> KubernetesClient:
        async with self._opening:
            if key not in self._clients:
                opened = await self._stack.enter_async_context(KubernetesClient(key))
                self._clients[key] = opened
            return self._clients[key]


def _complete(plan: ClusterPlan) -> tuple[KubeRayPlan, KubeRay, KubernetesClient]:
    if not isinstance(plan, KubeRayPlan) or plan.asked is None or plan.client is None:
        raise ValueError("This plan was made by another source.")
    return plan, plan.asked, plan.client


def _key_of(config: KubernetesConfig | None) -> Kubeconfig | None:
    return None if config is None else Kubeconfig.of_block(config.config, config.context_name)


def _allowed(namespace: str) -> str:
    allowed = worker_settings().kuberay_namespaces
    if allowed and namespace not in allowed:
        raise InvalidConfiguration(
            f"job variable 'kuberay.namespace' is {namespace!r}, and this worker makes clusters in "
            f"{', '.join(allowed)} only (PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES)."
        )
    return namespace


def _attempts(clusters: Iterable[RayClusterObject]) -> list[RunAndAttempt]:
    return [of for of in map(_attempt_of, clusters) if of is not None]


def _attempt_of(cluster: RayClusterObject) -> RunAndAttempt | None:
    run_id: UUID | None = run_in_labels(cluster)
    attempt = cluster.labels.get(ATTEMPT_LABEL)
    return None if run_id is None or attempt is None else RunAndAttempt(run_id, attempt)
