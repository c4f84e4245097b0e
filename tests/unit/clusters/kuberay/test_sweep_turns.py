"""A cluster goes although the worker that was chosen for it does not know its namespace."""

import anyio
import pytest

from prefect_ray_worker.clusters.kuberay.manifest import ray_cluster
from prefect_ray_worker.clusters.kuberay.places import SweptPlaces
from prefect_ray_worker.clusters.kuberay.reach import place_in
from prefect_ray_worker.config.kuberay import KubernetesConfig
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from tests.fake_kubernetes import NO_NODE, FakeKubernetes, Script
from tests.unit.clusters.kuberay.shared_stage import POOL_ID, QUICK, a_stage, ended
from tests.waiting import wait_until


async def test_a_worker_deletes_an_idle_cluster_that_is_anothers_to_delete(
    kubernetes: FakeKubernetes,
) -> None:
    """A cluster with GPUs stayed for ever."""
    stage = a_stage(kubernetes)
    async with stage.worker() as worker:
        run = stage.run()
        await worker.provide(run)
        run.goes_on = False
        await anyio.sleep(1.2)
        for _ in range(4):
            await worker.sweep(is_chosen=False)
            assert kubernetes.clusters(), "the chosen one deletes it as a rule"
        await worker.sweep(is_chosen=False)
        await wait_until(lambda: not kubernetes.clusters(), description="its end")
    assert "it has been idle for" in stage.said[-1]


async def test_a_worker_deletes_a_runs_own_cluster_that_is_anothers_to_delete(
    kubernetes: FakeKubernetes,
) -> None:
    stage = a_stage(kubernetes)
    run = stage.run()
    asked = stage.asked.model_copy(update={"scope": "run"})
    manifest = ray_cluster(asked, job_id=run.job_id, pool_id=str(POOL_ID), namespace="ray")
    config = stage.asked.kubeconfig
    assert config is not None
    async with KubernetesClient(Kubeconfig.of_block(config.config, config.context_name)) as client:
        name = (await client.create_cluster(manifest)).name
    document = kubernetes.store.find("rayclusters", "ray", name)
    assert document is not None
    document["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    async with stage.worker() as worker:  # its run is not in Prefect
        for _ in range(4):
            await worker.sweep(is_chosen=False)
            assert kubernetes.clusters() == [name]
        await worker.sweep(is_chosen=False)
        await wait_until(lambda: not kubernetes.clusters(), description="its end")
    assert "its flow run was deleted" in stage.said[-1]


async def test_a_new_worker_sweeps_the_namespaces_of_its_setting(
    kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After a restart of all workers, clusters outside the pool's own namespace stayed for ever."""
    setting = "PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES"
    monkeypatch.setenv(setting, '["secret", "ray", "other"]')
    stage = a_stage(kubernetes)
    run = stage.run()
    async with stage.worker() as worker:
        await worker.provide(run)
        run.goes_on = False
    await anyio.sleep(1.2)
    stage.asked = stage.asked.model_copy(update={"namespace": "other"})
    for rule in kubernetes.worker.rules:
        rule.namespaces = ["ray", "other"]
    async with stage.worker() as worker:
        for _ in range(2):
            await worker.sweep()
        await wait_until(lambda: not kubernetes.clusters(), description="its end")
    assert caplog.text.count("in namespace secret, ") == 1


async def test_no_run_chooses_where_a_sweep_sends_the_tokens_of_a_namespace_of_the_setting(
    kubernetes: FakeKubernetes,
) -> None:
    """The last run's `address_template` was the way to all shared clusters of the namespace."""
    asked = a_stage(kubernetes).asked
    assert asked.kubeconfig is not None
    key = Kubeconfig.of_block(asked.kubeconfig.config, asked.kubeconfig.context_name)
    of_run = asked.model_copy(update={"address_template": "https://attacker/{name}"})
    places = SweptPlaces()
    async with KubernetesClient(key) as client:
        places.name(client, ["ray"], asked)
        places.use(client, "ray", of_run)
        places.use(client, "own", of_run)
    ways = {place.namespace: places.ways(place)[0].asked for place in places.all()}
    assert ways == {"ray": asked, "own": of_run}


async def test_a_sweep_uses_the_token_that_the_pool_has_now(
    kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each former token was used in each namespace until the worker was restarted."""
    setting = "PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES"
    monkeypatch.setenv(setting, '["ray", "other"]')
    kubernetes.store.namespaces["other"] = "Active"
    stage = a_stage(kubernetes)
    run = stage.run()
    async with stage.worker() as worker:
        await worker.sweep()
        cluster = await worker.provide(run, namespace="other")
        kubernetes.users = {"renewed": kubernetes.worker}
        renewed = KubernetesConfig(config=kubernetes.kubeconfig("renewed"), context_name="fake")
        stage.asked = stage.asked.model_copy(update={"kubeconfig": renewed})
        await worker.sweep()
        kubernetes.store.delete("rayclusters", *place_in(cluster.ref))
        assert await worker.source.why_gone(cluster.ref) is not None


@pytest.mark.parametrize("setting", ['["ray", "other"]', "[]"], ids=["named", "not named"])
async def test_a_run_with_an_expired_token_does_not_keep_a_namespace_from_its_sweep(
    kubernetes: FakeKubernetes, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    """The last run's credentials were the only way there, and clusters stayed."""
    monkeypatch.setenv("PREFECT_INTEGRATIONS_RAY_WORKER_KUBERAY_NAMESPACES", setting)
    kubernetes.store.namespaces["other"] = "Active"
    stage = a_stage(kubernetes)
    expired = KubernetesConfig(config=kubernetes.kubeconfig("expired"), context_name="fake")
    async with stage.worker() as worker:
        await worker.provide(ended(stage.run()), namespace="other")
        await anyio.sleep(1.2)  # until it is idle
        configuration = stage.configuration(namespace="other", kubeconfig=expired)
        await worker.source.plan(configuration, stage.run().job_id)
        await worker.sweep()
        await wait_until(lambda: not kubernetes.clusters("other"), description="its end")


@pytest.mark.parametrize("scope", ["shared", "run"])
async def test_a_run_waits_on_with_the_token_that_the_pool_has_now(
    kubernetes: FakeKubernetes, scope: str
) -> None:
    """It was Crashed when its own token was refused, although the pool had a new one."""
    stage = a_stage(kubernetes)
    if scope == "run":
        stage.asked = stage.asked.model_copy(update={"scope": scope, "idle_seconds": None})
    kubernetes.scripts.default = waits = Script(unschedulable=NO_NODE)
    run = stage.run()
    async with stage.worker() as worker, anyio.create_task_group() as tasks:
        await worker.sweep()
        tasks.start_soon(worker.provide, run)
        await wait_until(lambda: len(run.said) > 1, description="a run that waits")
        kubernetes.users["renewed"] = kubernetes.worker
        renewed = KubernetesConfig(config=kubernetes.kubeconfig("renewed"), context_name="fake")
        stage.asked = stage.asked.model_copy(update={"kubeconfig": renewed})
        await worker.sweep()
        del kubernetes.users["worker-token"]
        await anyio.sleep(4 * QUICK.poll)
        waits.unschedulable = None
