"""A pool that is paused, or deleted under its worker, costs no run its outcome."""

import anyio
import pytest
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Scheduled

from prefect_ray_worker.worker import RayWorker
from tests.fake_ray.script import PENDING_FOREVER
from tests.integration.harness import default_template
from tests.integration.stage import HEARTBEAT_SECONDS, Stage
from tests.waiting import wait_until

LOOKS_SECONDS = HEARTBEAT_SECONDS * 2.0


async def test_paused_pool_starts_nothing_and_loses_nothing(stage: Stage) -> None:
    async with stage.heir():
        run_id, job = await stage.running()
        await stage.pool.client.update_work_pool(stage.pool.name, WorkPoolUpdate(is_paused=True))
        waits = await stage.start()
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        await anyio.sleep(LOOKS_SECONDS)
        assert not stage.jobs_of(waits)
        await stage.pool.client.update_work_pool(stage.pool.name, WorkPoolUpdate(is_paused=False))
        job = await stage.job_of(waits)
        job.set("FAILED", driver_exit_code=8)
        await stage.ends(waits, StateType.CRASHED, "exit code 8")


async def test_pool_is_deleted_while_its_runs_run(stage: Stage) -> None:
    """The worker goes on with them, and serves the pool once it is there again."""
    client, name = stage.pool.client, stage.pool.name
    async with stage.heir():
        ended, job = await stage.running()
        goes_on, _ = await stage.running()
        await client.delete_work_pool(name)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(ended, StateType.CRASHED, "exit code 7")
        await anyio.sleep(LOOKS_SECONDS)
        assert not stage.jobs_of(goes_on)[0].is_terminal, "nobody has asked for its end"
        template = RayWorker.get_default_base_job_template()
        await client.create_work_pool(
            WorkPoolCreate(name=name, type="ray", base_job_template=template), overwrite=True
        )
        await stage.is_served()


async def test_runs_of_a_deleted_pool_are_cancelled_and_taken_over(stage: Stage) -> None:
    """Prefect finds the pool of a run through its queue, which was deleted with the pool."""
    client, name = stage.pool.client, stage.pool.name
    async with stage.pool.working():
        run_id, job = await stage.running()
        stage.ray.on_submit = PENDING_FOREVER
        waits = await stage.start()
        waiting = await stage.job_of(waits)
        await stage.pool.wait_for_log(waits, "is PENDING")
        await client.delete_work_pool(name)
        await stage.pool.cancel(waits)
        await wait_until(lambda: waiting.stop_requests, timeout=10, description="a stop")
        waiting.set("STOPPED")
        await stage.ends(waits, StateType.CANCELLED)
    await client.create_work_pool(
        WorkPoolCreate(name=name, type="ray", base_job_template=default_template())
    )
    async with stage.pool.working():
        await stage.pool.wait_for_log(run_id, "Following Ray Job")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")


@pytest.mark.extra
async def test_run_that_waits_in_its_process_for_a_retry_is_taken_over(stage: Stage) -> None:
    """Prefect calls it Scheduled, and gives it to no worker: its process goes on with it."""
    async with stage.heir():
        run_id, job = await stage.running()
        run = await stage.pool.read(run_id)
        policy = run.empirical_policy.model_copy(update={"retry_type": "in_process"})
        await stage.pool.client.update_flow_run(run_id, empirical_policy=policy)
        waits = Scheduled(name="AwaitingRetry")
        await stage.pool.client.set_flow_run_state(run_id, waits, force=True)
    async with stage.heir():
        await stage.pool.wait_for_log(run_id, "Following Ray Job", seconds=40)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
    assert len(stage.jobs_of(run_id)) == 1


async def test_worker_that_starts_before_its_pool_serves_it_later(stage: Stage) -> None:
    """It ended with a traceback of three groups; Prefect's own workers go on asking."""
    client, name = stage.pool.client, stage.pool.name
    await client.delete_work_pool(name)
    with pytest.raises(ObjectNotFound):  # and no group
        async with stage.pool.worker():
            pass  # a caller cannot go on without it
    once = stage.pool.worker(create_pool_if_not_found=False)
    await once.start(run_once=True, printer=lambda *_: None)
    async with stage.heir(create_pool_if_not_found=False) as worker:
        await wait_until(lambda: worker.is_setup, description="a worker without a pool")
        await client.create_work_pool(
            WorkPoolCreate(name=name, type="ray", base_job_template=default_template())
        )
        await stage.is_served()
        await wait_until(lambda: worker._recovery.workers_online, description="a look for orphans")
