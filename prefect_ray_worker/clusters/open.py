"""`OpenClusters`: the client and the poller of each cluster that a worker's runs use."""

from collections.abc import Awaitable, Callable
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
from prefect_ray_worker.ray_api.connection import Connection
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

    async def reconnect(self, connection: Connection) -> None:
        """Use another connection to the same cluster from now on."""
        await self.client.reconnect(connection)
        await self.logs.reconnect(connection)


ResolveAnew = Callable[[OpenCluster], Awaitable[Cluster | None]]


class OpenClusters:
    """Owns the clients and pollers of a worker, and closes them when its context ends.

    Args:
        interval: Seconds between two polls of a cluster when many jobs run on it.
        resolve_anew: Returns a cluster as the configuration of its runs has it now. Called when
            the cluster refuses our credentials; they may have been renewed.
    """

    def __init__(self, *, interval: float, resolve_anew: ResolveAnew | None = None) -> None:
        self._interval = interval
        self._resolve_anew = resolve_anew
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
                opened = OpenCluster(
                    cluster.ref,
                    cluster.reachable_from,
                    client,
                    ClusterPoller(client, interval=self._interval, renew=self._renew),
                    ClusterLogs(logs),
                    anyio.CapacityLimiter(_SUBMISSIONS_AT_ONCE),
                )
                self._tasks.start_soon(opened.poller.run, name=f"ray-poller {cluster.ref}")
                self._open[cluster] = opened
            return self._open[cluster]

    async def _renew(self, poller: ClusterPoller) -> None:
        """Give a cluster that refuses our credentials those which its runs would have now."""
        for known, opened in list(self._open.items()):
            if opened.poller is not poller or self._resolve_anew is None:
                continue
            cluster = await self._resolve_anew(opened)
            if cluster is None or cluster.ref != known.ref:
                return
            if cluster.connection != opened.client.connection:
                await opened.reconnect(cluster.connection)
                if cluster not in self._open:
                    self._open[cluster] = self._open.pop(known)
