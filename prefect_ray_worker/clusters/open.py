"""`Clusters`: one client and one poller for each cluster that a worker's runs use."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from prefect_ray_worker.clusters.poller import ClusterPoller
from prefect_ray_worker.logs.reader import ClusterLogs
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient

# Ray makes an actor for each job: the head gains nothing from more at once. Half of the client's
# sockets, so that the looks at what runs already do not stand in the queue of a burst.
_SUBMISSIONS_AT_ONCE = 8


@dataclass(frozen=True)
class Cluster:
    """A cluster in use.

    Attributes:
        client: Its Jobs API.
        poller: The one loop that looks at it.
        logs: Reads the logs of its jobs.
        submissions: Lets so many submissions through at once.
    """

    client: JobsClient
    poller: ClusterPoller
    logs: ClusterLogs
    submissions: anyio.CapacityLimiter


class Clusters:
    """Owns the clients and pollers of a worker; closes them when its context ends.

    Args:
        interval: Seconds between two looks at a cluster when many jobs run on it.
    """

    def __init__(self, *, interval: float) -> None:
        self._interval = interval
        self._open: dict[Connection, Cluster] = {}
        self._opening = anyio.Lock()
        self._stack = AsyncExitStack()
        self._tasks: anyio.abc.TaskGroup | None = None

    async def __aenter__(self) -> Self:
        # Entered first, left last: pollers use the clients that are opened later.
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
        """The clients of the clusters that have been used so far."""
        return tuple(cluster.client for cluster in self._open.values())

    async def get(self, connection: Connection) -> Cluster:
        """Return the cluster behind a connection, and begin to look after it if it is new."""
        if self._tasks is None:
            raise RuntimeError("Use Clusters as an async context manager.")
        async with self._opening:
            if connection not in self._open:
                client = await self._stack.enter_async_context(JobsClient(connection))
                logs = await self._stack.enter_async_context(LogsClient(connection))
                poller = ClusterPoller(client, interval=self._interval)
                self._tasks.start_soon(poller.run, name=f"ray-poller {connection.address}")
                self._open[connection] = Cluster(
                    client,
                    poller,
                    ClusterLogs(logs),
                    anyio.CapacityLimiter(_SUBMISSIONS_AT_ONCE),
                )
            return self._open[connection]
