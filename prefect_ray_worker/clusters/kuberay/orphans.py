"""Which RayClusters of a pool no run needs any more. Pure: every worker decides alike.

The worker that follows a run deletes the run's own cluster; `why_orphaned` is for what it leaves
behind when it dies. A shared cluster is deleted when it is idle, by `why_idle` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect_ray_worker.clusters.kuberay.manifest import (
    ATTEMPT_LABEL,
    IDLE,
    JOINED_AT,
    KEEP_FAILED,
    MAX_LIFETIME,
    RUN_LABEL,
    START_TIMEOUT,
)
from prefect_ray_worker.clusters.source import RunOfCluster
from prefect_ray_worker.clusters.unneeded import why_unneeded
from prefect_ray_worker.config.kuberay import DEFAULT_IDLE_SECONDS
from prefect_ray_worker.kubernetes_api.models import RayClusterObject

# `start_timeout_seconds` by default.
_START_SECONDS = 900.0
_EPOCH = datetime.fromtimestamp(0, UTC)


def run_in_labels(cluster: RayClusterObject) -> UUID | None:
    """Return the flow run that a cluster was made for; None if it was made for something else."""
    try:
        return UUID(cluster.labels.get(RUN_LABEL, ""))
    except ValueError:
        return None


def why_orphaned(
    cluster: RayClusterObject, run: RunOfCluster | None, *, now: datetime
) -> str | None:
    """Return why a cluster is to be deleted, as a clause; None if it stays.

    Args:
        cluster: A cluster that was made for one attempt at a run.
        run: The run; None if Prefect certainly does not have it.
        now: The present.
    """
    if cluster.is_terminating:
        return None
    return why_unneeded(
        cluster.labels.get(ATTEMPT_LABEL),
        run,
        age=(now - (cluster.created_at or now)).total_seconds(),
        kept=seconds_in(cluster.annotations, KEEP_FAILED) or 0.0,
    )


def why_too_old(cluster: RayClusterObject, *, now: datetime) -> str | None:
    """Return why a cluster is to be deleted whether or not a run uses it; None if it stays."""
    longest = seconds_in(cluster.annotations, MAX_LIFETIME)
    age = (now - (cluster.created_at or now)).total_seconds()
    if cluster.is_terminating or longest is None or age < longest:
        return None
    return f"it is older than {longest:g} s (max_lifetime_seconds)"


@dataclass(frozen=True)
class ClusterUse:
    """What Ray says about the use of a cluster, by runs and by others.

    Attributes:
        is_used: Whether a job, or a driver, goes on.
        last_at: When the last one ended; None if there was none.
    """

    is_used: bool
    last_at: datetime | None = None


def why_idle(cluster: RayClusterObject, use: ClusterUse | datetime, *, now: datetime) -> str | None:
    """Return why a shared cluster that no run names is idle, as a clause; None if it is not.

    Args:
        cluster: The cluster.
        use: What Ray says; if it does not answer, which does not mean that the cluster is idle,
            since when this worker has got no answer.
        now: The present.
    """
    idle = seconds_in(cluster.annotations, IDLE)
    idle = DEFAULT_IDLE_SECONDS if idle is None else idle
    since = max(moment for moment in (cluster.created_at, _joined_at(cluster), _EPOCH) if moment)
    head = cluster.condition("HeadPodReady")
    if isinstance(use, datetime):
        if head is not None and head.status == "False" and head.since is not None:
            use = min(use, head.since)  # Kubernetes itself has seen no head since
        start = seconds_in(cluster.annotations, START_TIMEOUT)
        patience = idle + (_START_SECONDS if start is None else start)
        passed = (now - max(since, use)).total_seconds()
        if passed < patience:
            return None
        return f"its dashboard has not answered for {passed:.0f} s, and no run uses it"
    if use.is_used:
        return None
    if head is not None and head.status == "True" and head.since is not None:
        since = max(since, head.since)
    passed = (now - max(since, use.last_at or since)).total_seconds()
    if passed < idle:
        return None
    return f"it has been idle for {passed:.0f} s (idle_seconds is {idle:g})"


def _joined_at(cluster: RayClusterObject) -> datetime | None:
    try:
        return datetime.fromisoformat(cluster.annotations.get(JOINED_AT, "").partition(" ")[0])
    except ValueError:
        return None


def seconds_in(annotations: Mapping[str, str], name: str) -> float | None:
    """Return the policy that an annotation holds, in seconds; None if there is none."""
    try:
        return float(annotations[name])
    except (KeyError, ValueError):
        return None
