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
        is_on_demand: Whether workers make it when a run needs it, and delete it afterwards.
        is_for_one_run: Whether it was made for one attempt at a run, and goes after it.
        dashboard: Where people find its dashboard, if not where the worker does.
        client: Client of its Jobs API.
        poller: The one loop that polls it.
        logs: Reads the logs of its jobs.
        submissions: Limits concurrent submissions.
    """

    ref: ClusterRef
    reachable_from: str | None
    is_on_demand: bool
    is_for_one_run: bool
    dashboard: str | None
    client: JobsClient
    poller: ClusterPoller
    logs: ClusterLogs
    submissions: anyio.CapacityLimiter

    async def reconnect(self, connection: Connection) -> None:
        """Use another connection to the same cluster from now on."""
        await self.client.reconnect(connection)
        await self.logs.reconnect(connection)


ResolveAnew = Callable[[OpenCluster], Awaitable[Cluster | None]]
WhyGone = Callable[[ClusterRef], Awaitable[str | None]]


@dataclass(frozen=True)
class _Held:
    opened: OpenCluster
    resources: AsyncExitStack
    polling: anyio.CancelScope


class OpenClusters:
    """Owns the clients and pollers of a worker, and closes them when its context ends.

    Args:
        interval: Seconds between two polls of a cluster when many jobs run on it.
        resolve_anew: Returns a cluster as the configuration of its runs has it now. Called when
            the cluster refuses our credentials; they may have been renewed.
        why_gone: Returns why a cluster that does not answer is certainly gone, or None.
        workers: Returns how many workers of the pool may poll a cluster.
    """

    def __init__(
        self,
        *,
        interval: float,
        resolve_anew: ResolveAnew | None = None,
        why_gone: WhyGone | None = None,
        workers: Callable[[], int] = lambda: 1,
    ) -> None:
        self._workers = workers
        self._interval = interval
        self._resolve_anew = resolve_anew
        self._why_gone = why_gone
        self._open: dict[Cluster, _Held] = {}
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
        for held in self._open.values():
            await held.resources.aclose()
        self._open.clear()
        return await self._stack.__aexit__(exc_type, exc, traceback)

    @property
    def clients_to_sweep(self) -> tuple[JobsClient, ...]:
        """The clients of the clusters in use that outlive a run, and so gather records of jobs."""
        opened = (held.opened for held in self._open.values())
        return tuple(cluster.client for cluster in opened if not cluster.is_for_one_run)

    @property
    def refs(self) -> frozenset[ClusterRef]:
        """All clusters that were used so far, and not forgotten."""
        return frozenset(cluster.ref for cluster in self._open)

    @property
    def shared(self) -> frozenset[ClusterRef]:
        """The clusters among them that come and go, and that no single run lets go of."""
        return frozenset(c.ref for c in self._open if c.is_on_demand and not c.is_for_one_run)

    async def get(self, cluster: Cluster) -> OpenCluster:
        """Return an open cluster; open it and start its poller if it is not open yet."""
        if self._tasks is None:
            raise RuntimeError("Use OpenClusters as an async context manager.")
        async with self._opening:
            if cluster not in self._open:
                self._open[cluster] = await self._opened(cluster, self._tasks)
            return self._open[cluster].opened

    async def forget(self, ref: ClusterRef) -> None:
        """Stop polling a cluster that is gone, or going, and close its connections."""
        async with self._opening:
            for cluster in [known for known in self._open if known.ref == ref]:
                held = self._open.pop(cluster)
                held.polling.cancel()
                await held.resources.aclose()

    async def _opened(self, cluster: Cluster, tasks: anyio.abc.TaskGroup) -> _Held:
        resources = AsyncExitStack()
        client = await resources.enter_async_context(JobsClient(cluster.connection))
        try:
            logs = await resources.enter_async_context(LogsClient(cluster.connection))
        except BaseException:
            await resources.aclose()
            raise
        ref, why_gone = cluster.ref, self._why_gone
        opened = OpenCluster(
            ref,
            cluster.reachable_from,
            cluster.is_on_demand,
            cluster.is_for_one_run,
            cluster.dashboard,
            client,
            ClusterPoller(
                client,
                interval=self._interval,
                renew=self._renew,
                why_gone=None if why_gone is None else lambda: why_gone(ref),
                # A series for each cluster that comes and goes would fill the memory of both sides.
                label=ref.kind if cluster.is_on_demand else None,
                workers=self._workers,
            ),
            ClusterLogs(logs),
            anyio.CapacityLimiter(_SUBMISSIONS_AT_ONCE),
        )
        polling = anyio.CancelScope()

        async def poll() -> None:
            with polling:
                await opened.poller.run()

        tasks.start_soon(poll, name=f"ray-poller {ref}")
        return _Held(opened, resources, polling)

    async def _renew(self, poller: ClusterPoller) -> None:
        """Give a cluster that refuses our credentials those which its runs would have now."""
        for known, held in list(self._open.items()):
            opened = held.opened
            if opened.poller is not poller or self._resolve_anew is None:
                continue
            cluster = await self._resolve_anew(opened)
            if cluster is None or cluster.ref != known.ref:
                return
            if cluster.connection != opened.client.connection:
                await opened.reconnect(cluster.connection)
                if cluster not in self._open:
                    self._open[cluster] = self._open.pop(known)
