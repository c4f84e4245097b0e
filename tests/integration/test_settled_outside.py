"""A state set by hand or by an automation while the job runs: the job ends, the state stays."""

from uuid import UUID

import anyio
import pytest
from prefect.client.schemas.objects import StateType
from prefect.server.services.cancellation_cleanup import CANCELLING_TIMEOUT_CANCELLED_MESSAGE

from tests.fake_ray import FakeJob
from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.harness import set_timing
from tests.integration.stage import Stage
from tests.waiting import wait_until

PROMISED_SECONDS = 20


async def set_by_hand(
    stage: Stage, run_id: UUID, state: StateType, message: str = "by hand"
) -> None:
    """Set a state as the UI and automations do: without a transition id."""
    body = {"state": {"type": state.value, "message": message}, "force": True}
    await stage.pool.client.request("POST", f"/flow_runs/{run_id}/set_state", json=body)


async def test_job_is_stopped_and_the_state_stays(stage: Stage) -> None:
    """47 s after Cancelled or Failed was set by hand, flow and tasks still worked."""
    async with stage.pool.working():
        runs = {
            state: await stage.running()
            for state in (StateType.CANCELLED, StateType.FAILED, StateType.COMPLETED)
        }
        for state, (run_id, _) in runs.items():
            await set_by_hand(stage, run_id, state)
        for state, (run_id, job) in runs.items():
            await wait_until(
                lambda job=job: job.status == "STOPPED",
                timeout=PROMISED_SECONDS,
                description=f"the job of a run that is {state} to be stopped",
            )
            await stage.pool.wait_for_log(run_id, "set from outside")
        await stage.is_served()
        for state, (run_id, _) in runs.items():
            run = await stage.ends(run_id, state, "by hand")
            assert run.state is not None


async def test_job_that_has_not_started_is_stopped_at_once(stage: Stage) -> None:
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.pool.working():
        run_id = await stage.start()
        job = await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "is PENDING")
        await set_by_hand(stage, run_id, StateType.CANCELLED)
        await wait_until(lambda: job.stop_requests, timeout=10, description="a stop")
        job.set("RUNNING")
        await wait_until(lambda: job.status == "STOPPED", description="the end of the job")
        await stage.ends(run_id, StateType.CANCELLED, "by hand")


async def test_job_that_has_not_started_is_stopped_whoever_settles_its_run(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """States of Prefect's Python client look like a driver's own: the job waited until it was late.

    Meanwhile the run held its slot of `--limit`.
    """
    set_timing(monkeypatch, left_behind=0.5)
    stage.ray.on_submit = PENDING_FOREVER
    async with stage.pool.working(limit=1):
        run_id = await stage.start()
        job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.CANCELLED)
        await wait_until(lambda: job.stop_requests, timeout=10, description="a stop")
        job.set("STOPPED")
        await stage.job_of(await stage.start())
        await stage.ends(run_id, StateType.CANCELLED)


async def test_driver_that_reports_its_end_has_all_the_time_for_its_hooks(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks run after the final state, and may take long: that state is no one else's."""
    set_timing(monkeypatch, left_behind=0.5)
    async with stage.pool.working():
        run_id, job = await stage.running()
        await stage.play(run_id, StateType.COMPLETED)
        await anyio.sleep(6)
        assert job.stop_requests == 0
        job.set("SUCCEEDED")
        await stage.pool.wait_for_log(run_id, "is SUCCEEDED")
        await stage.ends(run_id, StateType.COMPLETED)


async def has_its_grace(stage: Stage, run_id: UUID, job: FakeJob) -> None:
    """Check that the job is stopped, and not before the 4 s of its grace are about to be over."""
    await anyio.sleep(2)
    assert job.stop_requests == 0
    await wait_until(lambda: job.status == "STOPPED", timeout=20, description="the job's end")
    assert not [line for line in await stage.pool.logs(run_id) if "set from outside" in line]
    await stage.ends(run_id, StateType.CANCELLED, CANCELLING_TIMEOUT_CANCELLED_MESSAGE)


@pytest.mark.parametrize("adopted", [False, True])
async def test_cancelling_timeout_of_the_server_does_not_shorten_the_grace(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, adopted: bool
) -> None:
    """With a grace above 300 s, the job was stopped 12 s later, as if by somebody's hand."""
    set_timing(monkeypatch, left_behind=0.5)
    timed_out = StateType.CANCELLED, CANCELLING_TIMEOUT_CANCELLED_MESSAGE
    async with stage.heir(name="same"):
        run_id, job = await stage.running(stop_grace_seconds=4)
        await stage.pool.cancel(run_id)
        if not adopted:
            await set_by_hand(stage, run_id, *timed_out)
            await has_its_grace(stage, run_id, job)
    if adopted:
        await set_by_hand(stage, run_id, *timed_out)
        async with stage.heir(name="same"):
            await has_its_grace(stage, run_id, job)
