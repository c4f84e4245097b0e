"""`Deletions`: deletes RayClusters, and notices when they are gone, or do not go."""

from collections import defaultdict
from contextlib import suppress
from datetime import UTC, datetime

from prefect_ray_worker.clusters.kuberay.manifest import PROBE_LABELS
from prefect_ray_worker.clusters.kuberay.orphans import run_in_labels
from prefect_ray_worker.clusters.kuberay.places import KubernetesPlace
from prefect_ray_worker.clusters.kuberay.reach import ref_of
from prefect_ray_worker.clusters.source import PoolView, Tell
from prefect_ray_worker.clusters.trouble import Trouble
from prefect_ray_worker.clusters.turns import SweepTurns
from prefect_ray_worker.errors import ObjectMissing, ObjectReplaced
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import RayClusterObject
from prefect_ray_worker.kubernetes_api.request import Texts
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents, ClusterHappening

# A deletion that takes longer is held by a finalizer, or by a node that does not answer.
_STUCK_SECONDS = 300.0
# An examination by `doctor` takes less; one that was killed leaves its probe.
_PROBE_SECONDS = 600.0


class Deletions:
    """Deletes RayClusters for one worker.

    Args:
        events: Takes what happens to the clusters.
    """

    def __init__(self, events: ClusterEvents) -> None:
        self._events = events
        # By place and uid: what the last sweep saw, and what was deleted here since.
        self._seen: dict[KubernetesPlace, dict[str, RayClusterObject]] = {}
        self._deleted: set[str] = set()
        self._probe_turns: defaultdict[KubernetesPlace, SweepTurns] = defaultdict(SweepTurns)

    async def delete(self, client: KubernetesClient, cluster: RayClusterObject, why: str) -> bool:
        """Ask for the deletion of a cluster; return whether it was there.

        Args:
            client: Of its Kubernetes cluster.
            cluster: The cluster.
            why: The reason, as a sentence.

        Raises:
            KubernetesError: The deletion was not accepted, or may not have been.
        """
        try:
            await client.delete_cluster(cluster.namespace, cluster.name, uid=cluster.uid)
        except (ObjectMissing, ObjectReplaced):
            return False  # another worker, or a user, was quicker
        await self._tell(ClusterHappening.DELETING, cluster, why)
        self._deleted.add(cluster.uid)
        self._seen.setdefault(KubernetesPlace.of(client, cluster.namespace), {})[cluster.uid] = (
            cluster
        )
        return True

    async def list(
        self, client: KubernetesClient, namespace: str, labels: Texts, view: PoolView, tell: Tell
    ) -> list[RayClusterObject]:
        """Return the clusters of a namespace, and tell which have gone, or do not go.

        Args:
            client: Of the Kubernetes cluster.
            namespace: Where.
            labels: Labels of the pool's clusters.
            view: Says which clusters this worker reports of.
            tell: Told in one line which deletion does not end.

        Raises:
            KubernetesError: There is no answer.
        """
        place = KubernetesPlace.of(client, namespace)
        before = dict(self._seen.get(place, {}))
        found = await client.list_clusters(namespace, labels)
        # With those that were deleted while Kubernetes was being asked.
        present = {k: v for k, v in self._seen.get(place, {}).items() if k not in before}
        present |= {cluster.uid: cluster for cluster in found}
        self._seen[place] = present
        for uid in before.keys() - present.keys():
            if view.is_mine(uid) or uid in self._deleted:
                await self._tell(ClusterHappening.GONE, before[uid])
            self._deleted.discard(uid)
        for cluster in found:
            if view.is_mine(cluster.uid) or cluster.uid in self._deleted:
                await self._tell_if_stuck(cluster, tell)
        return found

    async def sweep_probes(
        self, client: KubernetesClient, namespace: str, view: PoolView, tell: Tell
    ) -> None:
        """Delete what a killed `prefect-ray-worker doctor` has left, of whatever pool.

        Raises:
            KubernetesError: There is no answer, or a deletion was not accepted.
        """
        trouble = Trouble()
        now, turns = datetime.now(UTC), self._probe_turns[KubernetesPlace.of(client, namespace)]
        turns.begin()
        for probe in await client.list_clusters(namespace, PROBE_LABELS):
            age = (now - (probe.created_at or now)).total_seconds()
            if probe.is_terminating or age < _PROBE_SECONDS:
                continue
            if not turns.is_due(probe.uid, is_mine=view.is_mine(probe.uid)):
                continue
            with trouble.kept(), suppress(ObjectMissing, ObjectReplaced):
                await client.delete_cluster(namespace, probe.name, uid=probe.uid)
                tell(f"Deleting the RayCluster {namespace}/{probe.name}: a doctor has left it.")
        trouble.raise_first()

    async def _tell_if_stuck(self, cluster: RayClusterObject, tell: Tell) -> None:
        if cluster.deleted_at is None:
            return
        seconds = (datetime.now(UTC) - cluster.deleted_at).total_seconds()
        if seconds < _STUCK_SECONDS:
            return
        held = ", ".join(cluster.finalizers) or "its pods"
        said = (
            f"The RayCluster {cluster.namespace}/{cluster.name} has been under deletion for "
            f"{seconds:.0f} s; what holds it: {held}."
        )
        if await self._tell(ClusterHappening.STUCK, cluster, said, may_be_told=True):
            tell(said)

    async def _tell(
        self,
        happening: ClusterHappening,
        cluster: RayClusterObject,
        message: str = "",
        *,
        may_be_told: bool = False,
    ) -> bool:
        return await self._events.tell(
            happening,
            ref_of(cluster.namespace, cluster.name, cluster.uid),
            run_id=run_in_labels(cluster),
            message=message,
            may_be_told=may_be_told,
        )
