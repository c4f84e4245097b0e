"""A tour of what the worker does. Read these tests first.

Each deploys a flow of `flows.py`, runs it on a real Prefect server and a real Ray, and checks what
a user would look at: the run's state, its log, and Ray's list of jobs.
"""

from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from tests.integration.driver_kit import ended_job
from tests.integration.harness import Pool
from tests.integration.worker_process import worker_process
from tests.waiting import wait_until

pytestmark = pytest.mark.ray


async def test_a_deployment_runs_as_a_ray_job(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start("greet", {"name": "Ada"})
        run = await pool.wait_for(run_id, StateType.COMPLETED)
        job = await ended_job(pool, run_id)
    assert run.state_type == StateType.COMPLETED
    assert job.status == "SUCCEEDED"
    assert job.metadata["prefect.io/flow-run-id"] == str(run_id)


async def test_what_a_flow_logs_and_prints_is_in_its_log_once(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start("greet", {"name": "Ada"})
        await pool.wait_for(run_id, StateType.COMPLETED)
        await pool.wait_for_log(run_id, "Hello, Ada")
        await pool.wait_for_log(run_id, "a line of the logger")
    lines = await pool.logs(run_id)
    assert sum("Hello, Ada" in line for line in lines) == 1
    assert sum("a line of the logger" in line for line in lines) == 1


async def test_tasks_fan_out_over_the_cluster(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start("sum_of_squares", {"count": 10})
        await pool.wait_for(run_id, StateType.COMPLETED)
        await pool.wait_for_log(run_id, "the sum is 285")
        await pool.wait_for_log(run_id, "squaring 9")  # a task's own line, from its process


async def test_a_flow_that_raises_is_failed(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start("fail")
        run = await pool.wait_for(run_id)
    assert run.state_type == StateType.FAILED
    assert "the user's code raised this" in (run.state.message or "")


async def test_a_driver_that_dies_is_crashed_and_the_state_says_why(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start("die")
        run = await pool.wait_for(run_id)
    assert run.state_type == StateType.CRASHED
    assert "SIGKILL" in (run.state.message or "")


async def test_cancelling_a_run_ends_its_job(pool: Pool, tmp_path: Path) -> None:
    async with pool.working():
        run_id = await pool.start("count_until", {"sign": str(tmp_path / "never")})
        await pool.wait_for_log(run_id, "second 1", seconds=60)
        await pool.cancel(run_id)
        run = await pool.wait_for(run_id, StateType.CANCELLED)
        job = await ended_job(pool, run_id)
    assert run.state_type == StateType.CANCELLED
    assert job.is_terminal


async def test_a_worker_dies_and_goes_on_with_its_run_when_it_is_back(
    pool: Pool, tmp_path: Path
) -> None:
    """The flow does not notice, and no line of its log is lost or doubled."""
    sign = tmp_path / "sign"
    with worker_process(pool.name, tmp_path / "home", "--name", "one") as first:
        run_id = await pool.start("count_until", {"sign": str(sign)})
        await pool.wait_for_log(run_id, "second 1", seconds=60)
        first.kill()
        first.wait()
    async with pool.working(name="one"):
        await pool.wait_for_log(run_id, "second 9", seconds=60)
        sign.touch()
        run = await pool.wait_for(run_id, StateType.COMPLETED)
        await pool.wait_for_log(run_id, "the end")
    assert run.run_count == 1
    counted = [line for line in await pool.logs(run_id) if line.startswith("second ")]
    assert sorted(counted) == sorted(f"second {number}" for number in range(len(counted)))


async def test_a_job_that_fits_no_node_says_what_it_waits_for(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start(
            "greet", {"name": "Ada"}, job_variables={"entrypoint_num_gpus": 4}
        )

        async def reason() -> str:
            run = await pool.read(run_id)
            message = run.state.message if run.state is not None else None
            return message if message and "GPU" in message else ""

        why = await wait_until(reason, timeout=60, description="a state that says why")
        assert "4 GPU" in why
        await pool.cancel(run_id)
        await pool.wait_for(run_id, StateType.CANCELLED)
