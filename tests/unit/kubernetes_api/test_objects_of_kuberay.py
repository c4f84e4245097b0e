"""What a client reads of a RayCluster in each trouble; the simulated operator is tested with it."""

import math
from collections.abc import Callable
from typing import TypeVar

import pytest

from prefect_ray_worker.errors import ObjectMissing
from prefect_ray_worker.kubernetes_api.client import KubernetesClient
from prefect_ray_worker.kubernetes_api.models import EventObject, PodObject, RayClusterObject
from tests.fake_kubernetes import NO_NODE, FakeKubernetes, Script, a_manifest
from tests.waiting import wait_until

T = TypeVar("T")
Look = Callable[[RayClusterObject, list[PodObject], list[EventObject]], bool]


class Scene:
    """A cluster named `mine`, and what a client reads of it."""

    def __init__(self, kubernetes: FakeKubernetes, client: KubernetesClient) -> None:
        self.kubernetes = kubernetes
        self.client = client

    async def create(self, **spec: object) -> RayClusterObject:
        return await self.client.create_cluster(a_manifest("mine", **spec))

    async def until(self, look: Look, what: str) -> RayClusterObject:
        async def seen() -> RayClusterObject | None:
            cluster = await self.client.get_cluster("ray", "mine")
            pods = await self.client.pods("ray", "mine")
            events = await self.client.events("ray", cluster.uid)
            return cluster if look(cluster, pods, events) else None

        found = await wait_until(seen, description=what)
        assert found is not None
        return found

    async def until_gone(self) -> None:
        async def gone() -> bool:
            try:
                await self.client.get_cluster("ray", "mine")
            except ObjectMissing:
                return True
            return False

        await wait_until(gone, description="the cluster is gone")


@pytest.fixture
def scene(kubernetes: FakeKubernetes, kubernetes_client: KubernetesClient) -> Scene:
    return Scene(kubernetes, kubernetes_client)


def reason(cluster: RayClusterObject, kind: str = "HeadPodReady") -> str:
    found = cluster.condition(kind)
    return found.reason if found is not None else ""


async def test_a_head_that_is_ready_is_seen_with_its_service_and_its_pod(scene: Scene) -> None:
    created = await scene.create()
    assert created.conditions == ()
    cluster = await scene.until(lambda c, *_: c.is_true("RayClusterProvisioned"), "ready")
    assert cluster.is_true("HeadPodReady")
    assert cluster.head_service == "mine-head-svc"
    (pod,) = await scene.client.pods("ray", "mine")
    assert (pod.name, pod.is_head, pod.is_ready) == (cluster.head_pod, True, True)
    assert pod.belongs_to(cluster.uid)
    assert not pod.belongs_to("another")


async def test_an_operator_that_is_absent_leaves_nothing(scene: Scene) -> None:
    scene.kubernetes.scripts["mine"] = Script(ignored=True)
    cluster = await scene.create()
    assert await scene.client.events("ray", cluster.uid) == []
    assert (await scene.client.get_cluster("ray", "mine")).conditions == ()
    scene.kubernetes.scripts["mine"].ignored = False
    await scene.until(lambda c, *_: c.is_true("HeadPodReady"), "ready after all")


@pytest.mark.parametrize("writes_new_events", [True, False])
async def test_a_refused_spec_is_an_event_and_nothing_else(
    scene: Scene, writes_new_events: bool
) -> None:
    scene.kubernetes.operator.writes_new_events = writes_new_events
    created = await scene.create(rayVersion="2.40.0", authOptions={"mode": "token"})
    cluster = await scene.until(lambda _c, _p, events: bool(events), "an event")
    assert cluster.conditions == ()
    (event,) = await scene.client.events("ray", created.uid)
    assert event.reason == "InvalidRayClusterSpec"
    assert "minimum Ray version is 2.52.0" in event.message
    assert event.at is not None


async def test_a_head_without_a_node_has_the_schedulers_words_on_its_pod_only(
    scene: Scene,
) -> None:
    scene.kubernetes.scripts["mine"] = Script(unschedulable=NO_NODE)
    await scene.create()
    cluster = await scene.until(lambda _c, pods, _e: any(p.unschedulable for p in pods), "no node")
    (pod,) = await scene.client.pods("ray", "mine")
    assert pod.unschedulable == NO_NODE
    cluster = await scene.until(lambda c, *_: reason(c) != "", "a condition")
    assert reason(cluster) == "Unknown"
    scene.kubernetes.scripts["mine"].unschedulable = None
    await scene.until(lambda c, *_: c.is_true("HeadPodReady"), "a node came")


async def test_an_image_that_cannot_be_pulled_is_the_heads_condition(scene: Scene) -> None:
    scene.kubernetes.scripts["mine"] = Script(image="pull access denied")
    await scene.create()
    await scene.until(lambda c, *_: reason(c) == "ImagePullBackOff", "the image")
    (pod,) = await scene.client.pods("ray", "mine")
    assert pod.containers[0].waiting == "ImagePullBackOff"
    assert pod.containers[0].waiting_message == "pull access denied"
    assert await scene.client.pod_log("ray", pod.name, 10) == ""


async def test_a_crash_loop_counts_restarts_and_leaves_last_words(scene: Scene) -> None:
    scene.kubernetes.scripts["mine"] = Script(crashes=math.inf, last_words="one\ntwo\nthree\n")
    await scene.create()

    def loops(_c: object, pods: list[PodObject], _e: object) -> bool:
        return any(c.restarts >= 3 for p in pods for c in p.containers)

    await scene.until(loops, "three restarts")
    (pod,) = await scene.client.pods("ray", "mine")
    container = pod.containers[0]
    assert (container.waiting, container.ended, container.exit_code) == (
        "CrashLoopBackOff",
        "Error",
        1,
    )
    assert await scene.client.pod_log("ray", pod.name, 2) == "two\nthree\n"
    assert await scene.client.pod_log("ray", pod.name, 1, previous=True) == "three\n"


