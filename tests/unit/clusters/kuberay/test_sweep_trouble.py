"""One cluster that cannot be deleted, or asked, does not keep a sweep from the others."""

import anyio
import pytest

from prefect_ray_worker.clusters.kuberay.manifest import ray_cluster
from prefect_ray_worker.errors import KubernetesError
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.credentials import Kubeconfig
from tests.fake_kubernetes import FakeKubernetes, Fault, Kind
from tests.unit.clusters.kuberay.shared_stage import POOL_ID, a_stage, ended, name_of
from tests.waiting import wait_until


async def test_a_cluster_whose_deletion_is_refused_does_not_keep_from_the_others(
    kubernetes: FakeKubernetes,
) -> None:
    """The sweep of the namespace ended there each minute, for as long as a webhook refused."""
    stage = a_stage(kubernetes)
    config = stage.asked.kubeconfig
    assert config is not None
    own: list[str] = []
    async with stage.worker() as worker:
        shared = name_of(await worker.provide(ended(stage.run())))
        key = Kubeconfig.of_block(config.config, config.context_name)
        async with KubernetesClient(key) as client:
            asked = stage.asked.model_copy(update={"scope": "run"})
            for run in (stage.run(), stage.run()):
                manifest = ray_cluster(
                    asked, job_id=run.job_id, pool_id=str(POOL_ID), namespace="ray"
                )
                own.append((await client.create_cluster(manifest)).name)
                document = kubernetes.store.find("rayclusters", "ray", own[-1])
                assert document is not None
                document["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
        await anyio.sleep(1.2)  # until the shared one is idle
        stuck = min(own)
        kubernetes.faults.add(
            Fault("DELETE", f"/rayclusters/{stuck}$", Kind.STATUS, None, status=422)
        )
        with pytest.raises(KubernetesError):
            await worker.sweep()
        await wait_until(lambda: kubernetes.clusters() == [stuck], description="the others' end")
    assert any(shared in line for line in stage.said)


async def test_a_shared_cluster_that_cannot_be_asked_does_not_keep_from_the_others(
    kubernetes: FakeKubernetes,
) -> None:
    """One with a `token_secret` that Kubernetes cannot have ended each sweep."""
    stage = a_stage(kubernetes)
    async with stage.worker() as worker:
        first = await worker.provide(ended(stage.run()))
        second = await worker.provide(ended(stage.run()), idle_seconds=2)
        name = min(map(name_of, (first, second)))
        document = kubernetes.store.find("rayclusters", "ray", name)
        assert document is not None
        document["spec"]["authOptions"]["secretName"] = "ray_token"
        await anyio.sleep(2.2)
        await worker.sweep()
        await wait_until(lambda: kubernetes.clusters() == [name], description="the other's end")
