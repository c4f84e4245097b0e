"""A Prefect server with a `PREFECT_SERVER_API_DEFAULT_LIMIT` that is lower than the usual 200."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import LogCreate, WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Pending, Running

from prefect_ray_worker.adhoc.log_tail import LogTail
from prefect_ray_worker.prefect_api.active_runs import (
    cancelling_runs,
    ended_runs,
    runs_by_id,
    settled_runs,
)
from prefect_ray_worker.prefect_api.children import Ending, end_children
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.prefect_api.logs import LOGGER_NAME, PrefectLogs, SentLog
from tests.integration.harness import settings_of
from tests.prefect_server import PrefectServer, prefect_server

LIMIT = 3
MANY = 8


@pytest.fixture(scope="module")
def limited_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    home = tmp_path_factory.mktemp("limited-server")
    with prefect_server(home, {"PREFECT_SERVER_API_DEFAULT_LIMIT": str(LIMIT)}) as server:
        yield server


@flow
def nothing() -> None:
    return None


@task
def something() -> None:
    return None


@pytest.mark.extra
async def test_logs_cancelling_and_recovery_work_with_a_low_limit(
    limited_api: PrefectServer, tmp_path: Path
) -> None:
    """All three were answered with 422."""
    with settings_of(limited_api.api_url, tmp_path):
        async with get_client() as client:
            before = datetime.now(UTC) - timedelta(seconds=5)
            pool = await client.create_work_pool(WorkPoolCreate(name="limited", type="ray"))
            flow_id = await client.create_flow(nothing)
            deployment = await client.create_deployment(
                flow_id=flow_id, name="d", work_pool_name="limited"
            )
            runs: list[FlowRun] = [
                await client.create_flow_run_from_deployment(deployment, state=Pending())
                for _ in range(MANY)
            ]
            ids = {run.id for run in runs}
            flow_runs = FlowRuns(client)
            assert set(await flow_runs.active(pool.id, pool.name)) == ids
            assert await flow_runs.online_workers("limited") == frozenset()

            for run in runs:
                body = {"state": {"type": "CANCELLING"}, "force": True}
                await client.request("POST", f"/flow_runs/{run.id}/set_state", json=body)
            assert await cancelling_runs(client, ids) == ids
            for run in runs:
                body = {"state": {"type": "CANCELLED"}, "force": True}
                await client.request("POST", f"/flow_runs/{run.id}/set_state", json=body)
            assert await settled_runs(client, ids) == dict.fromkeys(ids, True)
            assert set(await runs_by_id(client, ids)) == ids
            assert set(await ended_runs(client, pool.id, before)) == ids

            for n in range(MANY):
                await client.create_task_run(
                    something, runs[0].id, dynamic_key=str(n), state=Running()
                )
            ending = Ending(StateType.CRASHED, "The node died.", datetime.now(UTC))

            async def never() -> None: ...

            ended = await end_children(
                client, runs[0].id, ending, lambda ask: ask(), began_anew=never
            )
            assert ended == MANY

            began = datetime.now(UTC)
            logs = PrefectLogs(client, runs[0].id, anyio.CapacityLimiter(1))
            lines = [
                SentLog(LOGGER_NAME, began + timedelta(seconds=n), 20, f"line {n}")
                for n in range(MANY)
            ]
            await logs.post(lines)
            found: list[SentLog] = []
            offset: int | None = 0
            while offset is not None:
                page = await logs.find(after=began, before=None, newest_first=False, offset=offset)
                found += page.logs
                offset = page.following
            assert [log.message for log in found] == [log.message for log in lines]


@pytest.mark.extra
def test_caller_prints_a_log_that_is_longer_than_a_page(
    limited_api: PrefectServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pages that it asked for were too long: the call ended with 422, and the run went on."""
    with settings_of(limited_api.api_url, tmp_path), get_client(sync_client=True) as client:
        run = client.create_flow_run(nothing)
        now = datetime.now(UTC)
        logs = [
            LogCreate(name="x", level=20, message=f"line {n}", timestamp=now, flow_run_id=run.id)
            for n in range(MANY)
        ]
        client.create_logs(logs)
        tail = LogTail(run.id)
        for _ in range(2):
            tail.print_new(client)
    assert caplog.messages == [f"line {n}" for n in range(MANY)]
