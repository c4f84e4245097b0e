"""The words for why a job is still PENDING, from what it asks for and what the cluster has.

Pure. `runs/explain` decides when a run's state or log says them.
"""

from dataclasses import dataclass
from enum import Enum

from prefect_ray_worker.diagnosis.text import clean
from prefect_ray_worker.shared.resources import Asked, ClusterResources, in_words


class Reason(Enum):
    """What a PENDING job waits for."""

    INFEASIBLE = "infeasible"
    """A node large enough for the job: the cluster has none."""

    BUSY = "busy"
    """Resources that other jobs or tasks hold."""

    ENVIRONMENT = "environment"
    """The set-up of its runtime environment."""

    UNKNOWN = "unknown"
    """Resources or its runtime environment: the cluster does not report which."""

    STARTING = "starting"
    """The start of its processes."""


@dataclass(frozen=True)
class Waiting:
    """Why a job has not started.

    Attributes:
        reason: What the job waits for.
        sentence: The explanation to show in the flow run's state.
    """

    reason: Reason
    sentence: str


def why_waiting(asked: Asked, cluster: ClusterResources | None, message: str | None) -> Waiting:
    """Return why a job is still PENDING.

    A driver that asks for nothing never waits for resources: it runs on the head, with 0 CPUs.

    Args:
        asked: The resources and environment that the driver asks for.
        cluster: The cluster's resources; None if the cluster did not report them.
        message: Ray's message about the job, quoted if the cluster's resources are unknown.
    """
    if not asked.resources and not asked.labels:
        return _preparing(asked)
    if cluster is None:
        said = f" Ray says: {' '.join(clean(message))}" if message else ""
        return Waiting(Reason.UNKNOWN, f"The driver asks for {asked} and has not started.{said}")
    if not cluster.can_ever_run(asked):
        return Waiting(Reason.INFEASIBLE, _infeasible(asked, cluster))
    room = [node.can_take(asked) for node in cluster.nodes]
    if True in room:
        return _preparing(asked)
    total = in_words(cluster.total(asked.resources))
    free = cluster.free(asked.resources)
    if None in room or free is None:
        return Waiting(
            Reason.UNKNOWN,
            f"The driver asks for {asked}; the cluster has {total}, and does not say what is "
            "free. The job waits for resources or its environment.",
        )
    return Waiting(
        Reason.BUSY,
        f"The job waits for resources: it asks for {asked} on one node, free are {in_words(free)} "
        f"of {total} in the whole cluster.",
    )


def _infeasible(asked: Asked, cluster: ClusterResources) -> str:
    has = f"its {len(cluster.nodes)} nodes have at most"
    if len(cluster.nodes) == 1:
        has = "its one node has"
    largest = in_words(cluster.largest(asked.resources))
    there_is = f": {has} {largest}" if largest else ""
    return (
        f"No node of the cluster can ever run the driver, which asks for {asked}{there_is}. It "
        "starts only if such a node is added."
    )


def _preparing(asked: Asked) -> Waiting:
    if asked.environment:
        return Waiting(
            Reason.ENVIRONMENT,
            f"Ray is setting up the runtime environment ({', '.join(asked.environment)}).",
        )
    return Waiting(Reason.STARTING, "Ray is starting the processes of the job.")
