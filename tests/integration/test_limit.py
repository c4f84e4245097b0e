"""`--limit`: a slot is free once its run is settled, and a second claim never kills the worker."""

from uuid import UUID

import anyio
import pytest
from aiohttp import web
from prefect.client.schemas.objects import StateType
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    temporary_settings,
)
from prefect.states import Scheduled

from prefect_ray_worker.shared.ids import INFRASTRUCTURE_RETRY
from tests.fake_ray import FakeJob, Fault, Kind
from tests.integration.busy_api import busy_api
from tests.integration.harness import QUERY_SECONDS, set_timing
from tests.integration.stage import Stage
from tests.integration.test_infrastructure_retries import kill_supervisor, next_job


def keep_log_away(stage: Stage, *jobs: FakeJob) -> None:
    """Print a line that the cluster does not hand out before `hand_out_logs`."""
    for job in jobs:
        job.print("the last line\n")
    stage.ray.faults.add(Fault("GET", "/logs/", kind=Kind.HANG, times=None))


def hand_out_logs(stage: Stage) -> None:
    stage.ray.faults.clear()
    stage.ray.faults.release()


async def schedule_again(stage: Stage, run_id: UUID) -> None:
    """Run it again, as the button of the UI or an automation does."""
    await stage.pool.client.set_flow_run_state(run_id, Scheduled(), force=True)


async def test_slot_is_free_while_the_log_drains(stage: Stage) -> None:
    """The only slot was held for as long as the log of a settled run took."""
    async with stage.pool.working(limit=1):
        run_id, job = await stage.running()
        keep_log_away(stage, job)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        other, other_job = await stage.running()
        assert "the last line" not in await stage.pool.logs(run_id)
        hand_out_logs(stage)
        await stage.pool.wait_for_log(run_id, "the last line")
        other_job.set("FAILED", driver_exit_code=7)
        await stage.ends(other, StateType.CRASHED, "exit code 7")


async def test_run_that_is_claimed_again_while_its_log_drains(stage: Stage) -> None:
    """The second claim raised RuntimeError, which ended Prefect's loop and the worker with it."""
    async with stage.pool.working(limit=1):
        run_id, job = await stage.running()
        keep_log_away(stage, job)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        await schedule_again(stage, run_id)
        second = await next_job(stage, run_id, [job])
        hand_out_logs(stage)
        await stage.pool.wait_for_log(run_id, "the last line")
        second.set("FAILED", driver_exit_code=8)
        await stage.ends(run_id, StateType.CRASHED, "exit code 8")
        await stage.is_served()


async def test_run_whose_deployment_is_deleted_keeps_no_slot(stage: Stage) -> None:
    """Prefect cancels it when it is run again, and kept the slot that it had taken for it."""
    async with stage.pool.working(limit=1):
        run_id, job = await stage.running()
        job.set("FAILED", driver_exit_code=7)
        run = await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        assert run.deployment_id is not None
        await stage.pool.client.delete_deployment(run.deployment_id)
        await schedule_again(stage, run_id)
        await stage.pool.wait_for(run_id, StateType.CANCELLED, seconds=20)
        await stage.is_served()


@pytest.mark.parametrize("limit", [1, pytest.param(None, marks=pytest.mark.extra)])
async def test_run_that_is_claimed_again_while_its_job_ends_waits(
    stage: Stage, limit: int | None
) -> None:
    """A driver reports "reschedule" and takes seconds to exit; the next claim comes meanwhile."""
    async with stage.pool.working(limit=limit):
        run_id, job = await stage.running()
        await schedule_again(stage, run_id)
        await anyio.sleep(4 * float(QUERY_SECONDS))
        assert stage.jobs_of(run_id) == [job], "no second job beside the first"
        job.set("SUCCEEDED")
        second = await next_job(stage, run_id, [job])
        second.set("FAILED", driver_exit_code=8)
        await stage.ends(run_id, StateType.CRASHED, "exit code 8")


async def test_second_attempt_is_not_crashed_by_the_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect proposed Crashed for attempt 1's exit code, and attempt 2 was Running by then."""
    set_timing(monkeypatch, retry_delay=0.1)
    async with stage.pool.working():
        run_id, job = await stage.running(infrastructure_retries=1)
        keep_log_away(stage, job)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        await schedule_again(stage, run_id)
        second = await next_job(stage, run_id, [job])
        hand_out_logs(stage)
        await stage.pool.wait_for_log(run_id, "the last line")
        kill_supervisor(second)
        third = await next_job(stage, run_id, [job, second])
        run = await stage.pool.read(run_id)
        assert run.state is not None
        assert run.state.is_running()
        third.set("FAILED", driver_exit_code=9)
        await stage.ends(run_id, StateType.CRASHED, "exit code 9")
    states = await stage.pool.client.read_flow_run_states(run_id)
    assert sum(state.name == INFRASTRUCTURE_RETRY for state in states) == 1
    crashed = [state.message or "" for state in states if state.is_crashed()]
    assert len(crashed) == 2, crashed
    assert not any("non-zero status" in message for message in crashed), crashed


async def test_run_whose_deployment_cannot_be_read_keeps_no_other_from_starting(
    stage: Stage,
) -> None:
    """The oldest run took the only slot at each poll, and failed."""
    broken = await stage.pool.deploy("adds")

    def refuses(request: web.Request) -> web.Response | None:
        is_broken = request.path.endswith(f"/deployments/{broken}")
        return web.Response(status=500, text="oops") if is_broken else None

    run = await stage.pool.client.create_flow_run_from_deployment(broken, state=Scheduled())
    other = await stage.start()
    async with busy_api(PREFECT_API_URL.value(), refuses) as url:
        with temporary_settings({PREFECT_API_URL: url, PREFECT_CLIENT_MAX_RETRIES: 0}):
            async with stage.pool.working(limit=1):
                await stage.job_of(other)
                await stage.pool.wait_for_log(run.id, "stays scheduled")
    assert await stage.pool.state(run.id) == StateType.SCHEDULED
