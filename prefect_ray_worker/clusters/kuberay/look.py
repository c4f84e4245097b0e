"""`ClusterLook`: looks at one RayCluster that is being waited for, and says why it is not ready."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import anyio

from prefect_ray_worker.clusters.answering import silence_of
from prefect_ray_worker.clusters.kuberay.reach import reached
from prefect_ray_worker.clusters.kuberay.reading import (
    ClusterState,
    ContainerKey,
    Evidence,
    Reading,
    StartPatience,
    reading,
    stuck_containers,
)
from prefect_ray_worker.clusters.kuberay.snapshots import Snapshots
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.diagnosis.text import clean, cut
from prefect_ray_worker.errors import (
    ClusterFailed,
    KubeRayMissing,
    KubernetesError,
    KubernetesForbidden,
    KubernetesUnauthorized,
    KubernetesUnreachable,
    NamespaceTerminating,
    NotAuthorized,
    ObjectMissing,
)
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import PodObject, RayClusterObject
from prefect_ray_worker.ray_api.tokens import TokenSource
from prefect_ray_worker.shared.category import Category
from prefect_ray_worker.shared.diagnosis import diagnosed

_LINES_OF_HEAD = 50


@dataclass(frozen=True)
class StartTiming:
    """Waits while a cluster starts, in seconds. Tests shorten them.

    Attributes:
        poll: Between two looks at the cluster.
        queue: Between two tries while a quota is used up.
        image: From the first failed pull of an image, or the first sign that a Secret is missing.
        operator: For a first sign of KubeRay's operator.
    """

    poll: float = 2.0
    queue: float = 10.0
    image: float = 180.0
    operator: float = 60.0


@dataclass
class ClusterLook:
    """Looks at one RayCluster, again and again.

    Attributes:
        client: Of the Kubernetes cluster.
        asked: The job variable.
        namespace: The cluster's.
        name: The cluster's.
        timing: Waits.
        snapshots: Of the namespace.
        is_shared: Whether the cluster may have been up for long: its start then counts from its
            last failure, not from its creation.
        seen: The cluster when it was last read; None if it was not there.
    """

    client: KubernetesClient
    asked: KubeRay
    namespace: str
    name: str
    timing: StartTiming
    snapshots: Snapshots
    is_shared: bool = False
    seen: RayClusterObject | None = None
    _heads: set[str] = field(default_factory=set[str])
    _stuck_since: dict[ContainerKey, datetime] = field(default_factory=dict[ContainerKey, datetime])
    _pods: Sequence[PodObject] = ()
    _away_since: float | None = None
    _silent_since: datetime | None = None

    async def look(self, uid: str) -> tuple[Reading, Cluster | None]:
        """Return how far the cluster is, and the cluster once it takes jobs."""
        try:
            evidence, cluster = await self._evidence(uid)
            self._away_since = None
        except KubernetesUnreachable as exc:
            # Nothing is known, so nothing is decided, for as long as a start may take.
            now = anyio.current_time()
            self._away_since = now if self._away_since is None else self._away_since
            is_long = now - self._away_since >= self.asked.start_timeout_seconds
            away = f"the Kubernetes API cannot be asked ({exc})"
            category = Category.KUBERNETES_UNREACHABLE
            return Reading(ClusterState.PROVISIONING, away, category, is_final=is_long), None
        except KubernetesError as exc:
            raise start_refused(exc, self.namespace) from exc
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
        found = await self.snapshots.objects(self.name, uid)
        self.seen = None if found is None else found.cluster
        if found is None:
            return Evidence(None), None
        there, self._pods = found.cluster, found.pods
        ours = [pod for pod in self._pods if pod.belongs_to(uid)]
        self._heads |= {pod.uid for pod in ours if pod.is_head}
        self._stuck_since = stuck_containers(ours, self._stuck_since, datetime.now(UTC))
        cluster, silence = None, ""
        up = there.is_true("HeadPodReady") or any(p.is_head and p.is_ready for p in ours)
        if up and not there.is_terminating:
            cluster = await reached(self.client, there, self.asked)
            silence = "KubeRay has not made the Secret with its token yet"
            if not there.has_token or cluster.connection.token != TokenSource():
                try:
                    silence = await silence_of(cluster.connection)
                except NotAuthorized as exc:
                    raise start_failed(Category.CLUSTER_FORBIDDEN, str(exc)) from exc
        answers = cluster is not None and not silence
        evidence = Evidence(
            there,
            self._pods,
            found.events,
            answers,
            silence,
            heads=max(len(self._heads), 1),
            down_since=self._down_since(there, answers=answers) if self.is_shared else None,
            stuck_since=self._stuck_since,
        )
        return evidence, cluster

    def _down_since(self, there: RayClusterObject, *, answers: bool) -> datetime | None:
        if answers:
            self._silent_since = None
            self._heads.clear()  # those of a later failure count from then on
            return None
        head = there.condition("HeadPodReady")
        if head is not None and head.status != "True":
            self._silent_since = None
            return head.since
        self._silent_since = self._silent_since or datetime.now(UTC)
        return self._silent_since

    async def failure(self, found: Reading) -> ClusterFailed:
        """Return what a final reading means for the runs that wait for the cluster."""
        category = found.category or Category.CLUSTER_START_TIMEOUT
        lines: list[str] = []
        if category is Category.HEAD_CRASH_LOOP:
            lines = await self._last_words()
        cause = f"The RayCluster {self.name} did not start: {found.sentence}."
        retry = category is Category.CLUSTER_DELETED
        return start_failed(category, cause, lines=lines, retry=retry)

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
                # Cut: they become an annotation, and the API server refuses more than 256 KiB.
                return [cut(line) for line in clean(text)[-_LINES_OF_HEAD:]]
        return []


def start_failed(
    category: Category, cause: str, *, lines: Sequence[str] = (), retry: bool = False
) -> ClusterFailed:
    """Return the error for a cluster that does not become ready."""
    why = diagnosed(category, cause, lines=lines)
    return ClusterFailed(str(why), category=category.label, may_retry=retry)


def start_refused(exc: KubernetesError, namespace: str) -> ClusterFailed:
    """Return what an answer of the API server means that another try does not change."""
    match exc:
        case KubeRayMissing():
            return start_failed(Category.KUBERAY_MISSING, str(exc))
        case KubernetesForbidden() | KubernetesUnauthorized():
            return start_failed(Category.CLUSTER_FORBIDDEN, str(exc))
        case NamespaceTerminating():
            return start_failed(Category.CLUSTER_NAMESPACE_GONE, str(exc))
        case ObjectMissing() if exc.resource == "namespaces":
            return start_failed(
                Category.CLUSTER_NAMESPACE_GONE, f"There is no namespace {namespace!r}."
            )
        case _:
            return start_failed(Category.CLUSTER_SPEC_INVALID, str(exc))
