"""Recovery across clusters, queues and configurations: what an heir may do, and what it may not."""

import fcntl
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import anyio
import certifi
import pytest
from prefect.client.schemas.objects import StateType
from prefect.states import Pending

from prefect_ray_worker.clusters.local.state import state_directory
from prefect_ray_worker.config.block import RayCluster
from prefect_ray_worker.runs.recovery.labels import CLUSTER_LABEL, OWNER_LABEL
from prefect_ray_worker.shared.ids import attempt_in, present_claim, submission_id
from tests.fake_ray import FakeRay
from tests.fake_ray.script import RUNS_FOREVER
from tests.integration.harness import new_pool
from tests.integration.stage import HEARTBEAT_SECONDS, Stage
from tests.integration.worker_process import worker_process
from tests.waiting import wait_until

ADDRESS = "PREFECT_INTEGRATIONS_RAY_WORKER_ADDRESS"
DEAD = {"prefect.worker.name": "dead"}


@pytest.fixture
async def gpu() -> AsyncIterator[FakeRay]:
    """A second cluster."""
    async with FakeRay() as ray:
        ray.on_submit = RUNS_FOREVER
        yield ray


@pytest.fixture
async def open_stage(stage: Stage) -> AsyncIterator[Stage]:
    """A pool that names no cluster: each worker has its own."""
    async with new_pool({}) as pool:
        yield Stage(pool, stage.ray)


async def claimed_run(
    stage: Stage, queue: str | None = None, **variables: object
) -> tuple[UUID, str]:
    """Leave a run as a worker does that dies between its claim and the submission."""
    client = stage.pool.client
    deployment = await stage.pool.deploy("adds", job_variables=variables)
    if queue is not None:
        await client.create_work_queue(name=queue, work_pool_name=stage.pool.name)
    run = await client.create_flow_run_from_deployment(
        deployment, state=Pending(), work_queue_name=queue
    )
    await client.update_flow_run_labels(run.id, dict(DEAD))
    claim = present_claim(await client.read_flow_run_states(run.id))
    assert claim is not None
    return run.id, submission_id(run.id, claim)


async def test_a_worker_of_another_queue_and_cluster_leaves_an_unsubmitted_run_alone(
    open_stage: Stage, gpu: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow for GPUs was submitted to the CPU cluster, as its own worker had died."""
    run_id, job_id = await claimed_run(open_stage, "gpu")
    monkeypatch.setenv(ADDRESS, open_stage.ray.address)
    async with open_stage.heir(name="cpu worker", work_queues=["default"]):
        await anyio.sleep(6)
        assert await open_stage.pool.state(run_id) == StateType.PENDING
        assert not open_stage.jobs_of(run_id)
        monkeypatch.setenv(ADDRESS, gpu.address)
        async with open_stage.heir(name="gpu worker", work_queues=["gpu"]):
            await wait_until(lambda: job_id in gpu.jobs, timeout=30, description="the submission")
            assert not open_stage.jobs_of(run_id)


async def test_a_run_goes_to_the_cluster_that_its_dead_worker_had_labelled(
    open_stage: Stage, gpu: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its submission may have arrived there: a second cluster must not get the same job."""
    run_id, job_id = await claimed_run(open_stage)
    attempt = attempt_in(job_id)
    labels = {OWNER_LABEL: f"{attempt} 123 - dead", CLUSTER_LABEL: f"{attempt} {gpu.address}"}
    await open_stage.pool.client.update_flow_run_labels(run_id, dict(labels))
    monkeypatch.setenv(ADDRESS, open_stage.ray.address)
    async with open_stage.heir(name="cpu worker"):
        await anyio.sleep(6)
        assert not open_stage.jobs_of(run_id)
        monkeypatch.setenv(ADDRESS, gpu.address)
        async with open_stage.heir(name="gpu worker"):
            await wait_until(lambda: job_id in gpu.jobs, timeout=30, description="the submission")
            assert not open_stage.jobs_of(run_id)


async def test_owner_is_recorded_before_a_cluster_is_acquired(
    open_stage: Stage, tmp_path: Path
) -> None:
    """A worker that dies while its Ray starts leaves an owned run, which any machine may take."""
    home = tmp_path / "home"
    folder = state_directory(home)
    folder.mkdir(parents=True)
    env = {"PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS)}
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever starts a Ray waits for this
        with worker_process(open_stage.pool.name, home, "--name", "first", env=env) as process:
            run_id = await open_stage.start()

            async def is_owned() -> bool:
                labels = (await open_stage.pool.read(run_id)).labels
                return str(labels.get(OWNER_LABEL, "")).endswith(" - first")

            await wait_until(is_owned, timeout=30, description="the label")
            process.kill()


async def test_dead_job_of_a_run_whose_configuration_is_broken_by_now_is_settled(
    stage: Stage, tmp_path: Path
) -> None:
    """Each look ended in a traceback, and the run stayed Running for ever."""
    authorities = tmp_path / "authorities.pem"
    shutil.copy(certifi.where(), authorities)
    block = RayCluster(address=stage.ray.address, ca_file=str(authorities))
    block_id = await block.save(f"broken-{uuid4().hex[:6]}")
    with stage.worker_process(tmp_path / "home", "--name", "first") as process:
        run_id, job = await stage.running(
            address=None, cluster={"$ref": {"block_document_id": str(block_id)}}
        )
        process.kill()
    authorities.unlink()
    async with stage.heir(name="first"):
        await stage.pool.wait_for_log(run_id, "its limits are the defaults")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")


async def test_unsubmitted_run_whose_configuration_is_broken_is_crashed_with_the_reason(
    stage: Stage, tmp_path: Path
) -> None:
    block = {"address": stage.ray.address, "ca_file": str(tmp_path / "gone.pem")}
    run_id, _ = await claimed_run(stage, address=None, cluster=block)
    cancelled, _ = await claimed_run(stage, address=None, cluster=block)
    await stage.pool.cancel(cancelled)
    async with stage.heir():
        await stage.ends(run_id, StateType.CRASHED, "cannot be submitted to Ray")
        await stage.ends(cancelled, StateType.CANCELLED, "before the run was submitted")


async def test_run_of_an_older_release_is_followed(stage: Stage) -> None:
    """It was in flight across the upgrade: its worker left one label and a pid."""
    run_id, job_id = await claimed_run(stage)
    job = stage.ray.add_job(job_id, metadata={"prefect.io/flow-run-id": str(run_id)})
    client = stage.pool.client
    labels = {OWNER_LABEL: f"{attempt_in(job_id)} 0123456789ab - RayWorker of before"}
    await client.update_flow_run_labels(run_id, dict(labels))
    pid = f"{stage.ray.address}/api/jobs/{job_id}#session_2026-01-01"
    await client.update_flow_run(run_id, infrastructure_pid=pid)
    await stage.play(run_id, StateType.RUNNING)
    async with stage.heir():
        await stage.pool.wait_for_log(run_id, "its worker has gone")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
