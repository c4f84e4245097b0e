"""A cluster for each run: it comes, takes the job and goes, whatever happens in between."""

from prefect.client.schemas.objects import StateType

from tests.fake_kubernetes import NO_NODE, Script
from tests.integration.kuberay.stage import KubeRayStage
from tests.waiting import wait_until


async def test_a_run_gets_a_cluster_that_goes_after_it(stage: KubeRayStage) -> None:
    async with stage.pool.working():
        run_id, ray, job = await stage.running()
        name = await stage.name_of(run_id)
        run = await stage.pool.read(run_id)
        assert (run.infrastructure_pid or "").startswith(f"kuberay:ray/{name}@")
        assert ray.token, "the cluster wants a token, and the job was submitted all the same"
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
        await stage.pool.wait_for_log(run_id, f"Created the RayCluster ray/{name}.")
        await stage.pool.wait_for_log(run_id, f"Deleting the RayCluster ray/{name}.")


async def test_a_failed_job_crashes_its_run_and_the_cluster_goes(stage: KubeRayStage) -> None:
    async with stage.pool.working():
        run_id, _, job = await stage.running()
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED, "exit code 7")
        await stage.is_gone(run_id)


async def test_the_cluster_of_a_failed_run_is_kept_for_a_look(stage: KubeRayStage) -> None:
    async with stage.pool.working():
        run_id, _, job = await stage.running(kuberay={"keep_failed_seconds": 600})
        job.set("FAILED", driver_exit_code=7)
        await stage.ends(run_id, StateType.CRASHED)
        await stage.pool.wait_for_log(run_id, "stays for 600 s")
        assert stage.names_of(run_id)


async def test_the_cluster_of_a_run_that_is_crashed_while_it_starts_is_kept_too(
    stage: KubeRayStage,
) -> None:
    stage.kubernetes.scripts.default = Script(unschedulable=NO_NODE)
    async with stage.pool.working():
        run_id = await stage.start(kuberay={"keep_failed_seconds": 600})
        await stage.pool.wait_for_log(run_id, "the head waits for a node: 0/5 nodes")
        await stage.play(run_id, StateType.CRASHED)
        await stage.pool.wait_for_log(run_id, "stays for 600 s")
        assert stage.names_of(run_id)


async def test_cancelling_while_the_cluster_starts_deletes_it(stage: KubeRayStage) -> None:
    stage.kubernetes.scripts.default = Script(unschedulable=NO_NODE)
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "the head waits for a node: 0/5 nodes")
        run = await stage.pool.read(run_id)
        assert run.state is not None
        assert run.state.name == "InfrastructurePending"
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, StateType.CANCELLED, seconds=15)
        await stage.is_gone(run_id)


async def test_cancelling_a_run_whose_job_runs_stops_it_and_deletes_the_cluster(
    stage: KubeRayStage,
) -> None:
    async with stage.pool.working():
        run_id, _, job = await stage.running(stop_grace_seconds=1)
        await stage.pool.cancel(run_id)
        await stage.ends(run_id, StateType.CANCELLED)
        assert job.stop_requests, "the job was stopped, not only forgotten"
        await stage.is_gone(run_id)


async def test_a_run_that_is_deleted_while_its_cluster_starts_leaves_none(
    stage: KubeRayStage,
) -> None:
    stage.kubernetes.scripts.default = Script(unschedulable=NO_NODE)
    async with stage.pool.working():
        run_id = await stage.start()
        await stage.pool.wait_for_log(run_id, "waits for a node")
        await stage.pool.client.delete_flow_run(run_id)
        await stage.is_gone(run_id)


async def test_a_run_whose_cluster_is_deleted_crashes_at_once(stage: KubeRayStage) -> None:
    async with stage.pool.working():
        run_id, _, _ = await stage.running()
        name = await stage.name_of(run_id)
        stage.kubernetes.store.delete("rayclusters", "ray", name)
        await stage.ends(run_id, StateType.CRASHED, "^ClusterDeleted: ")


async def test_a_retry_after_the_head_died_gets_a_new_cluster(stage: KubeRayStage) -> None:
    async with stage.pool.working():
        run_id, _, _ = await stage.running(infrastructure_retries=1)
        first = await stage.name_of(run_id)
        await stage.kubernetes.kubelet.kill_head("ray", first)
        await wait_until(
            lambda: any(name != first for name in stage.names_of(run_id)),
            timeout=40,
            description="another cluster",
        )
        await wait_until(
            lambda: first not in stage.names_of(run_id), timeout=20, description="the first's end"
        )
        second = await stage.name_of(run_id)
        _, job = await stage.job_of(run_id)
        await stage.play(run_id, StateType.RUNNING)
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
        await stage.is_gone(run_id)
        assert first != second


async def test_an_override_of_one_field_keeps_the_rest_of_the_pool(stage: KubeRayStage) -> None:
    async with stage.pool.working():
        run_id, _, job = await stage.running(**{"kuberay.queue": "research"})
        name = await stage.name_of(run_id)
        cluster = stage.kubernetes.store.get("rayclusters", "ray", name)
        assert cluster["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"
        await stage.completes(run_id, job)
        await stage.ends(run_id, StateType.COMPLETED)
