"""A worker that wakes: it looks for runs when Prefect says that there are some, not at its poll."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from uuid import UUID

import anyio
import pytest
from prefect import flow
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.states import Scheduled

from prefect_ray_worker.prefect_api.pool import RunChange, changes_of_runs
from tests.integration.harness import new_pool
from tests.integration.stage import Stage

POLL_SECONDS = 600
"""No test waits for a poll."""


@flow
def nothing() -> None:
    """Never runs."""


@pytest.fixture
async def stage(stage: Stage) -> AsyncIterator[Stage]:
    with temporary_settings({PREFECT_WORKER_QUERY_SECONDS: POLL_SECONDS}):
        yield stage


async def test_run_is_submitted_long_before_the_next_poll(stage: Stage) -> None:
    async with stage.pool.working():
        for _ in range(2):  # the first one might be the first poll's
            _, job = await stage.running()
            job.set("SUCCEEDED")


async def test_next_run_takes_a_freed_slot_at_once(stage: Stage) -> None:
    """With `--limit 1` each queued run waited for a poll after its predecessor's end."""
    async with stage.pool.working(limit=1):
        run_id, job = await stage.running()
        waiting = await stage.start()
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        await stage.job_of(waiting)


async def test_two_workers_submit_a_run_once(stage: Stage) -> None:
    async with stage.pool.working(name="first"), stage.pool.working(name="second"):
        runs = [await stage.start() for _ in range(6)]
        for run_id in runs:
            await stage.job_of(run_id)


async def test_runs_of_others_wake_no_worker(stage: Stage) -> None:
    """Every run of the server, of another pool or of none, made all workers of all pools look."""
    client = stage.pool.client
    pool = await client.read_work_pool(stage.pool.name)
    async with new_pool({}) as other:
        with anyio.fail_after(30):
            async with aclosing(changes_of_runs(pool.id)) as changes:
                assert await anext(changes) is None
                for name in (other.name, None, stage.pool.name):
                    run = await client.create_flow_run(
                        nothing, state=Scheduled(), work_pool_name=name
                    )
                assert await anext(changes) == RunChange(run.id, "scheduled")


async def test_worker_that_is_being_closed_takes_no_run(stage: Stage) -> None:
    """It waits for the runs that it has, and took new ones meanwhile."""
    worker = stage.pool.worker()
    worker.serves = True
    seen = list[StateType | None]()

    async def schedule(first: UUID) -> None:
        job = await stage.job_of(first)
        await anyio.sleep(0.5)
        second = await stage.start()
        await anyio.sleep(2)
        seen.append(await stage.pool.state(second))
        await stage.pool.client.delete_flow_run(second)
        await stage.play(first, StateType.COMPLETED)
        job.set("SUCCEEDED")

    with anyio.move_on_after(40):
        async with anyio.create_task_group() as tasks, worker:
            run_id = await stage.start()
            await stage.pool.wait_for(run_id, StateType.PENDING)
            tasks.start_soon(schedule, run_id)
    assert seen == [StateType.SCHEDULED]
