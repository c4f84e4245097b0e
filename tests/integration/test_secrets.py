"""Credentials of the Prefect API: never in a job by default, and three ways to give them."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.settings import PREFECT_API_AUTH_STRING, temporary_settings

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from tests.integration.harness import Pool, new_pool, settings_of
from tests.prefect_server import PrefectServer, prefect_server
from tests.real_ray import RealRay, real_ray
from tests.shared import NODES_PASSWORD

pytestmark = pytest.mark.ray

SECRET = NODES_PASSWORD
PREFIX = "PREFECT_INTEGRATIONS_RAY_WORKER_"


@pytest.fixture(scope="module")
def guarded_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A Prefect server that wants a password."""
    home = tmp_path_factory.mktemp("guarded-server")
    with prefect_server(home, {"PREFECT_SERVER_API_AUTH_STRING": SECRET}) as server:
        yield server


@asynccontextmanager
async def guarded_pool(api: PrefectServer, ray: RealRay, home: Path) -> AsyncIterator[Pool]:
    with (
        settings_of(api.api_url, home, PREFECT_WORKER_QUERY_SECONDS="1"),
        temporary_settings({PREFECT_API_AUTH_STRING: SECRET}),
    ):
        async with new_pool({"address": ray.address}) as pool:
            yield pool


async def run_once(pool: Pool) -> FlowRun:
    async with pool.working():
        run_id = await pool.start("adds")
        run = await pool.wait_for(run_id)
        logs = "\n".join(await pool.logs(run_id))
    assert SECRET not in logs
    return run


async def everything_ray_shows(ray: RealRay) -> str:
    """Return all that the Jobs API and Ray's logs say."""
    async with JobsClient(Connection(ray.address)) as client:
        shown = [job.model_dump_json() for job in await client.list()]
    for folder, _, names in os.walk(ray.temp_dir):
        for name in names:
            path = Path(folder) / name
            if path.suffix in (".log", ".out", ".err", ".txt") and path.is_file():
                shown.append(path.read_text(errors="replace"))
    return "\n".join(shown)


async def test_by_default_nothing_is_sent_and_the_run_says_the_three_ways(
    guarded_api: PrefectServer, ray_cluster: RealRay, tmp_path: Path
) -> None:
    async with guarded_pool(guarded_api, ray_cluster, tmp_path) as pool:
        run = await run_once(pool)
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    message = run.state.message or ""
    for way in ("environment of the Ray nodes", f"{PREFIX}NODE_SECRETS", f"{PREFIX}SEND_SECRETS"):
        assert way in message, message
    assert SECRET not in await everything_ray_shows(ray_cluster)


async def test_a_variable_of_the_nodes_is_named_and_its_value_is_nowhere(
    guarded_api: PrefectServer,
    ray_cluster: RealRay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(f"{PREFIX}NODE_SECRETS", '{"PREFECT_API_AUTH_STRING": "TEAM_PASSWORD"}')
    async with guarded_pool(guarded_api, ray_cluster, tmp_path) as pool:
        run = await run_once(pool)
    assert run.state is not None
    assert run.state.is_completed(), run.state
    shown = await everything_ray_shows(ray_cluster)
    assert "${TEAM_PASSWORD}" in shown
    assert SECRET not in shown


@pytest.mark.extra
async def test_sending_in_clear_is_possible_and_warned_of(
    guarded_api: PrefectServer,
    ray_cluster: RealRay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(f"{PREFIX}SEND_SECRETS", "true")
    async with guarded_pool(guarded_api, ray_cluster, tmp_path) as pool:
        run = await run_once(pool)
    assert run.state is not None
    assert run.state.is_completed(), run.state
    assert "SEND_SECRETS is on" in caplog.text
    assert SECRET in await everything_ray_shows(ray_cluster)


@pytest.mark.extra
async def test_nodes_that_have_the_password_themselves_need_nothing(
    guarded_api: PrefectServer, tmp_path: Path
) -> None:
    with real_ray(env={"PREFECT_API_AUTH_STRING": SECRET}) as ray:
        async with guarded_pool(guarded_api, ray, tmp_path) as pool:
            run = await run_once(pool)
        assert run.state is not None
        assert run.state.is_completed(), run.state
        assert SECRET not in await everything_ray_shows(ray)
