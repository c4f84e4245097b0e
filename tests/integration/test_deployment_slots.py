"""A run keeps its slot of the deployment's concurrency limit for as long as its job waits."""

from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import State, StateType
from prefect.states import Running, Scheduled

from prefect_ray_worker.prefect_api.flow_runs import DEPLOYMENT_SLOT_LOST
from prefect_ray_worker.runs.run import slot_lease_in
from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.harness import set_timing
from tests.integration.stage import Stage
from tests.prefect_server import LEASE_SECONDS
from tests.waiting import wait_until


@pytest.mark.extra  # the shortest lease of a server is 30 s
async def test_slot_is_kept_while_the_job_is_pending(stage: Stage) -> None:
    """It was lost between 31 and 41 s; a second run began, and the first was Cancelled."""
    pool = stage.pool
    stage.ray.on_submit = PENDING_FOREVER
    deployment = await pool.deploy("adds")
    await pool.client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=1))
    async with pool.working():
        first = await pool.client.create_flow_run_from_deployment(deployment, state=Scheduled())
        job = await stage.job_of(first.id)
        began = datetime.now(UTC)
        second = await pool.client.create_flow_run_from_deployment(deployment, state=Scheduled())
        while datetime.now(UTC) - began < timedelta(seconds=LEASE_SECONDS * 1.6):
            await anyio.sleep(1)
            assert stage.jobs_of(second.id) == []
        job.set("RUNNING")
        run = await pool.read(first.id)
        await pool.client.set_flow_run_state(run.id, Running())
        assert await pool.state(first.id) == StateType.RUNNING
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(first.id, StateType.CRASHED, "exit code 7")


async def test_a_lost_slot_is_said_in_the_state_and_in_the_log(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the log said so. Here the slot is given away as the server does when a lease ends."""
    set_timing(monkeypatch, slot_interval=0.5)
    pool, client = stage.pool, stage.pool.client
    stage.ray.on_submit = PENDING_FOREVER
    deployment = await pool.deploy("adds")
    await client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=1))
    async with pool.working():
        first = await client.create_flow_run_from_deployment(deployment, state=Scheduled())
        await stage.job_of(first.id)
        history = await client.read_flow_run_states(first.id)
        lease_id = slot_lease_in(history)
        assert lease_id is not None
        await client.release_concurrency_slots_with_lease(lease_id)

        async def shown() -> State[Any] | None:
            state = (await pool.read(first.id)).state
            return state if state is not None and state.name == DEPLOYMENT_SLOT_LOST else None

        state = await wait_until(shown, timeout=20, description="the state to say so")
        assert state is not None
        assert state.type == StateType.PENDING
        assert "grace_period_seconds" in (state.message or "")
        await pool.wait_for_log(first.id, "has lost its slot")
        second = await client.create_flow_run_from_deployment(deployment, state=Scheduled())
        await stage.job_of(second.id)  # has the slot now
        await client.set_flow_run_state(first.id, Running())  # as the flow begins
        run = await stage.ends(first.id, StateType.CANCELLED, "slot lost during provisioning")
        assert run.id == first.id
