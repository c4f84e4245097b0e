"""`ClusterSource`: what provides clusters, and `Cluster`, what it provides."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from prefect_ray_worker.config.configuration import RayJobConfiguration
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.shared.ids import ClusterRef

Tell = Callable[[str], None]
"""Takes one line for the user."""


@dataclass(frozen=True)
class Cluster:
    """A cluster, and how to reach it.

    Attributes:
        ref: Identifies it, in this process and in others.
        connection: How this process reaches it, with credentials.
        reachable_from: Name of the only machine that can reach it; None if others can.
    """

    ref: ClusterRef
    connection: Connection
    reachable_from: str | None = None


@dataclass(frozen=True)
class ClusterPlan:
    """What a source will give to a run.

    Attributes:
        cluster: The cluster, where it is known before anything is started.
    """

    cluster: Cluster | None


class ClusterSource(Protocol):
    """Provides clusters of one kind.

    A worker calls `sweep` once when it starts, and `release` once when it ends.
    """

    def plan(self, configuration: RayJobConfiguration) -> ClusterPlan | None:
        """Return what a run will get, without asking anything; None for a run of another source."""
        ...

    async def acquire(self, plan: ClusterPlan, tell: Tell) -> Cluster:
        """Return a planned cluster, and start it if it is not there. Idempotent.

        Args:
            plan: From `plan`.
            tell: Told in one line what was started or found.

        Raises:
            LocalClusterError: It cannot be started.
        """
        ...

    async def look(self, plan: ClusterPlan) -> Cluster | None:
        """Return a planned cluster; None if it is not there. Starts and changes nothing.

        Not None does not mean that the cluster answers.
        """
        ...

    async def sweep(self, tell: Tell) -> None:
        """Take charge of what earlier workers have started and left."""
        ...

    async def release(self, tell: Tell, ended: frozenset[str]) -> None:
        """Let go of every acquired cluster, and stop what nobody else uses.

        Args:
            tell: Told in one line what was stopped or left.
            ended: Submission ids of jobs that count as ended, whatever Ray says.
        """
        ...
