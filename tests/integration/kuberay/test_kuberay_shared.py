"""Runs that share a cluster: made once, joined, left, and deleted when it is idle."""

import re
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.logs import bridge
from tests.fake_kubernetes import NO_NODE, Script
from tests.integration.harness import default_template, set_timing
from tests.integration.kuberay.stage import KubeRayStage
from tests.waiting import wait_until

SHARED: dict[str, Any] = {"scope": "shared", "idle_seconds": 2}


@pytest.fixture
async def stage(stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch) -> KubeRayStage:
    """The sweep comes each half second."""
    set_timing(monkeypatch, sweep=0.5)
    return stage


async def finished(stage: KubeRayStage, run_id: UUID) -> str:
    """Let a run come to its end, and return the cluster that it ran on."""
    name, job = await stage.shared_job_of(run_id)
    await stage.play(run_id, StateType.RUNNING)
    await stage.completes(run_id, job)
    await stage.ends(run_id, StateType.COMPLETED)
    return name


async def all_gone(stage: KubeRayStage, *, seconds: float = 20) -> None:
    await wait_until(
        lambda: not stage.kubernetes.clusters(), timeout=seconds, description="the clusters' end"
    )


async def test_ten_runs_share_a_cluster_that_goes_when_it_is_idle(stage: KubeRayStage) -> None:
    async with stage.pool.working():
        runs = [await stage.start(kuberay=SHARED) for _ in range(10)]
        names = {await finished(stage, run_id) for run_id in runs}
        assert len(names) == 1
        (name,) = names
        assert re.fullmatch(r"ray-ray-[0-9a-f]{8}-[0-9a-f]{10}-1", name)
        assert stage.kubernetes.requests.number_of("POST", "/rayclusters$") >= 1
        run = await stage.pool.read(runs[0])
        assert (run.infrastructure_pid or "").startswith(f"kuberay:ray/{name}@")
        await all_gone(stage)
        assert list(stage.heads.by_cluster) == [name]


async def test_a_changed_specification_makes_a_new_cluster_and_the_old_one_idles_out(
    stage: KubeRayStage,
) -> None:
    async with stage.pool.working():
        first = await stage.start(kuberay=SHARED)
        old, _ = await stage.shared_job_of(first)
        second = await stage.start(kuberay={**SHARED, "head": {"cpus": 2}})
        new, _ = await stage.shared_job_of(second)
        assert new != old
        await finished(stage, first)
        await wait_until(
            lambda: stage.kubernetes.clusters() == [new], timeout=20, description="the old's end"
        )
        await finished(stage, second)
        await all_gone(stage)


async def test_runs_whose_shared_cluster_is_deleted_crash_and_their_logs_are_given_up(
    stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge, "_SILENT_SECONDS", 1.0)
    async with stage.pool.working():
        run_id = await stage.start(kuberay=SHARED)
        name, job = await stage.shared_job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        job.print("what was read\n")
        await stage.pool.wait_for_log(run_id, "what was read")
        stage.kubernetes.store.delete("rayclusters", "ray", name)
        await stage.ends(run_id, StateType.CRASHED, "^ClusterDeleted: ")
        job.print("what cannot be read\n")
        await stage.pool.wait_for_log(
            run_id, "cannot be read any more: 1 lines of it had been read"
        )

        async def is_finished() -> bool:
            labels = (await stage.pool.read(run_id)).labels
            return any(
                k.startswith("prefect-ray-worker.unfinished") and v == "no"
                for k, v in labels.items()
            )

        await wait_until(is_finished, timeout=15, description="nothing left to do")
        again = await stage.start(kuberay=SHARED)
        await finished(stage, again)
        await all_gone(stage)


async def test_cancelling_a_run_that_waits_for_a_shared_cluster_leaves_it_to_the_others(
    stage: KubeRayStage,
) -> None:
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    async with stage.pool.working():
        stays, goes = [await stage.start(kuberay=SHARED) for _ in range(2)]
        for run_id in (stays, goes):
            await stage.pool.wait_for_log(run_id, "the head waits for a node: 0/5 nodes")
        (name,) = stage.kubernetes.clusters()
        await stage.pool.cancel(goes)
        await stage.ends(goes, StateType.CANCELLED, "other runs can use it", seconds=15)
        waits.unschedulable = None
        assert await finished(stage, stays) == name
        await all_gone(stage)


@pytest.mark.extra
async def test_a_new_pool_of_the_name_takes_over_a_cluster_that_gets_its_id(
    stage: KubeRayStage,
) -> None:
    """As `docs/explanation/recovery.md` says. Without it, the cluster counts as unreachable."""
    client, name = stage.pool.client, stage.pool.name
    async with stage.pool.working():
        run_id = await stage.start(kuberay=SHARED)
        cluster, job = await stage.shared_job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.pool.wait_for_log(run_id, "is RUNNING")
    await client.delete_work_pool(name)
    made = await client.create_work_pool(
        WorkPoolCreate(name=name, type="ray", base_job_template=default_template())
    )
    labels = {"prefect.io/work-pool-id": str(made.id)}
    stage.kubernetes.store.patch("rayclusters", "ray", cluster, {"metadata": {"labels": labels}})
    async with stage.pool.working():
        await stage.pool.wait_for_log(run_id, "Following Ray Job")
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
