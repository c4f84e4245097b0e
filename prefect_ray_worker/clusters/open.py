"""`OpenClusters`: the client and the poller of each cluster that a worker's runs use."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import AsyncExitStack, contextmanager
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
_END_SECONDS = 1.0


class Use:
    """Counts what uses a cluster at this moment, and knows since when nothing has."""

    def __init__(self) -> None:
        self._users = 0
        self._since = anyio.current_time()

    def is_idle_for(self, seconds: float) -> bool:
        """Return whether nothing uses the cluster, and nothing has for some seconds."""
        return not self._users and anyio.current_time() - self._since >= seconds

    def note(self) -> None:
        """Note that something is about to use the cluster."""
        self._since = anyio.current_time()

    @contextmanager
    def going_on(self) -> Generator[None, None, None]:
        """Count one use for as long as the context is open."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self.note()


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
        use: What uses it. A cluster without use is closed after some minutes.
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
    use: Use

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
    ended: anyio.Event


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
    def to_sweep(self) -> dict[ClusterRef, list[OpenCluster]]:
        """The clusters that outlive a run, and so gather records of jobs.

        There are several for a reference if its credentials have changed: the last used is first.
        """
        found: dict[ClusterRef, list[OpenCluster]] = {}
        for held in reversed(self._open.values()):
            if not held.opened.is_for_one_run:
                found.setdefault(held.opened.ref, []).append(held.opened)
        return found

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
            held = self._open.pop(cluster, None) or await self._opened(cluster, self._tasks)
            self._open[cluster] = held  # the last used is the last
            held.opened.use.note()
            return held.opened

    async def forget(self, ref: ClusterRef) -> None:
        """Stop polling a cluster that is gone, or going, and close its connections."""
        await self._close(lambda opened: opened.ref == ref)

    async def close_idle(
        self, ref: ClusterRef, *, seconds: float, spared: OpenCluster | None
    ) -> None:
        """Close what is open of a cluster and was not used for a while; the next run reopens it.

        Args:
            ref: The cluster.
            seconds: For how long.
            spared: Stays open all the same.
        """
        await self._close(
            lambda opened: (
                opened.ref == ref
                and opened is not spared
                and opened.use.is_idle_for(seconds)
                and not opened.is_for_one_run
                and not opened.poller.is_watching
            )
        )

    async def _close(self, which: Callable[[OpenCluster], bool]) -> None:
        async with self._opening:
            # All before the first wait: what is used meanwhile must not be closed.
            found = [cluster for cluster, held in self._open.items() if which(held.opened)]
            for held in [self._open.pop(cluster) for cluster in found]:
                held.polling.cancel()
                with anyio.move_on_after(_END_SECONDS):  # else its poll would miss the client
                    await held.ended.wait()
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
            Use(),
        )
        polling, ended = anyio.CancelScope(), anyio.Event()

        async def poll() -> None:
            try:
                with polling:
                    await opened.poller.run()
            finally:
                ended.set()

        tasks.start_soon(poll, name=f"ray-poller {ref}")
        return _Held(opened, resources, polling, ended)

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
