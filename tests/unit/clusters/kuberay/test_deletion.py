"""A deletion that does not end is told once, with what holds it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from prefect_ray_worker.clusters.kuberay.deletion import Deletions
from prefect_ray_worker.clusters.kuberay.manifest import MANAGED_BY, ray_cluster
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.prefect_api import cluster_events
from prefect_ray_worker.prefect_api.cluster_events import ClusterEvents
from tests.fake_kubernetes import FakeKubernetes, Script
from tests.unit.clusters.kuberay.shared_stage import POOL_ID, Run, View, a_stage
from tests.waiting import wait_until


async def test_a_deletion_that_takes_five_minutes_is_told_once(
    kubernetes: FakeKubernetes,
    kubernetes_client: KubernetesClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sent, said = list[dict[str, Any]](), list[str]()
    monkeypatch.setattr(cluster_events, "emit_event", lambda **event: sent.append(event))
    kubernetes.scripts.default = Script(held=True)
    asked = a_stage(kubernetes).asked.model_copy(update={"scope": "run"})
    manifest = ray_cluster(asked, job_id=Run().job_id, pool_id=str(POOL_ID), namespace="ray")
    name = (await kubernetes_client.create_cluster(manifest)).name
    get = kubernetes.store.get
    await wait_until(
        lambda: get("rayclusters", "ray", name)["metadata"].get("finalizers"),
        description="the finalizer",
    )
    deletions = Deletions(ClusterEvents())
    (cluster,) = await deletions.list(kubernetes_client, "ray", MANAGED_BY, View([]), said.append)
    assert await deletions.delete(kubernetes_client, cluster, "Its run has ended.")

    async def look(seconds: float) -> list[str]:
        """Look at the cluster as if its deletion had begun so long ago."""
        stored = kubernetes.store.find("rayclusters", "ray", name)
        assert stored is not None
        began = datetime.now(UTC) - timedelta(seconds=seconds)
        stored["metadata"]["deletionTimestamp"] = began.strftime("%Y-%m-%dT%H:%M:%SZ")
        await deletions.list(kubernetes_client, "ray", MANAGED_BY, View([]), said.append)
        return [event["event"].rpartition(".")[2] for event in sent]

    assert await look(290) == ["deleting"]
    assert said == []
    for _ in range(2):
        assert await look(302) == ["deleting", "stuck"]
    (line,) = said
    assert "has been under deletion for 30" in line
    assert "what holds it: ray.io/gcs-ft-redis-cleanup-finalizer" in line
    assert sent[-1]["payload"] == {"message": line}
