"""A run keeps its slot of the deployment's concurrency limit for as long as its job waits."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import StateType
from prefect.states import Running, Scheduled

from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.harness import settings_of
from tests.integration.stage import Stage, new_stage
from tests.prefect_server import prefect_server

LEASE_SECONDS = 30
"""The shortest that a server takes."""


@pytest.fixture
async def strict_stage(tmp_path: Path) -> AsyncIterator[Stage]:
    setting = "PREFECT_SERVER_CONCURRENCY_INITIAL_DEPLOYMENT_LEASE_DURATION"
    with (
        prefect_server(tmp_path / "server", {setting: str(LEASE_SECONDS)}) as server,
        settings_of(server.api_url, tmp_path / "home", PREFECT_WORKER_QUERY_SECONDS="1"),
    ):
        async with new_stage() as staged:
            yield staged


async def test_slot_is_kept_while_the_job_is_pending(strict_stage: Stage) -> None:
    """It was lost between 31 and 41 s; a second run began, and the first was Cancelled."""
    pool = strict_stage.pool
    strict_stage.ray.on_submit = PENDING_FOREVER
    deployment = await pool.deploy("adds")
    await pool.client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=1))
    async with pool.working():
        first = await pool.client.create_flow_run_from_deployment(deployment, state=Scheduled())
        job = await strict_stage.job_of(first.id)
        began = datetime.now(UTC)
        second = await pool.client.create_flow_run_from_deployment(deployment, state=Scheduled())
        while datetime.now(UTC) - began < timedelta(seconds=LEASE_SECONDS * 1.6):
            await anyio.sleep(1)
            assert strict_stage.jobs_of(second.id) == []
        job.set("RUNNING")
        run = await pool.read(first.id)
        await pool.client.set_flow_run_state(run.id, Running())
        assert await pool.state(first.id) == StateType.RUNNING
        job.set("FAILED", driver_exit_code=7)
        await strict_stage.ends(first.id, StateType.CRASHED, "exit code 7")