async def test_a_head_that_recovers_after_crashes_becomes_ready(scene: Scene) -> None:
    scene.kubernetes.scripts["mine"] = Script(crashes=2, out_of_memory=True)
    await scene.create()
    await scene.until(lambda c, *_: c.is_true("HeadPodReady"), "ready at last")
    (pod,) = await scene.client.pods("ray", "mine")
    assert (pod.containers[0].restarts, pod.containers[0].ended) == (2, "OOMKilled")


async def test_a_pod_quota_is_a_replica_failure_until_there_is_room(scene: Scene) -> None:
    quota = scene.kubernetes.limit(0, resource="pods")
    await scene.create()
    cluster = await scene.until(lambda c, *_: c.is_true("ReplicaFailure"), "no room")
    failure = cluster.condition("ReplicaFailure")
    assert failure is not None
    assert failure.reason == "FailedCreateHeadPod"
    assert "exceeded quota" in failure.message
    quota.hard = 1
    cluster = await scene.until(lambda c, *_: c.is_true("HeadPodReady"), "room")
    assert cluster.condition("ReplicaFailure") is None


async def test_a_quota_on_services_is_an_event_and_leaves_the_status_empty(scene: Scene) -> None:
    scene.kubernetes.limit(0, resource="services")
    cluster = await scene.create()
    await scene.until(lambda _c, _p, events: bool(events), "an event")
    (event,) = await scene.client.events("ray", cluster.uid)
    assert event.reason == "FailedToCreateService"
    assert (await scene.client.get_cluster("ray", "mine")).conditions == ()


async def test_a_secret_that_is_missing_is_named_on_the_pod(scene: Scene) -> None:
    await scene.create(authOptions={"mode": "token", "secretName": "of-the-pool"})
    await scene.until(lambda c, *_: reason(c) == "CreateContainerConfigError", "no secret")
    (pod,) = await scene.client.pods("ray", "mine")
    assert pod.containers[0].waiting_message == 'secret "of-the-pool" not found'


async def test_a_suspended_cluster_has_a_service_and_no_pods(scene: Scene) -> None:
    await scene.create(suspend=True)
    cluster = await scene.until(lambda c, *_: c.is_true("RayClusterSuspended"), "suspended")
    assert cluster.suspended
    assert cluster.head_service == "mine-head-svc"
    assert await scene.client.pods("ray", "mine") == []


@pytest.mark.parametrize("evicted", [False, True])
async def test_a_head_that_was_killed_comes_back_as_another_ray(
    scene: Scene, evicted: bool
) -> None:
    await scene.create()
    before = await scene.until(lambda c, *_: c.is_true("HeadPodReady"), "ready")
    session = scene.kubernetes.heads.by_cluster["mine"].session_name  # type: ignore[attr-defined]
    await scene.kubernetes.kubelet.kill_head("ray", "mine", evicted=evicted)

    def is_another(cluster: RayClusterObject, *_: object) -> bool:
        now = scene.kubernetes.heads.by_cluster["mine"].session_name  # type: ignore[attr-defined]
        return cluster.is_true("HeadPodReady") and now != session

    after = await scene.until(is_another, "another head")
    # In place, the pod stays; evicted, the operator makes another. Provisioned stays true.
    assert (after.head_pod == before.head_pod) is not evicted
    assert after.is_true("RayClusterProvisioned")


async def test_a_finalizer_holds_the_deletion_and_is_named(scene: Scene) -> None:
    scene.kubernetes.scripts["mine"] = Script(held=True)
    await scene.create()
    await scene.until(lambda c, *_: c.is_true("HeadPodReady"), "ready")
    await scene.client.delete_cluster("ray", "mine")
    cluster = await scene.until(lambda _c, pods, _e: not pods, "its pods are gone")
    assert cluster.is_terminating
    assert "ray.io/gcs-ft-redis-cleanup-finalizer" in cluster.finalizers
    scene.kubernetes.scripts["mine"].held = False
    await scene.until_gone()


async def test_a_deletion_that_is_seen_late_leaves_the_pods_for_a_while(scene: Scene) -> None:
    scene.kubernetes.store.collect_seconds = 0.4
    scene.kubernetes.kubelet.stop_seconds = 0.2
    await scene.create()
    await scene.until(lambda c, *_: c.is_true("HeadPodReady"), "ready")
    await scene.client.delete_cluster("ray", "mine")
    assert len(await scene.client.pods("ray", "mine")) == 1
    assert (await scene.client.get_cluster("ray", "mine")).is_terminating
    await scene.until_gone()
    assert await scene.client.pods("ray", "mine") == []


async def test_workers_have_groups_and_count_for_provisioned(scene: Scene) -> None:
    template = {"spec": {"containers": [{"name": "ray-worker", "image": "a"}]}}
    group = {"groupName": "cpu", "replicas": 2, "minReplicas": 1, "maxReplicas": 3}
    await scene.create(workerGroupSpecs=[{**group, "template": template}])
    await scene.until(lambda c, *_: c.is_true("RayClusterProvisioned"), "all ready")
    pods = await scene.client.pods("ray", "mine")
    assert sorted(pod.labels["ray.io/group"] for pod in pods) == ["cpu", "cpu", "headgroup"]
    of_all = await scene.client.pods("ray", labels={"ray.io/node-type": "worker"}, cached=True)
    assert len(of_all) == 2
