"""Workers that are killed at any moment: one cluster, one job, and somebody who cleans up."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import StateType
from prefect.states import Pending, Scheduled

from prefect_ray_worker.clusters.kuberay.manifest import cluster_name, ray_cluster
from prefect_ray_worker.config.kuberay import KubeRay
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.prefect_api.slot_leases import SlotLeases
from prefect_ray_worker.runs.recovery import adopt
from prefect_ray_worker.runs.recovery.labels import Worker, labelled_owner, owner_labels
from prefect_ray_worker.runs.run import slot_lease_in
from prefect_ray_worker.shared.ids import (
    ClusterRef,
    attempt_name,
    present_claim,
    submission_id,
)
from tests.fake_kubernetes import NO_NODE, Fault, Kind, Script
from tests.integration.harness import set_timing
from tests.integration.kuberay.stage import KUBERAY, KubeRayStage
from tests.integration.stage import HEARTBEAT_SECONDS, MISSED_SECONDS, STAGE_INTERVAL
from tests.integration.worker_process import worker_process
from tests.waiting import wait_until


@contextmanager
def victim(stage: KubeRayStage, home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    env = {
        "PREFECT_WORKER_HEARTBEAT_SECONDS": str(HEARTBEAT_SECONDS),
        "PREFECT_INTEGRATIONS_RAY_WORKER_POLL_INTERVAL_SECONDS": str(STAGE_INTERVAL),
    }
    with worker_process(stage.pool.name, home, env=env) as process:
        yield process


async def goes_on_with_an_heir(stage: KubeRayStage, run_id: object) -> None:
    """Let another worker take the run over, to its end, and check what is left."""
    async with stage.pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await wait_until(
            lambda: stage.names_of(run_id), timeout=MISSED_SECONDS, description="a cluster"
        )
        _, job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
    created = stage.kubernetes.requests.number_of("POST", "/rayclusters$")
    jobs = sum(len(ray.jobs) for ray in stage.heads.by_cluster.values())
    assert jobs == 1, f"{jobs} jobs, {created} POSTs of a cluster"


@pytest.mark.extra
async def test_killed_before_the_cluster_is_created(stage: KubeRayStage, tmp_path: Path) -> None:
    stage.kubernetes.faults.add(Fault("GET", "/rayclusters$", kind=Kind.HANG, times=1))
    with victim(stage, tmp_path / "victim") as process:
        run_id = await stage.start()
        await wait_until(
            lambda: stage.kubernetes.requests.number_of("GET", "/rayclusters$") > 0,
            timeout=60,
            description="the victim's first request",
        )
        process.send_signal(signal.SIGKILL)
        process.wait()
    stage.kubernetes.faults.clear()
    assert not stage.names_of(run_id)
    await goes_on_with_an_heir(stage, run_id)


async def test_killed_after_the_cluster_is_created(stage: KubeRayStage, tmp_path: Path) -> None:
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    with victim(stage, tmp_path / "victim") as process:
        run_id = await stage.start()
        await wait_until(lambda: stage.names_of(run_id), timeout=60, description="a cluster")
        name = await stage.name_of(run_id)
        process.send_signal(signal.SIGKILL)
        process.wait()
    waits.unschedulable = None
    await goes_on_with_an_heir(stage, run_id)
    assert list(stage.heads.by_cluster) == [name], "the heir went on with the same cluster"


@pytest.mark.extra
async def test_stopped_while_the_cluster_starts(stage: KubeRayStage, tmp_path: Path) -> None:
    """Its run waited until Prefect counted the worker as offline, and ended after it."""
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    async with stage.pool.working(name="second", heartbeat_interval_seconds=30) as _:
        pass  # known to the server before the first one ends
    with victim(stage, tmp_path / "victim") as process:
        run_id = await stage.start()
        name = await stage.name_of(run_id)
        await stage.pool.wait_for_log(run_id, "waits for a node", seconds=40)
        process.send_signal(signal.SIGTERM)
        await wait_until(
            lambda: process.poll() is not None, timeout=20, description="the end of the worker"
        )
    owned = labelled_owner((await stage.pool.read(run_id)).labels)
    assert owned is not None
    assert owned[1].gave_up, "for the next worker"
    waits.unschedulable = None
    await goes_on_with_an_heir(stage, run_id)
    assert list(stage.heads.by_cluster) == [name], "the heir went on with the same cluster"


async def test_an_heir_finds_its_cluster_although_that_fills_the_quota(
    stage: KubeRayStage, tmp_path: Path
) -> None:
    """Kubernetes checks the quota before the name: the heir waited in line for itself."""
    stage.kubernetes.limit(1)
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    with victim(stage, tmp_path / "victim") as process:
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "waits for a node", seconds=40)
        process.send_signal(signal.SIGTERM)
        process.wait(20)
    waits.unschedulable = None
    await goes_on_with_an_heir(stage, run_id)


async def test_an_heir_keeps_the_deployments_slot_while_the_cluster_starts(
    stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lease ended, and a second run of the deployment began."""
    set_timing(monkeypatch, slot_interval=0.5)
    renewed: list[UUID] = []
    renew = SlotLeases.renew

    async def counted(self: SlotLeases, lease_id: UUID, deployment_id: UUID | None) -> bool:
        renewed.append(lease_id)
        return await renew(self, lease_id, deployment_id)

    monkeypatch.setattr(SlotLeases, "renew", counted)
    stage.kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    pool, client = stage.pool, stage.pool.client
    deployment = await pool.deploy("adds", job_variables={"kuberay": KUBERAY})
    await client.update_deployment(deployment, DeploymentUpdate(concurrency_limit=1))
    run = await client.create_flow_run_from_deployment(deployment, state=Scheduled())
    await client.set_flow_run_state(run.id, Pending())  # by a worker that dies then
    await client.update_flow_run_labels(run.id, {"prefect.worker.name": "dead"})
    lease_id = slot_lease_in(await client.read_flow_run_states(run.id))
    assert lease_id is not None
    async with pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await pool.wait_for_log(run.id, "waits for a node", seconds=40)
        await wait_until(lambda: len(renewed) >= 2, timeout=10, description="renewals")
        waits.unschedulable = None
        await stage.job_of(run.id)
    assert set(renewed) == {lease_id}


