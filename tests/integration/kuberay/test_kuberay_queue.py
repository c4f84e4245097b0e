"""A cluster that a queue such as Kueue suspends until it admits it."""

from typing import Any

import anyio
from prefect.client.schemas.objects import StateType

from tests.integration.kuberay.stage import KubeRayStage
from tests.waiting import wait_until

LIMIT = 3


def suspend(stage: KubeRayStage, name: str, *, wanted: bool) -> None:
    """Do what Kueue does with the RayClusters of its queues."""
    stage.kubernetes.store.patch("rayclusters", "ray", name, {"spec": {"suspend": wanted}})


async def is_suspended(stage: KubeRayStage, name: str) -> None:
    def suspended() -> bool:
        cluster: dict[str, Any] = stage.kubernetes.store.get("rayclusters", "ray", name)
        conditions = cluster.get("status", {}).get("conditions", [])
        return any(c["type"] == "RayClusterSuspended" and c["status"] == "True" for c in conditions)

    await wait_until(suspended, description="a suspended cluster")


async def test_time_in_a_queue_does_not_count_and_the_run_says_what_it_waits_for(
    stage: KubeRayStage,
) -> None:
    stage.kubernetes.scripts.default.unschedulable = "not yet"
    async with stage.pool.working():
        run_id = await stage.start(kuberay={"queue": "research", "start_timeout_seconds": LIMIT})
        name = await stage.name_of(run_id)
        suspend(stage, name, wanted=True)
        await is_suspended(stage, name)
        created = stage.kubernetes.store.get("rayclusters", "ray", name)["metadata"]
        assert created["labels"]["kueue.x-k8s.io/queue-name"] == "research"
        await stage.pool.wait_for_log(run_id, "waits to be admitted by its queue")
        await anyio.sleep(LIMIT + 1)  # longer than the limit
        assert (await stage.pool.read(run_id)).state_name == "InfrastructurePending"
        stage.kubernetes.scripts.default.unschedulable = None
        suspend(stage, name, wanted=False)
        _, job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
