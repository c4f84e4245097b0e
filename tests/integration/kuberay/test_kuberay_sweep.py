"""What no run needs any more is deleted, by a worker or by the command that a CronJob calls."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import StateType

from prefect_ray_worker.clusters.kuberay.manifest import cluster_name, ray_cluster
from prefect_ray_worker.commands.sweep import sweep
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.doctor.kuberay import probe_of
from prefect_ray_worker.errors import InvalidConfiguration
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from tests.integration.harness import set_default
from tests.integration.kuberay.stage import KUBERAY, KubeRayStage
from tests.waiting import wait_until


@pytest.fixture
async def stage(stage: KubeRayStage) -> KubeRayStage:
    """The pool names a cluster itself: the command knows no deployment."""
    await set_default(stage.pool, "kuberay", KUBERAY)
    return stage


async def left_behind(
    stage: KubeRayStage, run_id: UUID, *, age: float, namespace: str = "ray", **more: int
) -> str:
    """Create the cluster of an attempt that no worker knows any more."""
    pool = await stage.pool.client.read_work_pool(stage.pool.name)
    job_id = f"prefect-{run_id}-0123456789ab"
    manifest = ray_cluster(
        KubeRay(**KUBERAY, **more), job_id=job_id, pool_id=str(pool.id), namespace=namespace
    )
    async with KubernetesClient() as client:
        await client.create_cluster(manifest)
    name = cluster_name(job_id)
    set_age(stage, name, age, namespace)
    return name


def set_age(stage: KubeRayStage, name: str, age: float, namespace: str = "ray") -> None:
    created = datetime.now(UTC) - timedelta(seconds=age)
    document = stage.kubernetes.store.find("rayclusters", namespace, name)
    assert document is not None
    document["metadata"]["creationTimestamp"] = created.strftime("%Y-%m-%dT%H:%M:%SZ")


Swept = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def swept(stage: KubeRayStage, capsys: pytest.CaptureFixture[str]) -> Swept:
    """A function that sweeps as the command does; returns its exit code and what it says."""

    async def swept(pool: str = stage.pool.name) -> tuple[int, str]:
        capsys.readouterr()
        code = await sweep(pool=pool)
        said = capsys.readouterr()
        return code, said.out + said.err

    return swept


async def test_the_command_deletes_what_no_run_needs_and_nothing_else(
    stage: KubeRayStage, swept: Swept
) -> None:
    waiting = await stage.start()
    await stage.play(waiting, StateType.RUNNING)
    needed = await left_behind(stage, waiting, age=1000)
    young = await left_behind(stage, uuid4(), age=10)
    old = await left_behind(stage, uuid4(), age=1000)
    too_old = await left_behind(stage, await stage.start(), age=1000, max_lifetime_seconds=100)
    code, said = await swept()
    assert code == 0, said
    assert f"Deleting the RayCluster ray/{old}: its flow run was deleted." in said
    assert f"Deleting the RayCluster ray/{too_old}: it is older than 100 s" in said
    assert young not in said
    assert needed not in said
    await wait_until(
        lambda: not {old, too_old} & set(stage.kubernetes.clusters()),
        timeout=20,
        description="the end of two clusters",
    )
    assert {needed, young} <= set(stage.kubernetes.clusters())
    assert await swept() == (0, "There is nothing to delete.\n")


async def test_the_probe_of_a_killed_doctor_is_deleted(stage: KubeRayStage, swept: Swept) -> None:
    names: list[str] = []
    async with KubernetesClient() as client:
        for _ in range(2):
            job_id = f"prefect-{uuid4()}-0123456789ab"
            manifest = ray_cluster(KubeRay(**KUBERAY), job_id=job_id, pool_id="", namespace="ray")
            created = await client.create_cluster(probe_of(manifest))
            names.append(created.name)
    old, present = names
    set_age(stage, old, 1000)
    code, said = await swept()
    assert code == 0, said
    assert said == f"Deleting the RayCluster ray/{old}: a doctor has left it.\n"
    await wait_until(lambda: old not in stage.kubernetes.clusters(), description="its end")
    assert present in stage.kubernetes.clusters()


async def test_a_namespace_that_cannot_be_swept_keeps_none_of_the_others(
    stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command stopped at the first one."""
    old = await left_behind(stage, uuid4(), age=1000)
    await set_default(stage.pool, "kuberay", {**KUBERAY, "namespace": "elsewhere"})
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES", '["ray"]')
    assert await sweep(pool=stage.pool.name, namespace=["ray"]) == 2
    said = capsys.readouterr()
    assert f"Deleting the RayCluster ray/{old}" in said.out
    assert "'elsewhere'" in said.err


async def test_the_command_says_what_it_cannot_do(stage: KubeRayStage, swept: Swept) -> None:
    with pytest.raises(InvalidConfiguration, match=r"no work pool 'no-such-pool'\. `prefect work-"):
        await swept("no-such-pool")
    stage.kubernetes.worker.take_away("rayclusters", "list")
    code, said = await swept()
    assert code == 1
    assert "must not list rayclusters.ray.io" in said
