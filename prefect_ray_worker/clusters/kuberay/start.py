"""`ClusterStart`: creates the RayCluster of an attempt, and waits until it takes jobs.

Creation is a POST of a fixed name, so that a repeated request, and another worker's, never makes a
second cluster. After an unclear answer the name is read back.
"""

from dataclasses import dataclass
from typing import Any

import anyio

from prefect_ray_worker.clusters.kuberay.asking import Asking
from prefect_ray_worker.clusters.kuberay.deletion import Deletions
from prefect_ray_worker.clusters.kuberay.look import (
    ClusterLook,
    StartTiming,
    start_failed,
    start_refused,
)
from prefect_ray_worker.clusters.kuberay.manifest import ATTEMPT_LABEL, POOL_LABEL, RUN_LABEL
from prefect_ray_worker.clusters.kuberay.reach import ref_of
from prefect_ray_worker.clusters.kuberay.reading import ClusterState
from prefect_ray_worker.clusters.kuberay.snapshots import Snapshots
from prefect_ray_worker.clusters.source import Cluster, StartProgress
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.errors import (
    AlreadyThere,
    KubernetesError,
    KubernetesUnreachable,
    ObjectMissing,
    QuotaExceeded,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from prefect_ray_worker.prefect_api.cluster_events import ClusterHappening
from prefect_ray_worker.shared.backoff import Backoff
from prefect_ray_worker.shared.category import Category

# For so long the pods of an earlier attempt's cluster may take to end.
_EARLIER_SECONDS = 300.0


@dataclass
class ClusterStart:
    """Starts one cluster.

    Attributes:
        client: Of the Kubernetes cluster.
        asked: The job variable.
        manifest: The RayCluster.
        progress: Told what it waits for.
        timing: Waits.
        snapshots: Of the namespace.
        deletions: Deletes the clusters of earlier attempts.
    """

    client: KubernetesClient
    asked: KubeRay
    manifest: dict[str, Any]
    progress: StartProgress
    timing: StartTiming
    snapshots: Snapshots
    deletions: Deletions
    _is_new: bool = False

    @property
    def name(self) -> str:
        """The cluster's name."""
        return self.manifest["metadata"]["name"]

    @property
    def namespace(self) -> str:
        """The cluster's namespace."""
        return self.manifest["metadata"]["namespace"]

    async def run(self) -> Cluster:
        """Return the cluster when it takes jobs.

        Raises:
            ClusterFailed: It cannot be created, or did not become ready in time.
        """
        await self._end_earlier()
        ref = ref_of(self.namespace, self.name)
        await self.progress.happened(ClusterHappening.REQUESTED, ref)
        created = await self._created()
        look = ClusterLook(
            self.client, self.asked, self.namespace, self.name, self.timing, self.snapshots
        )
        while True:
            found, cluster = await look.look(created.uid)
            if cluster is not None:
                return cluster
            if found.state is ClusterState.ABSENT:
                raise start_failed(
                    Category.CLUSTER_DELETED, f"The RayCluster {self.name} was deleted.", retry=True
                )
            if found.is_final:
                raise await look.failure(found)
            if found.sentence:
                self.progress.waits(f"Cluster {self.name}: {found.sentence}.")
            await anyio.sleep(self.timing.poll)

    async def _created(self) -> RayClusterObject:
        """Create the RayCluster unless it is there; return it."""
        asking = Asking(
            self.namespace,
            self.progress,
            self.timing,
            self.asked.start_timeout_seconds,
            waiter=f"Cluster {self.name}: it",
            api=f"Cluster {self.name}: the Kubernetes API",
        )
        while True:
            cluster = await asking.ask(self._create_or_read)
            if cluster is not None:
                return await self._ours(cluster)
            if asking.is_over(self.timing.poll):
                raise start_failed(
                    Category.CLUSTER_DELETED,
                    f"The RayCluster {self.name} is gone each time that it has been created. Find "
                    "out what deletes it, and run the flow again.",
                )
            await anyio.sleep(self.timing.poll)

    async def _create_or_read(self) -> RayClusterObject | None:
        """Return the cluster; None if it went away in between, and is to be created again."""
        trouble: KubernetesError
        try:
            created = await self.client.create_cluster(self.manifest)
        except (AlreadyThere, QuotaExceeded, KubernetesUnreachable) as exc:
            # It may be there in spite of a lost answer, or an earlier worker has created it. The
            # quota is checked before the name is looked up: this cluster may be what fills it.
            trouble = exc
        else:
            self.progress.tell(f"Created the RayCluster {self.namespace}/{self.name}.")
            self._is_new = True
            return created
        try:
            return await self.client.get_cluster(self.namespace, self.name)
        except ObjectMissing:
            if not isinstance(trouble, AlreadyThere):
                raise trouble from None
            return None

    async def _ours(self, cluster: RayClusterObject) -> RayClusterObject:
        labels = self.manifest["metadata"]["labels"]
        ours = all(cluster.labels.get(k) == labels[k] for k in (RUN_LABEL, ATTEMPT_LABEL))
        if not ours:
            raise start_failed(
                Category.CLUSTER_SPEC_INVALID,
                f"There is a RayCluster {self.name} that was not made for this run.",
            )
        await self.progress.happened(
            ClusterHappening.CREATED,
            ref_of(self.namespace, self.name, cluster.uid),
            is_news=self._is_new,
            # Kubernetes rounds down to seconds: that would be before the request.
            occurred=None if self._is_new else cluster.created_at,
        )
        return cluster

    async def _end_earlier(self) -> None:
        """Delete the clusters of earlier attempts at the run, and wait for the end of their pods.

        After a failure of a head or a node, the driver of the earlier attempt may still run.
        """
        limit = min(_EARLIER_SECONDS, self.asked.start_timeout_seconds)
        deadline = anyio.current_time() + limit
        backoff = Backoff(self.timing.poll)
        while True:
            try:
                left = await self._earlier()
            except KubernetesUnreachable as exc:
                away = f"the Kubernetes API cannot be asked: {exc}"
                self.progress.waits(f"Cluster {self.name}: {away}")
                left = ["?"]
                if anyio.current_time() >= deadline:
                    raise start_failed(Category.KUBERNETES_UNREACHABLE, str(exc)) from exc
            except KubernetesError as exc:
                raise start_refused(exc, self.namespace) from exc
            if not left:
                return
            if anyio.current_time() >= deadline:
                raise start_failed(
                    Category.CLUSTER_START_TIMEOUT,
                    f"The pods of the cluster of an earlier attempt have not ended within "
                    f"{limit:g} s: {', '.join(left)}.",
                )
            if left != ["?"]:
                names = ", ".join(left)
                self.progress.waits(f"Cluster {self.name}: it waits for the end of {names}.")
            await anyio.sleep(backoff.next() if left == ["?"] else self.timing.poll)

    async def _earlier(self) -> list[str]:
        """Return the clusters of earlier attempts that still have pods, all being deleted."""
        labels = self.manifest["metadata"]["labels"]
        wanted = {key: labels[key] for key in (RUN_LABEL, POOL_LABEL)}
        left: list[str] = []
        for cluster in await self.client.list_clusters(self.namespace, wanted):
            if cluster.name == self.name:
                continue
            why = "Its run begins again."
            if not cluster.is_terminating and not await self.deletions.delete(
                self.client, cluster, why
            ):
                continue
            pods = await self.client.pods(self.namespace, cluster.name)
            if any(pod.belongs_to(cluster.uid) for pod in pods):
                left.append(cluster.name)
        return left
