"""`ClusterPlugin`: implement it in a package to create Ray clusters for runs in your own way.

The page "Write a source of clusters" has an example, and says what a plugin must promise. The
worker handles names, limits, the wait until a cluster accepts jobs, events and the sweep.
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
    """The fields of `cluster_source` that a plugin reads. The default has none."""

    model_config = ConfigDict(extra="forbid")


F = TypeVar("F", bound=BaseModel)


@dataclass(frozen=True)
class AskedCluster(Generic[F]):
    """A cluster that a run needs, or needed.

    Attributes:
        name: Its name, derived from the attempt: 49 lower-case letters, digits and dashes. It is
            the same for every worker and every call for the attempt.
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
    """A cluster that a plugin has created and that still exists.

    Attributes:
        name: The name in the `AskedCluster`.
        created_at: When it was created, with a time zone.
    """

    name: str
    created_at: datetime


class ClusterPlugin(ABC, Generic[F]):
    """Creates clusters for runs. A worker creates one object of the class, without arguments.

    Attributes:
        Fields: The model of its fields in `cluster_source`. Forbid extra fields, so that a misspelt
            field is rejected.
        only_here: Whether only the worker's machine can reach its clusters.
    """

    Fields: ClassVar[type[BaseModel]] = SourceFields
    only_here: ClassVar[bool] = False

    @abstractmethod
    async def acquire(self, asked: AskedCluster[F], tell: Callable[[str], None]) -> Connection:
        """Create the cluster unless it exists, and return the connection to its Ray dashboard.

        Must be idempotent: if called again, at the same time or by another worker, it creates no
        second cluster. It need not wait until the cluster accepts jobs. The worker cancels it if
        the run is cancelled, or if the start takes too long.

        Args:
            asked: The cluster.
            tell: Shows a sentence on the run: what it is waiting for. Call it repeatedly.

        Raises:
            Exception: The cluster cannot be created. The run is Crashed with the error's text.
                Raise `ClusterFailed` with `may_retry=True` if another attempt can succeed.
        """

    @abstractmethod
    async def look(self, asked: AskedCluster[F]) -> Connection | None:
        """Return the connection to the cluster, or None if it certainly does not exist.

        Must change nothing.

        Raises:
            Exception: It is not known whether the cluster exists. The worker asks again later.
        """

    @abstractmethod
    async def release(self, asked: AskedCluster[F]) -> None:
        """Delete the cluster. Must be idempotent: it can be gone, or never have been created.

        Raises:
            Exception: It could not be deleted. The worker tries again about once a minute.
        """

    async def why_gone(self, asked: AskedCluster[F]) -> str | None:
        """Return why a cluster that does not answer is certainly gone, as a clause.

        Return None if that is not certain: a cluster that does not answer can still run. The run of
        a cluster that is gone ends at once.
        """
        return None

    async def made(self, fields: F, pool_id: str) -> Sequence[MadeCluster]:
        """Return the existing clusters of a work pool, for the sweep.

        Without this method, a cluster is not deleted if its run ended while no worker was up, or if
        the worker that keeps it for `keep_failed_seconds` is stopped before they are over.

        Args:
            fields: The fields of the pool, or of a run.
            pool_id: The work pool. Never return another pool's clusters: they would be deleted.
        """
        return ()

    async def examine(self, fields: F) -> AsyncIterator[str]:
        """Yield a sentence for each check of `prefect-ray-worker doctor` that succeeds.

        Raises:
            Exception: A check failed. The text says why, and what to do.
        """
        for sentence in ():
            yield sentence

    async def close(self) -> None:
        """Close connections. Leave the clusters: their runs continue without this worker."""
