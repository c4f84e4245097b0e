"""`ClusterStart`: creates the RayCluster of an attempt, and waits until it takes jobs.

Creation is a POST of a fixed name, so that a repeated request, and another worker's, never makes a
second cluster. After an unclear answer the name is read back.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import anyio

from prefect_ray_worker.clusters.kuberay.manifest import ATTEMPT_LABEL, POOL_LABEL, RUN_LABEL
from prefect_ray_worker.clusters.kuberay.reach import reached
from prefect_ray_worker.clusters.kuberay.reading import (
    ClusterState,
    Evidence,
    Reading,
    StartPatience,
    reading,
)
from prefect_ray_worker.clusters.source import Cluster, StartProgress
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.diagnosis.text import clean
from prefect_ray_worker.errors import (
    AlreadyThere,
    ClusterFailed,
    JobsApiError,
    KubeRayMissing,
    KubernetesError,
    KubernetesForbidden,
    KubernetesUnauthorized,
    KubernetesUnreachable,
    NamespaceTerminating,
    NotAuthorized,
    ObjectMissing,
    ObjectReplaced,
    QuotaExceeded,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import PodObject, RayClusterObject
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.shared.backoff import Backoff, jittered
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed

_LINES_OF_HEAD = 50
_ANSWER_SECONDS = 10.0
# For so long the pods of an earlier attempt's cluster may take to end.
_EARLIER_SECONDS = 300.0


@dataclass(frozen=True)
class StartTiming:
    """Waits while a cluster starts, in seconds. Tests shorten them.

    Attributes:
        poll: Between two looks at the cluster.
        queue: Between two tries while a quota is used up.
        image: For an image to be pulled, and a Secret to appear.
        operator: For a first sign of KubeRay's operator.
    """

    poll: float = 2.0
    queue: float = 10.0
    image: float = 180.0
    operator: float = 60.0


@dataclass
class ClusterStart:
    """Starts one cluster.

    Attributes:
        client: Of the Kubernetes cluster.
        asked: The job variable.
        manifest: The RayCluster.
        progress: Told what it waits for.
        timing: Waits.
    """

    client: KubernetesClient
    asked: KubeRay
    manifest: dict[str, Any]
    progress: StartProgress
    timing: StartTiming
    _heads: set[str] = field(default_factory=set[str])
    _pods: Sequence[PodObject] = ()
    _away_since: float | None = None

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
        created = await self._created()
        while True:
            found, cluster = await self._look(created.uid)
            if cluster is not None:
                return cluster
            if found.state is ClusterState.ABSENT:
                raise _failed(
                    Category.CLUSTER_DELETED, f"The RayCluster {self.name} was deleted.", retry=True
                )
            if found.is_final:
                raise await self._failure(found)
            if found.sentence:
                self.progress.waits(f"Cluster {self.name}: {found.sentence}.")
            await anyio.sleep(self.timing.poll)

    async def _created(self) -> RayClusterObject:
        """Create the RayCluster unless it is there; return it."""
        backoff, began = Backoff(), anyio.current_time()
        while True:
            try:
                cluster = await self._create_or_read()
                if cluster is not None:
                    return self._ours(cluster)
                pause = self.timing.poll
                category, said = Category.CLUSTER_DELETED, "Its name is not free."
            except QuotaExceeded as exc:
                category, said = Category.CLUSTER_QUOTA, str(exc)
                self.progress.waits(f"Cluster {self.name}: it waits for its quota: {said}")
                pause = jittered(self.timing.queue)
            except KubernetesUnreachable as exc:
                category, said = Category.KUBERNETES_UNREACHABLE, str(exc)
                self.progress.waits(f"Cluster {self.name}: the Kubernetes API is away: {said}")
                pause = backoff.next()
            except KubernetesError as exc:
                raise _refused(exc, self.namespace) from exc
            if anyio.current_time() + pause - began >= self.asked.start_timeout_seconds:
                raise _failed(category, said)
            await anyio.sleep(pause)

    async def _create_or_read(self) -> RayClusterObject | None:
        """Return the cluster; None if it went away in between, and is to be created again."""
        trouble: KubernetesError | None = None
        try:
            created = await self.client.create_cluster(self.manifest)
        except (AlreadyThere, KubernetesUnreachable) as exc:
            # It may be there in spite of a lost answer, or an earlier worker has created it.
            trouble = exc
        else:
            self.progress.tell(f"Created the RayCluster {self.namespace}/{self.name}.")
            return created
        try:
            return await self.client.get_cluster(self.namespace, self.name)
        except ObjectMissing:
            if isinstance(trouble, KubernetesUnreachable):
                raise trouble from None
            return None

    def _ours(self, cluster: RayClusterObject) -> RayClusterObject:
        labels = self.manifest["metadata"]["labels"]
        ours = all(cluster.labels.get(k) == labels[k] for k in (RUN_LABEL, ATTEMPT_LABEL))
        if not ours:
            raise _failed(
                Category.CLUSTER_SPEC_INVALID,
                f"There is a RayCluster {self.name} that was not made for this run.",
            )
        return cluster

    async def _look(self, uid: str) -> tuple[Reading, Cluster | None]:
        """Return how far the cluster is, and the cluster once it takes jobs."""
        try:
            evidence, cluster = await self._evidence(uid)
            self._away_since = None
        except KubernetesUnreachable as exc:
            # Nothing is known, so nothing is decided, for as long as a start may take.
            now = anyio.current_time()
            self._away_since = now if self._away_since is None else self._away_since
            is_long = now - self._away_since >= self.asked.start_timeout_seconds
            away = f"the Kubernetes API does not answer ({exc})"
            category = Category.KUBERNETES_UNREACHABLE
            return Reading(ClusterState.PROVISIONING, away, category, is_final=is_long), None
        except KubernetesError as exc:
            raise _refused(exc, self.namespace) from exc
        found = reading(
            evidence,
            ready_when=self.asked.ready_when,
            patience=StartPatience(
                self.asked.start_timeout_seconds, self.timing.image, self.timing.operator
            ),
            now=datetime.now(UTC),
        )
        return found, cluster if found.state is ClusterState.ANSWERING else None

    async def _evidence(self, uid: str) -> tuple[Evidence, Cluster | None]:
        client, namespace = self.client, self.namespace
        try:
            there = await client.get_cluster(namespace, self.name)
        except ObjectMissing:
            return Evidence(None), None
        if there.uid != uid:
            return Evidence(None), None
        self._pods = await client.pods(namespace, self.name)
        ours = [pod for pod in self._pods if pod.belongs_to(uid)]
        self._heads |= {pod.uid for pod in ours if pod.is_head}
        events = await client.events(namespace, uid)
        cluster, silence = None, ""
        up = there.is_true("HeadPodReady") or any(p.is_head and p.is_ready for p in ours)
        if up and not there.is_terminating:
            cluster = await reached(client, there, self.asked)
            silence = "KubeRay has not made the Secret with its token yet"
            if not there.has_token or cluster.connection.token != TokenSource():
                silence = await _silence_of(cluster)
        answers = cluster is not None and not silence
        evidence = Evidence(
            there, self._pods, events, answers, silence, heads=max(len(self._heads), 1)
        )
        return evidence, cluster

    async def _failure(self, found: Reading) -> ClusterFailed:
        category = found.category or Category.CLUSTER_START_TIMEOUT
        lines: list[str] = []
        if category is Category.HEAD_CRASH_LOOP:
            lines = await self._last_words()
        cause = f"The RayCluster {self.name} did not start: {found.sentence}."
        retry = category is Category.CLUSTER_DELETED
        return _failed(category, cause, lines=lines, retry=retry)

    async def _last_words(self) -> list[str]:
        """Return the end of the head's log, from before its last crash if it is there."""
        head = next((pod for pod in self._pods if pod.is_head), None)
        if head is None or not head.main_containers:
            return []
        container = max(head.main_containers, key=lambda c: c.restarts).name
        for previous in (True, False):
            try:
                text = await self.client.pod_log(
                    self.namespace,
                    head.name,
                    _LINES_OF_HEAD,
                    container=container,
                    previous=previous,
                )
            except KubernetesError as exc:
                return [f"(The log of the head cannot be read: {exc})"]
            if text.strip():
                return clean(text)[-_LINES_OF_HEAD:]
        return []

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
                self.progress.waits(f"Cluster {self.name}: the Kubernetes API is away: {exc}")
                left = ["?"]
                if anyio.current_time() >= deadline:
                    raise _failed(Category.KUBERNETES_UNREACHABLE, str(exc)) from exc
            except KubernetesError as exc:
                raise _refused(exc, self.namespace) from exc
            if not left:
                return
            if anyio.current_time() >= deadline:
                raise _failed(
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
            if not cluster.is_terminating:
                try:
                    await self.client.delete_cluster(self.namespace, cluster.name, uid=cluster.uid)
                except (ObjectMissing, ObjectReplaced):
                    continue
            pods = await self.client.pods(self.namespace, cluster.name)
            if any(pod.belongs_to(cluster.uid) for pod in pods):
                left.append(cluster.name)
        return left


async def _silence_of(cluster: Cluster) -> str:
    """Return why a cluster does not take jobs yet; empty if it does.

    Raises:
        ClusterFailed: It refuses the worker, or the API server does in its place.
    """
    try:
        with anyio.fail_after(_ANSWER_SECONDS):
            async with JobsClient(cluster.connection) as ray:
                await ray.version()
    except NotAuthorized as exc:
        raise _failed(Category.CLUSTER_FORBIDDEN, str(exc)) from exc
    except JobsApiError as exc:
        return str(exc).rstrip(".")
    except TimeoutError:
        return f"no answer within {_ANSWER_SECONDS:g} s"
    return ""


def _failed(
    category: Category, cause: str, *, lines: Sequence[str] = (), retry: bool = False
) -> ClusterFailed:
    why = diagnosed(category, cause, lines=lines)
    return ClusterFailed(str(why), category=category.label, may_retry=retry)


def _refused(exc: KubernetesError, namespace: str) -> ClusterFailed:
    """Return what an answer of the API server means that another try does not change."""
    match exc:
        case KubeRayMissing():
            return _failed(Category.KUBERAY_MISSING, str(exc))
        case KubernetesForbidden() | KubernetesUnauthorized():
            return _failed(Category.CLUSTER_FORBIDDEN, str(exc))
        case NamespaceTerminating():
            return _failed(Category.CLUSTER_NAMESPACE_GONE, str(exc))
        case ObjectMissing() if exc.resource == "namespaces":
            return _failed(Category.CLUSTER_NAMESPACE_GONE, f"There is no namespace {namespace!r}.")
        case _:
            return _failed(Category.CLUSTER_SPEC_INVALID, str(exc))
