"""An automation that matches a category, on a server that runs automations, as the guide says."""

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.harness import settings_of
from tests.integration.stage import STAGE_INTERVAL, Stage, new_stage
from tests.prefect_server import PrefectServer
from tests.shared import shared_prefect_server
from tests.waiting import wait_until

EXAMPLE = Path(__file__).parents[2] / "docs/examples/automations/pause-on-bad-environment.yaml"
_ENVIRONMENT = (
    Path(__file__).parents[1] / "unit/diagnosis/job_messages/pip-conflict.txt"
).read_text()


@pytest.fixture(scope="module")
def prefect_api() -> Iterator[PrefectServer]:
    """A server with the services that automations need; the other tests do without."""
    with shared_prefect_server(with_events=True) as server:
        yield server


@pytest.fixture
async def stage(
    prefect_api: PrefectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS", str(STAGE_INTERVAL))
    with settings_of(prefect_api.api_url, tmp_path / "home", PREFECT_WORKER_QUERY_SECONDS="1"):
        async with new_stage() as staged:
            yield staged


def create_automation(server: PrefectServer) -> None:
    """Create the example's automation by the command that stands in the guide."""
    subprocess.run(
        [sys.executable, "-m", "prefect", "automation", "create", "--from-file", str(EXAMPLE)],
        env={**os.environ, "PREFECT_API_URL": server.api_url, "PREFECT_HOME": str(server.home)},
        check=True,
        capture_output=True,
        timeout=60,
    )


async def deployment_of(stage: Stage, run_id: UUID) -> UUID:
    deployment = (await stage.pool.read(run_id)).deployment_id
    assert deployment is not None
    return deployment


async def is_paused(stage: Stage, deployment: UUID) -> bool:
    return (await stage.pool.client.read_deployment(deployment)).paused


@pytest.mark.extra
async def test_categories_are_matched_by_prefix(prefect_api: PrefectServer, stage: Stage) -> None:
    create_automation(prefect_api)
    async with stage.pool.working():
        other, job = await stage.running()
        job.set("FAILED", driver_exit_code=7, message="says RuntimeEnvFailed: in passing")
        await stage.ends(other, StateType.CRASHED, "DriverExited: ")
        run_id = await stage.start()
        (await stage.job_of(run_id)).set(
            "FAILED", error_type="RUNTIME_ENV_SETUP_FAILURE", message=_ENVIRONMENT
        )
        await stage.ends(run_id, StateType.CRASHED, "RuntimeEnvPackageConflict: ")
    broken = await deployment_of(stage, run_id)
    await wait_until(
        lambda: is_paused(stage, broken), timeout=60, description="the automation to act"
    )
    assert not await is_paused(stage, await deployment_of(stage, other))
