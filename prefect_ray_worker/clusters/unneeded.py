"""Why a cluster that was made for one attempt at a run is not needed any more. Pure."""

from prefect_ray_worker.clusters.source import RunOfCluster

# A worker may be settling the run, or creating the cluster for an attempt that is just beginning.
_GRACE_SECONDS = 120.0
# For so long after the end of its run, the log of a job is still forwarded from the cluster.
DRAIN_SECONDS = 600.0


def why_unneeded(
    attempt: str | None, run: RunOfCluster | None, *, age: float, kept: float
) -> str | None:
    """Return why a cluster is to be deleted, as a clause; None if it stays.

    Args:
        attempt: The attempt that it was made for.
        run: The run; None if Prefect certainly does not have it.
        age: Seconds since the cluster was made.
        kept: Seconds for which the cluster of a failed run stays.
    """
    if age < _GRACE_SECONDS:
        return None
    if run is None:
        return "its flow run was deleted"
    if run.age < _GRACE_SECONDS:
        return None
    if run.goes_on:
        moved_on = run.attempt not in (None, attempt)
        return "its flow run has gone on to another attempt" if moved_on else None
    if run.is_unfinished and run.age < DRAIN_SECONDS:
        return None
    if run.failed and run.age < kept:
        return None
    return "its flow run has ended"
