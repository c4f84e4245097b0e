"""The Prefect server hangs while things happen on the cluster: nothing is lost, nothing doubled."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from uuid import UUID

import anyio
import httpx
import pytest
from prefect import flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_REQUEST_TIMEOUT, temporary_settings

from prefect_ray_worker.logs.bridge import LogBridge
from prefect_ray_worker.logs.read import ClusterLogs
from prefect_ray_worker.prefect_api.logs import PrefectLogs, longest_message
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.logs import LogsClient
from prefect_ray_worker.ray_api.models import JobDetails
from tests.fake_ray import FakeRay
from tests.integration.stage import Stage
from tests.prefect_server import PrefectServer, send_what_is_left
from tests.resilience.proxy import Mode, Proxy, proxy
from tests.waiting import wait_until


@pytest.fixture
async def between(shared_prefect_api: PrefectServer) -> AsyncIterator[Proxy]:
    """A proxy before the server, which others use as well."""
    async with proxy(httpx.URL(shared_prefect_api.api_url).port or 0) as between:
        yield between
        # In a thread, for what is sent goes through this loop.
        await asyncio.to_thread(send_what_is_left)


@pytest.fixture
def prefect_api(shared_prefect_api: PrefectServer, between: Proxy) -> PrefectServer:
    return replace(shared_prefect_api, api_url=f"{between.address}/api")


@contextmanager
def hanging(between: Proxy) -> Iterator[None]:
    """A server that takes connections and answers late what it was sent, as one that swaps."""
    between.become(Mode.HANGS)
    try:
        yield
    finally:
        between.become(Mode.PASSES)


async def test_job_that_ends_while_prefect_is_away_is_settled_when_it_is_back(
    stage: Stage, between: Proxy
) -> None:
    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: 1.0}):
        async with stage.pool.working():
            run_id, job = await stage.running()
            with hanging(between):
                job.set("FAILED", driver_exit_code=6)
                # Longer than a request may take: at least one of the worker's has failed.
                await anyio.sleep(3)
            await stage.ends(run_id, StateType.CRASHED, "exit code 6")
            await stage.is_served()


async def test_prefect_that_is_away_between_submission_and_start_loses_no_run(
    stage: Stage, between: Proxy
) -> None:
    """The job is found again under its id, whatever the worker could not report meanwhile."""
    with temporary_settings({PREFECT_API_REQUEST_TIMEOUT: 1.0}):
        async with stage.pool.working():
            run_id = await stage.start()
            job = await stage.job_of(run_id)
            with hanging(between):
                await anyio.sleep(2.5)
            await stage.pool.wait_for_log(run_id, "is RUNNING")
            assert stage.jobs_of(run_id) == [job]
            job.set("FAILED", driver_exit_code=8)
            await stage.ends(run_id, StateType.CRASHED, "exit code 8")


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
    between: Proxy, prefect_settings: None
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
        with hanging(between):
            job.print("\n".join(lines(100, 500)) + "\n")
            await asyncio.sleep(8)
        job.print("\n".join(lines(500, 600)) + "\n")
        job.set("SUCCEEDED")
        bridge.observe(JobDetails.model_validate(job.details()))
        await asyncio.wait_for(task, 60)
        assert await lines_in(client, run_id) == lines(0, 600)
