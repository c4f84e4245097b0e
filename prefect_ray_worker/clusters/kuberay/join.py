"""`Joining`: gets runs into a cluster that they share, and makes it where there is none.

No lock and no lease: a run names the cluster before it touches it, then stamps it. Whoever deletes
an idle cluster reads it first, then asks which runs name one, and closes it only if it has not
changed since. So a join and a deletion that meet never both succeed.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

import anyio

from prefect_ray_worker.clusters.kuberay.asking import Asking
from prefect_ray_worker.clusters.kuberay.deletion import Deletions
from prefect_ray_worker.clusters.kuberay.failed_starts import FailedStarts
from prefect_ray_worker.clusters.kuberay.look import (
    ClusterLook,
    StartTiming,
    start_failed,
)
from prefect_ray_worker.clusters.kuberay.manifest import JOINED_AT, SharedManifest
from prefect_ray_worker.clusters.kuberay.reach import place_in, ref_of
from prefect_ray_worker.clusters.kuberay.shared import (
    SharedClusters,
    Visit,
    close_cluster,
    failure_in,
    is_open,
    serves_its_runs,
)
from prefect_ray_worker.clusters.kuberay.snapshots import Snapshots
from prefect_ray_worker.clusters.source import Cluster, StartProgress
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import (
    AlreadyThere,
    ClusterFailed,
    ObjectMissing,
    ObjectReplaced,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from prefect_ray_worker.prefect_api.cluster_events import ClusterHappening
from prefect_ray_worker.shared.backoff import jittered
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.ids import ClusterRef

# How many clusters that go away under it one run tries.
_CLUSTERS_PER_RUN = 3
_TRIES_TO_CLOSE = 5

T = TypeVar("T")


@dataclass
class Joining:
    """Gets one attempt into a shared cluster.

    Attributes:
        client: Of the Kubernetes cluster.
        asked: The job variable.
        namespace: Where the cluster is, or goes.
        pool_labels: The labels that every shared cluster of the work pool has.
        manifest: Returns the RayCluster that the job variable asks for.
        attempt: The attempt's name.
        progress: Told what it waits for, and which cluster it is.
        timing: Waits.
        snapshots: Of the namespace.
        deletions: Deletes clusters that do not start.
        clusters: What this worker's runs share.
    """

    client: KubernetesClient
    asked: KubeRay
    namespace: str
    pool_labels: dict[str, str]
    manifest: Callable[[], SharedManifest]
    attempt: str
    progress: StartProgress
    timing: StartTiming
    snapshots: Snapshots
    deletions: Deletions
    clusters: SharedClusters
    _named: ClusterRef | None = None
    _avoided: set[str] = field(default_factory=set[str])
    _created_uid: str = ""
    _recorded_uid: str | None = None

    @property
    def _asking(self) -> Asking:
        return Asking(
            self.namespace,
            self.progress,
            self.timing,
            self.asked.start_timeout_seconds,
            waiter="The shared cluster",
            api="The Kubernetes API",
        )

    @property
    def _failed_starts(self) -> FailedStarts:
        return FailedStarts(self.client, self.deletions, self._asking)

    @property
    def _needs_workers(self) -> bool:
        return self.asked.ready_when == "all"

    async def run(self, recorded: ClusterRef | None) -> Cluster:
        """Return a cluster that the attempt has joined, when it takes jobs.

        Args:
            recorded: The cluster that the attempt's record names.

        Raises:
            ClusterFailed: There is none, and there will be none in time.
            InvalidConfiguration: The manifest cannot work.
        """
        self._named = recorded
        joined: RayClusterObject | None = None
        if recorded is not None:
            self._recorded_uid = recorded.uid
            joined = await self._asking.ask(lambda: self._rejoined(recorded))
        for _ in range(_CLUSTERS_PER_RUN):
            if joined is None:
                joined = await self._asking.ask(self._entered)
            cluster = await self._ready(joined)
            if cluster is not None:
                return cluster
            if joined.uid == self._recorded_uid:
                break  # it may have, or have had, the attempt's job
            joined = None
        raise _deleted("The shared cluster went away, or lost its head, while the run waited.")

    async def _rejoined(self, recorded: ClusterRef) -> RayClusterObject | None:
        """Join the cluster that the record names; None if it is gone and never had the job."""
        name = place_in(recorded)[1]
        joined: RayClusterObject | None = None
        with suppress(ObjectMissing):
            there = await self.client.get_cluster(self.namespace, name)
            if recorded.uid in (None, there.uid):
                self._check_ours(there)
                joined = await self._joined(there)
                failure = failure_in(there, needs_workers=self._needs_workers)
                if joined is None and failure is not None:
                    raise failure  # of the worker that waited for it with this one's
        if joined is None and recorded.uid is not None:
            raise _deleted(f"The RayCluster {self.namespace}/{name}, which the run used, is gone.")
        return joined

    async def _entered(self) -> RayClusterObject:
        """Join the newest cluster of the specification, or create it and join that."""
        while True:
            present = await self._present()
            now = datetime.now(UTC)
            fit = [c for c in present if is_open(c, now) and c.uid not in self._avoided]
            chosen = fit[-1] if fit else await self._created(present)
            joined = None if chosen is None else await self._joined(chosen)
            if joined is not None:
                return joined
            if self._asking.is_over():
                raise _deleted(f"No cluster {self.manifest().prefix}-… stayed for long enough.")
            await anyio.sleep(jittered(self.timing.poll) / 4)

    async def _present(self) -> list[RayClusterObject]:
        """Return the clusters of the specification, the oldest generation first."""
        shared = self.manifest()
        found = await self.client.list_clusters(self.namespace, shared.labels)
        known = [(shared.generation_of(c.name), c) for c in found]
        numbered = [(number, c) for number, c in known if number is not None]
        return [c for _, c in sorted(numbered, key=lambda pair: pair[0])]

    async def _created(self, present: Sequence[RayClusterObject]) -> RayClusterObject | None:
        """Create the next generation; None if another one turns out to be there."""
        shared = self.manifest()
        generation = await self._free_after(present)
        if generation is None:
            return None
        name = shared.name(generation)
        await self._name(name)
        ref = ref_of(self.namespace, name)
        await self.progress.happened(ClusterHappening.REQUESTED, ref)
        try:
            created = await self.client.create_cluster(shared.of(generation))
        except AlreadyThere:
            try:
                there = await self.client.get_cluster(self.namespace, name)
            except ObjectMissing:
                return None
            self._check_ours(there)
            return there if is_open(there, datetime.now(UTC)) else None
        self.progress.tell(f"Created the shared RayCluster {self.namespace}/{name}.")
        self._created_uid = created.uid
        await self.progress.happened(
            ClusterHappening.CREATED,
            ref_of(self.namespace, name, created.uid),
            occurred=created.created_at,
        )
        if generation > 1 and not await self._is_next(created, generation):
            return None
        return created

    async def _free_after(
        self, present: Sequence[RayClusterObject], *, but: str | None = None
    ) -> int | None:
        """Return the generation after all of which something is left, clusters or pods.

        KubeRay finds pods by the name of their cluster, and would take those of an earlier one.
        None if another worker makes a cluster at this moment: look again.

        Args:
            present: The clusters of the specification.
            but: Uid of a cluster whose own pods do not count.
        """
        shared = self.manifest()
        generation = max((shared.generation_of(c.name) or 0 for c in present), default=0) + 1
        while any(
            but is None or not pod.belongs_to(but)
            for pod in await self.client.pods(self.namespace, shared.name(generation))
        ):
            with suppress(ObjectMissing):
                await self.client.get_cluster(self.namespace, shared.name(generation))
                return None  # they are not left, but new
            generation += 1
        return generation

    async def _is_next(self, created: RayClusterObject, generation: int) -> bool:
        """Return whether what stood in the way of a lower number still does; else give it up.

        If it has gone, another worker may have seen nothing of it, and have begun anew at 1.
        """
        others = [c for c in await self._present() if c.uid != created.uid]
        now = datetime.now(UTC)
        is_alone = not any(is_open(c, now) and c.uid not in self._avoided for c in others)
        if is_alone and await self._free_after(others, but=created.uid) == generation:
            return True
        for _ in range(_TRIES_TO_CLOSE):
            try:
                there = await self.client.get_cluster(self.namespace, created.name)
            except ObjectMissing:
                return False
            if there.uid != created.uid or not is_open(there, now):
                return False
            if JOINED_AT in there.annotations:
                return True  # another worker's run was quicker
            if await close_cluster(self.client, there, "given up"):
                await self._failed_starts.delete(
                    there, "Another cluster of its specification was made."
                )
                return False
        return True

    async def _joined(self, cluster: RayClusterObject) -> RayClusterObject | None:
        """Join a cluster, named on the run before; None if it is going."""
        await self._name(cluster.name)
        visit = self._visit(cluster)
        try:
            joined = await visit.join(self.attempt)
        except (ObjectMissing, ObjectReplaced):
            return None
        if not self._may_use(joined):
            return None
        if joined.uid != self._created_uid:
            ref = ref_of(self.namespace, joined.name, joined.uid)
            await self.progress.happened(ClusterHappening.JOINED, ref)
        return joined

    def _may_use(self, cluster: RayClusterObject) -> bool:
        """Return whether the run may use a cluster: also a closed one that had its job before.

        Not if the run needs the workers for whose sake the cluster was closed.
        """
        now = datetime.now(UTC)
        is_of_it = cluster.uid == self._recorded_uid and not self._needs_workers
        return is_open(cluster, now) or (is_of_it and serves_its_runs(cluster, now))

    def _visit(self, cluster: RayClusterObject) -> Visit:
        look = ClusterLook(
            self.client,
            self.asked,
            self.namespace,
            cluster.name,
            self.timing,
            self.snapshots,
            is_shared=True,
        )
        return self.clusters.visit(look, cluster.uid)

    async def _ready(self, joined: RayClusterObject) -> Cluster | None:
        """Return the cluster when it takes jobs; None if it goes away, or its head is lost.

        Raises:
            ClusterFailed: It does not start.
        """
        visit = self._visit(joined)
        has_waited = joined.uid in (self._created_uid, self._recorded_uid)
        while True:
            found, cluster = await visit.reading()
            seen = visit.look.seen
            if visit.failure is None and seen is not None:
                visit.failure = failure_in(seen, needs_workers=self._needs_workers)
            if visit.failure is not None:
                raise visit.failure
            if cluster is not None and seen is not None and self._may_use(seen):
                return cluster
            is_known = found.category is not Category.KUBERNETES_UNREACHABLE
            if is_known and (seen is None or not self._may_use(seen)):
                self._avoided.add(joined.uid)
                return None
            if found.is_final:
                if not is_known:
                    raise await visit.look.failure(found)
                if await self._failed_starts.give_up(visit, found, has_waited=has_waited):
                    self._avoided.add(joined.uid)
                    return None
            if sentence := found.delay or found.sentence:
                self.progress.waits(f"Cluster {joined.name}: {sentence}.")
            await anyio.sleep(self.timing.poll)
            has_waited = True

    async def _name(self, name: str) -> None:
        """Record on the run which cluster comes next, unless the record says so."""
        ref = ref_of(self.namespace, name, home=self.client.access.home)
        if self._named is None or self._named.planned != ref:
            await self.progress.will_use(ref)
            self._named = ref

    def _check_ours(self, cluster: RayClusterObject) -> None:
        if any(cluster.labels.get(key) != value for key, value in self.pool_labels.items()):
            raise start_failed(
                Category.CLUSTER_SPEC_INVALID,
                f"There is a RayCluster {cluster.name} that was not made for this work pool.",
            )


def _deleted(cause: str) -> ClusterFailed:
    return start_failed(Category.CLUSTER_DELETED, cause, retry=True)
