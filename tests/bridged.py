"""A log bridge for a real job, without a worker."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import anyio
from prefect.client.orchestration import get_client

from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.logs import PrefectLogs, longest_message
from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient


@dataclass
class Running:
    """A bridge at work.

    Attributes:
        bridge: It.
        done: Set when it has nothing more to forward.
    """

    bridge: LogBridge
    done: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        await self.bridge.run()
        self.done.set()


@asynccontextmanager
async def bridged(
    address: str, jobs: dict[str, UUID], *, look_every: float = 0.5
) -> AsyncIterator[list[Running]]:
    """Run a bridge for each of some jobs, fed with looks at it, until the context ends.

    Args:
        address: The cluster.
        jobs: The submission ids of the jobs, and the flow runs that get their logs.
        look_every: Seconds between two looks at a job.
    """
    connection = Connection(address)
    async with (
        get_client() as prefect,
        JobsClient(connection) as client,
        LogsClient(connection) as logs,
        anyio.create_task_group() as tasks,
    ):
        reads, limiter = ClusterLogs(logs), anyio.CapacityLimiter(4)
        bridges = {
            job: Running(
                LogBridge(
                    job,
                    attempt=1,
                    reads=reads,
                    sink=PrefectLogs(prefect, run_id, limiter),
                    longest=longest_message(),
                )
            )
            for job, run_id in jobs.items()
        }

        async def look() -> None:
            while True:
                for job, running in bridges.items():
                    running.bridge.observe(await client.get(job))
                await anyio.sleep(look_every)

        tasks.start_soon(look, name="look")
        for job, running in bridges.items():
            tasks.start_soon(running.run, name=f"bridge {job}")
        yield list(bridges.values())
        tasks.cancel_scope.cancel()
