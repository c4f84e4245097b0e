"""`ClusterPlugin`: what a package implements that makes Ray clusters for runs in its own way.

The page "Write a source of clusters" has an example, and says what a plugin must promise. The
worker itself sees to names, limits, the wait until a cluster takes jobs, the events and the sweep.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import ClassVar, Generic, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from prefect_ray_worker.ray_api.connection import Connection

GROUP = "prefect_ray_worker.cluster_sources"
"""Entry points of this group are subclasses of `ClusterPlugin`, by the name of the source."""


class SourceFields(BaseModel):
    """The fields of `cluster_source` that a plugin reads; the default has none."""

    model_config = ConfigDict(extra="forbid")


F = TypeVar("F", bound=BaseModel)


@dataclass(frozen=True)
class AskedCluster(Generic[F]):
    """A cluster that a run needs, or needed.

    Attributes:
        name: Its name, worked out from the attempt at the run: 49 lower-case letters, digits and
            dashes. Every worker, and every call for the attempt, has the same.
        fields: The run's `cluster_source`, validated.
        run_id: The flow run.
        pool_id: The work pool.
    """

    name: str
    fields: F
    run_id: UUID
    pool_id: str


@dataclass(frozen=True)
class MadeCluster:
    """A cluster that a plugin has made and that still exists.

    Attributes:
        name: As it was asked for.
        created_at: When it was made, with a time zone.
    """

    name: str
    created_at: datetime


class ClusterPlugin(ABC, Generic[F]):
    """Makes clusters for runs. A worker makes one object of the class, without arguments.

    Attributes:
        Fields: The model of its fields in `cluster_source`. Forbid extra ones, so that a misspelt
            field is refused.
        only_here: Whether a cluster is on the worker's machine, and no other machine reaches it.
    """

    Fields: ClassVar[type[BaseModel]] = SourceFields
    only_here: ClassVar[bool] = False

    @abstractmethod
    async def acquire(self, asked: AskedCluster[F], tell: Callable[[str], None]) -> Connection:
        """Make the cluster unless it is there, and return the way to its Ray dashboard.

        Idempotent: called again, at the same time or by another worker, it makes no second one.
        Need not wait until the cluster takes jobs. Is cancelled when the run is, or is late.

        Args:
            asked: The cluster.
            tell: Takes a sentence for the run: what it waits for. Call it again and again.

        Raises:
            Exception: It cannot be made. The run is Crashed with the error's text. Raise
                `ClusterFailed` with `may_retry=True` if another attempt may do better.
        """

    @abstractmethod
    async def look(self, asked: AskedCluster[F]) -> Connection | None:
        """Return the way to the cluster; None if it certainly does not exist. Changes nothing.

        Raises:
            Exception: It is not known whether it exists; asked again later.
        """

    @abstractmethod
    async def release(self, asked: AskedCluster[F]) -> None:
        """Delete the cluster. Idempotent: it may be gone, or never have been made.

        Raises:
            Exception: It could not be deleted; tried again about once a minute.
        """

    async def why_gone(self, asked: AskedCluster[F]) -> str | None:
        """Return why a silent cluster is certainly gone, as a clause; None if that is not certain.

        The run of a cluster that is gone ends at once. Silence alone proves nothing.
        """
        return None

    async def made(self, fields: F, pool_id: str) -> Sequence[MadeCluster]:
        """Return the clusters of a work pool that exist, for the sweep.

        Without it, nobody deletes a cluster whose run has ended while no worker was there.

        Args:
            fields: The pool's, or those of a run.
            pool_id: The work pool. Never return another pool's clusters: they would be deleted.
        """
        return ()

    async def examine(self, fields: F) -> AsyncIterator[str]:
        """Yield a sentence for each thing that `prefect-ray-worker doctor` finds in order.

        Raises:
            Exception: What is not in order, and what to do.
        """
        for sentence in ():
            yield sentence

    async def close(self) -> None:
        """Close connections. Clusters stay: their runs go on, and so does the next worker."""
