"""Cancelling and limits, to the end: the job has really ended before the run says so."""

from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound

from prefect_ray_worker.ray_api.client import JobsClient
from prefect_ray_worker.ray_api.connection import Connection
from prefect_ray_worker.ray_api.models import JobDetails, JobStatus
from prefect_ray_worker.shared.ids import ClusterRef, InfrastructurePid, submission_id
from prefect_ray_worker.worker import RayJobConfiguration
from tests.integration.harness import Pool
from tests.real_ray import RealRay
from tests.waiting import wait_until

pytestmark = pytest.mark.ray

NOWHERE = {"no_such_resource": 1.0}


async def job_of(pool: Pool, run_id: object) -> JobDetails:
    run = await pool.read(run_id)  # type: ignore[arg-type]
    pid = InfrastructurePid.parse(run.infrastructure_pid or "")
    async with JobsClient(Connection(pid.cluster.name)) as client:
        return await client.get(pid.submission_id)


def pid_of_no_job(address: str) -> str:
    job_id = submission_id(uuid4(), uuid4())
    return str(InfrastructurePid(ClusterRef.of_address(address), job_id))


async def test_cancelled_while_pending(pool: Pool) -> None:
    """A run whose job waits for resources is Cancelled without waiting for them."""
    async with pool.working():
        run_id = await pool.start("adds", job_variables={"entrypoint_resources": NOWHERE})
        await pool.wait_for_log(run_id, "is PENDING")
        await pool.cancel(run_id)
        run = await pool.wait_for(run_id, seconds=20)
        assert run.state is not None
        assert run.state.type == StateType.CANCELLED
        assert "waited for resources" in (run.state.message or "")
        assert (await job_of(pool, run_id)).status == JobStatus.PENDING


async def test_driver_that_does_not_react_is_stopped_after_the_grace(
    pool: Pool, tmp_path: Path
) -> None:
    """A started run is Cancelled too when its driver knows nothing of Prefect's cancelling."""
    marker = tmp_path / "runs"
    command = f"touch {marker}; trap '' TERM; while true; do sleep 0.2; done"
    async with pool.working():
        run_id = await pool.start(
            "adds", job_variables={"command": command, "stop_grace_seconds": 2}
        )
        await wait_until(marker.exists, timeout=60, description="the command to run")
        await pool.cancel(run_id)
        run = await pool.wait_for(run_id, seconds=40)
        assert run.state is not None
        assert run.state.type == StateType.CANCELLED
        job = await job_of(pool, run_id)
        assert job.is_terminal, job


@pytest.mark.extra
async def test_start_timeout_names_the_limit_and_what_ray_waits_for(pool: Pool) -> None:
    async with pool.working():
        run_id = await pool.start(
            "adds",
            job_variables={"entrypoint_resources": NOWHERE, "start_timeout_seconds": 3},
        )
        run = await pool.wait_for(run_id, seconds=40)
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    message = run.state.message or ""
    assert "start_timeout_seconds" in message
    assert "no_such_resource" in message
    assert "No node of the cluster can ever" in message


async def test_run_timeout_stops_the_job_and_names_the_limit(pool: Pool, tmp_path: Path) -> None:
    marker = tmp_path / "runs"
    async with pool.working():
        run_id = await pool.start(
            "sleeps",
            {"marker": str(marker)},
            job_variables={"run_timeout_seconds": 8, "stop_grace_seconds": 3},
        )
        run = await pool.wait_for(run_id, StateType.CRASHED, seconds=60)
        await pool.wait_for_log(run_id, "run timeout")
        await wait_until(
            lambda: renamed(pool, run_id), timeout=20, description="our message on the state"
        )
        assert (await job_of(pool, run_id)).is_terminal
    assert run.state is not None


async def renamed(pool: Pool, run_id: object) -> bool:
    run = await pool.read(run_id)  # type: ignore[arg-type]
    return run.state is not None and "run_timeout_seconds" in (run.state.message or "")


@pytest.mark.extra
async def test_stopped_outside_prefect_is_crashed(pool: Pool, ray_cluster: RealRay) -> None:
    async with pool.working():
        run_id = await pool.start(
            "adds", job_variables={"command": "sleep 60", "stop_grace_seconds": 1}
        )
        await pool.wait_for_log(run_id, "is RUNNING")
        job = await job_of(pool, run_id)
        async with JobsClient(Connection(ray_cluster.address)) as client:
            await client.stop(job.submission_id or "")
        run = await pool.wait_for(run_id, seconds=30)
    assert run.state is not None
    assert run.state.type == StateType.CRASHED
    assert "stopped outside Prefect" in (run.state.message or "")


async def test_kill_infrastructure_is_idempotent(pool: Pool, ray_cluster: RealRay) -> None:
    configuration = RayJobConfiguration(address=ray_cluster.address, stop_grace_seconds=1)
    async with pool.working() as (worker,):
        run_id = await pool.start(
            "adds", job_variables={"command": "sleep 60", "stop_grace_seconds": 1}
        )
        await pool.wait_for_log(run_id, "is RUNNING")
        pid = (await pool.read(run_id)).infrastructure_pid or ""
        for _ in range(2):
            await worker.kill_infrastructure(pid, configuration, grace_seconds=1)
            assert (await job_of(pool, run_id)).is_terminal


async def test_kill_infrastructure_tells_gone_from_unreachable(
    pool: Pool, ray_cluster: RealRay
) -> None:
    async with pool.working() as (worker,):
        await wait_until(lambda: worker.is_setup, description="the worker to be set up")
        here = RayJobConfiguration(address=ray_cluster.address, stop_grace_seconds=1)
        with pytest.raises(InfrastructureNotFound):
            await worker.kill_infrastructure(pid_of_no_job(ray_cluster.address), here)
        with pytest.raises(InfrastructureNotAvailable, match="configured for"):
            await worker.kill_infrastructure(pid_of_no_job("http://other:8265"), here)
        with pytest.raises(InfrastructureNotAvailable, match="another worker type"):
            await worker.kill_infrastructure("host:1234", here)
