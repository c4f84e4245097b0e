"""A process that calls a bound flow, or `worker.submit`, submits and nothing more."""

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from prefect import flow
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import StateType, WorkPoolStorageConfiguration
from prefect.flows import Flow, bind_flow_to_infrastructure
from prefect.settings import PREFECT_HOME
from prefect.states import Pending

from prefect_ray_worker.clusters.local.state import state_directory
from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.runs.recovery.labels import UPLOADING_LABEL
from prefect_ray_worker.shared.ids import attempt_name
from prefect_ray_worker.worker import RayWorker
from tests.integration.harness import Pool, new_pool, set_timing
from tests.integration.stage import Stage
from tests.integration.test_infrastructure_retries import kill_supervisor, next_job, soon
from tests.waiting import wait_until

__all__ = ["soon"]
LAUNCHER = {"upload": [sys.executable], "execution": ["python"]}


@flow
def trains() -> int:
    return 1


async def store_bundles(pool: Pool, folder: Path) -> None:
    folder.mkdir()
    step: dict[str, Any] = {"folder": str(folder)}
    storage = WorkPoolStorageConfiguration(
        bundle_upload_step={"tests.integration.bundles.upload": step},
        bundle_execution_step={"tests.integration.bundles.execute": step},
    )
    await pool.client.update_work_pool(pool.name, WorkPoolUpdate(storage_configuration=storage))


def bound(pool: Pool) -> "Flow[..., int]":
    return bind_flow_to_infrastructure(
        trains, work_pool=pool.name, worker_cls=RayWorker, launcher=LAUNCHER
    )


async def test_caller_is_no_worker_of_the_pool(stage: Stage) -> None:
    """It was online for 90 s after its end, and adopted production runs."""
    deployment = await stage.pool.deploy("adds")
    orphan = await stage.pool.client.create_flow_run_from_deployment(deployment, state=Pending())
    await stage.pool.client.update_flow_run_labels(orphan.id, {"prefect.worker.name": "dead"})
    async with RayWorker(work_pool_name=stage.pool.name, heartbeat_interval_seconds=2):
        await anyio.sleep(4)
        online = await FlowRuns(stage.pool.client).online_workers(stage.pool.name)
        assert online == frozenset()
    assert stage.jobs_of(orphan.id) == []


async def test_what_a_caller_raises_arrives_as_it_was_raised(stage: Stage) -> None:
    """It arrived inside two groups of exceptions."""
    with pytest.raises(ZeroDivisionError):
        async with RayWorker(work_pool_name=stage.pool.name):
            _ = 1 / 0
    with pytest.raises(RuntimeError, match="Storage is not configured"):
        async with RayWorker(work_pool_name=stage.pool.name) as worker:
            await worker.submit(bound(stage.pool))


async def test_caller_leaves_its_run_to_the_pools_workers(stage: Stage, tmp_path: Path) -> None:
    """And a run without a deployment has its infrastructure retries."""
    await store_bundles(stage.pool, tmp_path / "bundles")
    more = {**stage.pool.defaults, "infrastructure_retries": 1}
    async with stage.heir(name="serves"):
        async with RayWorker(work_pool_name=stage.pool.name) as worker:
            future = await worker.submit(bound(stage.pool), job_variables=more)
            run = await stage.pool.read(future.flow_run_id)
            assert UPLOADING_LABEL in run.labels
        run_id = future.flow_run_id
        first = await stage.job_of(run_id)
        await stage.pool.wait_for_log(run_id, "Following Ray Job")
        await stage.play(run_id, StateType.RUNNING)
        kill_supervisor(first)
        second = await next_job(stage, run_id, [first])
        second.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")


async def test_caller_starts_no_ray(prefect_settings: None, tmp_path: Path) -> None:
    async with new_pool({}) as pool:
        await store_bundles(pool, tmp_path / "bundles")
        async with RayWorker(work_pool_name=pool.name) as worker:
            future = await worker.submit(bound(pool))
        run = await pool.wait_for(future.flow_run_id)
        assert run.state is not None
        assert "names no Ray cluster" in (run.state.message or "")
    assert not state_directory(PREFECT_HOME.value()).exists()


async def test_no_worker_submits_a_run_whose_code_is_still_uploaded(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 60 s any worker of the pool submitted it, before its bundle existed."""
    set_timing(monkeypatch, claim_grace=1.0)
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_UNREACHABLE_LIMIT_SECONDS", "8")
    deployment = await stage.pool.deploy("adds")
    client = stage.pool.client
    run = await client.create_flow_run_from_deployment(deployment, state=Pending())
    state = (await client.read_flow_run(run.id)).state
    assert state is not None
    await client.update_flow_run_labels(run.id, {UPLOADING_LABEL: attempt_name(state.id)})
    other = await client.create_flow_run_from_deployment(deployment, state=Pending())
    async with stage.heir():
        await wait_until(
            lambda: stage.jobs_of(other.id), timeout=20, description="a run without that label"
        )
        await stage.ends(run.id, StateType.CRASHED, "has not uploaded its code")
    assert stage.jobs_of(run.id) == []
