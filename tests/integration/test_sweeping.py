"""Records of finished jobs are deleted when their time has come, and orphaned jobs stopped."""

from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.shared.ids import DELETE_AFTER_KEY
from tests.fake_ray import FakeJob, FakeRay, Fault, Kind
from tests.integration.harness import set_timing
from tests.integration.stage import Stage
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    set_timing(monkeypatch, sweep=1.0)


async def metadata_of(stage: Stage, **more: Any) -> dict[str, str]:
    pool = await stage.pool.client.read_work_pool(stage.pool.name)
    return {
        "prefect.io/flow-run-id": str(uuid4()),
        "prefect.io/work-pool-id": str(pool.id),
        **more,
    }


def ended(stage: Stage, name: str, metadata: dict[str, str]) -> FakeJob:
    job = stage.ray.add_job(name, metadata=metadata)
    job.set("SUCCEEDED")
    return job


async def test_finished_jobs_are_deleted_when_their_time_has_come(stage: Stage) -> None:
    """Our own, whose time it is: also those of workers that are gone."""
    due = {DELETE_AFTER_KEY: "5"}
    ended(stage, "of-a-worker-that-is-gone", await metadata_of(stage, **due))
    ended(stage, "stays-for-ever", await metadata_of(stage))
    ended(
        stage,
        "of-another-pool",
        {**await metadata_of(stage, **due), "prefect.io/work-pool-id": str(uuid4())},
    )
    ended(stage, "of-another-tool", {})
    async with stage.heir():
        run_id, job = await stage.running(delete_job_after_seconds=5)
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED)
        await wait_until(
            lambda: job.submission_id not in stage.ray.jobs,
            timeout=20,
            description="the deletion",
        )
        assert job.seconds_since_end >= 5
        await wait_until(
            lambda: "of-a-worker-that-is-gone" not in stage.ray.jobs,
            timeout=10,
            description="the deletion of the old one",
        )
    assert {"stays-for-ever", "of-another-pool", "of-another-tool"} <= stage.ray.jobs.keys()


async def test_job_of_a_run_that_was_deleted_meanwhile_is_stopped(stage: Stage) -> None:
    orphan = stage.ray.add_job("orphan", metadata=await metadata_of(stage))
    async with stage.heir():
        await stage.is_served()  # the cluster is one of the worker's from now on
        await wait_until(lambda: orphan.status == "STOPPED", timeout=20, description="the stop")


async def test_trouble_with_one_cluster_leaves_no_other_one_unswept(stage: Stage) -> None:
    async with FakeRay() as other, stage.heir():
        await stage.is_served()
        nested = "[" * 100_000
        stage.ray.faults.add(
            Fault("GET", "/api/jobs/$", Kind.STATUS, status=200, body=nested, times=None)
        )
        due = other.add_job("due", metadata=await metadata_of(stage, **{DELETE_AFTER_KEY: "5"}))
        due.set("SUCCEEDED")
        await stage.start(address=other.address)
        await wait_until(lambda: "due" not in other.jobs, timeout=30, description="the deletion")
