"""`OpenClusters`: the client and the poller of each cluster that a worker's runs use."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from prefect_ray_worker.clusters.poller import ClusterPoller
from prefect_ray_worker.clusters.source import Cluster
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.logs import LogsClient
from prefect_ray_worker.shared.ids import ClusterRef

# Ray creates an actor for each job, so more at once gain nothing. Half of the client's sockets:
# polls of running jobs must not queue behind a burst of submissions.
_SUBMISSIONS_AT_ONCE = 8


@dataclass(frozen=True)
class OpenCluster:
    """A cluster in use.

    Attributes:
        ref: Identifies it.
        reachable_from: Name of the only machine that can reach it; None if others can.
        client: Client of its Jobs API.
        poller: The one loop that polls it.
        logs: Reads the logs of its jobs.
        submissions: Limits concurrent submissions.
    """

    ref: ClusterRef
    reachable_from: str | None
    client: JobsClient
    poller: ClusterPoller
    logs: ClusterLogs
    submissions: anyio.CapacityLimiter


class OpenClusters:
    """Owns the clients and pollers of a worker, and closes them when its context ends.

    Args:
        interval: Seconds between two polls of a cluster when many jobs run on it.
    """

    def __init__(self, *, interval: float) -> None:
        self._interval = interval
        self._open: dict[Cluster, OpenCluster] = {}
        self._opening = anyio.Lock()
        self._stack = AsyncExitStack()
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        # Entered first, so left last: pollers use the clients that are opened later.
        self._tasks = await self._stack.enter_async_context(anyio.create_task_group())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()
        self._open.clear()
        return await self._stack.__aexit__(exc_type, exc, traceback)

    @property
    def clients(self) -> tuple[JobsClient, ...]:
        """The clients of all clusters that were used so far."""
        return tuple(cluster.client for cluster in self._open.values())

    @property
    def refs(self) -> frozenset[ClusterRef]:
        """All clusters that were used so far."""
        return frozenset(cluster.ref for cluster in self._open)

    async def get(self, cluster: Cluster) -> OpenCluster:
        """Return an open cluster; open it and start its poller if it is not open yet."""
        if self._tasks is None:
            raise RuntimeError("Use OpenClusters as an async context manager.")
        async with self._opening:
            if cluster not in self._open:
                connection = cluster.connection
                client = await self._stack.enter_async_context(JobsClient(connection))
                logs = await self._stack.enter_async_context(LogsClient(connection))
                poller = ClusterPoller(client, interval=self._interval)
                self._tasks.start_soon(poller.run, name=f"ray-poller {cluster.ref}")
                self._open[cluster] = OpenCluster(
                    cluster.ref,
                    cluster.reachable_from,
                    client,
                    poller,
                    ClusterLogs(logs),
                    anyio.CapacityLimiter(_SUBMISSIONS_AT_ONCE),
                )
            return self._open[cluster]
