"""What runs in a shared RayCluster have in common: whether it is open, one stamp, one look.

Pure but for `close_cluster` and `Visit`.
"""

import itertools
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import anyio
from pydantic import BaseModel, ValidationError

from prefect_ray_worker.clusters.kuberay.look import ClusterLook
from prefect_ray_worker.clusters.kuberay.manifest import CLOSING, JOINED_AT
from prefect_ray_worker.clusters.kuberay.reading import Reading
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.errors import ClusterFailed, Conflict, ObjectMissing, ObjectReplaced
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import RayClusterObject

# KubeRay makes a lost head anew within moments; a pull of its image takes longer.
_HEAD_BACK_SECONDS = 180.0
_MOST_VISITS = 64


class _Closing(BaseModel):
    """The value of the annotation `CLOSING` on a cluster that did not start."""

    category: str
    message: str
    may_retry: bool = False
    has_head: bool = False
    takes_jobs: bool = False


def is_open(cluster: RayClusterObject, now: datetime) -> bool:
    """Return whether runs may join a cluster: it is not going, and its head not lost for good.

    Args:
        cluster: A shared cluster.
        now: The present.
    """
    return CLOSING not in cluster.annotations and _is_up(cluster, now)


def serves_its_runs(cluster: RayClusterObject, now: datetime) -> bool:
    """Return whether a cluster was closed for its workers only: its runs still have its head.

    Args:
        cluster: A shared cluster.
        now: The present.
    """
    why = _closing_of(cluster)
    return why is not None and why.takes_jobs and _is_up(cluster, now)


def _is_up(cluster: RayClusterObject, now: datetime) -> bool:
    if cluster.is_terminating:
        return False
    head = cluster.condition("HeadPodReady")
    if head is None or head.status == "True" or head.since is None or cluster.suspended:
        return True
    lost_for = now - head.since
    return not was_up(cluster) or lost_for < timedelta(seconds=_HEAD_BACK_SECONDS)


def was_up(cluster: RayClusterObject) -> bool:
    """Return whether all pods of a cluster have been ready: its specification works."""
    return cluster.is_true("RayClusterProvisioned")


async def close_cluster(client: KubernetesClient, cluster: RayClusterObject, why: str) -> bool:
    """Let nothing join a cluster from now on, unless it has changed since it was read.

    Args:
        client: Of its Kubernetes cluster.
        cluster: The cluster as it was read.
        why: Kept on it.

    Returns:
        Whether it is closed; if not, a run has joined, or it was changed or deleted.
    """
    try:
        await client.annotate(
            cluster.namespace,
            cluster.name,
            {CLOSING: why},
            uid=cluster.uid,
            resource_version=cluster.resource_version,
        )
    except (Conflict, ObjectMissing, ObjectReplaced):
        return False
    return True


def reason_of(failure: ClusterFailed, *, has_head: bool = False, takes_jobs: bool = False) -> str:
    """Return what to keep on a cluster that did not start, for its other runs: see `failure_in`.

    Args:
        failure: Why it did not.
        has_head: Whether its head is ready, so that runs may be using it.
        takes_jobs: Whether that head answers: only its workers did not start.
    """
    return _Closing(
        category=failure.category,
        message=str(failure),
        may_retry=failure.may_retry,
        has_head=has_head,
        takes_jobs=takes_jobs,
    ).model_dump_json()


def failure_in(cluster: RayClusterObject, *, needs_workers: bool = True) -> ClusterFailed | None:
    """Return why a cluster was closed, if that was because it did not start.

    Args:
        cluster: A shared cluster.
        needs_workers: Whether it counts, too, if only its workers did not start.
    """
    why = _closing_of(cluster)
    if why is None or (why.takes_jobs and not needs_workers):
        return None
    return ClusterFailed(why.message, category=why.category, may_retry=why.may_retry)


def may_be_used(cluster: RayClusterObject) -> bool:
    """Return whether runs can still be using a cluster that was closed: its head was ready."""
    why = _closing_of(cluster)
    return why is not None and why.has_head


def _closing_of(cluster: RayClusterObject) -> _Closing | None:
    try:
        return _Closing.model_validate(json.loads(cluster.annotations.get(CLOSING, "")))
    except (ValueError, ValidationError):
        return None


@dataclass
class Visit:
    """What the runs of this process that are in, or wait for, one cluster have in common.

    Attributes:
        look: Looks at the cluster.
        uid: The cluster's.
        found: How far it was at the last look; None to look again at once.
        failure: Why it did not start; None as long as it may.
    """

    look: ClusterLook
    uid: str
    found: tuple[Reading, Cluster | None] | None = None
    failure: ClusterFailed | None = None
    _joining: anyio.Lock = field(default_factory=anyio.Lock)
    _looking: anyio.Lock = field(default_factory=anyio.Lock)
    _looked_at: float = 0.0
    _stamped: int = 0
    _stamp: RayClusterObject | None = None
    _counter: "itertools.count[int]" = field(default_factory=lambda: itertools.count(1))

    async def join(self, attempt: str) -> RayClusterObject:
        """Stamp the cluster; one stamp serves all runs that have named the cluster before it.

        Raises:
            KubernetesError: The cluster is gone, or nothing is known.
        """
        asked = next(self._counter)
        async with self._joining:
            if self._stamp is None or self._stamped < asked:
                stamped = next(self._counter)
                # The attempt makes two equal moments different: a patch that changes nothing does
                # not change the version (observed on 1.36).
                value = f"{datetime.now(UTC).isoformat()} {attempt}"
                self._stamp = await self.look.client.annotate(
                    self.look.namespace, self.look.name, {JOINED_AT: value}, uid=self.uid
                )
                self._stamped = stamped
            return self._stamp

    async def reading(self) -> tuple[Reading, Cluster | None]:
        """Return how far the cluster is; one look serves all runs for a moment."""
        async with self._looking:
            now = anyio.current_time()
            if self.found is None or now - self._looked_at >= self.look.timing.poll:
                self.found = await self.look.look(self.uid)
                self._looked_at = anyio.current_time()
            return self.found


class SharedClusters:
    """Joins the runs of one worker to shared clusters."""

    def __init__(self) -> None:
        self._visits: dict[tuple[int, str, str], Visit] = {}

    def visit(self, look: ClusterLook, uid: str) -> Visit:
        """Return what this worker's runs in a cluster have in common.

        Args:
            look: Looks at the cluster, if none of its runs does yet.
            uid: The cluster's.
        """
        # What differs between runs with one cluster: how to reach it, and when it is ready.
        way = look.asked.model_dump_json(include={"access", "address_template", "ready_when"})
        key = (id(look.client), uid, way)
        if key not in self._visits:
            self._visits[key] = Visit(look, uid)
            if len(self._visits) > _MOST_VISITS:
                del self._visits[next(iter(self._visits))]
        return self._visits[key]
