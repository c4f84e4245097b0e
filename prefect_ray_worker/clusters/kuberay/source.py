"""`KubeRayClusters`: makes RayClusters, for one attempt each or for runs that share one."""

import logging
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

import anyio

from prefect_ray_worker.clusters.kuberay.deletion import Deletions
from prefect_ray_worker.clusters.kuberay.join import Joining
from prefect_ray_worker.clusters.kuberay.look import StartTiming
from prefect_ray_worker.clusters.kuberay.manifest import (
    KEEP_FAILED,
    MANAGED_BY,
    POOL_LABEL,
    SCOPE_LABEL,
    SHARED,
    cluster_name,
    is_shared_name,
    ray_cluster,
    shared_cluster,
)
from prefect_ray_worker.clusters.kuberay.orphans import seconds_in
from prefect_ray_worker.clusters.kuberay.places import (
    KubernetesPlace,
    SweptPlaces,
    Way,
    allowed_namespace,
)
from prefect_ray_worker.clusters.kuberay.reach import KIND, place_in, reached, ref_of
from prefect_ray_worker.clusters.kuberay.shared import SharedClusters
from prefect_ray_worker.clusters.kuberay.snapshots import Snapshots
from prefect_ray_worker.clusters.kuberay.start import ClusterStart
from prefect_ray_worker.clusters.kuberay.sweep import KubeRaySweep
from prefect_ray_worker.clusters.source import (
    Cluster,
    ClusterPlan,
    PoolView,
    StartProgress,
    Tell,
)
from prefect_ray_worker.clusters.trouble import Trouble
from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.config.kuberay import KubeRay, KubernetesConfig
from prefect_ray_worker.errors import (
    ClusterFailed,
    KubernetesError,
    KubernetesUnauthorized,
    KubernetesUnreachable,
    ObjectMissing,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from prefect_ray_worker.settings import worker_settings
from prefect_ray_worker.shared.backoff import Backoff
from prefect_ray_worker.shared.ids import ClusterRef, attempt_in

_POOL_NAME_LABEL = "prefect.io/work-pool-name"
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
        pool_name: Its name.
    """

    asked: KubeRay | None = None
    client: KubernetesClient | None = None
    namespace: str = ""
    job_id: str | None = None
    pool_id: str = ""
    pool_name: str = ""


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
        self._places = SweptPlaces()
        self._of_pool: KubernetesClient | None = None
        # The next client of each former one of the pool.
        self._renewed: dict[KubernetesClient, KubernetesClient] = {}
        self._snapshots: dict[tuple[int, str], Snapshots] = {}
        self._shared = SharedClusters()
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
        namespace = allowed_namespace(asked.namespace or client.access.namespace)
        home = client.access.home
        own = None if job_id is None else ref_of(namespace, cluster_name(job_id), home=home)
        ref = _kept(recorded, own, namespace)
        # The record of an attempt counts, whatever its configuration says by now.
        alone = asked.scope == "run" if ref is None else ref == own
        ref = own if alone else ref
        if job_id is not None:
            self._places.use(client, namespace, asked)
        if ref is not None:
            self._homes[ref.planned] = client
        labels = configuration.labels
        return KubeRayPlan(
            None,
            ref,
            is_on_demand=True,
            is_for_one_run=alone,
            home=home,
            asked=asked,
            client=client,
            namespace=namespace,
            job_id=job_id,
            pool_id=labels.get(POOL_LABEL, ""),
            pool_name=labels.get(_POOL_NAME_LABEL, ""),
        )

    async def acquire(self, plan: ClusterPlan, progress: StartProgress) -> Cluster:
        """Create the planned cluster, unless it is there, and return it when it takes jobs.

        Raises:
            ClusterFailed: It cannot be created, or did not become ready in time.
            InvalidConfiguration: The manifest cannot work.
        """
        while True:
            try:
                return await self._acquired(plan, progress)
            except ClusterFailed as exc:
                plan, _, client = _complete(plan)
                renewed = self._renewed.get(client)
                if renewed is None or not isinstance(exc.__cause__, KubernetesUnauthorized):
                    raise
                # The run has waited for longer than its token was valid. The pool has another one.
                plan = replace(plan, client=renewed)

    async def _acquired(self, plan: ClusterPlan, progress: StartProgress) -> Cluster:
        plan, asked, client = _complete(plan)
        if plan.job_id is None:
            raise ValueError("There is no run to make a cluster for.")
        if not plan.is_for_one_run:
            cluster = await self._joining(plan, plan.job_id, progress).run(plan.ref)
            self._homes[cluster.ref.planned] = client
            return cluster
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
        except ObjectMissing:
            return None
        if not plan.is_for_one_run:
            is_another = plan.ref.uid not in (None, cluster.uid)
            if is_another or not _labels_of(plan.pool_id).items() <= cluster.labels.items():
                return None
        return await reached(client, cluster, asked)

    async def why_gone(self, ref: ClusterRef) -> str | None:
        """Return why a cluster is certainly gone, as a clause."""
        client = self._homes.get(ref.planned)
        if client is None or not ref.may_be_at(client.access.home):
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

        A shared cluster stays; the sweep deletes it.

        Returns:
            What was done, in a sentence; None if there was nothing to do.
        """
        client = self._homes.get(ref.planned)
        if client is None or is_shared_name(place_in(ref)[1]):
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
            Exception: A namespace could not be swept; the others were.
        """
        asked = None if pool_configuration is None else pool_configuration.kuberay
        trouble = Trouble()
        if asked is not None:
            with trouble.kept():
                client = await self._client(_key_of(asked.kubeconfig))
                self._renew_pool(client)
                self._places.name(client, worker_settings().kuberay_namespaces, asked)
                namespace = allowed_namespace(asked.namespace or client.access.namespace)
                self._places.use(client, namespace, asked)
        looks_for_probes = self._sweeps % _SWEEPS_PER_LOOK_FOR_PROBES == 0
        self._sweeps += 1
        for place in self._places.all():

            async def sweep(way: Way, place: KubernetesPlace = place) -> None:
                notes = self._places.turns(place), self._places.silences(place)
                to = (way.client, place.namespace, way.asked)
                await KubeRaySweep(*to, view, tell, self._deletions, *notes).run()

            async def sweep_probes(way: Way, namespace: str = place.namespace) -> None:
                await self._deletions.sweep_probes(way.client, namespace, view, tell)

            for act in (sweep, sweep_probes) if looks_for_probes else (sweep,):
                with trouble.kept(), self._places.unless_refused(place):
                    await self._places.reach(place, act)
        trouble.raise_first()

    async def close(self, tell: Tell, ended: frozenset[str]) -> None:
        """Close the connections. Clusters stay for the runs that go on, and their next worker."""
        self._clients.clear()
        self._homes.clear()
        await self._stack.aclose()

    def _renew_pool(self, client: KubernetesClient) -> None:
        """Reach the clusters of runs with the credentials that the pool has now.

        The former client stays open: runs that wait for their clusters ask with it until it is
        refused.
        """
        before, self._of_pool = self._of_pool, client
        if before in (None, client):
            return
        if KubernetesPlace.of(before, "") != KubernetesPlace.of(client, ""):
            return
        self._renewed.pop(client, None)  # it is the last one now, even if it was there before
        self._renewed[before] = client
        self._places.renew(before, client)
        for ref, reached_by in self._homes.items():
            if reached_by is before:
                self._homes[ref] = client

    def _joining(self, plan: KubeRayPlan, job_id: str, progress: StartProgress) -> Joining:
        _, asked, client = _complete(plan)
        pool = {"pool_id": plan.pool_id, "pool_name": plan.pool_name}
        return Joining(
            client,
            asked,
            plan.namespace,
            _labels_of(plan.pool_id),
            partial(shared_cluster, asked, **pool, namespace=plan.namespace),
            attempt_in(job_id),
            progress,
            self.timing,
            self._snapshots_of(client, plan.namespace),
            self._deletions,
            self._shared,
        )

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


def _kept(recorded: ClusterRef | None, own: ClusterRef | None, namespace: str) -> ClusterRef | None:
    """Return the recorded cluster if it can be one of ours: the attempt's own, or a shared one."""
    if recorded is None or recorded.kind != KIND:
        return None
    if own is not None and recorded.planned == own:
        return own
    place, name = place_in(recorded)
    return recorded if place == namespace and is_shared_name(name) else None


def _labels_of(pool_id: str) -> dict[str, str]:
    """Return the labels of all shared clusters of a pool: a record alone proves nothing."""
    return {**MANAGED_BY, POOL_LABEL: pool_id, SCOPE_LABEL: SHARED}


def _key_of(config: KubernetesConfig | None) -> Kubeconfig | None:
    return None if config is None else Kubeconfig.of_block(config.config, config.context_name)
