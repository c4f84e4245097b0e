"""Which RayClusters of a pool nobody needs any more. Pure: every worker decides alike.

The worker that follows a run deletes its cluster. This is for what such a worker leaves behind when
it dies.
"""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from prefect_ray_worker.clusters.kuberay.manifest import (
    ATTEMPT_LABEL,
    KEEP_FAILED,
    MAX_LIFETIME,
    RUN_LABEL,
)
from prefect_ray_worker.clusters.source import RunOfCluster
from prefect_ray_worker.kubernetes_api.models import RayClusterObject

# A worker may be settling the run, or creating the cluster for an attempt that is just beginning.
_GRACE_SECONDS = 120.0
# For so long after the end of its run, the log of a job is still forwarded from the cluster.
DRAIN_SECONDS = 600.0


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
    age = (now - (cluster.created_at or now)).total_seconds()
    longest = seconds_in(cluster.annotations, MAX_LIFETIME)
    if longest is not None and age >= longest:
        return f"it is older than {longest:g} s (max_lifetime_seconds)"
    if age < _GRACE_SECONDS:
        return None
    if run is None:
        return "its flow run was deleted"
    if run.age < _GRACE_SECONDS:
        return None
    attempt = cluster.labels.get(ATTEMPT_LABEL)
    if run.goes_on:
        moved_on = run.attempt not in (None, attempt)
        return "its flow run has gone on to another attempt" if moved_on else None
    if run.is_unfinished and run.age < DRAIN_SECONDS:
        return None
    kept = seconds_in(cluster.annotations, KEEP_FAILED) or 0.0
    if run.failed and run.age < kept:
        return None
    return "its flow run has ended"


def seconds_in(annotations: Mapping[str, str], name: str) -> float | None:
    """Return the policy that an annotation holds, in seconds; None if there is none."""
    try:
        return float(annotations[name])
    except (KeyError, ValueError):
        return None