@pytest.mark.extra
async def test_killed_while_its_run_runs_and_the_run_ends_meanwhile(
    stage: KubeRayStage, tmp_path: Path
) -> None:
    with victim(stage, tmp_path / "victim") as process:
        run_id = await stage.start()
        await wait_until(lambda: stage.names_of(run_id), timeout=60, description="a cluster")
        _, job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.pool.wait_for_log(run_id, "is RUNNING", seconds=40)
        process.send_signal(signal.SIGKILL)
        process.wait()
    await stage.completes(run_id, job)
    async with stage.pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await wait_until(
            lambda: not stage.names_of(run_id), timeout=60, description="the cluster's end"
        )
    assert await stage.pool.state(run_id) == StateType.COMPLETED


async def test_cancelled_while_no_worker_is_there(stage: KubeRayStage, tmp_path: Path) -> None:
    stage.kubernetes.scripts.default = Script(unschedulable=NO_NODE)
    with victim(stage, tmp_path / "victim") as process:
        run_id = await stage.start()
        await wait_until(lambda: stage.names_of(run_id), timeout=60, description="a cluster")
        await stage.pool.wait_for_log(run_id, "waits for a node", seconds=40)
        process.send_signal(signal.SIGKILL)
        process.wait()
    await stage.pool.cancel(run_id)
    async with stage.pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await stage.ends(run_id, StateType.CANCELLED, seconds=60)
        await stage.is_gone(run_id)


async def recorded(stage: KubeRayStage, run_id: UUID) -> str:
    """Label a run as a worker does that is about to make its cluster; return the job's id."""
    claim = present_claim(await stage.pool.client.read_flow_run_states(run_id))
    assert claim is not None
    job_id = submission_id(run_id, claim)
    ref = ClusterRef("kuberay", f"ray/{cluster_name(job_id)}")
    labels = owner_labels(Worker("dead", "1"), attempt_name(claim), ref, None)
    await stage.pool.client.update_flow_run_labels(run_id, dict(labels))
    return job_id


