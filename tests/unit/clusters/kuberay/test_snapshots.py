"""Few requests for many clusters that start, and no answer that is not certain."""

import anyio
import pytest

from prefect_ray_worker.clusters.kuberay.manifest import MANAGED_BY
from prefect_ray_worker.clusters.kuberay.snapshots import Snapshots
from prefect_ray_worker.errors import KubernetesUnreachable
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from tests.fake_kubernetes import FakeKubernetes, Fault, Kind, Script, a_manifest
from tests.waiting import wait_until

TICK = 0.2
MANY = 30
TICKS = 5


async def made(client: KubernetesClient, name: str) -> str:
    """Create a cluster as the worker does, and return its uid."""
    manifest = a_manifest(name)
    manifest["metadata"]["labels"] = MANAGED_BY
    return (await client.create_cluster(manifest)).uid


async def test_many_that_wait_cost_as_many_requests_as_one(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    """With a few requests for each, 1,000 that started sent 90,000 a minute."""
    kubernetes.scripts.default = Script(ignored=True)
    uids = {f"c{i}": await made(kubernetes_client, f"c{i}") for i in range(MANY)}
    snapshots = Snapshots(kubernetes_client, "ray", max_age=TICK)
    kubernetes.requests.reset()

    async def waits(name: str, uid: str) -> None:
        for _ in range(TICKS):
            assert await snapshots.objects(name, uid) is not None
            await anyio.sleep(TICK)

    async with anyio.create_task_group() as tasks:
        for name, uid in uids.items():
            tasks.start_soon(waits, name, uid)
    for kind in ("rayclusters", "pods", "events"):
        assert kubernetes.requests.number_of("GET", f"/{kind}$") <= TICKS + 1, kind
    assert kubernetes.requests.number_of("GET", "/rayclusters/") == 0


async def test_a_cluster_that_is_newer_than_the_list_is_there(
    kubernetes_client: KubernetesClient,
) -> None:
    snapshots = Snapshots(kubernetes_client, "ray", max_age=600)
    first = await made(kubernetes_client, "first")
    assert await snapshots.objects("first", first) is not None
    second = await made(kubernetes_client, "second")
    found = await snapshots.objects("second", second)
    assert found is not None
    assert found.cluster.uid == second


async def test_a_cluster_that_is_gone_or_another_of_its_name_is_not_there(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    snapshots = Snapshots(kubernetes_client, "ray", max_age=TICK)
    uid = await made(kubernetes_client, "mine")
    kubernetes.store.delete("rayclusters", "ray", "mine")
    assert await snapshots.objects("mine", uid) is None
    await made(kubernetes_client, "mine")
    assert await snapshots.objects("mine", uid) is None


async def test_events_are_read_until_there_are_pods(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    kubernetes.scripts["refused"] = Script(refused="a bad word")
    snapshots = Snapshots(kubernetes_client, "ray", max_age=0)
    refused, works = (
        await made(kubernetes_client, "refused"),
        await made(kubernetes_client, "works"),
    )

    async def reasons() -> set[str]:
        found = await snapshots.objects("refused", refused)
        return {event.reason for event in found.events} if found else set()

    assert await wait_until(reasons, description="an event") == {"InvalidRayClusterSpec"}

    async def has_pods() -> bool:
        found = await snapshots.objects("works", works)
        return found is not None and bool(found.pods)

    await wait_until(has_pods, description="a pod")
    kubernetes.requests.reset()
    assert await has_pods()
    assert kubernetes.requests.number_of("GET", "/events$") == 0


async def test_a_failure_is_shared_and_asked_again_in_the_next_tick(
    kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient
) -> None:
    snapshots = Snapshots(kubernetes_client, "ray", max_age=TICK)
    uid = await made(kubernetes_client, "mine")
    kubernetes.faults.add(Fault("GET", "/rayclusters$", kind=Kind.DROP, times=None))
    for _ in range(3):
        with pytest.raises(KubernetesUnreachable):
            await snapshots.objects("mine", uid)
    assert kubernetes.requests.number_of("GET", "/rayclusters$") <= 2
    kubernetes.faults.clear()

    async def there() -> bool:
        try:
            return await snapshots.objects("mine", uid) is not None
        except KubernetesUnreachable:
            return False

    await wait_until(there, description="an answer")
