"""A Prefect deployment runs as a Ray Job: the main job, on a real server and a real Ray.

That a failed flow is Failed, and a dead driver Crashed, is in the tour (`tests/fundamentals`).
"""

from pathlib import Path

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobStatus
from prefect_ray_worker.shared.ids import InfrastructurePid
from tests.integration.harness import Pool
from tests.real_ray import RealRay

pytestmark = pytest.mark.ray


@pytest.mark.extra
async def test_completed_run_is_a_ray_job(pool: Pool, ray_cluster: RealRay) -> None:
    async with pool.working():
        run_id = await pool.start("adds", {"left": 3, "right": 4})
        run = await pool.wait_for(run_id)
        await pool.wait_for_log(run_id, "adds says 7")
        await pool.wait_for_log(run_id, "is SUCCEEDED")
    assert run.state is not None
    assert run.state.type == StateType.COMPLETED
    assert run.infrastructure_pid is not None
    pid = InfrastructurePid.parse(run.infrastructure_pid)
    assert pid.cluster.name == ray_cluster.address
    async with JobsClient(Connection(pid.cluster.name)) as client:
        job = await client.get(pid.submission_id)
        version = await client.version()
    assert pid.session_name == version.session_name
    assert job.metadata is not None
    assert job.metadata["prefect.io/flow-run-id"] == str(run_id)
    assert job.metadata["prefect.io/work-pool-name"] == pool.name
    assert job.metadata["job_name"] == run.name
    assert job.driver_exit_code == 0


@pytest.mark.extra
async def test_command_that_exits_without_a_result_is_crashed(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start("adds", job_variables={"command": "true"})
        run = await pool.wait_for(run_id)
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    assert "without reporting a final state" in (run.state.message or "")


@pytest.mark.extra
async def test_command_that_fails_is_crashed_with_its_exit_code(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start("adds", job_variables={"command": "echo oh no; exit 3"})
        run = await pool.wait_for(run_id)
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    assert "exit code 3" in (run.state.message or "")
    assert "oh no" in (run.state.message or "")


async def test_command_override_runs_the_flow(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start(
            "adds", job_variables={"command": "prefect flow-run execute && echo done"}
        )
        run = await pool.wait_for(run_id)
    assert run.state is not None
    assert run.state.type == StateType.COMPLETED


@pytest.mark.extra
async def test_retried_run_is_a_new_job(pool: Pool, tmp_path: Path) -> None:
    from prefect.states import Scheduled

    async with pool.working():
        run_id = await pool.start("fails_at_first", {"marker": str(tmp_path / "tried")})
        first = await pool.wait_for(run_id, StateType.FAILED)
        await pool.client.set_flow_run_state(run_id, Scheduled())
        second = await pool.wait_for(run_id, StateType.COMPLETED)
    assert first.infrastructure_pid
    assert second.infrastructure_pid
    assert first.infrastructure_pid != second.infrastructure_pid


@pytest.mark.extra
async def test_two_workers_make_one_job_per_run(
    pool: Pool, ray_cluster: RealRay, tmp_path: Path
) -> None:
    marker = tmp_path / "ran"
    async with pool.working(count=2):
        runs = [await pool.start("counts_its_runs", {"marker": str(marker)}) for _ in range(2)]
        for run_id in runs:
            run = await pool.wait_for(run_id, seconds=120)
            assert run.state is not None
            assert run.state.type == StateType.COMPLETED
            await pool.wait_for_log(run_id, "is SUCCEEDED")
    assert marker.read_text().count("ran") == len(runs)
    async with JobsClient(Connection(ray_cluster.address)) as client:
        jobs = [
            job
            for job in await client.list()
            if (job.metadata or {}).get("prefect.io/work-pool-name") == pool.name
            and job.type == "SUBMISSION"
        ]
    assert len(jobs) == len(runs)
    assert all(job.status == JobStatus.SUCCEEDED for job in jobs)


@pytest.mark.extra
async def test_env_and_parameters_reach_the_flow(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start(
            "shows_environment",
            {"names": ["COLOUR", "FROM_RAY"]},
            job_variables={
                "env": {"COLOUR": "blue green"},
                "runtime_env": {"env_vars": {"FROM_RAY": "yes"}},
            },
        )
        run = await pool.wait_for(run_id)
        await pool.wait_for_log(run_id, "env COLOUR=blue green")
        await pool.wait_for_log(run_id, "env FROM_RAY=yes")
    assert run.state is not None
    assert run.state.is_completed()
