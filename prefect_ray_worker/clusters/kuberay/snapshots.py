"""`Snapshots`: what a namespace has, read once for all the clusters that start in it.

One list of RayClusters and one of pods per tick, however many runs wait: with three requests for
each, a burst of a thousand runs sent 90,000 requests a minute to the API server.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import anyio

from prefect_ray_worker.clusters.kuberay.manifest import MANAGED_BY
from prefect_ray_worker.errors import KubernetesError, ObjectMissing
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import EventObject, PodObject, RayClusterObject

T = TypeVar("T")

# A slow answer means a large namespace or a busy server: the next list waits so many times as long.
_REST_FACTOR = 4


@dataclass(frozen=True)
class StartObjects:
    """What Kubernetes has of one cluster.

    Attributes:
        cluster: The RayCluster.
        pods: Pods with its label.
        events: Events about it; empty once it has pods.
    """

    cluster: RayClusterObject
    pods: Sequence[PodObject]
    events: Sequence[EventObject]


class Snapshots:
    """Reads the objects of clusters that start in one namespace.

    Args:
        client: Of the Kubernetes cluster.
        namespace: Where.
        max_age: The most seconds that what it returns is old, with a server that answers fast.
    """

    def __init__(self, client: KubernetesClient, namespace: str, *, max_age: float) -> None:
        self._client = client
        self._namespace = namespace
        self._clusters = _SharedRead(self._list_clusters, max_age)
        self._pods = _SharedRead(self._list_pods, max_age)
        self._events = _SharedRead(self._list_events, max_age)

    async def objects(self, name: str, uid: str) -> StartObjects | None:
        """Return what there is of a cluster; None if it certainly is not there any more.

        Args:
            name: Of the cluster.
            uid: Its uid: another cluster of the name does not count.

        Raises:
            KubernetesError: Kubernetes does not say whether there is one.
        """
        cluster = (await self._clusters.get()).get(name)
        if cluster is None or cluster.uid != uid:
            # Also where the list is older than the cluster: only this answer is certain.
            try:
                cluster = await self._client.get_cluster(self._namespace, name)
            except ObjectMissing:
                return None
            if cluster.uid != uid:
                return None
        pods = (await self._pods.get()).get(name, ())
        has_pods = any(pod.belongs_to(uid) for pod in pods)
        # A refused specification and a service that cannot be made are events alone, and then
        # there is no pod.
        events = () if has_pods else (await self._events.get()).get(uid, ())
        return StartObjects(cluster, pods, events)

    async def _list_clusters(self) -> Mapping[str, RayClusterObject]:
        found = await self._client.list_clusters(self._namespace, MANAGED_BY, cached=True)
        return {cluster.name: cluster for cluster in found}

    async def _list_pods(self) -> Mapping[str, Sequence[PodObject]]:
        by_cluster: dict[str, list[PodObject]] = defaultdict(list)
        for pod in await self._client.pods(self._namespace, cached=True):
            by_cluster[pod.cluster or ""].append(pod)
        return dict(by_cluster)

    async def _list_events(self) -> Mapping[str, Sequence[EventObject]]:
        by_uid: dict[str, list[EventObject]] = defaultdict(list)
        for event in await self._client.events(self._namespace):
            by_uid[event.about].append(event)
        return dict(by_uid)


class _SharedRead(Generic[T]):
    """One read for all who ask within a tick; a failure is shared as well.

    Args:
        read: Asks the server.
        max_age: Seconds for which an answer serves.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], max_age: float) -> None:
        self._read = read
        self._max_age = max_age
        self._lock = anyio.Lock()
        self._serves_until = 0.0
        self._answer: T | None = None
        self._failure: KubernetesError | None = None

    async def get(self) -> T:
        """Return the answer.

        Raises:
            KubernetesError: There is none.
        """
        asked = anyio.current_time()
        async with self._lock:
            # Compared with the moment of the question: who waited for the lock takes the answer.
            if asked >= self._serves_until:
                await self._renew()
            if self._answer is None:
                raise self._failure or RuntimeError("There is neither an answer nor a failure.")
            return self._answer

    async def _renew(self) -> None:
        began = anyio.current_time()
        try:
            self._answer = await self._read()
        except KubernetesError as exc:
            self._answer, self._failure = None, exc
        took = anyio.current_time() - began
        self._serves_until = began + max(self._max_age, took * _REST_FACTOR)