async def test_the_cluster_of_a_run_that_crashed_before_its_job_is_kept_for_a_look(
    stage: KubeRayStage,
) -> None:
    client, kept = stage.pool.client, {**KUBERAY, "keep_failed_seconds": 600}
    deployment = await stage.pool.deploy("adds", job_variables={"kuberay": kept})
    run = await client.create_flow_run_from_deployment(deployment, state=Pending())
    job_id = await recorded(stage, run.id)
    pool = await client.read_work_pool(stage.pool.name)
    manifest = ray_cluster(KubeRay(**kept), job_id=job_id, pool_id=str(pool.id), namespace="ray")
    async with KubernetesClient() as kubernetes:
        await kubernetes.create_cluster(manifest)
    await stage.play(run.id, StateType.CRASHED)
    async with stage.pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await stage.pool.wait_for_log(run.id, "stays for 600 s", seconds=30)
    assert stage.names_of(run.id)


async def test_a_run_that_was_started_by_hand_is_not_ours_to_end(
    stage: KubeRayStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was Crashed while it ran, because Kubernetes had no cluster of its name."""
    deployment = await stage.pool.deploy("adds", job_variables={"kuberay": KUBERAY})

    async def running() -> UUID:
        client = stage.pool.client
        run = await client.create_flow_run_from_deployment(deployment, state=Pending())
        await client.update_flow_run_labels(run.id, {"prefect.worker.name": "dead"})
        await stage.play(run.id, StateType.RUNNING)
        return run.id

    runs, is_cancelled, was_ours = await running(), await running(), await running()
    await stage.pool.cancel(is_cancelled)
    await recorded(stage, was_ours)
    async with stage.pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        await stage.pool.wait_for_log(runs, "left alone", seconds=30)
        await stage.ends(was_ours, StateType.CRASHED, "ClusterDeleted")
        assert await stage.pool.state(runs) == StateType.RUNNING
        assert await stage.pool.state(is_cancelled) == StateType.CANCELLING
        # If no process of its own ends it, we do.
        monkeypatch.setattr(adopt, "_ENDS_BY_HAND_SECONDS", 0.0)
        await stage.ends(is_cancelled, StateType.CANCELLED)
        assert await stage.pool.state(runs) == StateType.RUNNING


SHARED = {"scope": "shared", "idle_seconds": 2}
MOMENTS = {
    "after it joined": ("PATCH", "/rayclusters/"),
    "after the job was submitted": ("POST", "/proxy/api/jobs/$"),
}


@pytest.mark.extra
@pytest.mark.parametrize("moment", MOMENTS)
async def test_the_heir_of_a_run_in_a_shared_cluster_finds_its_job_there(
    stage: KubeRayStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The victim is a real process; it dies after the request and before it knows the answer."""
    set_timing(monkeypatch, sweep=0.5)
    fault = Fault(*MOMENTS[moment], kind=Kind.ACT_THEN_DROP, times=None)
    stage.kubernetes.faults.add(fault)
    with victim(stage, tmp_path / "victim") as process:
        run_id = await stage.start(kuberay=SHARED)
        await wait_until(lambda: fault.hits > 0, timeout=90, description="the fatal request")
        process.send_signal(signal.SIGKILL)
        process.wait()
    stage.kubernetes.faults.clear()
    (name,) = stage.kubernetes.clusters()
    async with stage.pool.working(heartbeat_interval_seconds=HEARTBEAT_SECONDS):
        found, job = await stage.shared_job_of(run_id)
        assert found == name
        await stage.play(run_id, StateType.RUNNING)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await wait_until(
            lambda: not stage.kubernetes.clusters(), timeout=30, description="the cluster's end"
        )
    assert list(stage.heads.by_cluster) == [name]
