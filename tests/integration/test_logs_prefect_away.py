"""The log bridge and a real Prefect server that hangs: nothing is lost, nothing is doubled."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

import anyio
import psutil
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.logs import PrefectLogs, longest_message
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient
from prefect_ray_worker.ray_api.models import JobDetails
from tests.fake_ray import FakeRay
from tests.prefect_server import PrefectServer
from tests.waiting import wait_until


@contextmanager
def hanging(server: PrefectServer) -> Iterator[None]:
    """Let a server take connections and do nothing, then go on with what it was sent."""
    root = psutil.Process(server.process.pid)
    processes = [root, *root.children(recursive=True)]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


@flow
def some_flow() -> None: ...


async def lines_in(client: PrefectClient, run_id: UUID) -> list[str]:
    wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
    found: list[str] = []
    read = 0
    while page := await client.read_logs(wanted, offset=read, limit=200):
        read += len(page)
        found += [line for log in page for line in log.message.split("\n")]
    return found


def lines(first: int, last: int) -> list[str]:
    return [f"line {number:04}" for number in range(first, last)]


@pytest.mark.extra
async def test_server_that_hangs_gets_every_line_once(
    prefect_api: PrefectServer, prefect_settings: None
) -> None:
    async with (
        FakeRay() as ray,
        LogsClient(Connection(ray.address)) as logs,
        get_client(httpx_settings={"timeout": 2}) as client,
    ):
        run_id = (await client.create_flow_run(some_flow)).id
        job = ray.add_job("j")
        sink = PrefectLogs(client, run_id, anyio.CapacityLimiter(4))
        bridge = LogBridge(
            "j", attempt=1, reads=ClusterLogs(logs), sink=sink, longest=longest_message()
        )
        bridge.observe(JobDetails.model_validate(job.details()))
        task = asyncio.create_task(bridge.run())
        job.print("\n".join(lines(0, 100)) + "\n")
        await wait_until(lambda: bridge.lines_forwarded, description="some lines")
        with hanging(prefect_api):
            job.print("\n".join(lines(100, 500)) + "\n")
            await asyncio.sleep(8)
        job.print("\n".join(lines(500, 600)) + "\n")
        job.set("SUCCEEDED")
        bridge.observe(JobDetails.model_validate(job.details()))
        await asyncio.wait_for(task, 60)
        assert await lines_in(client, run_id) == lines(0, 600)
