"""Two workers of one pool, and each asks another Kubernetes: what one cannot see is not gone."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import anyio
import pytest
from prefect.client.schemas.objects import StateType
from prefect.exceptions import InfrastructureNotAvailable, InfrastructureNotFound

from prefect_ray_worker.prefect_api.flow_runs import FlowRuns
from prefect_ray_worker.worker import RayWorker
from tests.fake_kubernetes import NO_NODE, FakeKubernetes, Script
from tests.integration.kuberay.stage import KubeRayStage
from tests.integration.stage import HEARTBEAT_SECONDS
from tests.waiting import wait_until

# Some looks for orphans: a worker that is the only one has had its last resort by then.
_LOOKS = 3 * HEARTBEAT_SECONDS


@pytest.fixture
async def other() -> AsyncIterator[FakeKubernetes]:
    """Another Kubernetes than the stage's."""
    async with FakeKubernetes() as kubernetes:
        yield kubernetes


WorkerOf = Callable[..., AbstractAsyncContextManager[RayWorker]]


@pytest.fixture
def worker_of(stage: KubeRayStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WorkerOf:
    """A function that runs a worker of the pool which asks one Kubernetes."""

    @asynccontextmanager
    async def worker_of(
        kubernetes: FakeKubernetes, name: str = "worker"
    ) -> AsyncIterator[RayWorker]:
        monkeypatch.setenv("KUBECONFIG", str(kubernetes.write_kubeconfig(tmp_path)))
        every = HEARTBEAT_SECONDS
        async with stage.pool.working(name=name, heartbeat_interval_seconds=every) as (worker,):
            flow_runs = FlowRuns(stage.pool.client)

            async def is_online() -> bool:
                return name in await flow_runs.online_workers(stage.pool.name)

            await wait_until(is_online, timeout=20, description="the worker's first heartbeat")
            yield worker

    return worker_of


@pytest.mark.parametrize("name", ["worker", pytest.param("another", marks=pytest.mark.extra)])
async def test_a_run_whose_cluster_is_in_another_kubernetes_goes_on(
    stage: KubeRayStage, other: FakeKubernetes, worker_of: WorkerOf, name: str
) -> None:
    """Its worker was started again with another kubeconfig, and crashed it: ClusterDeleted."""
    async with worker_of(stage.kubernetes):
        run_id, _, job = await stage.running()
    async with worker_of(other, name):
        await anyio.sleep(_LOOKS)
        assert await stage.pool.state(run_id) == StateType.RUNNING
    async with worker_of(stage.kubernetes):
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)


@pytest.mark.parametrize("name", ["another", pytest.param("worker", marks=pytest.mark.extra)])
async def test_a_run_whose_cluster_starts_in_another_kubernetes_gets_no_second_one(
    stage: KubeRayStage, other: FakeKubernetes, worker_of: WorkerOf, name: str
) -> None:
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    async with worker_of(stage.kubernetes):
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "waits for a node", seconds=40)
    async with worker_of(other, name):
        await anyio.sleep(_LOOKS)
        assert await stage.pool.state(run_id) == StateType.PENDING
    assert not other.clusters()
    waits.unschedulable = None
    async with worker_of(stage.kubernetes):
        _, job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)


async def test_a_job_in_another_kubernetes_is_not_said_to_be_gone(
    stage: KubeRayStage, other: FakeKubernetes, worker_of: WorkerOf
) -> None:
    """Prefect would count its run as cancelled, and the job would run on."""
    async with worker_of(stage.kubernetes) as worker:
        run_id, _, _ = await stage.running()
        run = await stage.pool.read(run_id)
        pid = run.infrastructure_pid or ""
        configuration = await worker._configurations.of(run)
    async with worker_of(other, "another") as worker:
        with pytest.raises(InfrastructureNotAvailable, match="another place of that kind"):
            await worker.kill_infrastructure(pid, configuration, grace_seconds=1)
    stage.kubernetes.store.delete("rayclusters", "ray", stage.names_of(run_id)[0])
    async with worker_of(stage.kubernetes, "third") as worker:
        await wait_until(
            lambda: not stage.names_of(run_id), timeout=20, description="the cluster's end"
        )
        with pytest.raises(InfrastructureNotFound):
            await worker.kill_infrastructure(pid, configuration, grace_seconds=1)
